"""Between an upstream's answer and its client: a bounded copy for the reader of labels, and the client's leaving."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any, Self, TypeVar

T = TypeVar("T")

_WINDOWS = {"gzip": 31, "x-gzip": 31, "deflate": 15}


class ClientGoneError(Exception):
    """The client left before it had its answer: there is nobody to tell."""


class Tee(AsyncIterator[bytes]):
    """Hands on ``chunks`` one by one, and keeps a copy while all of it has at most ``limit`` bytes.

    A longer answer loses its copy, never a chunk. ``encoding``: the answer's ``content-encoding``.
    """

    def __init__(self, chunks: AsyncIterator[bytes], limit: int, encoding: str | None = None) -> None:
        self._chunks, self._limit, self._encoding = chunks, limit, encoding
        self._kept: bytearray | None = bytearray()
        self.n_bytes = 0
        self._tail = b""
        self.complete = False
        """Whether the answer was handed on to its end."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            self.complete = True
            raise
        self.n_bytes += len(chunk)
        self._tail = (self._tail + chunk)[-4:] if len(chunk) < 4 else chunk[-4:]
        if self._kept is not None:
            if self.n_bytes <= self._limit:
                self._kept += chunk
            else:
                self._kept = None
        return chunk

    @property
    def between_events(self) -> bool:
        """Whether a stream of events may go on with another one: all that came is whole events, in plain text."""
        plain = (self._encoding or "identity").strip().lower() in ("", "identity")
        return plain and (self.n_bytes == 0 or self._tail.endswith((b"\n\n", b"\r\r", b"\r\n\r\n")))

    @property
    def copy(self) -> bytes | None:
        """The whole answer, decompressed; None where it is not over, was too large, or is in no known encoding."""
        if self._kept is None or not self.complete:
            return None
        return decoded(bytes(self._kept), self._encoding, self._limit)

    @property
    def so_far(self) -> bytes | None:
        """What came until now, for a reader that knows a cut answer when it sees one: clients leave after the last
        word, before the last byte. None as for `copy`."""
        if self.complete or self._kept is None or (self._encoding or "identity").strip().lower() != "identity":
            return self.copy
        return bytes(self._kept)


def decoded(body: bytes, encoding: str | None, limit: int) -> bytes | None:
    """``body`` without its ``content-encoding``; None where that is not gzip or deflate, the body is damaged, or it
    unpacks to more than ``limit`` bytes."""
    name = (encoding or "identity").strip().lower()
    if name in ("identity", ""):
        return body
    if name not in _WINDOWS:
        return None
    unpacker = zlib.decompressobj(_WINDOWS[name])
    try:
        out = unpacker.decompress(body, limit + 1)
    except zlib.error:
        return None
    return out if unpacker.eof and len(out) <= limit else None


async def while_connected(work: Coroutine[Any, Any, T], gone: Coroutine[Any, Any, object]) -> T:
    """What ``work`` returns; cancelled as soon as ``gone`` returns, with ClientGoneError.

    ``gone`` waits for the client's leaving (``http.disconnect``). Both have ended when this returns or raises, so
    that what ``work`` closes is closed.
    """
    task, watch = asyncio.ensure_future(work), asyncio.ensure_future(gone)
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        left = not task.done()
    finally:
        for one in (task, watch):
            one.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)
    if left and task.cancelled():
        raise ClientGoneError
    return task.result()
