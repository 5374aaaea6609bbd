"""Logs: JSON a line, and nothing of anybody in it, whatever goes wrong at the chattiest level."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, asked, place, settings
from tests.gateway.standin import Fault, Standin
from tests.gateway.test_app_operating import digest, until
from tracer.gateway.logs import JsonLines, log_as_json
from tracer.policies.serving_settings import ServingSettings

MARK = "xyzzy"
"""Stands in every text, key, header, path and label that the requests below carry."""


@contextmanager
def running(config: Path, *options: str, **environ: str) -> Iterator[tuple[str, Any]]:
    """``tracer serve`` in a process of its own: its URL, and the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tracer.cli", "serve", "-c", str(config), "--port", str(port), *options]
    known = os.environ | {"PYTHONPATH": "src"} | environ
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=known) as one:
        try:
            url = f"http://127.0.0.1:{port}"

            def up() -> bool:
                try:
                    return httpx2.get(url + "/health/readiness").status_code == 200
                except httpx2.TransportError:
                    return one.poll() is not None

            assert until(up, 60.0)
            yield url, one
        finally:
            one.kill()


def raw(url: str, request: bytes) -> None:
    """Bytes that no client would send."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(request)
        connection.settimeout(2)
        try:
            while connection.recv(4096):
                pass
        except OSError:
            pass


def misuse(url: str, api: Standin, text: str, home: Path) -> None:
    """Everything that can go wrong, with a mark in it."""
    own = {"x-tracer-key": f"key-{MARK}", "authorization": f"Bearer sk-{MARK}", "x-secret": MARK}
    foreign = {"model": f"gpt-{MARK}", "messages": [{"role": "user", "content": MARK}]}
    bodies: list[Any] = [
        asked(text), asked(MARK), foreign, {"model": MARK}, [MARK], {**asked(MARK), "n": 2, MARK: MARK},
        {**asked(text), "response_format": {"type": MARK}}, {**asked(MARK), "messages": MARK},
    ]  # fmt: skip
    faults = (
        None, Fault("status", status=500), Fault("status", status=429, retry_after="99"), Fault("reset"),
        Fault("malformed"), Fault("garbage"), Fault("gzip"), Fault("cut"), Fault("slow_first_byte", seconds=1.5),
    )  # fmt: skip
    with httpx2.Client(headers=own, timeout=20.0) as client:
        for fault in faults:
            for stream in (False, True):
                api.misbehave(fault)
                with suppress(httpx2.TransportError):
                    client.post(url + CHAT, content=json.dumps({**asked(text), "stream": stream}).encode())
        for body in bodies:
            for path in (
                CHAT,
                "/v1/responses",
                "/v1/messages",
                "/v1/decisions",
                "/v1/systemone",
                f"/v1/{MARK}?q={MARK}",
            ):
                client.post(url + path, content=json.dumps(body).encode())
            client.post(url + "/v1/classify", content=json.dumps(body).encode())
        for body in (
            {"task": MARK, "text": MARK}, {"task": "desk", "text": MARK}, {"task": "desk", "texts": [MARK]},
            {"task": "desk", "embedding": [1.0]}, {"task": "desk", "text": MARK, "fallback": 3},
        ):  # fmt: skip
            client.post(url + "/v1/classify", content=json.dumps(body).encode())
            client.post(url + "/v1/classify/batch", content=json.dumps(body).encode())
        client.post(url + CHAT, content=MARK.encode())
        client.post(url + CHAT, content=b"{" + b"x" * 5_000_000)
        client.post(url + CHAT, content=json.dumps(asked(text)).encode(), headers={"x-tracer-mode": MARK})
        client.post(url + CHAT, content=b"{}", headers={"x-tracer-key": f"wrong-{MARK}"})
        for path in ("tasks", "policies/desk/promote", f"policies/{MARK}/promote", "reload", "off"):
            for token in (f"admin-{MARK}", f"wrong-{MARK}"):
                content = json.dumps({"version": MARK, "off": MARK, "note": MARK}).encode()
                client.post(f"{url}/admin/{path}", content=content, headers={"authorization": f"Bearer {token}"})
    raw(url, f"POST /{MARK} HTTP/1.1\r\nhost: x\r\n{MARK}\r\n\r\n".encode())
    raw(url, f"GET /v1/{MARK}\x01 HTTP/1.1\r\nhost: x\r\nx-{MARK}: \x02{MARK}\r\n\r\n".encode())
    raw(url, f"POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {MARK}\r\n\r\n".encode())
    store = home / "tasks" / "desk" / "traces.sqlite"
    store.rename(store.with_suffix(".away"))
    store.mkdir()  # the store fails now, and traces wait
    httpx2.post(url + CHAT, content=json.dumps(asked(MARK)).encode(), headers=own)


def test_no_text_and_no_secret_is_logged_whatever_goes_wrong(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.5))
    more = f"""keys:
  one: {{hash: '{digest(f"key-{MARK}")}'}}
