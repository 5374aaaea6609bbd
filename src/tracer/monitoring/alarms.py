"""The live monitor: a pure fold over audits, which says how often the teacher agrees and rings where it does not.

Two clocks. The *line* runs from ``restart`` through every policy: the detector of change counts all audits, whichever
policy saw them, since its null (at most 1 - target disagree) is the promise of each. A refit does not restart it; a
demotion does, and so does a new target. The *policy* in force has counts, intervals and e-processes of its own.

Under the contract ``agreement`` would-be-handled audits are counted, under ``overall`` all audits are, a deferred one
as no contradiction. Nothing here reads a clock or a store, and folding in pieces gives what folding at once gives.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracer.certification.certificate import Certificate
from tracer.config import Contract
from tracer.errors import ConfigError, TraceError
from tracer.monitoring.classes import ClassCount, ClassRow, ClassWatch, class_table
from tracer.monitoring.observations import Observation
from tracer.monitoring.promotion import log_evidence
from tracer.stats import binomial, confidence
from tracer.stats.sequences import Detector, EProcess, first

Status = Literal["quiet", "warn", "alarm"]
Cause = Literal["detector", "rollback", "promotion"]
MOST_AUDITED = 0.2
"""A warning never raises the audit rate above this."""
_LEAST = 0.01
"""No class is held to less agreement than this."""


@dataclass(frozen=True, slots=True)
class MonitorConfig:
    """Settings of the monitor.

    ``arl``: counted audits that pass on average, at least, before a false alarm. A warning comes at ``warn_share`` of
    it. ``rollback_delta``: probability that the evidence since a policy's start, or that of any class, ever rings
    falsely. ``level``: error of intervals and of promotion. ``window``: handled audits in the recent interval.
    ``class_slack``: how far below the target the floor of a class lies.
    """

    arl: float = 20_000
    warn_share: float = 1 / 20
    rollback_delta: float = 0.01
    level: float = 0.05
    window: int = 1000
    class_slack: float = 0.05

    def __post_init__(self) -> None:
        for name in ("warn_share", "rollback_delta", "level"):
            if not 0.0 < getattr(self, name) < 1.0:
                raise ConfigError(f"{name} = {getattr(self, name)}: must lie strictly between 0 and 1")
        if not (math.isfinite(self.arl) and self.arl > 1.0):
            raise ConfigError(f"arl = {self.arl}: must be a number of audits above 1")
        if self.window < 1:
            raise ConfigError(f"window = {self.window}: must be at least 1")
        if not 0.0 <= self.class_slack < 1.0:
            raise ConfigError(f"class_slack = {self.class_slack}: must lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class Mark:
    """Where something was reached first: the audit's number, and which counted audit of the line (``detector``) or of
    the policy (the others) it was, from 1."""

    number: int
    index: int
    cause: Cause = "detector"


@dataclass(frozen=True, slots=True)
class Monitor:
    """What is watched: the policy in force, its target and contract, and from which number on (``restart``, excluded).

    ``handled_floor``: what the contract ``overall`` promises on handled traffic. ``n_classes``: labels in the space.
    """

    target: float
    policy: str
    n_classes: int
    config: MonitorConfig = field(default_factory=MonitorConfig)
    contract: Contract = "agreement"
    handled_floor: float | None = None
    restart: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.target < 1.0:
            raise ConfigError(f"target = {self.target}: must lie strictly between 0 and 1")
        if self.n_classes < 1:
            raise ConfigError(f"n_classes = {self.n_classes}: must be at least 1")
        if self.handled_floor is not None and not 0.0 <= self.handled_floor < 1.0:
            raise ConfigError(f"handled_floor = {self.handled_floor}: must lie between 0 and 1")

    @classmethod
    def of(
        cls,
        policy: str,
        certificate: Certificate,
        n_classes: int,
        *,
        config: MonitorConfig | None = None,
        restart: int = 0,
    ) -> Self:
        """The monitor of what a policy's certificate promises (or, where it is estimated, is to promise)."""
        floor = certificate.handled_floor
        settings = config or MonitorConfig()
        return cls(certificate.target, policy, n_classes, settings, certificate.contract, floor, restart)

    @property
    def allowed(self) -> float:
        """The rate of counted audits that may disagree."""
        return 1.0 - self.target

    @property
    def promised(self) -> float:
        """The agreement promised on handled traffic, against which classes are held."""
        return max(self.target if self.contract == "agreement" else self.handled_floor or 0.0, _LEAST)

    @property
    def detector(self) -> Detector:
        """The detector of change."""
        return Detector.above(self.allowed, self.config.arl)

    @property
    def classes(self) -> ClassWatch:
        """The watch over predicted classes."""
        floor = max(self.promised - self.config.class_slack, _LEAST)
        return ClassWatch(floor, self.n_classes, self.config.rollback_delta)

    def intervals(
        self, n_disagreed: ArrayLike, n_handled: ArrayLike
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Bounds of a constant agreement after so many handled audits, right at all counts at once."""
        prior = (1.0, max(1.0 / self.allowed - 1.0, 0.5))
        low, high = confidence.constant_rate(n_disagreed, n_handled, self.config.level, prior)
        return 1.0 - high, 1.0 - low

    def start(self) -> MonitorState:
        """The state before any audit."""
        return MonitorState(self, self.restart, self.detector.start())

    def over(self, observations: Iterable[Observation]) -> MonitorState:
        """The state after these audits, in ascending order of their numbers."""
        return self.start().fold(observations)


@dataclass(frozen=True, slots=True)
class MonitorState:
    """What the audits said so far. ``fold`` goes on from here; ``as_dict`` and ``from_dict`` keep every bit.

    The line: ``last`` number seen, ``bets`` of the detector, ``n_line`` audits counted, first ``warned`` and ``rang``.
    The policy: ``n_audits``, ``n_handled``, ``n_agreed`` (handled ones), ``squares`` (for the running average),
    ``recent`` (the last handled, 1 where agreed), ``classes``, and where its evidence first sufficed: ``promoted``.
    """

    monitor: Monitor
    last: int
    bets: tuple[float, ...]
    n_line: int = 0
    warned: Mark | None = None
    rang: Mark | None = None
    n_audits: int = 0
    n_handled: int = 0
    n_agreed: int = 0
    squares: float = 0.0
    recent: str = ""
    classes: Mapping[str, ClassCount] = field(default_factory=dict)
    promoted: Mark | None = None

    # --- going on ---------------------------------------------------------------------------------------------

    def fold(self, observations: Iterable[Observation]) -> MonitorState:
        """The state after more audits. Raises TraceError where their numbers do not ascend from ``last``."""
        last, fresh = self.last, []
        for observation in observations:
            if observation.number <= self.monitor.restart:
                continue
            if observation.number <= last:
                raise TraceError(f"audit number {observation.number} comes after {last}: give audits in order, once")
            last = observation.number
            fresh.append(observation)
        return replace(self._along_the_line(fresh)._of_the_policy(fresh), last=last)

    def succeeded(self, policy: str) -> MonitorState:
        """The state where another policy takes over the line: the detector goes on, the policy's counts begin anew."""
        monitor = replace(self.monitor, policy=policy)
        return MonitorState(monitor, self.last, self.bets, self.n_line, self.warned, self.rang)

    def _along_the_line(self, fresh: Sequence[Observation]) -> MonitorState:
        monitor = self.monitor
        line = [o for o in fresh if self._counts(o)]
        bets, values = monitor.detector.run(self.bets, [_contradicted(o) for o in line])
        reached = np.asarray(values)

        def mark(limit: float) -> Mark | None:
            i = first(reached >= limit)
            return None if i is None else Mark(line[i].number, self.n_line + i + 1)

        return replace(
            self,
            bets=bets,
            n_line=self.n_line + len(line),
            warned=self.warned or mark(monitor.config.warn_share * monitor.config.arl),
            rang=self.rang or mark(monitor.config.arl),
        )

    def _of_the_policy(self, fresh: Sequence[Observation]) -> MonitorState:
        config, watch = self.monitor.config, self.monitor.classes
        own = [o for o in fresh if o.policy == self.monitor.policy]
        n, ones, squares = self.n_handled, self.n_handled - self.n_agreed, self.squares
        classes, recent = dict(self.classes), []
        for o in own:
            if o.handled:
                squares += confidence.squared_error(not o.agreed, ones, n)
                n, ones = n + 1, ones + (not o.agreed)
                classes[o.label] = watch.after(classes.get(o.label, ClassCount()), o.agreed, o.number)
                recent.append("1" if o.agreed else "0")
        after = replace(
            self,
            n_audits=self.n_audits + len(own),
            n_handled=n,
            n_agreed=n - ones,
            squares=squares,
            recent=(self.recent + "".join(recent))[-config.window :],
            classes=classes,
        )
        return after._with_evidence(self, own)

    def _with_evidence(self, before: MonitorState, own: Sequence[Observation]) -> MonitorState:
        """Marks where the policy's e-processes first sufficed among its latest audits."""
        config = self.monitor.config
        n_audits = before.n_audits + np.arange(1, len(own) + 1)
        n_handled = before.n_handled + np.cumsum([o.handled for o in own], dtype=np.int64)
        wrong = before.n_disagreed + np.cumsum([_contradicted(o) for o in own], dtype=np.int64)
        counted = n_handled if self.monitor.contract == "agreement" else n_audits
        bad = first(self._log_rollback(wrong, counted) >= -math.log(config.rollback_delta))
        good = first(self._log_promotion(wrong, n_handled, n_audits) >= -math.log(config.level))
        rang, promoted = self.rang, self.promoted
        if bad is not None and (rang is None or own[bad].number < rang.number):
            rang = Mark(own[bad].number, int(counted[bad]), "rollback")
        if good is not None and promoted is None:
            promoted = Mark(own[good].number, int(counted[good]), "promotion")
        return replace(self, rang=rang, promoted=promoted)

    def _log_rollback(self, wrong: ArrayLike, counted: ArrayLike) -> NDArray[np.float64]:
        return EProcess(self.monitor.allowed, "above").log_e(wrong, counted)

    def _log_promotion(self, wrong: ArrayLike, n_handled: ArrayLike, n_audits: ArrayLike) -> NDArray[np.float64]:
        monitor = self.monitor
        return log_evidence(monitor.target, monitor.contract, monitor.handled_floor, wrong, n_handled, n_audits)

    def _counts(self, observation: Observation) -> bool:
        return observation.handled or self.monitor.contract == "overall"

    # --- what it says -----------------------------------------------------------------------------------------

    @property
    def n_disagreed(self) -> int:
        """Handled audits of the policy on which the teacher said otherwise."""
        return self.n_handled - self.n_agreed

    @property
    def n_counted(self) -> int:
        """Audits of the policy that its contract counts."""
        return self.n_handled if self.monitor.contract == "agreement" else self.n_audits

    @property
    def status(self) -> Status:
        """``alarm`` once it rang, until a restart; ``warn`` while the detector stands above its warning level."""
        if self.rang is not None:
            return "alarm"
        config = self.monitor.config
        return "warn" if self.detector_value >= config.warn_share * config.arl else "quiet"

    @property
    def detector_value(self) -> float:
        """What the detector compares with ``arl``."""
        return self.monitor.detector.value(self.bets)

    @property
    def log_rollback(self) -> float:
        """Logarithm of the e-value that the policy broke its promise since it started."""
        return float(self._log_rollback(self.n_disagreed, self.n_counted))

    @property
    def log_promotion(self) -> float:
        """Logarithm of the e-value that the policy keeps its promise."""
        return float(self._log_promotion(self.n_disagreed, self.n_handled, self.n_audits))

    @property
    def agreement(self) -> float | None:
        """Share of the policy's handled audits that agreed; None without any."""
        return self.n_agreed / self.n_handled if self.n_handled else None

    @property
    def interval(self) -> tuple[float, float]:
        """Agreement of the policy if it is constant: a confidence sequence, right at all times at once."""
        low, high = self.monitor.intervals(self.n_disagreed, self.n_handled)
        return float(low), float(high)

    @property
    def average_interval(self) -> tuple[float, float]:
        """Mean agreement since the policy started, however it moved: a confidence sequence, wider than ``interval``."""
        level = self.monitor.config.level
        low, high = confidence.average_bounds(self.n_disagreed, self.n_handled, self.squares, level)
        return 1.0 - float(high), 1.0 - float(low)

    @property
    def recent_interval(self) -> tuple[float, float]:
        """Agreement on the last ``window`` handled audits: an exact interval for one look, not for all at once."""
        return binomial.agreement_interval(self.recent.count("1"), len(self.recent), self.monitor.config.level)

    def class_table(self) -> tuple[ClassRow, ...]:
        """What is known of each predicted class, the most frequent first."""
        return class_table(self.classes, self.monitor.promised, self.monitor.config.level, self.monitor.classes)

    def advised_rate(self, rate: float) -> float:
        """The audit rate to use where ``rate`` is set: twice as much after a warning, up to 0.2, never less."""
        return rate if self.status == "quiet" else raised_rate(rate)

    # --- on paper ---------------------------------------------------------------------------------------------

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: what ``from_dict`` reads back, and under ``shown`` what follows from it."""
        stored: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        stored["monitor"] = asdict(self.monitor)
        stored["bets"] = list(self.bets)
        stored["classes"] = {label: asdict(count) for label, count in self.classes.items()}
        for name in ("warned", "rang", "promoted"):
            stored[name] = None if stored[name] is None else asdict(stored[name])
        shown = {
            "status": self.status,
            "detector": self.detector_value,
            "agreement": self.agreement,
            "interval": list(self.interval),
            "average_interval": list(self.average_interval),
            "recent_interval": list(self.recent_interval),
            "n_recent": len(self.recent),
            "log_rollback": self.log_rollback,
            "log_promotion": self.log_promotion,
            "classes": [row.as_dict() for row in self.class_table()],
        }
        return stored | {"shown": shown}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a mapping written by ``as_dict``. Raises ConfigError where it has other fields."""
        try:
            stored = {name: value for name, value in values.items() if name != "shown"}
            settings = dict(stored["monitor"])
            stored["monitor"] = Monitor(**(settings | {"config": MonitorConfig(**settings["config"])}))
            stored["bets"] = tuple(stored["bets"])
            stored["classes"] = {label: ClassCount(**count) for label, count in stored["classes"].items()}
            for name in ("warned", "rang", "promoted"):
                stored[name] = None if stored[name] is None else Mark(**stored[name])
            return cls(**stored)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"the monitor's state does not have the fields it should: {error}") from error


def raised_rate(rate: float) -> float:
    """The audit rate after a warning: twice as much, up to `MOST_AUDITED`, never less."""
    return max(rate, min(2.0 * rate, MOST_AUDITED))


def _contradicted(observation: Observation) -> bool:
    return observation.handled and not observation.agreed
