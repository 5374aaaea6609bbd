"""Two workers behind one port, as ``tracer serve`` starts them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, asked, place, settings
from tests.gateway.standin import Standin
from tests.gateway.test_app_operating import ADMIN, digest, until
from tracer.gateway.workers import bound
from tracer.policies.serving_settings import ServingSettings
from tracer.traces.store import TraceStore

PLAIN = ServingSettings(audit_rate=0.0)
TOKEN = f"admin: {{token_hash: '{digest(ADMIN)}'}}\n"


class Running:
    """A supervisor and its workers. Each request has a connection of its own, so that any worker may get it."""

    def __init__(self, process: subprocess.Popen[str], port: int, log: Path) -> None:
        self.process, self.url, self._log = process, f"http://127.0.0.1:{port}", log

    def post(self, body: dict[str, Any], path: str = CHAT, **headers: str) -> httpx2.Response:
        return httpx2.post(self.url + path, content=json.dumps(body).encode(), headers=headers, timeout=20.0)

    def ready(self) -> bool:
        try:
            return httpx2.get(self.url + "/health/readiness", timeout=5.0).status_code == 200
        except httpx2.TransportError:
            return False

    def health(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx2.get(self.url + "/health", timeout=5.0).json()
        return found

    def started(self) -> list[int]:
        """Process ids of workers that came up, oldest first."""
        lines = [json.loads(line) for line in self._log.read_text().splitlines()]
        told = [line["message"] for line in lines if line["event"] == "uvicorn.error"]
        return [int(text.split("[")[1].rstrip("]")) for text in told if text.startswith("Started server process")]

    def metric(self, start: str) -> float:
        lines = httpx2.get(self.url + "/metrics", timeout=10.0).text.splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(start))


@contextmanager
def workers(config: Path, log: Path, n: int = 2) -> Iterator[Running]:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "tracer.cli", "serve", "-c", str(config), "--port", str(port), "--workers", str(n)]
    folder = log.with_name("tmp")
    folder.mkdir(exist_ok=True)
    env = os.environ | {"TMPDIR": str(folder)}
    with log.open("w") as told, subprocess.Popen(command, stderr=told, text=True, env=env) as process:
        try:
            running = Running(process, port, log)
            assert until(lambda: len(running.started()) >= n and running.ready(), 60.0)
            yield running
        finally:
            process.terminate()
            process.wait(60)


def written(home: Path) -> set[str]:
    store = TraceStore.open(home)
    try:
        return {trace.id for _, trace in store.traces()}
    finally:
        store.close()


def test_a_worker_that_is_killed_is_replaced_and_nothing_written_is_lost(known: Known, tmp_path: Path) -> None:
    home = place(known.home, tmp_path, PLAIN)
    config, text = tmp_path / "tracer.yaml", known.left[0]
    answered: list[tuple[float, str]] = []
    failed: list[float] = []
    over = threading.Event()

    def ask(running: Running) -> None:
        while not over.is_set():
            try:
                response = running.post(asked(text))
            except httpx2.TransportError:
                failed.append(time.monotonic())
                continue
            assert response.status_code == 200
            answered.append((time.monotonic(), response.headers["x-tracer-call-id"]))

    with Standin({text: "billing"}) as api:
        config.write_text(settings(api.url, tmp_path))
        with workers(config, tmp_path / "log") as running:
            first = running.started()
            askers = [threading.Thread(target=ask, args=(running,)) for _ in range(4)]
            for asker in askers:
                asker.start()
            assert until(lambda: len(answered) > 60 and len(written(home) & {id_ for _, id_ in answered}) > 30, 60.0)
            before = written(home)
            os.kill(first[0], signal.SIGKILL)
            killed = time.monotonic()
            assert until(lambda: len(running.started()) == 3, 60.0), "it comes back"
            assert until(lambda: sum(at > killed + 1.0 for at, _ in answered) > 60, 60.0), "requests go on"
            over.set()
            for asker in askers:
                asker.join(30)
            assert running.ready()
            assert running.metric("tracer_requests_total") <= len(answered) + len(failed)
        assert running.process.returncode == 0
    assert f"listening on {running.url}, with 2 workers" in (tmp_path / "log").read_text()
    after = written(home)
    assert before <= after
    lost = [at for at, id_ in answered if id_ not in after]
    assert all(killed - 2.5 <= at <= killed + 0.5 for at in lost), "only what the one that died had not written yet"
    assert len(failed) <= 8, "those under way, and no others"


def test_an_admin_reaches_all_workers(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    config, text = tmp_path / "tracer.yaml", next(iter(known.handled))
    config.write_text(settings("http://127.0.0.1:9", tmp_path, more=TOKEN))
    with workers(config, tmp_path / "log") as running:
        as_admin = {"authorization": f"Bearer {ADMIN}"}

        def decisions(model: str) -> set[str]:
            answers = [running.post(asked(text) | {"model": model}) for _ in range(16)]
            return {answer.headers.get("x-tracer-decision", "") for answer in answers}

        assert decisions("desk-router") == {"handled"}
        assert "handled" not in decisions("another")
        config.write_text(config.read_text().replace("[desk-router]", "[desk-router, another]"))
        assert running.post({}, "/admin/reload", **as_admin).status_code == 200
        assert until(lambda: decisions("another") == {"handled"}, 20.0)
        config.write_text(config.read_text().replace("another", "third"))
        running.process.send_signal(signal.SIGHUP)
        assert until(lambda: decisions("third") == {"handled"}, 20.0)
        assert until(lambda: running.metric('tracer_requests_total{decision="handled"') >= 32, 10.0)

        assert running.post({}, "/admin/policies/desk/pause", **as_admin).status_code == 200
        assert until(lambda: "handled" not in decisions("desk-router"), 20.0)


@pytest.mark.parametrize("more", ["no_such_key: 1", "reload: true\nno_such_key: 1"])
def test_a_worker_that_is_replaced_serves_what_the_others_serve(known: Known, tmp_path: Path, more: str) -> None:
    place(known.home, tmp_path, PLAIN)
    config, text = tmp_path / "tracer.yaml", next(iter(known.handled))
    config.write_text(settings("http://127.0.0.1:9", tmp_path))
    with workers(config, tmp_path / "log") as running:
        assert until(lambda: running.health()["workers"] == {"running": 2, "of": 2}, 10.0)
        assert until(lambda: running.metric("tracer_workers ") == 2, 10.0)
        assert until(lambda: running.metric("tracer_workers_missing") == 0, 10.0)
        config.write_text(config.read_text() + more)
        os.kill(running.started()[0], signal.SIGKILL)
        assert until(lambda: len(running.started()) == 3, 30.0), "a slip in the file keeps nobody from starting"
        answers = [running.post(asked(text)) for _ in range(24)]
        assert {answer.headers.get("x-tracer-decision") for answer in answers} == {"handled"}


def test_a_folder_that_is_cleaned_away_ends_nothing(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    config, text = tmp_path / "tracer.yaml", next(iter(known.handled))
    config.write_text(settings("http://127.0.0.1:9", tmp_path))
    with workers(config, tmp_path / "log") as running:
        (folder,) = tmp_path.glob("tmp/tracer-workers-*")
        time.sleep(1.0)  # the supervisor has seen them serve
        shutil.rmtree(folder, ignore_errors=True)
        os.kill(running.started()[0], signal.SIGKILL)
        assert until(lambda: len(running.started()) == 3 and running.ready(), 30.0)
        assert running.process.poll() is None
        assert {running.post(asked(text)).headers.get("x-tracer-decision") for _ in range(16)} == {"handled"}
        assert until(lambda: running.metric("tracer_requests_total") == 16, 10.0), "they share a folder again"
        assert folder.stat().st_mode & 0o077 == 0


def test_workers_end_with_their_supervisor(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    config = tmp_path / "tracer.yaml"
    config.write_text(settings("http://127.0.0.1:9", tmp_path))
    with workers(config, tmp_path / "log") as running:
        running.process.kill()
        running.process.wait(10)
        assert until(lambda: not running.ready(), 20.0)


@pytest.mark.parametrize("n", [1, 2])
def test_a_home_that_cannot_be_made_ends_the_start(n: int, tmp_path: Path) -> None:
    config = tmp_path / "tracer.yaml"
    config.write_text(settings("http://127.0.0.1:9", tmp_path))
    (tmp_path / "tasks").write_text("no folder")
    command = [sys.executable, "-m", "tracer.cli", "serve", "-c", str(config), "--port", "0", "--workers", str(n)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done.stderr


def test_workers_start_where_a_gateway_of_one_process_has_just_ended() -> None:
    with closing(socket.socket()) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        with closing(socket.create_connection(("127.0.0.1", port))) as client:
            accepted, _ = server.accept()
            accepted.close()  # first, so that it is this side that waits in TIME_WAIT
            assert client.recv(1) == b""
    with closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        with pytest.raises(OSError, match="in use"):
            probe.bind(("127.0.0.1", port))
    sockets = bound("127.0.0.1", port, 2)
    try:
        for one in sockets:
            one.listen()
    finally:
        for one in sockets:
            one.close()
