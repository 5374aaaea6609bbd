"""Reports of the policies in force: made by another process, one at a time, and kept for some minutes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tracer.errors import TracerError
from tracer.gateway.lines import TaskLine
from tracer.gateway.pages.ledgers import total
from tracer.gateway.pages.looks import Look

KEPT_S = 600.0
_KEPT = 4
_LONGEST_S = 300.0
_WEEK = 7
_Key = tuple[str, str, int]


@dataclass(frozen=True, slots=True)
class Report:
    """A report as JSON-ready facts and as one HTML document."""

    facts: dict[str, Any]
    html: str


class Reports:
    """The newest reports of a gateway. What was forgotten since makes a report void."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._made: OrderedDict[_Key, tuple[float, Report]] = OrderedDict()
        self._making: dict[_Key, asyncio.Task[Report]] = {}
        self._one = asyncio.Lock()

    async def of(self, line: TaskLine, look: Look, database: str | None, wait_s: float | None) -> Report | None:
        """The report of the policy in force; None where it takes longer than ``wait_s``, and is made all the same.

        Raises TracerError where there is no policy, or its report cannot be made.
        """
        if look.policy is None:
            raise TracerError("no policy is in force, so there is nothing to report on")
        key = (line.task.name, look.policy, look.generation)
        if (kept := self._kept(key)) is not None:
            return kept
        making = self._making.get(key)
        if making is None or (making.done() and making.exception() is None):  # one that nobody came for in time
            making = self._making[key] = asyncio.create_task(self._make(key, _wanted(line, look), database))
        await asyncio.wait({making}, timeout=wait_s)
        if not making.done():
            return None
        self._making.pop(key, None)
        return making.result()

    async def close(self) -> None:
        """Give up what is being made."""
        for making in self._making.values():
            making.cancel()
        await asyncio.gather(*self._making.values(), return_exceptions=True)

    async def _make(self, key: _Key, wanted: dict[str, Any], database: str | None) -> Report:
        async with self._one:
            report = _read(await _written(wanted, database))
        self._made[key] = (self._clock(), report)
        while len(self._made) > _KEPT:
            self._made.popitem(last=False)
        return report

    def _kept(self, key: _Key) -> Report | None:
        for old in [k for k in self._made if k[0] == key[0] and k != key]:
            del self._made[old]
        made = self._made.get(key)
        return made[1] if made is not None and self._clock() - made[0] < KEPT_S else None


def _wanted(line: TaskLine, look: Look) -> dict[str, Any]:
    week = total(look.ranges["7d"])
    source = f"list price of an average call of {look.teacher}" if look.call_usd is not None else "unknown"
    return {
        "home": str(line.home),
        "version": look.policy,
        "call_usd": None if look.call_usd is None else str(look.call_usd),
        "source": source,
        "calls_per_day": round(week.requests / _WEEK),
        "audit_rate": line.router.settings.audit_rate,
    }


async def _written(wanted: dict[str, Any], database: str | None) -> bytes:
    environ = dict(os.environ)
    if database is not None:
        environ["DATABASE_URL"] = database
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tracer.gateway.pages.telling", env=environ, stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(child.communicate(json.dumps(wanted).encode()), _LONGEST_S)
    except TimeoutError:
        raise TracerError(f"the report took longer than {_LONGEST_S:g} seconds and was given up") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
    return out


def _read(out: bytes) -> Report:
    try:
        content = json.loads(out)
    except ValueError:
        raise TracerError("the report could not be made: its process ended early") from None
    if "problem" in content:
        raise TracerError(str(content["problem"]))
    return Report(content["facts"], content["html"])
