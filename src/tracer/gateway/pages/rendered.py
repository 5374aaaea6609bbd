"""Pages as a stranger sees them: the same for all of them, so made once in a few seconds, however many ask."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable

_MOST = 256


class Rendered:
    """Pages by key, kept for ``fresh_s`` seconds; who asks while one is being made waits for it. For one event loop."""

    def __init__(self, fresh_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._fresh_s, self._clock = fresh_s, clock
        self._pages: OrderedDict[Hashable, tuple[float, asyncio.Future[str]]] = OrderedDict()

    async def of(self, key: Hashable, make: Callable[[], Awaitable[str]]) -> str:
        """The page of a key; what ``make`` raises is raised, and kept for nobody who comes later."""
        found = self._pages.get(key)
        if found is None or self._clock() - found[0] >= self._fresh_s:
            found = self._pages[key] = self._clock(), asyncio.ensure_future(make())
            self._pages.move_to_end(key)
            if len(self._pages) > _MOST:
                self._pages.popitem(last=False)
        at, page = found
        try:
            # The page goes on being made where whoever asked for it first leaves.
            return await asyncio.shield(page)
        except Exception:
            if self._pages.get(key) == (at, page):
                del self._pages[key]
            raise
