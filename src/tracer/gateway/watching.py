"""Calls on their way to discovery, in bounded memory: a request never waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from sys import getsizeof
from typing import NamedTuple

from tracer.gateway import patterns
from tracer.gateway.calls import Call
from tracer.gateway.discovery import is_watchable
from tracer.types import Usage

_MOST = 1_000
_MOST_BYTES = 32 << 20
_EACH = 1_000
"""Bytes of a call without its texts, roughly."""


class Watched(NamedTuple):
    """A call with the output that came, at a time in epoch seconds; ``redact`` are the patterns that its task masks."""

    call: Call
    output: str | None
    at: float
    usage: Usage | None
    redact: tuple[str, ...] = ()


def masked(one: Watched) -> tuple[Call, str | None]:
    """The call and the output with all masked that its task masks: what recurs in them is kept.

    Other turns than the last user's are kept as digests alone, which masks would make those of another prompt.
    """
    if not one.redact:
        return one.call, one.output
    turns = list(one.call.messages)
    for i in [i for i, turn in enumerate(turns) if turn.role == "user"][-1:]:
        turns[i] = replace(turns[i], text=patterns.masked(turns[i].text, one.redact))
    output = None if one.output is None else patterns.masked(one.output, one.redact)
    return replace(one.call, messages=tuple(turns)), output


class WatchQueue:
    """At most ``most`` calls, of about ``most_bytes`` in all. For one event loop."""

    def __init__(self, most: int = _MOST, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._bytes = 0
        self._waiting: asyncio.Queue[tuple[Watched, int]] = asyncio.Queue(most)

    def put(self, one: Watched) -> bool:
        """Take a call in; False where it finds no room, or discovery would not look at it."""
        if not is_watchable(one.call):
            return False
        size = size_of(one.call) + (0 if one.output is None else getsizeof(one.output))
        if self._waiting.full() or self._bytes + size > self._most_bytes:
            return False
        self._bytes += size
        self._waiting.put_nowait((one._replace(call=replace(one.call, echo={}, metadata={}, stop=())), size))
        return True

    async def get(self) -> Watched:
        """The next call, once there is one."""
        return self._taken(await self._waiting.get())

    def drain(self) -> Iterator[Watched]:
        """All calls that wait."""
        while not self._waiting.empty():
            yield self._taken(self._waiting.get_nowait())

    def _taken(self, waiting: tuple[Watched, int]) -> Watched:
        self._bytes -= waiting[1]
        return waiting[0]


def size_of(call: Call) -> int:
    """About how many bytes a call holds; its schema comes again as options and as values of the slot."""
    turns = sum(getsizeof(turn.role) + getsizeof(turn.text) + getsizeof(turn.more) for turn in call.messages)
    return _EACH + getsizeof(call.system) + turns + 4 * getsizeof(call.schema)
