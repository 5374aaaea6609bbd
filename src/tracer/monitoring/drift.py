"""Early warnings from traffic itself, without asking the teacher. They never demote: only disagreement does.

The shares handled, novel and of each predicted label are compared with what the rows that certified the policy showed.
Each comparison is a Shiryaev-Roberts detector whose time is wall-clock time: on average at least ``days`` pass before a
false warning of its kind, as long as traffic stays as it was. What is known of a share is its exact interval on the
certifying rows, widened by a factor of its odds, so that neither a small sample nor a small change rings. Traffic that
swings more than that with the hour of the day is not "as it was" at any one hour: give it tallies of whole days.

The mix of labels bets on each label alone, more or less frequent than it was, and averages over all labels: a mixture
e-detector. A chi-square test a window would ring earlier where many labels move a little, but needs levels that shrink
with each window and counts that are not small; this one names the label.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from tracer.certification.certificate import Certificate
from tracer.errors import ConfigError
from tracer.monitoring.tallies import Counts, Tally
from tracer.monitoring.teachers import TeacherLabels
from tracer.monitoring.warnings import Kind, Warning_
from tracer.stats.sequences import Detector, after_block, known_to
from tracer.types import Trace

_DAY_S = 86_400.0
_OTHER = "(other)"
_ENOUGH = 1e5
"""A bet that alone would ring so many times over stops growing."""
_GONE = 1 / 20
"""A warning ends where its detector falls below this share of the limit."""


@dataclass(frozen=True, slots=True)
class DriftConfig:
    """``days`` between false warnings of a kind, on average at least. ``odds``: factor of the odds by which a share may
    move without a warning. ``novel``: share of novel inputs to expect, and ``novel_limit`` the most that is normal.
    ``level``: probability that the certifying rows mislead."""

    days: float = 365.0
    odds: float = 1.15
    novel: float = 0.02
    novel_limit: float = 0.03
    level: float = 0.01

    def __post_init__(self) -> None:
        if not (math.isfinite(self.days) and self.days > 0.0):
            raise ConfigError(f"days = {self.days}: must be positive")
        if not (math.isfinite(self.odds) and self.odds >= 1.0):
            raise ConfigError(f"odds = {self.odds}: must be at least 1")
        if not 0.0 <= self.novel <= self.novel_limit < 1.0 or self.novel_limit == 0.0:
            raise ConfigError(f"novel = {self.novel}, novel_limit = {self.novel_limit}: must be ordered rates")
        if not 0.0 < self.level < 1.0:
            raise ConfigError(f"level = {self.level}: must lie strictly between 0 and 1")


@dataclass(frozen=True, slots=True)
class Drift:
    """What is expected of a policy's traffic: of ``n_shadow`` certifying rows it handled ``n_handled`` and predicted
    ``labels`` (counts, the labels never predicted with 0). Empty ``labels``: the mix is not watched."""

    policy: str
    n_shadow: int
    n_handled: int
    labels: Mapping[str, int]
    config: DriftConfig = field(default_factory=DriftConfig)

    def __post_init__(self) -> None:
        if not 0 <= self.n_handled <= self.n_shadow:
            raise ConfigError(f"n_handled = {self.n_handled} must lie between 0 and n_shadow = {self.n_shadow}")

    @classmethod
    def of(
        cls, policy: str, certificate: Certificate, labels: Mapping[str, int], config: DriftConfig | None = None
    ) -> Self:
        """What a policy's certificate and the labels predicted on its certifying rows lead to expect."""
        return cls(policy, certificate.n_shadow, certificate.n_handled, labels, config or DriftConfig())

    @property
    def limit(self) -> float:
        """Seconds between false warnings of a kind, on average at least."""
        return self.config.days * _DAY_S

    def start(self) -> DriftState:
        """The state before any tally."""
        handled, novel, mix = (bets.start() for bets in self.bets())
        return DriftState(self, handled, novel, mix)

    def over(self, tallies: Iterable[Tally]) -> DriftState:
        """The state after these tallies."""
        return self.start().fold(tallies)

    def bets(self) -> tuple[_Bets, _Bets, _Bets]:
        """The three detectors: handled rate, novelty, mix of labels."""
        config = self.config
        handled = known_to(self.n_handled, self.n_shadow, config.level, config.odds)
        n = sum(self.labels.values())
        shares = [
            known_to(self.labels.get(label, 0), n, config.level / len(self.mixed()), config.odds)
            for label in self.mixed()
        ]
        return (
            _Bets.on([handled], self.limit),
            _Bets.on([(0.0, config.novel_limit)], self.limit),
            _Bets.on(shares, self.limit),
        )

    def mixed(self) -> tuple[str, ...]:
        """The labels whose share is watched, the last for all that are not among ``labels``."""
        return (*sorted(self.labels), _OTHER) if self.labels else ()


