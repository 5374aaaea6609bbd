"""What is known of each task, read in threads beside the requests, kept for a few seconds, and bounded."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from decimal import Decimal
from typing import TypeVar

from tracer.certification.certificate import Certificate
from tracer.errors import TracerError
from tracer.flywheel.settings import Settings
from tracer.gateway.lines import TaskLine
from tracer.gateway.pages.ledgers import Ledger, Span, total
from tracer.gateway.pages.standing import Agreement, Standing
from tracer.policies.history import Event
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.types import Trace

log = logging.getLogger("tracer.gateway")

_T = TypeVar("_T")

FRESH_S = 3.0
_UNREADABLE = (TracerError, OSError, ValueError, KeyError, TypeError)
"""What damaged files and rows raise: the page says so, and shows the rest."""
_PAGE_S = 0.15
"""How long a page reads on where much is new; what is left waits for the next look, and the page says so."""
_TEND_S = 3.0
_PATIENCE_S = 4.0
_EVENTS = 30
_VERSIONS = 12
_TEXTS = 8
_AMONG = 5_000
"""Newest traces among which those to show are searched."""
RANGES = {"24h": (1, 24), "7d": (6, 28), "30d": (24, 30)}
"""Ranges that a page shows: hours of a span, and how many spans."""


@dataclass(frozen=True, slots=True, eq=False)
class Look:
    """A task at a moment: counts alone, no text. ``trouble``: what could not be read, by kind. ``past``: what audits
    said of a policy that was demoted, while no other is in force."""

    name: str
    at: float
    policy: str | None
    active: Policy | None = field(repr=False)
    off: bool
    n_traces: int
    generation: int
    partial: bool
    held: bool
    today: Span
    month: Span
    ranges: dict[str, tuple[Span, ...]] = field(repr=False)
    agreement: Agreement | None
    call_usd: Decimal | None
    teacher: str | None
    events: tuple[Event, ...] = field(repr=False)
    versions: tuple[tuple[str, Certificate | None], ...] = field(repr=False)
    trouble: tuple[str, ...] = ()
    past: Agreement | None = None

    @property
    def demoted(self) -> Event | None:
        """The demotion that nothing has followed since."""
        return _demotion(self.events, self.policy)


@dataclass(frozen=True, slots=True)
class Texts:
    """The newest deferred inputs, and the newest that a policy would have answered otherwise than its teacher."""

    deferred: tuple[Trace, ...] = ()
    disagreed: tuple[Trace, ...] = ()
    trouble: str = ""


class _Track:
    """One task from look to look; one thread at a time."""

    def __init__(self, line: TaskLine) -> None:
        self.line = line
        self.lock = threading.Lock()
        self.ledger = Ledger(line.task.teacher, line.saved_usd)
        self.standing, self.past = Standing(line.home), Standing(line.home)
        self.policy: Policy | None = None
        self.demoted: Policy | None = None
        self.certificates: dict[str, Certificate | None] = {}
        self.found: Look | None = None
        self.read_at = -1e9
        self.texts: Texts | None = None
        self.texts_at = -1e9


class Looks:
    """The looks of a gateway's tasks. ``now`` gives seconds since the epoch."""

    def __init__(self, now: Callable[[], float], clock: Callable[[], float] = time.monotonic) -> None:
        self._now, self._clock = now, clock
        self._tracks: dict[str, _Track] = {}
        self.n_forgotten = 0
        """Grows with each `forget`: pages made before it are out of date."""
        # Threads of its own: a database that hangs must take none from those that decide.
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="tracer-page")

    async def of(self, lines: Iterable[TaskLine]) -> list[Look]:
        """Looks of a few seconds ago at most, in the order of the lines."""
        tracks = [self._track(line) for line in lines]
        return list(await asyncio.gather(*(self._soon(track, self._look, _PAGE_S) for track in tracks)))

    async def texts(self, line: TaskLine) -> Texts:
        """The newest texts of a task, for eyes that may see them."""
        track = self._track(line)
        try:
            return await self._in_time(track, self._texts)
        except TimeoutError:
            return Texts(trouble="the trace store does not answer")

    async def tend(self, lines: Iterable[TaskLine]) -> list[Look]:
        """New looks, with time to read on; what is behind is caught up here."""
        tracks = [self._track(line) for line in lines]
        return [await self._soon(track, self._anew, _TEND_S) for track in tracks]

    async def render(self, work: Callable[[], str]) -> str:
        """Make a page in a thread of these."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def forget(self, name: str) -> None:
        """Look anew at the next chance: something was switched."""
        self.n_forgotten += 1
        track = self._tracks.get(name)
        if track is not None:
            track.read_at = -1e9

    def close(self) -> None:
        """Begin nothing more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _track(self, line: TaskLine) -> _Track:
        track = self._tracks.get(line.task.name)
        if track is None or track.line is not line:
            track = self._tracks[line.task.name] = _Track(line)
        return track

    async def _in_time(self, track: _Track, work: Callable[[_Track], _T]) -> _T:
        loop = asyncio.get_running_loop()
        return await asyncio.wait_for(loop.run_in_executor(self._pool, work, track), _PATIENCE_S)

    async def _soon(self, track: _Track, work: Callable[[_Track, float], Look], budget: float) -> Look:
        try:
            return await self._in_time(track, lambda one: work(one, budget))
        except TimeoutError:
            return track.found or _empty(track.line, self._now(), "the trace store does not answer")

    def _look(self, track: _Track, budget: float) -> Look:
        if track.found is not None and self._clock() - track.read_at < FRESH_S:
            return track.found
        if not track.lock.acquire(timeout=-1.0 if track.found is None else budget):
            return track.found or _empty(track.line, self._now(), "it is being read")
        try:
            if track.found is not None and self._clock() - track.read_at < FRESH_S:
                return track.found
            return self._read(track, budget)
        finally:
            track.lock.release()

    def _anew(self, track: _Track, budget: float) -> Look:
        with track.lock:
            return self._read(track, budget)

    def _read(self, track: _Track, budget: float) -> Look:
        line, now, trouble = track.line, self._now(), []
        registry, version, settings = PolicyRegistry(line.home), None, None
        generation = 0
        events: tuple[Event, ...] = ()
        try:
            version = registry.active_version()
            events = registry.history()[-_EVENTS:]
            settings = Settings.read(line.home)
            self._take_up(track, registry, version)
            self._take_down(track, registry, _demotion(events, version))
        except _UNREADABLE as error:
            trouble.append(f"policies: {_kind(error)}")
        try:
            with line.store.recent() as recent:
                generation = recent.generation
                track.ledger.refresh(recent, now, line.router.tallies())
                track.standing.refresh(recent, track.policy, settings, now, budget)
                track.past.refresh(recent, track.demoted, _unwatched(settings), now, budget)
        except _UNREADABLE as error:
            trouble.append(f"trace store: {_kind(error)}")
        ranges = {name: track.ledger.spans(now, *span) for name, span in RANGES.items()}
        prices, teacher = track.ledger.call_usd(), track.ledger.teacher
        track.found = Look(
            line.task.name, now, version, track.policy, line.switch.exists(), track.ledger.n_traces, generation,
            track.ledger.partial, settings is not None and settings.held, track.ledger.spans(now, 24, 1)[0],
            total(track.ledger.spans(now, 24, 30)), ranges, track.standing.found(),
            prices.get(teacher), teacher, events, _versions(track, registry), tuple(trouble),
            track.past.found(),
        )  # fmt: skip
        track.read_at = self._clock()
        return track.found

    def _take_up(self, track: _Track, registry: PolicyRegistry, version: str | None) -> None:
        """The policy in force: the router's, unless it has not met it yet."""
        if version is None:
            track.policy = None
            return
        served = track.line.policy
        if served is not None and served.version == version:
            track.policy = served
        elif track.policy is None or track.policy.version != version:
            track.policy = None
            track.policy = registry.load(version)

    def _take_down(self, track: _Track, registry: PolicyRegistry, demotion: Event | None) -> None:
        """The policy whose place the teacher took after an alarm."""
        name = demotion.before if demotion is not None and demotion.after is None else None
        if name is None:
            track.demoted = None
        elif track.demoted is None or track.demoted.version != name:
            track.demoted = None
            track.demoted = registry.load(name)

    def _texts(self, track: _Track) -> Texts:
        with track.lock:
            if track.texts is not None and self._clock() - track.texts_at < FRESH_S:
                return track.texts
            try:
                with track.line.store.recent() as recent:
                    deferred = recent.newest(_TEXTS, among=_AMONG, origins={"deferred"}, handled=False)
                    disagreed = recent.newest(_TEXTS, among=_AMONG, origins={"audit"}, handled=True, disagreed=True)
                track.texts = Texts(tuple(deferred), tuple(disagreed))
            except _UNREADABLE as error:
                track.texts = Texts(trouble=_kind(error))
            track.texts_at = self._clock()
            return track.texts


