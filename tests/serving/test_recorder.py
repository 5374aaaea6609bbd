"""The recorder: every trace is written once, or counted, whatever the store does."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from tracer.errors import ConfigError, StoreError
from tracer.serving.recorder import BatchRecorder
from tracer.types import Trace


def trace(i: int) -> Trace:
    return Trace(f"t{i}", f"text {i}", "a")


class Store:
    """Keeps batches; fails while ``down``, and always on the ids in ``bad``, before it keeps anything."""

    def __init__(self, *, down: bool = False, bad: Sequence[str] = ()) -> None:
        self.batches: list[list[Trace]] = []
        self.calls = 0
        self.down, self.bad = down, set(bad)

    def __call__(self, batch: Sequence[Trace]) -> None:
        self.calls += 1
        if self.down or any(t.id in self.bad for t in batch):
            raise StoreError("no")
        self.batches.append(list(batch))

    @property
    def ids(self) -> list[str]:
        return [t.id for batch in self.batches for t in batch]


def until(holds: Callable[[], bool]) -> None:
    for _ in range(1000):
        if holds():
            return
        time.sleep(0.005)
    raise AssertionError("it never came to hold")


def test_traces_are_written_in_order_and_in_batches() -> None:
    store = Store()
    with BatchRecorder(store, max_batch=10, max_wait_s=60) as recorder:
        for i in range(35):
            recorder(trace(i))
        assert recorder.flush(5)
        assert store.ids == [f"t{i}" for i in range(35)]
        assert max(map(len, store.batches)) <= 10
        assert recorder.counts == {"written": 35, "dropped": 0, "refused": 0, "failures": 0}
        assert recorder.pending == 0


def test_a_trace_does_not_wait_for_company_for_ever() -> None:
    store = Store()
    with BatchRecorder(store, max_batch=100, max_wait_s=0.01) as recorder:
        recorder(trace(0))
        until(lambda: store.ids == ["t0"])


def test_a_full_batch_does_not_wait() -> None:
    store = Store()
    with BatchRecorder(store, max_batch=3, max_wait_s=60) as recorder:
        for i in range(3):
            recorder(trace(i))
        until(lambda: len(store.ids) == 3)


def test_closing_writes_what_waits_and_takes_no_more() -> None:
    store = Store()
    recorder = BatchRecorder(store, max_wait_s=60)
    for i in range(7):
        recorder(trace(i))
    assert recorder.close()
    assert recorder.close(), "twice is once"
    recorder(trace(7))
    assert len(store.ids) == 7
    assert recorder.counts["dropped"] == 1


def test_a_store_that_is_down_is_waited_for() -> None:
    store = Store(down=True)
    with BatchRecorder(store, max_wait_s=0, backoff_s=0.001) as recorder:
        for i in range(20):
            recorder(trace(i))
        until(lambda: store.calls > 30)
        assert recorder.pending == 20
        assert not recorder.flush(0.01)
        store.down = False
        assert recorder.flush(5)
        assert store.ids == [f"t{i}" for i in range(20)]
        assert recorder.counts["refused"] == recorder.counts["dropped"] == 0
        assert recorder.counts["failures"] > 3


def test_the_queue_is_bounded_and_drops_are_counted() -> None:
    store = Store(down=True)
    recorder = BatchRecorder(store, max_queue=5, max_wait_s=0, backoff_s=0.001)
    for i in range(12):
        recorder(trace(i))
    assert (recorder.pending, recorder.counts["dropped"]) == (5, 7)
    store.down = False
    assert recorder.flush(5)
    assert sorted(store.ids) == [f"t{i}" for i in range(5)], "what came first is kept"
    recorder(trace(99))
    assert recorder.close()
    assert store.ids[-1] == "t99"


def test_one_trace_that_no_store_takes_does_not_hold_up_the_others() -> None:
    store = Store(bad=["t3"])
    with BatchRecorder(store, max_batch=8, max_wait_s=60, backoff_s=0.001) as recorder:
        for i in range(8):
            recorder(trace(i))
        assert recorder.flush(5)
        assert list(dict.fromkeys(store.ids)) == ["t0", "t1", "t2", "t4", "t5", "t6", "t7"]
        assert (recorder.counts["written"], recorder.counts["refused"]) == (7, 1)


def test_bad_traces_at_the_head_are_found_and_a_store_that_is_down_is_not_hammered() -> None:
    store = Store(bad=[f"t{i}" for i in range(12)])
    with BatchRecorder(store, max_batch=50, max_wait_s=60, backoff_s=0.001) as recorder:
        for i in range(50):
            recorder(trace(i))
        assert recorder.flush(5)
        assert set(store.ids) == {f"t{i}" for i in range(12, 50)}
        assert recorder.counts["written"] == 38
        assert recorder.counts["refused"] == 12
        store.down, before = True, store.calls
        for i in range(50):
            recorder(trace(100 + i))
        until(lambda: store.calls > before + 20)
        assert (recorder.pending, recorder.counts["refused"]) == (50, 12)
        store.down = False


def test_a_store_that_is_down_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    store = Store(down=True)
    caplog.set_level(logging.WARNING, logger="tracer.recorder")
    with BatchRecorder(store, max_wait_s=0, backoff_s=0.001) as recorder:
        recorder(trace(0))
        until(lambda: store.calls > 5)
        store.down = False
        assert recorder.flush(5)
    assert caplog.text.count("could not be written") == 1
    assert "text 0" not in caplog.text


def test_a_store_that_goes_down_between_two_traces_refuses_none() -> None:
    """What fails then may be sound: nothing is given up while no trace is taken."""
    taken: list[str] = []
    up = threading.Event()

    def one_and_no_more(batch: Sequence[Trace]) -> None:
        if not up.is_set() and (len(batch) > 1 or taken):
            raise StoreError("no")
        taken.extend(t.id for t in batch)

    with BatchRecorder(one_and_no_more, max_batch=6, max_wait_s=60, backoff_s=0.001) as recorder:
        for i in range(6):
            recorder(trace(i))
        until(lambda: recorder.counts["failures"] > 20)
        assert (taken, recorder.counts["refused"], recorder.pending) == (["t0"], 0, 5)
        up.set()
        assert recorder.flush(5)
        assert taken == [f"t{i}" for i in range(6)]


def test_closing_on_a_store_that_is_down_gives_up_in_time() -> None:
    recorder = BatchRecorder(Store(down=True), max_wait_s=0, backoff_s=100)
    for i in range(4):
        recorder(trace(i))
    began = time.monotonic()
    assert not recorder.close(0.3)
    assert time.monotonic() - began < 5
    assert recorder.counts["dropped"] == 4
    assert not recorder.flush(5) or recorder.pending == 0


def test_many_threads_record_at_once() -> None:
    store, n, each = Store(), 8, 400
    with BatchRecorder(store, max_batch=50, max_wait_s=0.001, max_queue=n * each) as recorder:

        def record(k: int) -> None:
            for i in range(each):
                recorder(trace(k * each + i))

        threads = [threading.Thread(target=record, args=(k,)) for k in range(n)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(store.ids) == sorted(f"t{i}" for i in range(n * each))
    assert recorder.counts["written"] == n * each


def test_what_waits_at_the_end_of_a_process_is_written() -> None:
    code = (
        "from tracer.serving.recorder import BatchRecorder\nfrom tracer.types import Trace\n"
        "recorder = BatchRecorder(lambda batch: print(*(t.id for t in batch), flush=True), max_wait_s=60)\n"
        "recorder(Trace('one', 'x', 'a')); recorder(Trace('two', 'x', 'a'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["one", "two"]


def test_a_fork_records_on_its_own() -> None:
    code = (
        "import os\nfrom tracer.serving.recorder import BatchRecorder\nfrom tracer.types import Trace\n"
        "recorder = BatchRecorder(lambda batch: os.write(1, batch[0].id.encode() + b'\\n'), max_wait_s=0)\n"
        "recorder(Trace('parent', 'x', 'a')); recorder.flush()\n"
        "pid = os.fork()\n"
        "if not pid:\n    recorder(Trace('child', 'x', 'a')); os._exit(0 if recorder.flush(5) else 1)\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, timeout=60,
        env=dict(os.environ),
    )  # fmt: skip
    assert done.stdout.split() == ["parent", "child"]


@pytest.mark.parametrize(
    "given", [{"max_batch": 0}, {"max_queue": -1}, {"max_wait_s": -0.1}, {"backoff_s": float("nan")}]
)
def test_impossible_sizes_are_refused_by_name(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(given))} = "):
        BatchRecorder(Store(), **given)


def test_recording_loads_no_database_and_no_event_loop() -> None:
    heavy = {"sqlalchemy", "asyncio", "sqlite3", "tracer.traces"}
    code = f"import sys, tracer.serving.recorder; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "set()"


def test_the_queue_is_bounded_in_bytes_too() -> None:
    store = Store(down=True)
    recorder = BatchRecorder(store, max_wait_s=0, backoff_s=0.001, max_bytes=30_000)
    recorder(replace(trace(0), text="a long text " * 10_000))
    for i in range(1, 4):
        recorder(trace(i))
    assert (recorder.pending, recorder.counts["dropped"]) == (1, 3), "one alone is taken whatever its size"
    store.down = False
    assert recorder.flush(5)
    for i in range(4, 14):
        recorder(trace(i))
    assert recorder.close()
    assert recorder.counts["dropped"] == 3
    assert recorder.counts["written"] == 11
