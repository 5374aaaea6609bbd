"""The two configs of docs/clients.md for LiteLLM's proxy, run by the real proxy before a real gateway."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx2
import pytest

from tests.conftest import LEXICAL, NOW
from tests.docs.conftest import KEY, UPSTREAM_KEY, Behind
from tests.docs.recipes import clean, recipes
from tests.gateway.serving import serve
from tests.gateway.standin import Standin
from tracer import flywheel
from tracer.gateway.credentials import sha256_of
from tracer.pipeline import Certified
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.types import Dataset

pytestmark = pytest.mark.clients
MASTER = "sk-of-the-proxy"


def config(name: str) -> str:
    return next(one.code for one in recipes() if (one.kind, one.name) == ("proxy", name))


@contextmanager
def proxy(name: str, environ: Mapping[str, str], folder: Path) -> Iterator[httpx2.Client]:
    """LiteLLM's proxy in a process of its own, with a config of the page."""
    path = folder / "config.yaml"
    path.write_text(config(name), encoding="utf-8")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    program = Path(sys.executable).with_name("litellm")
    command = [str(program), "--config", str(path), "--host", "127.0.0.1", "--port", str(port)]
    more = {"LITELLM_MASTER_KEY": MASTER, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_TELEMETRY": "False"}
    log = folder / "log"
    with log.open("wb") as out:
        running = subprocess.Popen(
            command, env=clean() | dict(environ) | more, cwd=folder, stdout=out, stderr=out, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx2.Client(base_url=url, timeout=60.0, headers={"authorization": f"Bearer {MASTER}"}) as client:
            until = time.monotonic() + 120.0
            while time.monotonic() < until:
                assert running.poll() is None, log.read_text(encoding="utf-8")[-2000:]
                try:
                    if client.get("/health/liveliness").status_code == 200:
                        break
                except httpx2.TransportError:
                    time.sleep(0.5)
            yield client
    finally:
        os.killpg(running.pid, signal.SIGTERM)
        try:
            running.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait(20)


def test_the_gateway_as_a_model(behind: Behind, tmp_path: Path) -> None:
    environ = dict(behind.environ) | {"TRACER_BASE": behind.served.url + "/v1"}
    with proxy("model", environ, tmp_path) as client:
        for text, label, decision in zip(behind.texts, behind.labels, ("handled", "deferred"), strict=True):
            asked = {"model": "desk-router", "messages": [{"role": "user", "content": text}]}
            reply = client.post("/v1/chat/completions", json=asked)
            assert reply.status_code == 200, reply.text
            assert reply.json()["choices"][0]["message"]["content"] == label
            assert reply.headers["llm_provider-x-tracer-decision"] == decision
            stream = client.post("/v1/chat/completions", json=asked | {"stream": True})
            events = [line[6:] for line in stream.text.splitlines() if line.startswith("data: {")]
            said = [json.loads(one)["choices"][0]["delta"].get("content") or "" for one in events]
            assert "".join(said) == label
        handled = {"model": "desk-router", "messages": [{"role": "user", "content": behind.texts[0]}]}
        forced = client.post("/v1/chat/completions", json=handled, headers={"x-tracer-mode": "llm"})
        assert forced.headers["llm_provider-x-tracer-reason"] == "requested", "the client's header reached the gateway"


def test_a_task_as_the_classifier_of_the_automatic_router(messages: Dataset, tmp_path: Path) -> None:
    """Labels are tiers here: what the policy says decides which model LiteLLM asks."""
    home, tiers = tmp_path / "home", ("COMPLEX", "MEDIUM", "REASONING", "SIMPLE")
    desks = sorted(set(messages.labels))
    named = tuple(tiers[desks.index(desk) % 4] for desk in messages.labels)
    data = replace(messages, labels=named, dense=None, embedder=None)
    verdict = flywheel.fit(data, home=home / "tasks" / "tiers", config=LEXICAL, now=NOW)
    assert isinstance(verdict, Certified)
    ServingSettings(audit_rate=0.0).write(home / "tasks" / "tiers")
    assert data.texts is not None
    decisions = PolicyRegistry(home / "tasks" / "tiers").load().decide(list(data.texts))
    sure = {
        label: text
        for text, label, yes in zip(data.texts, decisions.labels, decisions.handled.tolist(), strict=True) if yes
    }  # fmt: skip
    assert {"SIMPLE", "COMPLEX"} <= set(sure)
    with Standin(default="done") as api:
        settings = f"""
home: {home}
upstreams: {{main: {{base_url: {api.url}/v1, retries: 0, api_key: "${{OPENAI_API_KEY}}"}}}}
keys: {{app: {{hash: "${{TRACER_KEY_HASH}}"}}}}
tasks: {{tiers: {{match: {{models: [tiers]}}, mode: live}}}}
"""
        secrets = {"TRACER_KEY_HASH": sha256_of(KEY), "OPENAI_API_KEY": UPSTREAM_KEY}
        with serve(settings, home, environ=secrets) as served:
            environ = {"TRACER_URL": served.url, "TRACER_KEY": KEY, "OPENAI_API_KEY": UPSTREAM_KEY}
            with proxy("router", environ | {"OPENAI_BASE_URL": api.url + "/v1"}, tmp_path) as client:
                for tier, model in (("SIMPLE", "gpt-4o-mini"), ("COMPLEX", "gpt-4o")):
                    asked = {"model": "auto", "messages": [{"role": "user", "content": sure[tier]}]}
                    reply = client.post("/v1/chat/completions", json=asked)
                    assert reply.status_code == 200, reply.text
                    assert json.loads(api.asked[-1].body)["model"] == model
            counted = served.client.get(served.url + "/metrics").text
    assert "/v1/systemone" not in {one.path for one in api.asked}, "no decision was left to the upstream"
    lines = [line for line in counted.splitlines() if line.startswith("tracer_requests_total{")]
    outcomes = {line.rpartition("}")[0].partition("decision=")[2][:9] for line in lines if 'task="tiers"' in line}
    assert outcomes == {'"handled"'}, lines
