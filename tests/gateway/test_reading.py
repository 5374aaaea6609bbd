"""Bodies that never come, and heads that never end, hold nothing for long."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

import pytest

from tracer.gateway.reading import Pieces, SlowBodyError, TooLargeError, read_body
from tracer.gateway.relaying import ClientGoneError


def receiver(parts: Iterable[bytes], pause_s: float, *, ends: bool) -> Any:
    rest = list(parts)

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(pause_s)
        if not rest:
            await asyncio.Event().wait()
        part = rest.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(rest) or not ends}

    return receive


def test_a_body_that_comes_is_read() -> None:
    assert asyncio.run(read_body(receiver([b"a", b"b", b""], 0.01, ends=True), {}, 10)) == b"ab"


@pytest.mark.parametrize(
    ("parts", "pause_s", "times"),
    [([], 0.0, {"silence_s": 0.1}), ([b"a"], 0.0, {"silence_s": 0.1}), ([b"a"] * 1_000, 0.02, {"whole_s": 0.2})],
)
def test_a_body_that_does_not_end_is_given_up(parts: list[bytes], pause_s: float, times: dict[str, float]) -> None:
    begun = time.monotonic()
    with pytest.raises(SlowBodyError):
        asyncio.run(read_body(receiver(parts, pause_s, ends=False), {}, 10_000, **times))
    assert time.monotonic() - begun < 2.0


def test_slow_but_steady_pieces_pass_and_silence_does_not() -> None:
    async def all_of(pieces: Pieces) -> list[bytes]:
        return [piece async for piece in pieces]

    steady = receiver([b"a", b"", b"b"], 0.05, ends=True)
    assert asyncio.run(all_of(Pieces(steady, silence_s=0.5))) == [b"a", b"b"]
    with pytest.raises(SlowBodyError):
        asyncio.run(all_of(Pieces(receiver([b"a"], 0.0, ends=False), silence_s=0.1)))


def test_who_leaves_and_who_says_too_much() -> None:
    async def left() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGoneError):
        asyncio.run(read_body(left, {}, 10))
    with pytest.raises(TooLargeError):
        asyncio.run(read_body(receiver([b"x" * 11], 0.0, ends=True), {}, 10))
