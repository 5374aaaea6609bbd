"""Traces in PostgreSQL through the gateway: from observe to live with audits, and a server that goes away meanwhile."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from tests.conftest import LEXICAL, NOW
from tests.gateway.conftest import Known
from tests.gateway.loading import check_labels, check_traces, drive, quiet, running, teachers
from tests.gateway.serving import asked, serve, settings
from tests.gateway.standin import Standin
from tracer import flywheel
from tracer.errors import ConfigError
from tracer.flywheel.running import run
from tracer.flywheel.settings import Settings
from tracer.gateway.config import parse
from tracer.gateway.serving import Gateway
from tracer.pipeline import Certified
from tracer.policies.serving_settings import ServingSettings
from tracer.traces.database import FILE
from tracer.traces.store import TraceStore
from tracer.types import Dataset, Trace

DATABASE = "database: ${TRACES}"
PLAIN = ServingSettings(audit_rate=0.0)


class Cable:
    """Between a gateway and a PostgreSQL: what goes through it can be cut, and put back."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._to = (parts.hostname or "", parts.port or 0)
        self._pairs: list[socket.socket] = []
        self._listening: socket.socket | None = None
        self._over = False
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.url = url.replace(f":{self._to[1]}/", f":{self.port}/")
        self.connect()

    def connect(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listening,), daemon=True).start()

    def cut(self) -> None:
        """No new connection, and those that are end at once."""
        assert self._listening is not None
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        for one in self._pairs:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._pairs.clear()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                near, _ = listening.accept()
            except OSError:
                return
            far = socket.create_connection(self._to)
            self._pairs += [near, far]
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, selectors.DefaultSelector() as ready:
            ready.register(near, selectors.EVENT_READ, far)
            ready.register(far, selectors.EVENT_READ, near)
            while True:
                for key, _ in ready.select():
                    try:
                        content = key.fileobj.recv(65_536)  # type: ignore[union-attr]
                        if not content:
                            return
                        key.data.sendall(content)
                    except OSError:
                        return


@contextmanager
def cable(url: str) -> Iterator[Cable]:
    one = Cable(url)
    yield one
    one.cut()


def traces_in(url: str, task: str = "desk") -> list[Trace]:
    with TraceStore.open(url, task=task) as store:
        return [trace for _, trace in store.traces()]


