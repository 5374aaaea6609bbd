"""What the audits of the policy in force say, look by look: each is read once. Nothing is acted on here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from tracer.errors import TraceError
from tracer.flywheel.settings import Settings
from tracer.flywheel.watching import counted, labels_seen, resumed
from tracer.monitoring.alarms import Monitor, MonitorConfig, MonitorState, Status
from tracer.monitoring.drift import DriftState
from tracer.monitoring.observations import Observation
from tracer.monitoring.tallies import Counts, Tally
from tracer.policies.policy import Policy
from tracer.traces.facts import Traffic
from tracer.traces.recent import Recent, Verdict
from tracer.types import FAILED

_WINDOW = 50_000
"""Numbers that are looked through at once."""
_TALLIES = 500
_BLOCK = 20
"""Tallies that are taken together: some minutes of one process."""
_HISTORY_S = 7 * 86_400.0
"""Tallies further back say nothing of what to warn of now, where no flywheel keeps a record."""
_POINTS = 240


@dataclass(frozen=True, slots=True)
class Point:
    """Agreement after ``n`` handled audits, at ``time`` (seconds since the epoch), and its confidence sequence."""

    time: float
    n: int
    agreement: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Agreement:
    """What is known of the promise of the policy in force.

    ``low`` and ``high`` hold at all times at once, if the agreement is constant. ``recent`` of the last ``n_recent``
    handled audits agree. ``behind``: rows of the store that are still to be read. ``warnings`` are (kind, message).
    """

    policy: str
    target: float
    contract: str
    n_audits: int
    n_handled: int
    n_agreed: int
    low: float
    high: float
    recent: int
    n_recent: int
    status: Status
    level: float
    behind: int
    points: tuple[Point, ...] = field(default=(), repr=False)
    warnings: tuple[tuple[str, str], ...] = ()

    @property
    def agreement(self) -> float | None:
        """Share of handled audits that agree; None without any."""
        return self.n_agreed / self.n_handled if self.n_handled else None


class Standing:
    """Follows the policy in force. ``clock`` gives seconds that never go back, against which a look is bounded."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._home, self._clock = home, clock
        self._key: object = None
        self._monitor: MonitorState | None = None
        self._drift: DriftState | None = None
        self._policy: Policy | None = None
        self._demoted: tuple[str, ...] = ()
        self._last = self._labels_from = self._tally = 0
        self._since = 0.0
        self._course = _Course()

    def refresh(
        self, recent: Recent, policy: Policy | None, settings: Settings | None, now: float, budget: float
    ) -> None:
        """Read on for about ``budget`` seconds at most. Another policy, or watch, begins anew."""
        if policy is None or settings is None:
            self._key = self._monitor = self._drift = self._policy = None
            return
        watched = settings.line.watched
        key = (policy.version, watched, settings.line.demoted, recent.generation)
        if key != self._key:
            self._begin(policy, settings, now)
            self._key = key
        end = self._clock() + budget
        while self._last < recent.through:
            upper = min(self._last + _WINDOW, recent.through)
            self._read(recent, policy, upper)
            self._last = upper
            if self._clock() >= end:
                break
        self._behind = recent.through - self._last
        self._read_tallies(recent, policy, end)

    def found(self) -> Agreement | None:
        """What was found so far; None where no policy is in force."""
        monitor, drift, policy = self._monitor, self._drift, self._policy
        if monitor is None or drift is None or policy is None:
            return None
        low, high = monitor.interval
        return Agreement(
            policy.version, monitor.monitor.promised, monitor.monitor.contract, monitor.n_audits, monitor.n_handled,
            monitor.n_agreed, low, high, monitor.recent.count("1"), len(monitor.recent), monitor.status,
            monitor.monitor.config.level, self._behind, self._course.points(monitor.monitor),
            tuple((warning.kind, warning.message) for warning in drift.warnings()),
        )  # fmt: skip

    def _begin(self, policy: Policy, settings: Settings, now: float) -> None:
        config = MonitorConfig()
        _, self._drift = resumed(self._home, settings, policy, config)
        name = (*policy.task.get("renews", ()), policy.version)[0]
        watched = settings.line.watched
        monitor = Monitor.of(name, policy.certificate, len(policy.space), config=config, restart=watched)
        self._monitor, self._policy, self._demoted = monitor.start(), policy, settings.line.demoted
        self._last, self._behind = watched, 0
        self._labels_from = max(labels_seen(self._home), watched)
        self._tally, self._since = 0, max(self._drift.clock, now - _HISTORY_S)
        self._course = _Course()

    def _read(self, recent: Recent, policy: Policy, upper: int) -> None:
        assert self._monitor is not None and self._drift is not None  # noqa: PT018, S101
        known = [one for one in map(_observation, recent.verdicts(self._last, upper, {"audit"})) if one is not None]
        mine = list(counted(known, policy, self._demoted))
        self._monitor = self._monitor.fold(mine)
        name = self._monitor.monitor.policy
        for one in mine:
            if one.policy == name and one.handled:
                self._course.add(one.time, one.agreed)
        fresh = recent.labels(max(self._last, self._labels_from), upper, {"audit", "deferred"})
        told = ((row.label, row.n, row.number, row.time) for row in fresh)
        self._drift = replace(self._drift, teacher=self._drift.teacher.plus(told, policy.space.names))

    def _read_tallies(self, recent: Recent, policy: Policy, end: float) -> None:
        assert self._drift is not None  # noqa: S101
        while True:
            self._tally, rows = recent.tallies(policy.version, after=self._tally, since=self._since, n=_TALLIES)
            blocks = (_merged(policy.version, rows[i : i + _BLOCK]) for i in range(0, len(rows), _BLOCK))
            self._drift = self._drift.fold([block for block in blocks if block is not None])
            if len(rows) < _TALLIES or self._clock() >= end:
                return


