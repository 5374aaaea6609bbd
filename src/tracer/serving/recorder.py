"""Writing traces beside the requests: a thread that batches, in bounded memory, and waits for a store that is down."""

from __future__ import annotations

import atexit
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import islice
from types import TracebackType
from typing import Self

from tracer.errors import ConfigError
from tracer.types import Trace

log = logging.getLogger("tracer.recorder")

_MAX_BACKOFF_S = 30.0
_PATIENCE = 3
"""Failures in a row after which a batch is written one by one, to find a trace that no store takes."""
_PROBES = 5
"""Traces tried one by one, none of them taken, after which the store counts as down."""
_AT_EXIT_S = 5.0
_HURRIED_S = 0.2
"""The longest wait after a failure while someone waits for the queue to empty."""


class BatchRecorder:
    """A ``record`` for routers: hands traces to ``write`` in batches, from a thread of its own.

    ``write`` gets 1 to ``max_batch`` traces and must be idempotent by id: after an error it gets the same again, after
    ``backoff_s`` seconds, twice that, and so on. A trace waits ``max_wait_s`` for company at most. At most
    ``max_queue`` traces are held, and texts of about ``max_bytes``; what comes then is dropped and counted, audits like
    others, so that what is lost does not depend on what it says (but on its length, where texts are that large). A
    trace that is refused while the store takes others is given up and counted.
    """

    def __init__(
        self,
        write: Callable[[Sequence[Trace]], object],
        *,
        max_batch: int = 500,
        max_wait_s: float = 1.0,
        max_queue: int = 10_000,
        max_bytes: int = 64 << 20,
        backoff_s: float = 0.1,
    ) -> None:
        counts = (("max_batch", max_batch, 1), ("max_queue", max_queue, 1), ("max_bytes", max_bytes, 1))
        for key, value, least in (*counts, ("max_wait_s", max_wait_s, 0), ("backoff_s", backoff_s, 0)):
            if not value >= least:
                raise ConfigError(f"{key} = {value!r}: must be at least {least}")
        self._write = write
        self._max_batch, self._max_wait_s, self._max_queue = max_batch, max_wait_s, max_queue
        self._max_bytes, self._bytes = max_bytes, 0
        self._backoff_s = backoff_s
        self._queue: deque[Trace] = deque()
        self._changed = threading.Condition()
        self._counts: Counter[str] = Counter()
        self._thread: threading.Thread | None = None
        self._hurried, self._closing, self._given_up = 0, False, False
        self._warned, self._turn = False, 0

    def __call__(self, trace: Trace) -> None:
        """Queue a trace; never waits for the store, never raises."""
        with self._changed:
            size = _size(trace)
            full = len(self._queue) >= self._max_queue or (self._queue and self._bytes + size > self._max_bytes)
            if self._closing or full:
                self._counts["dropped"] += 1
                if self._counts["dropped"] == 1:
                    log.warning("traces are dropped: %d wait to be written", len(self._queue))
                return
            self._queue.append(trace)
            self._bytes += size
            self._start()
            if len(self._queue) in (1, self._max_batch):
                self._changed.notify_all()

    @property
    def counts(self) -> dict[str, int]:
        """Traces so far: ``written``, ``dropped`` and ``refused``; and ``failures`` of the store."""
        with self._changed:
            return {name: self._counts[name] for name in ("written", "dropped", "refused", "failures")}

    @property
    def pending(self) -> int:
        """Traces that wait or are being written."""
        with self._changed:
            return len(self._queue)

    def flush(self, timeout_s: float | None = None) -> bool:
        """Write what is queued now, and wait for it. False where time ran out."""
        with self._changed:
            settled = self._settled()
            goal = settled + len(self._queue)
            self._hurried += 1
            if self._queue:
                self._start()
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: self._settled() >= goal or self._given_up, timeout_s) and (
                    self._settled() >= goal
                )
            finally:
                self._hurried -= 1

    def close(self, timeout_s: float = 10.0) -> bool:
        """Take no more, and write what is queued; False where that was not done in time: the rest is dropped."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            thread = self._thread
        atexit.unregister(self._close_at_exit)
        if thread is not None and thread.is_alive():
            thread.join(timeout_s)
        with self._changed:
            left = len(self._queue)
            self._given_up = True
            self._counts["dropped"] += left
            self._queue.clear()
            self._bytes = 0
            self._changed.notify_all()
        if left:
            log.warning("closed with %d traces unwritten", left)
        return left == 0

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _close_at_exit(self) -> None:
        self.close(_AT_EXIT_S)

    def _settled(self) -> int:
        return self._counts["written"] + self._counts["refused"]

    def _start(self) -> None:
        # A thread does not survive a fork: the child of a server that loaded first starts its own.
        if self._thread is None or not self._thread.is_alive():
            if self._thread is None:
                atexit.register(self._close_at_exit)
            self._thread = threading.Thread(target=self._run, name="tracer-recorder", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        failed, waited = 0, False
        while True:
            with self._changed:
                batch = self._next(waited)
            if not batch:
                return
            if self._written(batch):
                failed, waited = 0, False
                continue
            failed, waited = failed + 1, True
            if failed >= _PATIENCE and len(batch) > 1 and self._one_by_one(batch):
                failed = 0
            else:
                self._pause(min(self._backoff_s * 2.0 ** min(failed - 1, 20), _MAX_BACKOFF_S))

    def _next(self, waited: bool) -> list[Trace]:
        """The next batch, still in the queue until it is written; empty to end. Holds the lock, but for waiting."""
        while not self._queue:
            if self._closing:
                return []
            self._changed.wait()
        until = time.monotonic() + (0.0 if waited else self._max_wait_s)
        while len(self._queue) < self._max_batch and not (self._closing or self._hurried):
            left = until - time.monotonic()
            if left <= 0:
                break
            self._changed.wait(left)
        return list(islice(self._queue, self._max_batch))

    def _written(self, batch: Sequence[Trace]) -> bool:
        if self._takes(batch):
            self._done(batch, "written")
            return True
        return False

    def _takes(self, batch: Sequence[Trace]) -> bool:
        try:
            self._write(batch)
        except Exception as error:  # the caller's function: requests must go on
            with self._changed:
                self._counts["failures"] += 1
            level, self._warned = logging.DEBUG if self._warned else logging.WARNING, True
            log.log(level, "%d traces could not be written and wait: %s", len(batch), type(error).__name__)
            log.debug("the failure", exc_info=error)
            return False
        self._warned = False
        return True

    def _one_by_one(self, batch: Sequence[Trace]) -> bool:
        """Write what can be written, and give up what fails twice while the store is up. False where it is down."""
        start = self._turn % len(batch)  # not the same few each time
        taken: Trace | None = None
        failed: list[Trace] = []
        for trace in (*batch[start:], *batch[:start]):
            if self._written([trace]):
                taken = trace
            else:
                failed.append(trace)
                if taken is None and len(failed) == _PROBES:
                    break
        if taken is None:
            self._turn += _PROBES
            return False
        failed = [trace for trace in failed if not self._written([trace])]
        # One that was taken is taken again by a store that is up: writing is idempotent.
        if failed and self._takes([taken]):
            log.warning("%d traces were refused one by one and are given up", len(failed))
            self._done(failed, "refused")
        return True

    def _done(self, batch: Sequence[Trace], outcome: str) -> None:
        with self._changed:
            if self._given_up:
                return  # counted as dropped already
            gone = set(map(id, batch))  # held by the batch, so no other object has taken these ids
            self._queue = deque(trace for trace in self._queue if id(trace) not in gone)
            self._bytes -= sum(map(_size, batch))
            self._counts[outcome] += len(batch)
            self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        began = time.monotonic()
        with self._changed:
            while not self._given_up:
                hurried = self._closing or self._hurried
                left = began + (min(seconds, _HURRIED_S) if hurried else seconds) - time.monotonic()
                if left <= 0:
                    return
                self._changed.wait(left)


def _size(trace: Trace) -> int:
    """What a trace holds in memory, nearly: the text is all that can be large."""
    return 1024 + 2 * len(trace.text or "")
