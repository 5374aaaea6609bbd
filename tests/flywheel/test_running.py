"""The loop: when a refit is due, in a process of its own, and who is told."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from tracer.errors import ConfigError
from tracer.flywheel.running import METRICS, WEBHOOK, Backoff, due, run, tell
from tracer.flywheel.settings import Settings
from tracer.flywheel.watching import Notice
from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Dataset


def read(home: Path) -> Settings:
    found = Settings.read(home)
    assert found is not None
    return found


def add(home: Path, messages: Dataset, low: int, high: int, origin: str) -> None:
    some = replace(messages.take(np.arange(low, high)), dense=None, embedder=None)
    with TraceStore.open(home) as store:
        store.append(replace(some, origins=(origin,) * len(some)))  # type: ignore[arg-type]


def test_when_a_refit_is_due(home: Path, messages: Dataset) -> None:
    assert not due(home, replace(read(home), refit="an alarm")).now, "there is nothing to learn from"
    add(home, messages, 600, 650, "audit")
    found = due(home, read(home))
    assert (found.now, found.n_fresh) == (False, 50)
    wanted = due(home, replace(read(home), refit="an alarm"))
    assert (wanted.now, wanted.reason) == (True, "an alarm")
    add(home, messages, 650, 600 + found.n_needed, "audit")
    assert due(home, read(home)).reason == f"{found.n_needed} fresh shadow traces"


def test_traces_grown_by_a_fifth_are_enough(home: Path, messages: Dataset) -> None:
    add(home, messages, 600, 719, "deferred")
    assert not due(home, read(home)).now
    add(home, messages, 719, 720, "deferred")
    assert due(home, read(home)).reason == "120 new traces"


def test_failures_wait_longer_and_longer() -> None:
    waits, backoff = [], Backoff()
    for _ in range(12):
        backoff = backoff.after_failure(0.0)
        waits.append(backoff.until)
    assert waits[:3] == [60.0, 120.0, 240.0]
    assert waits[-1] == 6 * 3600.0


def test_once_refits_in_a_process_of_its_own_and_writes_metrics(home: Path, messages: Dataset) -> None:
    add(home, messages, 600, 1100, "audit")
    assert run(home, once=True) == 0
    assert read(home).attempts == 2
    assert PolicyRegistry(home).versions() == ("v0001", "v0002")
    values = {}
    for line in (home / METRICS).read_text().splitlines():
        if not line.startswith("# TYPE "):
            name, value = line.split()
            values[name] = float(value)
    assert values["tracer_policy_active"] == 1
    assert values["tracer_target_agreement"] == 0.8
    assert run(home, once=True) == 0
    assert read(home).attempts == 2, "nothing new, no attempt"


def test_a_failed_refit_waits(home: Path, messages: Dataset) -> None:
    add(home, messages, 600, 800, "audit")
    marks, times = home / "marks", iter(range(0, 10_000, 25))
    waited: list[float] = []

    class Enough(Exception):  # noqa: N818
        pass

    def sleep(seconds: float) -> None:
        waited.append(seconds)
        if len(waited) == 8:
            raise Enough

    command = ("sh", "-c", f"echo x >> {marks}; exit 1")
    with pytest.raises(Enough):
        run(home, command=command, sleep=sleep, clock=lambda: float(next(times)), every_s=9.0)
    assert waited == [9.0] * 8
    assert 1 < len(marks.read_text().split()) < 8


@pytest.fixture
def listener() -> Iterator[tuple[str, list[dict[str, str]]]]:
    told: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/hook", told
        server.shutdown()
        thread.join()


def test_the_webhook_is_told(
    listener: tuple[str, list[dict[str, str]]], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url, told = listener
    monkeypatch.setenv(WEBHOOK, url)
    tell(Notice("alarm", "policy v0001 breaks its promise"))
    assert told == [{"source": "tracer", "kind": "alarm", "text": "policy v0001 breaks its promise"}]
    monkeypatch.setenv(WEBHOOK, "http://127.0.0.1:9/secret-path")
    tell(Notice("alarm", "again"))
    monkeypatch.setenv(WEBHOOK, "file:///etc/passwd")
    tell(Notice("alarm", "again"))
    assert "could not be told" in caplog.text
    assert "is no http URL" in caplog.text
    assert "secret-path" not in caplog.text


def test_a_folder_without_a_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing was fitted here yet"):
        run(tmp_path, once=True)
    with pytest.raises(ConfigError, match="nothing was fitted here yet"):
        run(tmp_path, once=True, wait=True)


def test_a_loop_that_waits_begins_with_the_first_fit(home: Path, tmp_path: Path) -> None:
    folder, slept = tmp_path / "later", []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 2:
            assert not (folder / METRICS).exists(), "nothing was looked at yet"
            shutil.copytree(home, folder)
        elif len(slept) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folder, wait=True, every_s=7.0, sleep=sleep)
    assert slept == [7.0, 7.0, 7.0]
    assert (folder / METRICS).exists()