class _Course:
    """How a share went: a point each ``step`` audits, so many that they fit a chart."""

    def __init__(self) -> None:
        self.n = self.n_agreed = 0
        self._step = 1
        self._kept: list[tuple[float, int, int]] = []
        self._last: tuple[float, int, int] | None = None

    def add(self, moment: datetime | None, agreed: bool) -> None:
        self.n += 1
        self.n_agreed += agreed
        if moment is None:
            return
        self._last = (moment.timestamp(), self.n, self.n_agreed)
        if self.n % self._step == 0:
            self._kept.append(self._last)
            if len(self._kept) > _POINTS:
                del self._kept[::2]
                self._step *= 2

    def points(self, monitor: Monitor) -> tuple[Point, ...]:
        kept = list(self._kept)
        if self._last is not None and (not kept or kept[-1] != self._last):
            kept.append(self._last)
        if not kept:
            return ()
        times, n, agreed = (np.array(column) for column in zip(*kept, strict=True))
        low, high = monitor.intervals(n - agreed, n)
        columns = (column.tolist() for column in (times, n, agreed / n, low, high))
        return tuple(Point(*values) for values in zip(*columns, strict=True))


def _observation(verdict: Verdict) -> Observation | None:
    if verdict.policy is None or verdict.seen_label is None or verdict.label == FAILED:
        return None
    agreed = verdict.seen_label == verdict.label
    return Observation(verdict.number, verdict.policy, verdict.seen_label, agreed, verdict.handled, verdict.time)


def _merged(policy: str, rows: Sequence[Traffic]) -> Tally | None:
    """Tallies that follow each other as one, which says the same and is weighed once; None for impossible counts."""
    counts = Counts()
    begin = min(row.started for row in rows)
    try:
        for row in rows:
            started = datetime.fromtimestamp(row.started, UTC)
            counts = counts.plus(0.0, Tally.of(policy, started, row.seconds, row.n, row.facts))
    except TraceError:
        return None
    seconds = max(row.started + row.seconds for row in rows) - begin
    return Tally(
        policy, datetime.fromtimestamp(begin, UTC), seconds, counts.n, counts.n_handled, counts.n_novel, counts.labels,
        counts.n_errors,
    )  # fmt: skip
