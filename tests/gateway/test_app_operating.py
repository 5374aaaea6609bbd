"""Keys, limits, admin, health, metrics, reload and the end of a gateway, on real sockets."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, Served, asked, place, serve, settings
from tests.gateway.standin import Fault, Standin
from tracer.errors import ConfigError
from tracer.gateway.app import server
from tracer.gateway.auth import Bucket
from tracer.gateway.config import parse
from tracer.gateway.serving import Gateway
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.traces.store import TraceStore

PLAIN = ServingSettings(audit_rate=0.0)
ADMIN = "the-admin-token-of-this-test"


def digest(key: str) -> str:
    return "sha256:" + hashlib.sha256(key.encode()).hexdigest()


def admin(served: Served, method: str, path: str, body: Any = None, token: str = ADMIN) -> httpx2.Response:
    headers = {"authorization": f"Bearer {token}"}
    content = None if body is None else json.dumps(body).encode()
    return httpx2.request(method, f"{served.url}/admin/{path}", headers=headers, content=content, timeout=20.0)


def until(check: Any, seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.02)
    return False


def decision(served: Served, text: str) -> str:
    return served.post(asked(text)).headers["x-tracer-decision"]


def test_keys_open_their_tasks_and_no_others(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    text, label = next(iter(known.handled.items()))
    keys = f"""keys:
  desk: {{hash: '{digest("key-of-desk")}', tasks: [desk]}}
  all: {{hash: '{digest("key-of-all")}'}}
  slow: {{hash: '{digest("key-of-slow")}', requests_per_s: 0.5}}