admin: {{token_hash: '{digest(f"admin-{MARK}")}'}}
telemetry: {{enabled: true}}
"""
    with Standin(default=f"label-{MARK}") as api:
        config = tmp_path / "tracer.yaml"
        content = settings(api.url, tmp_path, f"redact: ['{MARK}[0-9]']", more)
        content = content.replace("retries: 0", "retries: 0, timeout_s: 1, api_key: '${UPSTREAM}'")
        config.write_text(content)
        endpoint = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:9/{MARK}", "OTEL_BSP_SCHEDULE_DELAY": "50",
                    "OTEL_EXPORTER_OTLP_HEADERS": f"authorization=Bearer {MARK}"}  # fmt: skip
        with running(config, "--log-level", "debug", UPSTREAM=f"sk-upstream-{MARK}", **endpoint) as (url, one):
            misuse(url, api, known.left[0], tmp_path)
            config.write_text(content + f"\nsecret: {MARK}\n" + "x: [")
            one.send_signal(signal.SIGHUP)
            assert until(lambda: httpx2.get(url + "/health").json()["config"] == "outdated")
            config.write_text(content.replace("${UPSTREAM}", f"sk-{MARK}"))
            one.send_signal(signal.SIGHUP)
            time.sleep(0.5)
            one.send_signal(signal.SIGTERM)
            logged = one.communicate(timeout=60)[1]
    lines = [json.loads(line) for line in logged.splitlines()]
    assert MARK not in logged
    assert sum(line["event"] == "request" for line in lines) > 60
    assert {line["level"] for line in lines} >= {"info", "warning", "error"}
    assert any("SIGHUP" in line.get("message", "") for line in lines)
    assert any(line["event"].startswith("opentelemetry") for line in lines)


def test_a_line_of_a_library_is_its_first_line_as_it_is_written() -> None:
    def line(name: str, message: str, *arguments: object, error: BaseException | None = None) -> dict[str, Any]:
        given = None if error is None else (type(error), error, None)
        record = logging.LogRecord(name, logging.ERROR, "f.py", 1, message, arguments, given)
        told: dict[str, Any] = json.loads(JsonLines().format(record))
        return told

    asyncio_says = "Task exception was never retrieved\nfuture: <Task exception=ValueError('my text')>"
    assert line("asyncio", asyncio_says)["message"] == "Task exception was never retrieved"
    assert line("urllib3.x", "header %r is odd", "secret")["message"] == "header %r is odd"
    ours = line("tracer.gateway", "%d traces", 3, error=ValueError("my text"))
    assert (ours["message"], ours["error"], ours["level"]) == ("3 traces", "ValueError", "error")
    assert line("uvicorn.error", "listens on %s", "here")["message"] == "listens on here"
    assert line("tracer.gateway.requests", '{"event": "request", "id": "a"}')["event"] == "request"


def test_a_thread_that_ends_badly_tells_its_kind_alone(capsys: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    kept = root.handlers[:], root.level, threading.excepthook, logging.raiseExceptions
    names = {name: logging.getLogger(name).level for name in ("tracer", "uvicorn")}
    try:
        log_as_json("info")
        thread = threading.Thread(target=lambda: int("my private text"))
        thread.start()
        thread.join()
        logging.getLogger("tracer.gateway").info("%d", "my private text")
        told = capsys.readouterr().err
    finally:
        logging.captureWarnings(False)
        root.handlers[:], threading.excepthook, logging.raiseExceptions = kept[0], kept[2], kept[3]
        root.setLevel(kept[1])
        for name, level in names.items():
            logging.getLogger(name).setLevel(level)
    assert [json.loads(line)["message"] for line in told.splitlines()] == ["a thread ended by ValueError"]
