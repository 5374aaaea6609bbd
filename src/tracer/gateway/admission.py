"""How many requests may be under way: at an upstream, with a bounded line of those that wait, and in all."""

from __future__ import annotations

import asyncio
from types import TracebackType

from tracer.errors import UpstreamError
from tracer.gateway.settings import Limits
from tracer.gateway.upstream_metrics import UpstreamMetrics


class Slots:
    """Places at one upstream: ``async with`` holds one, in the order in which they were asked for.

    At most ``most`` are held, and at most ``waiting`` wait for one, for ``wait_s`` seconds each. Raises UpstreamError
    of kind ``busy`` otherwise. A waiter that is cancelled, for its client left, leaves the line. For one event loop.
    """

    def __init__(self, name: str, most: int, waiting: int, wait_s: float) -> None:
        self._name, self._waiting, self._wait_s = name, waiting, wait_s
        self._free = asyncio.Semaphore(most)
        self.n_held = self.n_waiting = 0

    async def __aenter__(self) -> None:
        if self._free.locked():
            await self._in_line()
        else:
            await self._free.acquire()  # at once: it is not locked
        self.n_held += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.n_held -= 1
        self._free.release()

    async def _in_line(self) -> None:
        if self.n_waiting >= self._waiting:
            raise UpstreamError(self._name, "busy", f"{self.n_waiting} requests wait for it already", retry_after=1.0)
        self.n_waiting += 1
        try:
            async with asyncio.timeout(self._wait_s):
                await self._free.acquire()
        except TimeoutError:
            problem = f"no place was free within {self._wait_s:g} s"
        else:
            return
        finally:
            self.n_waiting -= 1
        raise UpstreamError(self._name, "busy", problem, retry_after=1.0)


class Admission:
    """The slots of all upstreams; they outlive a reload that leaves the limits as they were."""

    def __init__(self, metrics: UpstreamMetrics) -> None:
        self._metrics = metrics
        self._slots: dict[str, tuple[tuple[int, int, float], Slots]] = {}

    def at(self, upstream: str, limits: Limits) -> Slots:
        """The slots of an upstream."""
        wanted = (limits.upstream_concurrency, limits.upstream_waiting, limits.upstream_wait_s)
        known = self._slots.get(upstream)
        if known is None or known[0] != wanted:
            slots = Slots(upstream, *wanted)
            self._slots[upstream] = known = (wanted, slots)
            self._metrics.measure(upstream, lambda: slots.n_held, lambda: slots.n_waiting)
        return known[1]
