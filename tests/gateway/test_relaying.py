from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator

import pytest

from tests.gateway.standin import Fault, Standin
from tests.gateway.test_upstream import STREAMED, send, until, upstream
from tracer.gateway.relaying import ClientGoneError, Tee, decoded, while_connected
from tracer.gateway.upstream import Chain, Client


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize(("limit", "copy"), [(6, b"abcdef"), (5, None)])
def test_a_long_answer_loses_its_copy_and_no_chunk(limit: int, copy: bytes | None) -> None:
    async def test() -> None:
        tee = Tee(pieces(b"abc", b"", b"def"), limit)
        assert await anext(tee) == b"abc"
        assert tee.copy is None, "not over yet"
        assert b"".join([chunk async for chunk in tee]) == b"def"
        assert (tee.copy, tee.n_bytes, tee.complete) == (copy, 6, True)

    asyncio.run(test())


def test_copies_are_unpacked_up_to_the_limit() -> None:
    text = b"label " * 100
    assert decoded(gzip.compress(text), "GZIP", 600) == text
    assert decoded(zlib.compress(text), "deflate", 600) == text
    assert decoded(gzip.compress(text), "gzip", 599) is None, "a bomb"
    assert decoded(gzip.compress(text)[:-9], "gzip", 600) is None
    assert decoded(text, "gzip", 600) is None
    assert decoded(text, "br", 600) is None
    assert decoded(text, None, 1) == text


def test_a_client_that_leaves_ends_the_upstreams_request() -> None:
    async def test() -> None:
        client = Client(upstream(api))
        chain, left = Chain([client]), asyncio.Event()
        got: list[bytes] = []

        async def relay() -> None:
            async with await send(chain, STREAMED) as reply:
                async for chunk in reply.chunks:
                    got.append(chunk)
                    left.set()

        with pytest.raises(ClientGoneError):
            await while_connected(relay(), left.wait())
        await until(lambda: api.n_closed == 1)
        assert len(got) == 1
        await client.aclose()

    with Standin() as api:
        api.misbehave(Fault("slow_chunks", seconds=5.0))
        asyncio.run(test())


def test_a_client_that_stays_gets_the_result_or_the_error() -> None:
    async def work(fail: bool) -> int:
        await asyncio.sleep(0)
        if fail:
            raise RuntimeError("as it was")
        return 7

    async def test() -> None:
        assert await while_connected(work(False), asyncio.Event().wait()) == 7
        with pytest.raises(RuntimeError, match="as it was"):
            await while_connected(work(True), asyncio.Event().wait())

    asyncio.run(test())


def test_a_reader_of_labels_may_look_before_the_end() -> None:
    async def inside() -> None:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"data: [DONE]\n\n"
            yield b"more than it keeps"

        tee = Tee(chunks(), 20)
        await anext(tee)
        assert (tee.copy, tee.so_far) == (None, b"data: [DONE]\n\n")
        await anext(tee)
        assert tee.so_far is None
        packed = Tee(chunks(), 1000, "gzip")
        await anext(packed)
        assert packed.so_far is None

    asyncio.run(inside())
