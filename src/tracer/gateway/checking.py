"""Checks of keys that are slow on purpose (scrypt): in few threads, one a key, and few for each who asks."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")

_SOURCES = 4_096


class Bucket:
    """Admits ``rate`` requests a second on average, and a second's worth at once (at least one)."""

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._rate, self._most, self._clock = rate, max(1.0, rate), clock
        self._left, self._at = self._most, clock()

    def wait(self) -> float:
        """0 where a request may pass, which takes its token; else the seconds until one may."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._at) * self._rate)
        self._at = now
        if self._left < 1.0:
            return (1.0 - self._left) / self._rate
        self._left -= 1.0
        return 0.0

    def charge(self, n: int) -> None:
        """Take the tokens of n more that came with one that passed: who comes next waits until they are paid."""
        self._left -= n


class UncheckedError(Exception):
    """A key was not checked: as many as may be are. ``wait`` is the seconds after which to come again."""

    def __init__(self, wait: float) -> None:
        super().__init__(f"no key is checked for {wait:.1f} s")
        self.wait = wait


class SlowChecks:
    """Runs checks in ``workers`` threads; ``waiting`` more wait. Each source may begin ``rate`` a second.

    Requests that show the same key at the same time share one check. For one event loop.
    """

    def __init__(
        self, *, rate: float = 5.0, workers: int = 2, waiting: int = 32, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._rate, self._workers, self._most, self._clock = rate, workers, workers + waiting, clock
        self._pool: ThreadPoolExecutor | None = None
        self._running: dict[bytes, asyncio.Future[Any]] = {}
        self._sources: OrderedDict[str, Bucket] = OrderedDict()

    async def run(self, digest: bytes, source: str, check: Callable[[], T]) -> T:
        """What ``check`` returns. ``digest`` says which key, ``source`` who shows it. Raises UncheckedError."""
        running = self._running.get(digest)
        if running is None:
            if len(self._running) >= self._most:
                raise UncheckedError(1.0)
            if (wait := self._bucket(source).wait()) > 0.0:
                raise UncheckedError(wait)
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self._workers, "tracer-keys")
            running = asyncio.get_running_loop().run_in_executor(self._pool, check)
            self._running[digest] = running
            running.add_done_callback(lambda _: self._running.pop(digest, None))
        # The check goes on where whoever began it leaves: others may wait for it, and its result is kept.
        return await asyncio.shield(running)

    def _bucket(self, source: str) -> Bucket:
        bucket = self._sources.get(source)
        if bucket is None:
            bucket = self._sources[source] = Bucket(self._rate, self._clock)
            if len(self._sources) > _SOURCES:
                self._sources.popitem(last=False)
        self._sources.move_to_end(source)
        return bucket