@pytest.fixture
def fitted_there(
    known: Known, postgres: str, tmp_path: Path, small_texts: Dataset, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A home whose traces are in PostgreSQL, as task ``desk``; the policy is that of the others."""
    monkeypatch.setenv("DATABASE_URL", postgres)
    home = tmp_path / "tasks" / "desk"
    verdict = flywheel.fit(small_texts, home=home, config=LEXICAL, now=NOW, task="desk")
    assert isinstance(verdict, Certified)
    monkeypatch.delenv("DATABASE_URL")
    PLAIN.write(home)
    return home


def test_from_observe_to_live_with_audits(
    messages: Dataset, postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert messages.texts is not None
    labels = dict(zip(messages.texts, messages.labels, strict=True))
    home, environ = tmp_path / "tasks" / "desk", {"TRACES": postgres}
    with Standin(labels) as api:

        def config(mode: str) -> str:
            return settings(api.url, tmp_path, f"mode: {mode}\naudit_rate: 0.2", DATABASE)

        with serve(config("observe"), tmp_path, environ=environ) as served:
            drive(served.url, messages.texts[:600])
        seen = traces_in(postgres)
        assert {(t.text, t.label) for t in seen} == {(text, labels[text]) for text in messages.texts[:600]}
        assert not (home / FILE).exists()
        monkeypatch.setenv("DATABASE_URL", postgres)
        assert isinstance(flywheel.fit(home=home, config=LEXICAL, now=NOW, task="desk"), Certified)
        known = Settings.read(home)
        assert known is not None
        assert (known.store, known.task) == ("postgresql", "desk")

        with serve(config("live"), tmp_path, environ=environ) as served:
            done = threading.Event()
            turns: list[int] = []

            def fly() -> None:
                while not done.is_set():
                    turns.append(run(home, once=True))

            flying = threading.Thread(target=fly)
            flying.start()
            got = drive(served.url, messages.texts[600:900])
            done.set()
            flying.join(60)
        assert {one.status for one in got} == {200}
        assert turns
        assert set(turns) <= {0, 3}, "it watches beside the gateway"
        handled = [one for one in got if one.decision == "handled"]
        assert len(handled) > 60
        assert sum(one.label == labels[one.text] for one in handled) / len(handled) > 0.7
        there = traces_in(postgres)[len(seen) :]
        audits = [trace for trace in there if trace.origin == "audit"]
        assert {trace.id for trace in there} == {one.id for one in got if one.decision != "handled"}
        assert len(audits) == sum(one.decision == "audit" for one in got) > 20
        assert all(trace.label == labels[trace.text] for trace in there)


def test_a_server_that_goes_away_while_it_serves(
    known: Known, fitted_there: Path, postgres: str, tmp_path: Path
) -> None:
    texts = [*list(known.handled)[:60], *known.left[:120]]
    labels = teachers(texts)
    with Standin(labels) as api, cable(postgres) as line:
        config = settings(api.url, tmp_path, "mode: live", f"{DATABASE}\nlimits: {{queue: 100}}")
        with serve(config, tmp_path, environ={"TRACES": line.url}, tend_s=0.2) as served:
            first = drive(served.url, texts[:80])
            quiet(served)
            recorded = {trace.id for trace in served.traces()}
            line.cut()
            second = drive(served.url, texts[80:])
            assert {one.status for one in (*first, *second)} == {200}
            assert max(one.seconds for one in second) < 5.0
            quiet(served)
            recorder = served.gateway.serving.lines["desk"].recorder
            assert recorder.pending == 100
            assert recorder.counts["dropped"] == 0
            again = drive(served.url, known.left[120:125])
            quiet(served)
            assert recorder.counts["dropped"] == 5, "what finds no room is counted"
            time.sleep(0.5)
            line.connect()
            got = [*first, *second]
            there = [trace for trace in served.traces() if trace.id in {one.id for one in got}]
            check_traces(there, got, labels)
            check_labels(got, known, labels)
            assert recorded <= {trace.id for trace in there}
            assert {one.status for one in again} == {200}
    with TraceStore.open(postgres, task="desk") as store:
        rows = store.traffic()
    assert sum(row.n for row in rows) == len(got) + len(again), "tallies waited too"


def test_a_server_that_is_away_at_the_start(known: Known, fitted_there: Path, postgres: str, tmp_path: Path) -> None:
    texts = [*list(known.handled)[:20], *known.left[:20]]
    labels = teachers(texts)
    with Standin(labels) as api, cable(postgres) as line:
        line.cut()
        config = settings(api.url, tmp_path, "mode: live", DATABASE)
        with serve(config, tmp_path, environ={"TRACES": line.url}, start_s=30.0) as served:
            got = drive(served.url, texts)
            assert {one.status for one in got} == {200}
            check_labels(got, known, labels)
            assert httpx2.get(served.url + "/metrics").status_code == 200
            assert httpx2.get(served.url + "/", timeout=30.0).status_code < 500
            quiet(served)
            line.connect()
            check_traces(served.traces(), got, labels)


@pytest.mark.slow
def test_a_home_whose_traces_are_elsewhere_is_not_begun_anew(fitted_there: Path, postgres: str, tmp_path: Path) -> None:
    """Without ``database``, or with another one, no second store is begun beside the one it was fitted on."""
    gateway = Gateway(parse(settings("http://127.0.0.1:9", tmp_path), {}))
    with pytest.raises(ConfigError, match="are in PostgreSQL: set database"):
        gateway.open()
    assert not (fitted_there / FILE).exists()
    with Standin(default="billing") as api:
        other = postgres.rpartition("/")[0] + "/postgres"
        config = settings(api.url, tmp_path, "mode: live", DATABASE)
        with serve(config, tmp_path, environ={"TRACES": other}) as served:
            assert served.post(asked("what is not known at all here")).status_code == 200
            quiet(served)
            recorder = served.gateway.serving.lines["desk"].recorder
            assert not recorder.flush(0.5)
            assert recorder.pending == 1


@pytest.mark.slow
def test_two_processes_on_one_task(known: Known, fitted_there: Path, postgres: str, tmp_path: Path) -> None:
    texts = [*list(known.handled)[:200], *known.left[:300]]
    labels = teachers(texts)
    config = tmp_path / "tracer.yaml"
    environ = {"TRACES": postgres, "DATABASE_URL": postgres}
    with Standin(labels) as api:
        config.write_text(settings(api.url, tmp_path, "mode: live", f"{DATABASE}\nlog_level: error"))
        with running(config, environ) as one, running(config, environ) as two:
            halves = [[], []]  # type: ignore[var-annotated]

            def work(i: int, url: str) -> None:
                halves[i] = drive(url, texts[i::2], n_clients=8)

            threads = [threading.Thread(target=work, args=(i, p.url)) for i, p in enumerate((one, two))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert one.terminate() in (0, -15)
            assert two.terminate() in (0, -15)
    got = [*halves[0], *halves[1]]
    assert {found.status for found in got} == {200}
    check_labels(got, known, labels)
    ids = {found.id for found in got}
    check_traces([trace for trace in traces_in(postgres) if trace.id in ids], got, labels)
    with TraceStore.open(postgres, task="desk") as store:
        assert sum(row.n for row in store.traffic()) == len(texts)
