"""Many writers, and writers that die: nothing acknowledged is lost, nothing is there twice or by half."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from tracer.errors import StoreError
from tracer.traces.rows import batch_of
from tracer.traces.store import TraceStore
from tracer.types import Trace

WRITER = """
import sys
import numpy as np
from tracer.traces.store import TraceStore
from tracer.types import EmbedderIdentity, Trace
where, name, batches, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with TraceStore.open(where) as store:
    for i in range(batches):
        traces = [Trace(f"{name}-{i}-{j}", f"text {j}", "x") for j in range(size)]
        dense = np.ones((size, 64), dtype=np.float32)
        done = store.append(traces, dense=dense, embedder=EmbedderIdentity("e", 64, "d"))
        assert done.n_added == size, done
        print(i, flush=True)
"""


def writer(where: str, name: str, batches: int, size: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, where, name, str(batches), str(size)]
    path = os.pathsep.join(p for p in sys.path if p)
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )


def test_processes_write_at_once(where: str) -> None:
    writers = [writer(where, f"w{i}", 25, 4) for i in range(4)]
    for process in writers:
        assert process.communicate(timeout=120)[1] == ""
        assert process.returncode == 0
    with TraceStore.open(where) as store:
        numbers = [number for number, _ in store.traces()]
        ids = Counter(trace.id for _, trace in store.traces())
        assert numbers == list(range(1, 401)), "no number is skipped or given twice"
        assert set(ids.values()) == {1}
        loaded = store.load()
        assert loaded.dense is not None
        assert loaded.dense.shape == (400, 64)
        of_one = [name for name in loaded.ids if name.startswith("w0-")]
        assert of_one == [f"w0-{i}-{j}" for i in range(25) for j in range(4)], "each writer's traces keep their order"


@pytest.mark.parametrize("acknowledged", [1, 4, 9])
def test_a_killed_writer_loses_no_acknowledged_trace(where: str, acknowledged: int) -> None:
    size = 200
    process = writer(where, "w", 10_000, size)
    assert process.stdout is not None
    for _ in range(acknowledged):
        assert process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate(timeout=60)
    promised = acknowledged + rest.count("\n")
    with TraceStore.open(where) as store:
        batches = Counter(trace.id.split("-")[1] for _, trace in store.traces())
        assert set(batches.values()) == {size}, "no batch is there by half"
        assert len(batches) in (promised, promised + 1), "what was on its way may have arrived"
        assert set(map(str, range(promised))) <= set(batches)
        assert store.append([Trace("next", "text", "x")]).through == store.count()
        assert store.load().dense is None
        assert store.facts().n_embedded == len(batches) * size


def test_threads_share_a_store(store: TraceStore) -> None:
    def write(name: str) -> None:
        for i in range(20):
            store.append([Trace(f"{name}-{i}", "text", "x")])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, "abcd"))
    assert [number for number, _ in store.traces()] == list(range(1, 81))


def test_numbers_become_visible_in_their_order(store: TraceStore) -> None:
    """A reader that has seen number n never finds a lower one later."""
    done = threading.Event()

    def write(name: str) -> None:
        for i in range(15):
            store.append([Trace(f"{name}-{i}-{j}", "text", "x") for j in range(1 + i % 3)])

    def watch() -> list[int]:
        seen: list[int] = []
        while True:
            last = done.is_set()
            seen += [number for number, _ in store.traces(after=seen[-1] if seen else 0)]
            if last:
                return seen

    with ThreadPoolExecutor(4) as pool:
        watching = pool.submit(watch)
        list(pool.map(write, "abc"))
        done.set()
        assert watching.result(timeout=60) == list(range(1, store.count() + 1))


@contextmanager
def held_open(store: TraceStore, name: str) -> Iterator[None]:
    """A transaction that has appended and does not end."""
    with store._writing() as writer:
        assert writer.append(batch_of([Trace(name, "text", "x")])).n_added == 1
        yield


def test_a_writer_waits_for_the_one_before(where: str) -> None:
    with TraceStore.open(where) as one, TraceStore.open(where) as two, ThreadPoolExecutor(1) as pool:
        with held_open(one, "first"):
            waiting = pool.submit(two.append, [Trace("second", "text", "x")])
            time.sleep(0.3)
            assert not waiting.done()
            assert (two.count(), two.through()) == (0, 0), "nobody sees what is not committed"
        assert waiting.result(timeout=30).through == 2
        assert [trace.id for _, trace in two.traces()] == ["first", "second"]


def test_readers_do_not_wait_for_a_writer(where: str) -> None:
    with TraceStore.open(where) as one, held_open(one, "first"), TraceStore.open(where, wait_s=0.2) as two:
        assert (two.count(), two.fingerprints(), list(two.traces())) == (0, (), [])


def test_a_writer_that_gives_up_leaves_no_gap(where: str) -> None:
    with TraceStore.open(where) as one, TraceStore.open(where) as two:
        with pytest.raises(KeyError), held_open(one, "first"):
            raise KeyError
        assert two.append([Trace("second", "text", "x")]).through == 1


def test_waiting_has_an_end(where: str) -> None:
    with TraceStore.open(where) as one, TraceStore.open(where, wait_s=0.3) as two:
        with (
            held_open(one, "first"),
            pytest.raises(StoreError, match=r"held the store for over 0\.3 seconds; try again"),
        ):
            two.append([Trace("second", "text", "x")])
        two.append([Trace("third", "text", "x")])
        assert [trace.id for _, trace in two.traces()] == ["first", "third"]


def test_a_hung_writer_stops_the_others_for_a_while_only(postgres: str) -> None:
    def hang() -> None:
        with TraceStore.open(postgres, wait_s=1.0) as hung, held_open(hung, "hung"):
            assert other.append([Trace("second", "text", "x")]).through == 1, "its session was ended by the server"

    with TraceStore.open(postgres) as other:
        with pytest.raises(StoreError):
            hang()
        assert [trace.id for _, trace in other.traces()] == ["second"]


def test_a_fork_may_go_on(store: TraceStore) -> None:
    store.append([Trace("parent", "text", "x")])
    child = os.fork()
    if not child:
        try:
            store.append([Trace("child", "text", "x")])
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    store.append([Trace("after", "text", "x")])
    assert [trace.id for _, trace in store.traces()] == ["parent", "child", "after"]


def test_a_large_append_is_one_transaction(store: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append([Trace("a", "text", "x")], dense=np.ones((1, 2)))
    traces = [Trace(str(i), "text", "x") for i in range(2_500)]
    with monkeypatch.context() as patched:
        patched.setattr("tracer.traces.writing.Writer._insert_vectors", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            store.append(traces, dense=np.ones((2_500, 2)))
    assert (store.count(), store.through()) == (1, 1)


def test_the_log_lies_beside_the_file_and_needs_no_care(tmp_path: Path) -> None:
    with TraceStore.open(tmp_path) as store:
        store.append([Trace("a", "text", "x")])
        with store._database.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
            assert connection.exec_driver_sql("PRAGMA secure_delete").scalar_one() == 1
