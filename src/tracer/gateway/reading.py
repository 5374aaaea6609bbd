"""The body of a request: read within its bound, or thrown away."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping

from starlette.types import Message, Receive, Scope

from tracer.gateway.relaying import ClientGoneError

_MOST, _MOST_S = 64 << 20, 5.0


class TooLargeError(Exception):
    """A body has more bytes than a gateway takes; ``more``: and some are still to come."""

    def __init__(self, *, more: bool) -> None:
        super().__init__()
        self.more = more


async def read_body(receive: Receive, headers: Mapping[str, str], limit: int) -> bytes:
    """A whole body. Raises TooLargeError as soon as that is known, ClientGoneError where the client left."""
    length = headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > limit:
        raise TooLargeError(more=True)
    parts, size = [], 0
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part, more = message.get("body", b""), bool(message.get("more_body", False))
        size += len(part)
        if size > limit:
            raise TooLargeError(more=more)
        parts.append(part)
        if not more:
            return b"".join(parts)


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
