"""A bound on the time that a request's head takes to come: a connection that says nothing whole is closed."""

from __future__ import annotations

import asyncio
from typing import Any

HEAD_S = 20.0
"""Seconds from the connection, or from the first byte of a later request on it."""


def timed(base: type[asyncio.Protocol], head_s: float = HEAD_S) -> type[asyncio.Protocol]:
    """One of uvicorn's HTTP protocols with this bound; what a request's body may take is `reading`'s matter."""
    any_base: Any = base

    class Timed(any_base):  # type: ignore[misc]
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._timer = self.loop.call_later(head_s, self._late)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._answering():
                self._settle()
            elif self._timer is None and not self.transport.is_closing():
                self._timer = self.loop.call_later(head_s, self._late)

        def connection_lost(self, exc: Exception | None) -> None:
            self._settle()
            super().connection_lost(exc)

        def _answering(self) -> bool:
            return self.cycle is not None and not self.cycle.response_complete

        def _settle(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _late(self) -> None:
            self._timer = None
            if not self._answering() and not self.transport.is_closing():
                self.transport.close()

    return Timed
