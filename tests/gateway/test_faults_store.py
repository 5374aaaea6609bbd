"""A store that is locked, full, damaged or not to be written: requests go on, and no trace that was taken is lost."""

from __future__ import annotations

import resource
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.loading import (
    WITHOUT_PRIVILEGES,
    check_labels,
    check_traces,
    drive,
    quiet,
    readonly,
    running,
    stored,
    teachers,
)
from tests.gateway.serving import place, serve, settings
from tests.gateway.standin import Standin
from tracer.policies.serving_settings import ServingSettings
from tracer.traces.database import FILE

PLAIN = ServingSettings(audit_rate=0.0)
LOCK = """import sqlite3, sys
one = sqlite3.connect(sys.argv[1], isolation_level=None)
one.execute("PRAGMA locking_mode = EXCLUSIVE")
one.execute("BEGIN EXCLUSIVE")
one.execute("CREATE TABLE IF NOT EXISTS not_ours (x)")
print("locked", flush=True)
sys.stdin.read()
one.execute("ROLLBACK")
one.close()
print("free", flush=True)
"""


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Another process keeps even readers out of a store."""
    command = [sys.executable, "-c", LOCK, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        try:
            yield
        finally:
            other.stdin.close()
            assert other.stdout.readline() == "free\n"


def test_a_store_that_another_process_locks(known: Known, tmp_path: Path) -> None:
    folder = place(known.home, tmp_path, PLAIN)
    texts = [*list(known.handled)[:100], *known.left[:150]]
    labels = teachers(texts)
    with Standin(labels) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        with locked(folder / FILE):
            got = drive(served.url, texts)
            assert {one.status for one in got} == {200}
            assert max(one.seconds for one in got) < 5.0
            quiet(served)
            assert served.gateway.serving.lines["desk"].recorder.pending > 0
            assert httpx2.get(served.url + "/health").status_code == 200
            assert httpx2.get(served.url + "/metrics").status_code == 200
            assert httpx2.get(served.url + "/", timeout=30.0).status_code < 500
            assert served.post({"task": "desk", "text": texts[0]}, "/v1/classify").status_code == 200
        check_labels(got, known, labels)
        check_traces(served.traces(), got, labels)


@pytest.mark.slow
def test_a_store_that_is_locked_at_the_start(known: Known, tmp_path: Path) -> None:
    folder = place(known.home, tmp_path, PLAIN)
    texts = [*list(known.handled)[:20], *known.left[:20]]
    labels = teachers(texts)
    with Standin(labels) as api:
        with locked(folder / FILE), serve(settings(api.url, tmp_path), tmp_path, start_s=30.0) as served:
            got = drive(served.url, texts)
            check_labels(got, known, labels)
            assert {one.status for one in got} == {200}
        assert served.gateway.serving.lines["desk"].recorder.counts["dropped"] == 20, "it ended before the lock did"


def test_a_store_that_is_damaged_or_another_at_the_start(known: Known, tmp_path: Path) -> None:
    folder = place(known.home, tmp_path, PLAIN)
    whole = (folder / FILE).read_bytes()
    for file in folder.glob(FILE + "-*"):
        file.unlink()
    (folder / FILE).write_bytes(b"no database" * 1000)
    texts = [*list(known.handled)[:20], *known.left[:20]]
    labels = teachers(texts)
    with Standin(labels) as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        got = drive(served.url, texts)
        check_labels(got, known, labels)
        quiet(served)
        assert served.gateway.serving.lines["desk"].recorder.pending == 20
        (folder / FILE).write_bytes(whole)  # an operator puts the backup in its place
        check_traces(served.traces(), got, labels)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sets the limits of another process, as Linux can")
def test_a_disk_that_is_full_for_a_while(known: Known, tmp_path: Path) -> None:
    folder = place(known.home, tmp_path, PLAIN)
    texts = [*list(known.handled)[:50], *known.left[:120]]
    labels = teachers(texts)
    config = tmp_path / "tracer.yaml"
    with Standin(labels) as api:
        # Logs may not grow either: they go where no limit is.
        config.write_text(settings(api.url, tmp_path, more="log_level: error"))
        with running(config) as one:
            first = drive(one.url, texts[:60])
            limits = resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, (0, limits[1]))
            got = [*first, *drive(one.url, texts[60:])]
            assert {found.status for found in got} == {200}
            check_labels(got, known, labels)
            time.sleep(1.5)  # the writer has tried, and failed
            metrics = httpx2.get(one.url + "/metrics").text
            assert not metrics.count('tracer_queue_depth{task="desk"} 0.0')
            resource.prlimit(one.process.pid, resource.RLIMIT_FSIZE, limits)
            one.terminate()
    check_traces(stored(folder), got, labels)
    with sqlite3.connect(folder / FILE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()


def test_a_queue_that_is_full_drops_and_counts(known: Known, tmp_path: Path) -> None:
    folder = place(known.home, tmp_path, PLAIN)
    texts = list(known.left[:120])
    labels = teachers(texts)
    more = "limits: {queue: 50}"
    with Standin(labels) as api, serve(settings(api.url, tmp_path, more=more), tmp_path) as served:
        with locked(folder / FILE):
            got = drive(served.url, texts)
            assert {one.status for one in got} == {200}
            quiet(served)
            assert 'tracer_traces_dropped{task="desk"} 70.0' in httpx2.get(served.url + "/metrics").text
        kept = {trace.id for trace in served.traces()}
    assert len(kept) == 50
    check_labels(got, known, labels)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="gives up root's privileges as Linux has them")
def test_a_home_that_cannot_be_written(known: Known, tmp_path: Path) -> None:
    """A policy that lies in a read-only folder is served; its traces are dropped and counted, and it says so."""
    folder = place(known.home, tmp_path, PLAIN)
    texts = [*list(known.handled)[:20], *known.left[:20]]
    labels = teachers(texts)
    with Standin(labels) as api:
        config = tmp_path / "tracer.yaml"
        config.write_text(settings(api.url, tmp_path))
        with readonly(tmp_path), running(config, start=WITHOUT_PRIVILEGES) as one:
            got = drive(one.url, texts)
            assert {found.status for found in got} == {200}
            check_labels(got, known, labels)
            assert httpx2.get(one.url + "/health").json()["tasks"]["desk"] == {"policy": "v0001", "broken": False}
            one.terminate()
            assert "cannot be opened yet" in one.log.read_text()
    assert stored(folder) == []
