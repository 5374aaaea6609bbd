"""Counts of what a policy decided, by version, kept until they are taken: what input drift is watched with."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from tracer.types import Decided, Reason

_KEPT = 32
"""Versions that wait to be taken at most; the oldest is given up then."""


@dataclass(frozen=True, slots=True)
class Tally:
    """n inputs that reached ``policy`` (None: no policy was asked) in the ``seconds`` from ``started``.

    ``facts``: ``handled`` (whether or not it was served), ``served``, ``novel``, ``errors`` and ``audits``, and
    ``labels``: the surrogate's labels and how often each. Inputs for which the caller asked for the teacher are no part
    of it.
    """

    policy: str | None
    started: datetime
    seconds: float
    n: int
    facts: dict[str, object]


@dataclass(slots=True)
class _Running:
    started: datetime
    began: float
    n: int = 0
    handled: int = 0
    served: int = 0
    novel: int = 0
    errors: int = 0
    audits: int = 0
    labels: Counter[str] = field(default_factory=Counter)


class Tallies:
    """Tallies that grow; safe to use from several threads. Memory is bounded by versions times labels.

    ``clock`` gives seconds that never go back: a wall clock that is set meanwhile changes no duration.
    """

    def __init__(self, clock_utc: Callable[[], datetime], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock_utc, self._clock = clock_utc, clock
        self._running: dict[str | None, _Running] = {}
        self._lock = threading.Lock()

    def add(self, policy: str | None, rows: Sequence[Decided], plans: Sequence[Reason | None]) -> None:
        """Count n inputs with what was decided of them and what the coins said of them."""
        with self._lock:
            running = self._running.get(policy)
            if running is None:
                running = self._running[policy] = _Running(self._clock_utc(), self._clock())
                if len(self._running) > _KEPT:
                    del self._running[next(iter(self._running))]
            running.n += len(rows)
            running.audits += plans.count("audit")
            for (label, score, handled, reason, _), plan in zip(rows, plans, strict=True):
                running.handled += handled
                running.served += handled and plan is None
                if label:
                    running.labels[label] += 1
                # In mode "rank" the guard takes 1 from the score, a probability: below 0 is unfamiliar.
                if reason == "novel" or -1.0 <= score < 0.0:
                    running.novel += 1
                elif reason == "error":
                    running.errors += 1

    def take(self) -> Tally | None:
        """The tally of the version that was met first, which starts anew; None where nothing was counted."""
        with self._lock:
            if not self._running:
                return None
            policy = next(iter(self._running))
            taken = self._running.pop(policy)
        return self._tally(policy, taken)

    def peek(self) -> tuple[Tally, ...]:
        """What was counted since each was last taken; it goes on."""
        with self._lock:
            return tuple(self._tally(policy, running) for policy, running in self._running.items())

    def _tally(self, policy: str | None, counted: _Running) -> Tally:
        facts: dict[str, object] = {"handled": counted.handled, "served": counted.served, "novel": counted.novel}
        facts |= {"errors": counted.errors, "audits": counted.audits, "labels": dict(counted.labels)}
        return Tally(policy, counted.started, self._clock() - counted.began, counted.n, facts)
