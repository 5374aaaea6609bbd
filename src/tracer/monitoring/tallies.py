"""Counts of what a policy decided on traffic, kept without any input."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from tracer.errors import TraceError


@dataclass(frozen=True, slots=True)
class Tally:
    """What one process counted of a policy's decisions in some ``seconds`` (a span that its counts do not decide).

    ``n`` requests, ``n_errors`` of them without a decision; of the others ``n_handled`` would be handled, whatever the
    audit coin said, ``n_novel`` are unlike any trace, and ``labels`` counts what the surrogate predicts.
    """

    policy: str
    started: datetime
    seconds: float
    n: int
    n_handled: int
    n_novel: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)
    n_errors: int = 0

    def __post_init__(self) -> None:
        counts = (self.n_handled, self.n_novel, sum(self.labels.values()))
        if not 0 <= self.n_errors <= self.n or any(not 0 <= count <= self.n_decided for count in counts):
            raise TraceError(f"a tally of {self.policy!r} has impossible counts: {self}")
        if not (math.isfinite(self.seconds) and self.seconds >= 0.0):
            raise TraceError(f"a tally of {self.policy!r} lasts {self.seconds} seconds")

    @property
    def n_decided(self) -> int:
        """Requests that the policy decided on."""
        return self.n - self.n_errors

    @classmethod
    def of(cls, policy: str, started: datetime, seconds: float, n: int, facts: Mapping[str, Any]) -> Self:
        """A tally from its stored ``facts``: handled, novel, labels, errors."""
        return cls(
            policy,
            started,
            seconds,
            n,
            int(facts.get("handled", 0)),
            int(facts.get("novel", 0)),
            {str(label): int(count) for label, count in dict(facts.get("labels", {})).items()},
            int(facts.get("errors", 0)),
        )


@dataclass(frozen=True, slots=True)
class Counts:
    """Sums of tallies."""

    seconds: float = 0.0
    n: int = 0
    n_handled: int = 0
    n_novel: int = 0
    n_errors: int = 0
    labels: Mapping[str, int] = field(default_factory=dict)

    def plus(self, seconds: float, other: Tally | Counts) -> Counts:
        """These counts and others that took ``seconds`` more."""
        labels = dict(self.labels)
        for label, count in other.labels.items():
            labels[label] = labels.get(label, 0) + count
        return Counts(
            self.seconds + seconds,
            self.n + other.n,
            self.n_handled + other.n_handled,
            self.n_novel + other.n_novel,
            self.n_errors + other.n_errors,
            labels,
        )