@dataclass(frozen=True, slots=True)
class DriftState:
    """What tallies and teacher's labels said so far of the policy; the bets of the detectors and since when they ring.

    ``current`` and ``previous``: counts of the present day of traffic and of the one before, from which warnings take
    their figures. ``clock``: end of the traffic seen, seconds since the epoch.
    """

    drift: Drift
    handled: tuple[float, ...]
    novel: tuple[float, ...]
    mix: tuple[float, ...]
    clock: float = -math.inf
    since: Mapping[str, float] = field(default_factory=dict)
    current: Counts = field(default_factory=Counts)
    previous: Counts = field(default_factory=Counts)
    teacher: TeacherLabels = field(default_factory=TeacherLabels)

    def fold(self, tallies: Iterable[Tally]) -> DriftState:
        """The state after more tallies, in the order given; those of other policies say nothing and are left out."""
        detectors, mixed = self.drift.bets(), self.drift.mixed()
        known = set(mixed[:-1])
        bets = [np.asarray(b, dtype=np.float64) for b in (self.handled, self.novel, self.mix)]
        clock, since, current, previous = self.clock, dict(self.since), self.current, self.previous
        for tally in tallies:
            if tally.policy != self.drift.policy:
                continue
            begin = tally.started.timestamp()
            # Processes that count side by side share their time: it passes once.
            passed = max(begin + tally.seconds - max(clock, begin), 0.0)
            clock = max(clock, begin + tally.seconds)
            other = sum(count for label, count in tally.labels.items() if label not in known)
            ones = ([tally.n_handled], [tally.n_novel], [*(tally.labels.get(label, 0) for label in mixed[:-1]), other])
            totals = (tally.n_decided, tally.n_decided, sum(tally.labels.values()))
            for i, (kind, detector) in enumerate(zip(_KINDS, detectors, strict=True)):
                bets[i] = detector.after(bets[i], ones[i], totals[i], passed)
                value = detector.value(bets[i])
                if value >= self.drift.limit:
                    since.setdefault(kind, begin)
                elif value < _GONE * self.drift.limit:
                    since.pop(kind, None)
            if current.seconds >= _DAY_S:
                previous, current = current, Counts()
            current = current.plus(passed, tally)
        handled, novel, mix = (tuple(b.tolist()) for b in bets)
        return replace(
            self,
            handled=handled,
            novel=novel,
            mix=mix,
            clock=clock,
            since=since,
            current=current,
            previous=previous,
        )

    def fold_labels(self, numbered: Iterable[tuple[int, Trace]], names: Sequence[str]) -> DriftState:
        """The state after more of the teacher's labels, of traces with their numbers; ``names``: the label space."""
        return replace(self, teacher=self.teacher.fold(numbered, names))

    def warnings(self) -> tuple[Warning_, ...]:
        """What stands now. A warning of the detectors goes when traffic is as it was again."""
        recent = self.previous.plus(self.current.seconds, self.current)
        decided = recent.n - recent.n_errors
        out = []
        for kind in _KINDS:
            if kind not in self.since:
                continue
            since = datetime.fromtimestamp(self.since[kind], UTC)
            if kind == "handled_rate":
                value, expected = recent.n_handled / max(decided, 1), self.drift.n_handled / self.drift.n_shadow
                text = f"{value:.1%} of recent requests would be handled; when certified it was {expected:.1%}"
            elif kind == "novelty":
                value, expected = recent.n_novel / max(decided, 1), self.drift.config.novel
                text = f"{value:.1%} of recent requests are unlike any trace; {expected:.1%} is expected"
            else:
                label, value, expected = self._moved(recent)
                text = f"{value:.1%} of recent requests are predicted {label!r}; when certified it was {expected:.1%}"
            out.append(Warning_(kind, since, f"{text}.", value, expected))
        return (*out, *self.teacher.warnings())

    def _moved(self, recent: Counts) -> tuple[str, float, float]:
        """The label that the bets of the mix say moved most: its recent share, and the share expected."""
        label = self.drift.mixed()[self.drift.bets()[2].leader(np.asarray(self.mix))]
        count = recent.labels.get(label, 0)
        if label == _OTHER:
            count = sum(v for name, v in recent.labels.items() if name not in self.drift.labels)
        expected = self.drift.labels.get(label, 0) / max(sum(self.drift.labels.values()), 1)
        return label, count / max(sum(recent.labels.values()), 1), expected

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready: what ``from_dict`` reads back, and the warnings."""
        out = {f.name: getattr(self, f.name) for f in fields(self)}
        out["clock"] = self.clock if math.isfinite(self.clock) else None
        for name in ("handled", "novel", "mix"):
            out[name] = list(out[name])
        for name in ("drift", "current", "previous", "teacher"):
            out[name] = asdict(out[name])
        return out | {"since": dict(self.since), "warnings": [w.as_dict() for w in self.warnings()]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a mapping written by ``as_dict``. Raises ConfigError where it has other fields."""
        try:
            stored = {name: value for name, value in values.items() if name != "warnings"}
            drift = dict(stored["drift"])
            stored["drift"] = Drift(**(drift | {"config": DriftConfig(**drift["config"])}))
            stored["clock"] = -math.inf if stored["clock"] is None else stored["clock"]
            for name in ("handled", "novel", "mix"):
                stored[name] = tuple(stored[name])
            for name in ("current", "previous"):
                stored[name] = Counts(**stored[name])
            stored["teacher"] = TeacherLabels.from_dict(stored["teacher"])
            return cls(**stored)
        except (KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"the drift state does not have the fields it should: {error}") from error


