"""The body of a request: read within its bound, or thrown away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from typing import Self

from starlette.types import Message, Receive, Scope

from tracer.gateway.relaying import ClientGoneError
from tracer.gateway.waiting import Within

SILENCE_S, WHOLE_S = 30.0, 300.0
_MOST, _MOST_S = 64 << 20, 5.0


class TooLargeError(Exception):
    """A body has more bytes than a gateway takes; ``more``: and some are still to come."""

    def __init__(self, *, more: bool) -> None:
        super().__init__()
        self.more = more


class SlowBodyError(ClientGoneError):
    """A client has stopped sending, or sends for too long."""


async def read_body(
    receive: Receive,
    headers: Mapping[str, str],
    limit: int,
    *,
    silence_s: float = SILENCE_S,
    whole_s: float = WHOLE_S,
) -> bytes:
    """A whole body. Raises TooLargeError as soon as that is known, ClientGoneError where the client left, and
    SlowBodyError where it sends nothing for ``silence_s`` seconds, or takes longer than ``whole_s``."""
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise TooLargeError(more=True)
    parts: list[bytes] = []
    size = 0
    end: float | None = None
    while True:
        try:
            message: Message = await Within(receive(), silence_s)
        except TimeoutError:
            raise SlowBodyError from None
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part, more = message.get("body", b""), bool(message.get("more_body", False))
        size += len(part)
        if size > limit:
            raise TooLargeError(more=more)
        parts.append(part)
        if not more:
            return b"".join(parts)
        now = asyncio.get_running_loop().time()
        end = now + whole_s if end is None else end
        if now >= end:
            raise SlowBodyError


class Pieces(AsyncIterator[bytes]):
    """A body as it comes, for who hands it on: nothing is read before it is asked for.

    Raises ClientGoneError and SlowBodyError as `read_body` does; however long all of it takes.
    """

    def __init__(self, receive: Receive, silence_s: float = SILENCE_S) -> None:
        self._receive, self._silence_s = receive, silence_s
        self.n_bytes = 0
        self.over = asyncio.Event()
        """Set when nothing more is read here, be it that the answer came first."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not self.over.is_set():
            try:
                message: Message = await Within(self._receive(), self._silence_s)
            except TimeoutError:
                raise SlowBodyError from None
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            if not message.get("more_body", False):
                self.over.set()
            if part := message.get("body", b""):
                self.n_bytes += len(part)
                return bytes(part)
        raise StopAsyncIteration

    async def client_gone(self) -> None:
        """Returns when the client has left, after all of it was read."""
        await self.over.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass


async def discard(scope: Scope, receive: Receive, headers: Mapping[str, str]) -> None:
    """Throw away what of a body is still to come, for a while, where the connection closes after the answer.

    One that is closed on bytes that nobody read is reset, and its client may never see the answer.
    """
    closes = "close" in headers.get("connection", "").lower() or scope.get("http_version") == "1.0"
    if not closes or "expect" in headers:
        return
    size = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_MOST_S):
            while size < _MOST:
                message = await receive()
                size += len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


async def gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