"""
    other = {"model": "gpt-x", "messages": [{"role": "user", "content": "hello"}]}
    with Standin() as api, serve(settings(api.url, tmp_path, more=keys), tmp_path) as served:
        unknown = served.post(asked(text))
        wrong = served.post(asked(text), authorization="Bearer wrong")
        elsewhere = served.post({}, "/v1/classify", authorization="Bearer wrong")
        assert [one.status_code for one in (unknown, wrong, elsewhere)] == [401] * 3
        assert unknown.json()["error"]["message"] == "no key of this gateway was shown"
        for one in (wrong, elsewhere):
            assert one.json()["error"]["message"] == "the key that was shown is not one of this gateway"
        assert (wrong.headers["x-tracer-decision"], wrong.headers["x-tracer-reason"]) == ("refused", "no_key")
        counted = 'tracer_requests_total{decision="refused",reason="no_key",task=""} 2.0'
        assert until(lambda: counted in httpx2.get(served.url + "/metrics").text)
        assert httpx2.get(served.url + "/v1/models").status_code == 401
        for shown in ({"authorization": "Bearer key-of-desk"}, {"x_api_key": "key-of-desk"}):
            response = served.post(asked(text), **shown)
            assert response.json()["choices"][0]["message"]["content"] == label
        assert served.post(other, authorization="Bearer key-of-desk").status_code == 403
        assert api.asked == []
        assert served.post(other, authorization="Bearer key-of-all").status_code == 200
        assert "authorization" not in api.asked[-1].headers, "a key of the gateway stays there"
        assert served.post(other, x_tracer_key="key-of-all", authorization="Bearer sk-mine").status_code == 200
        assert api.asked[-1].headers["authorization"] == "Bearer sk-mine"
        assert "key-of-all" not in str(api.asked[-1].headers)
        answers = [served.post(asked(text), authorization="Bearer key-of-slow") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 429]
        assert answers[1].headers["retry-after"] == "2"
        assert (answers[1].headers["x-tracer-decision"], answers[1].headers["x-tracer-reason"]) == ("refused", "rate")
        assert answers[1].json()["error"]["type"] == "rate_limit_error"
        messages = served.post(other, "/v1/messages", anthropic_version="2023-06-01")
        assert messages.json()["type"] == "error"


def test_a_scrypt_key_is_paid_for_once(known: Known, tmp_path: Path) -> None:
    import base64

    salt = b"0123456789abcdef"
    raw = hashlib.scrypt(b"pass", salt=salt, n=16384, r=8, p=1, maxmem=128 << 20, dklen=32)
    text = f"scrypt:16384:8:1:{base64.b64encode(salt).decode()}:{base64.b64encode(raw).decode()}"
    place(known.home, tmp_path, PLAIN)
    config = settings("http://127.0.0.1:9", tmp_path, more=f"keys:\n  one: {{hash: '{text}'}}")
    handled = next(iter(known.handled))
    with serve(config, tmp_path) as served:
        times = []
        for _ in range(5):
            response = served.post(asked(handled), authorization="Bearer pass")
            assert response.status_code == 200
            times.append(float(response.headers["x-tracer-overhead-ms"]))
    assert min(times[1:]) < times[0] / 3


def test_a_wider_address_needs_keys(tmp_path: Path) -> None:
    bare = Gateway(parse(settings("http://127.0.0.1:9", tmp_path), {}))
    for host in ("0.0.0.0", "::", "10.0.0.5"):  # noqa: S104 - refused
        with pytest.raises(ConfigError, match="set keys first"):
            server(bare, host, 0)
    keys = f"keys:\n  one: {{hash: '{digest('k')}'}}"
    server(Gateway(parse(settings("http://127.0.0.1:9", tmp_path, more=keys), {})), "0.0.0.0", 0)  # noqa: S104


def test_a_bucket_admits_its_rate() -> None:
    now = [0.0]
    bucket = Bucket(2.0, lambda: now[0])
    assert [bucket.wait() for _ in range(3)] == [0.0, 0.0, 0.5]
    now[0] = 0.5
    assert (bucket.wait(), bucket.wait()) == (0.0, 0.5)
    now[0] = 100.0
    assert sum(bucket.wait() == 0.0 for _ in range(10)) == 2


def test_a_body_has_a_limit(tmp_path: Path) -> None:
    with Standin() as api, serve(settings(api.url, tmp_path, more="limits: {body_bytes: 2048}"), tmp_path) as served:
        assert served.post(asked("x" * 1000)).status_code == 200
        response = served.post(asked("x" * 3000))
        assert (response.status_code, set(response.json())) == (413, {"error"})
        chunks = (b"x" * 512 for _ in range(8))  # no content-length
        assert httpx2.post(served.url + CHAT, content=chunks).status_code == 413
        assert len(api.asked) == 1


def test_an_admin_switches_policies(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    text = next(iter(known.handled))
    token = f"admin: {{token_hash: '{digest(ADMIN)}'}}"
    with Standin() as api, serve(settings(api.url, tmp_path, more=token), tmp_path) as served:
        assert admin(served, "GET", "tasks", token="wrong").status_code == 401
        assert httpx2.get(served.url + "/admin/tasks").status_code == 401
        assert decision(served, text) == "handled"
        (task,) = admin(served, "GET", "tasks").json()["tasks"]
        assert (task["name"], task["policy"], task["mode"], task["off"]) == ("desk", "v0001", "live", False)
        assert task["decisions"]["handled"] == 1

        assert admin(served, "POST", "policies/desk/pause", {"note": "look first"}).json()["policy"] is None
        assert until(lambda: decision(served, text) == "deferred")
        assert admin(served, "POST", "policies/desk/promote", {"version": "v0001"}).status_code == 200
        assert until(lambda: decision(served, text) == "handled")
        assert admin(served, "POST", "policies/desk/pause").status_code == 200
        assert admin(served, "POST", "policies/desk/rollback").json()["policy"] == "v0001"
        told = admin(served, "GET", "policies/desk").json()
        assert (told["active"], told["versions"]) == ("v0001", ["v0001"])
        assert [event["event"] for event in told["history"]][-4:] == ["teacher", "promote", "teacher", "rollback"]
        assert told["history"][-4]["note"] == "look first"

        assert until(lambda: decision(served, text) == "handled")
        assert [admin(served, "POST", "off", body).status_code for body in (None, {}, {"off": "no"})] == [400] * 3
        assert httpx2.get(served.url + "/health").json()["off"] is False
        for _ in range(2):
            assert admin(served, "POST", "off", {"off": True}).json() == {"off": True}
        assert httpx2.get(served.url + "/health").json()["off"] is True
        response = served.post(asked(text))
        assert (response.headers["x-tracer-decision"], response.headers["x-tracer-reason"]) == (
            "deferred",
            "kill_switch",
        )
        assert admin(served, "POST", "off", {"off": False}).status_code == 200
        assert decision(served, text) == "handled"
        history = admin(served, "GET", "policies/desk").json()["history"]
        assert [event["event"] for event in history][-3:] == ["rollback", "off", "on"]
        assert httpx2.get(served.url + "/health").json()["off"] is False

        assert admin(served, "POST", "policies/desk/promote", {"version": "v0009"}).status_code == 400
        assert admin(served, "POST", "policies/desk/promote", {}).status_code == 400
        assert admin(served, "POST", "policies/other/promote", {"version": "v0001"}).status_code == 404
        assert decision(served, text) == "handled"


def test_without_a_token_there_is_no_admin(tmp_path: Path) -> None:
    with serve(settings("http://127.0.0.1:9", tmp_path), tmp_path) as served:
        assert admin(served, "GET", "tasks").status_code == 404
        assert admin(served, "POST", "off").status_code == 404
        assert not (served.task / "OFF").exists()


def test_a_reload_takes_up_the_file_or_leaves_all_as_it_was(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    text = next(iter(known.handled))
    token = f"admin: {{token_hash: '{digest(ADMIN)}'}}"
    with Standin() as api:
        now = [settings(api.url, tmp_path, more=token)]
        with serve(now[0], tmp_path, reader=lambda: now[0]) as served:
            line = served.gateway.serving.lines["desk"]
            now[0] = now[0].replace("tasks:", "tasks:\n  other: {match: {models: [other-router]}}")
            assert admin(served, "POST", "reload").json() == {"tasks": ["desk", "other"]}
            assert served.gateway.serving.lines["desk"] is line
            assert served.post({**asked("a new task"), "model": "other-router"}).headers["x-tracer-reason"] == "observe"
            good, now[0] = now[0], now[0] + "\nnonsense: 1\n"
            assert admin(served, "POST", "reload").status_code == 400
            assert decision(served, text) == "handled"
            now[0] = good.replace("mode: live", "mode: observe")
            assert admin(served, "POST", "reload").status_code == 200
            assert served.post(asked(text)).headers["x-tracer-reason"] == "observe"
            assert len(served.traces()) == 1


def test_metrics_say_what_happened(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    with Standin() as api, serve(settings(api.url, tmp_path, "teacher: gpt-4o-mini"), tmp_path) as served:
        served.post(asked(known.left[0]))
        assert api.asked[0].body == json.dumps(asked(known.left[0])).replace("desk-router", "gpt-4o-mini").encode()
        (trace,) = served.traces()
        assert trace.teacher == "gpt-4o-mini"
        saved = [float(served.post(asked(text)).headers["x-tracer-saved-usd"]) for text in list(known.handled)[:3]]
        assert saved[0] > 0.0
        assert until(lambda: not served.gateway.serving.running)
        families = {f.name: f for f in text_string_to_metric_families(httpx2.get(served.url + "/metrics").text)}
    requests = {
        (s.labels["task"], s.labels["decision"]): s.value
        for s in families["tracer_requests"].samples
        if s.name.endswith("total")
    }
    assert requests["desk", "handled"] == 3
    assert sum(requests.values()) == 4
    assert families["tracer_coverage"].samples[0].value == 0.75
    assert families["tracer_traces_written"].samples[0].value == 1
    assert families["tracer_queue_depth"].samples[0].value == 0
    assert families["tracer_policy_info"].samples[0].labels == {"task": "desk", "policy": "v0001", "mode": "live"}
    total = next(s.value for s in families["tracer_saved_usd"].samples if s.name.endswith("total"))
    assert total == pytest.approx(sum(saved), rel=1e-3)


def test_health(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    with serve(settings("http://127.0.0.1:9", tmp_path), tmp_path) as served:
        assert httpx2.get(served.url + "/health/liveliness").status_code == 200
        assert httpx2.get(served.url + "/health/readiness").json() == {"status": "ready"}
        told = httpx2.get(served.url + "/health").json()
        assert told["tasks"] == {"desk": {"policy": "v0001", "broken": False}}
        assert told["upstreams"] == {"main": "closed"}
        served.gateway.ready = False
        assert httpx2.get(served.url + "/health/readiness").status_code == 503
        assert httpx2.get(served.url + "/nothing").status_code == 404


def test_classify_asks_no_teacher(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    text, label = next(iter(known.handled.items()))
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        told = served.post({"task": "desk", "text": text}, "/v1/classify").json()
        assert (told["label"], told["source"], told["decision"], told["policy"]) == (
            label,
            "surrogate",
            "handled",
            "v0001",
        )
        left = served.post({"task": "desk", "text": known.left[0]}, "/v1/classify").json()
        assert (left["label"], left["source"], left["decision"]) == (None, "none", "deferred")
        own = served.post({"task": "desk", "text": known.left[0], "fallback": "sales"}, "/v1/classify").json()
        assert (own["label"], own["source"]) == ("sales", "fallback")
        batch = served.post({"task": "desk", "texts": [text, known.left[0]]}, "/v1/classify/batch").json()
        assert [one["label"] for one in batch["results"]] == [label, None]
        for body in ({}, {"task": "desk"}, {"task": "desk", "text": 1}, {"task": "desk", "embedding": ["a"]}):
            assert served.post(body, "/v1/classify").status_code == 400
        assert served.post({"task": "none", "text": "a"}, "/v1/classify").status_code == 404
        assert [one["id"] for one in httpx2.get(served.url + "/v1/models").json()["data"]] == ["desk-router"]
        assert api.asked == []


def test_undeclared_traffic_is_proposed(tmp_path: Path) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {
        "type": "object", "properties": {"desk": {"type": "string", "enum": ["sales", "billing"]}},
        "required": ["desk"], "additionalProperties": False}}}  # fmt: skip
    with Standin(default="sales") as api, serve(settings(api.url, tmp_path), tmp_path, tend_s=0.05) as served:
        for i in range(25):
            served.post({**asked(f"message number {i}"), "model": "gpt-4o-mini", "response_format": form})
        assert until((tmp_path / "discovered.json").exists)
    (found,) = json.loads((tmp_path / "discovered.json").read_text())
    assert [label for label, _ in found["labels"]] == ["sales", "billing"]
    config = tmp_path / "tracer.yaml"
    config.write_text(settings("http://127.0.0.1:9", tmp_path))
    done = tracer("tasks", "--config", str(config))
    assert done.returncode == 0, done.stderr
    assert found["fingerprint"] in done.stdout


def test_logs_hold_no_content_and_no_key(known: Known, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place(known.home, tmp_path, PLAIN)
    caplog.set_level(logging.DEBUG, "tracer")
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        served.post(asked("a very private text"), authorization="Bearer sk-private")
        api.misbehave(Fault("reset"))
        served.post(asked("a very private text"), authorization="Bearer sk-private")
        assert until(lambda: not served.gateway.serving.running)
    lines = [json.loads(r.getMessage()) for r in caplog.records if r.name == "tracer.gateway.requests"]
    assert [line["status"] for line in lines] == [200, 502]
    assert lines[0]["task"] == "desk"
    assert "private" not in caplog.text


def tracer(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tracer.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_a_dry_run_checks_and_shows_no_secret(tmp_path: Path) -> None:
    config = tmp_path / "tracer.yaml"
    keys = f"keys:\n  one: {{hash: '{digest('k')}'}}"
    config.write_text(settings("http://127.0.0.1:9", tmp_path, more=keys))
    done = tracer("serve", "--config", str(config), "--dry-run")
    assert done.returncode == 0, done.stderr
    assert digest("k") not in done.stdout
    assert json.loads(done.stdout)["tasks"][0]["name"] == "desk"
    config.write_text(settings("http://127.0.0.1:9", tmp_path) + "taskz: {}\n")
    done = tracer("serve", "--config", str(config), "--dry-run")
    assert done.returncode == 1
    assert "taskz" in done.stderr


def test_an_outage_is_told_to_the_log_and_to_clients(
    known: Known, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place(known.home, tmp_path, PLAIN)
    caplog.set_level(logging.INFO, "tracer.gateway")
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        for _ in range(5):
            api.misbehave(Fault("status", status=500))
            assert served.post(asked(known.left[0])).status_code == 500
        left = served.post(asked(known.left[0]))
        assert left.status_code == 503
        told = left.json()["error"]["message"]
        assert told == f"upstream 'main' is left alone after failures; try again in {left.headers['retry-after']} s"
        assert httpx2.get(served.url + "/health").json()["upstreams"] == {"main": "open"}
    lines = [json.loads(one.getMessage()) for one in caplog.records if one.name == "tracer.gateway.requests"]
    assert [(line["upstream"], line["error"]) for line in lines] == [("main", "status")] * 5 + [
        ("main", "breaker_open")
    ]
    warned = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert warned == ["upstream main: left alone for 15 s after 5 failures"]


def test_sigterm_ends_what_runs_and_writes_what_waits(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Standin(latency_s=0.6, spread=0.0) as api:
        config = tmp_path / "tracer.yaml"
        config.write_text(settings(api.url, tmp_path))
        command = [sys.executable, "-m", "tracer.cli", "serve", "-c", str(config), "--port", str(port)]
        environ = os.environ | {"PYTHONPATH": "src"}
        with ExitStack() as stack:
            client = stack.enter_context(httpx2.Client(timeout=20.0))
            one = stack.enter_context(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environ))
            stack.callback(one.kill)  # where the test fails before its end
            url = f"http://127.0.0.1:{port}"
            served = Served(url, tmp_path, None, client)  # type: ignore[arg-type]

            def up() -> bool:
                try:
                    return httpx2.get(url + "/health/readiness").status_code == 200
                except httpx2.TransportError:
                    return False

            assert until(up, 20.0)
            assert decision(served, next(iter(known.handled))) == "handled"
            with ThreadPoolExecutor(4) as pool:
                begun = [pool.submit(served.post, asked(text)) for text in known.left[:4]]
                assert until(lambda: len(api.asked) == 4)
                one.send_signal(signal.SIGTERM)
                assert [response.result().status_code for response in begun] == [200] * 4
            assert one.wait(30) == 0
            assert one.stderr is not None
            logged = [json.loads(line) for line in one.stderr.read().splitlines()]
    assert sum(line["event"] == "request" for line in logged) == 5
    home = tmp_path / "tasks" / "desk"
    with TraceStore.open(home) as store:
        texts = {trace.text for _, trace in store.traces()}
        assert set(known.left[:4]) <= texts
        assert sum(row.n for row in store.traffic()) == 5
    assert PolicyRegistry(home).active_version() == "v0001"


def test_no_request_waits_while_a_policy_is_loaded(
    known: Known, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place(known.home, tmp_path, PLAIN)
    text, loading, go_on = next(iter(known.handled)), threading.Event(), threading.Event()
    load = PolicyRegistry.load

    def slow(self: PolicyRegistry, version: str | None = None) -> Policy:
        loading.set()
        assert go_on.wait(20)
        return load(self, version)

    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        registry = PolicyRegistry(served.task)
        registry.save(load(registry))
        assert decision(served, text) == "handled"
        monkeypatch.setattr(PolicyRegistry, "load", slow)
        registry.activate("v0002")
        assert loading.wait(20)
        for _ in range(5):
            assert served.post(asked(text)).headers["x-tracer-policy"] == "v0001"
        go_on.set()
        assert until(lambda: served.post(asked(text)).headers["x-tracer-policy"] == "v0002")