_KINDS: tuple[Kind, ...] = ("handled_rate", "novelty", "label_mix")


@dataclass(frozen=True, slots=True, eq=False)
class _Bets:
    """Detectors of several shares, averaged: log ratios (k,), which share each bets on (k,), and weights (k,)."""

    log_one: NDArray[np.float64]
    log_zero: NDArray[np.float64]
    share: NDArray[np.intp]
    weight: NDArray[np.float64]
    cap: float

    @classmethod
    def on(cls, intervals: Sequence[tuple[float, float]], limit: float) -> Self:
        detectors = [Detector.outside(lower, upper, limit) for lower, upper in intervals]
        sizes = [len(d.log_one) for d in detectors]
        share = np.repeat(np.arange(len(detectors)), sizes)
        weight = np.concatenate([np.full(s, 1.0 / (s * len(sizes))) for s in sizes if s] or [np.zeros(0)])
        log_one = np.array([v for d in detectors for v in d.log_one])
        log_zero = np.array([v for d in detectors for v in d.log_zero])
        # What a bet gains beyond this is dropped: a warning ends soon after its cause, and chance does not end it.
        return cls(log_one, log_zero, share, weight, _ENOUGH * limit * max(len(share), 1))

    def start(self) -> tuple[float, ...]:
        return (0.0,) * len(self.share)

    def after(self, bets: NDArray[np.float64], ones: Sequence[int], n: int, passed: float) -> NDArray[np.float64]:
        counts = np.asarray(ones)[self.share] if len(self.share) else np.zeros(0)
        return np.minimum(after_block(bets, self.log_one, self.log_zero, counts, n, passed), self.cap)

    def value(self, bets: NDArray[np.float64]) -> float:
        return float(self.weight @ bets)

    def leader(self, bets: NDArray[np.float64]) -> int:
        return int(np.argmax(np.bincount(self.share, weights=self.weight * bets)))
