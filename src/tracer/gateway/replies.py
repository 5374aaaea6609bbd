"""What an upstream answered: a head, and chunks that are read from the socket as they are asked for."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Self, cast

import httpx2

from tracer.errors import UpstreamError, UpstreamFault
from tracer.gateway.breaker import Permit
from tracer.gateway.headers import Headers
from tracer.gateway.retrying import retry_after


class Chunks(AsyncIterator[bytes]):
    """The body's bytes as they came, compressed where the upstream compressed them, in pieces of at most 64 KiB.

    Nothing is read ahead: a slow reader slows the upstream. Iterating raises UpstreamError (``cut`` or ``timeout``)
    where the answer breaks off; the pieces before it were good. `aclose` ends the upstream's connection where the
    answer is not over, and may be called at any time, more than once.
    """

    def __init__(self, response: httpx2.Response, upstream: str, permit: Permit) -> None:
        self._response, self._upstream, self._permit = response, upstream, permit
        self._iterator = cast(httpx2.AsyncByteStream, response.stream).__aiter__()
        self._over = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        if self._over:
            raise StopAsyncIteration
        fault: UpstreamFault
        try:
            return await anext(self._iterator)
        except StopAsyncIteration:
            await self.aclose()
            raise
        except httpx2.TimeoutException:
            fault, problem = "timeout", "took too long within its answer"
        except httpx2.TransportError as error:
            fault, problem = "cut", f"its answer broke off ({type(error).__name__})"
        except BaseException:
            await self.aclose()
            raise
        # Outside of the handlers: a foreign message must not travel along as the context.
        self._permit.failed()
        await self.aclose()
        raise UpstreamError(self._upstream, fault, problem)

    async def aclose(self) -> None:
        """Free the connection: kept for the next request where the answer was read to its end, else closed."""
        if not self._over:
            self._over = True
            await self._response.aclose()


@dataclass(frozen=True, slots=True)
class Reply:
    """An upstream's answer, errors too: ``status``; ``headers`` fit to go to the client (names in lower case);
    ``chunks``, the untouched bytes of the body.

    ``first_byte_s``: seconds from the call of `send` to the head of this answer, with all attempts before.
    ``upstream``: who answered. ``attempts``: requests that were sent or tried, over all upstreams.
    Use it as an async context manager, or call `aclose`: an answer that is left open holds a connection.
    """

    status: int
    headers: Headers
    first_byte_s: float
    chunks: Chunks = field(repr=False)
    upstream: str
    attempts: int

    def header(self, name: str) -> str | None:
        """The last value of a header, by its name in lower case; None where there is none."""
        values = [value for key, value in self.headers if key == name.encode("latin-1")]
        return values[-1].decode("latin-1") if values else None

    async def read(self, limit: int = 64 * 1024 * 1024) -> bytes:
        """The whole body, as sent. Raises UpstreamError, also where it has more than ``limit`` bytes."""
        parts, size = [], 0
        async with self:
            async for chunk in self.chunks:
                size += len(chunk)
                if size > limit:
                    raise UpstreamError(
                        self.upstream, "cut", f"its answer has more than {limit} bytes", status=self.status
                    )
                parts.append(chunk)
        return b"".join(parts)

    def failure(self) -> UpstreamError | None:
        """Of kind ``status`` where this says that the upstream cannot serve: 408, 429, 5xx. None otherwise: an answer,
        or an error of the request, which another upstream would answer alike."""
        if self.status not in (408, 429) and self.status < 500:
            return None
        asked = retry_after({name.decode("latin-1"): value.decode("latin-1") for name, value in self.headers})
        return UpstreamError(
            self.upstream, "status", f"answered with status {self.status}", status=self.status, retry_after=asked
        )

    async def aclose(self) -> None:
        """Free the connection, whatever was read."""
        await self.chunks.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