def _demotion(events: Iterable[Event], version: str | None) -> Event | None:
    """The last change of what is in force, where that was a demotion."""
    moved = [event for event in events if event.moved]
    return moved[-1] if moved and moved[-1].event == "demote" and moved[-1].after == version else None


def _unwatched(settings: Settings | None) -> Settings | None:
    """Settings under which the audits of a demoted version count from the first one on."""
    if settings is None:
        return None
    return settings.with_line(replace(settings.line, watched=0, demoted=()))


def _versions(track: _Track, registry: PolicyRegistry) -> tuple[tuple[str, Certificate | None], ...]:
    """The newest versions, newest first, and what they promise; None where that cannot be read."""
    for version in registry.versions()[-_VERSIONS:]:
        if version not in track.certificates:
            try:
                track.certificates[version] = registry.certificate(version)
            except TracerError:
                track.certificates[version] = None
    there = registry.versions()[-_VERSIONS:]
    track.certificates = {version: track.certificates[version] for version in there if version in track.certificates}
    return tuple((version, track.certificates.get(version)) for version in reversed(there))


def _empty(line: TaskLine, now: float, trouble: str) -> Look:
    ranges = dict.fromkeys(RANGES, ())
    none = Span(now, 0.0, served=None, spent=None, saved=None)
    return Look(
        line.task.name, now, None, None, False, 0, 0, False, False, none, none, dict(ranges), None, None, None, (), (),
        (trouble,),
    )  # fmt: skip


def _kind(error: Exception) -> str:
    """Of what went wrong, only the kind: messages may tell of paths and databases."""
    return type(error).__name__
