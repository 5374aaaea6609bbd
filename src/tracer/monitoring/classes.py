"""Live agreement by predicted class, which is known before the teacher is asked.

Verdicts at one look: exact binomial tests of each class against the target, from below and from above, adjusted for all
of them by Holm's procedure. Beside them, one e-process a class against a floor below the target may be watched for
ever: the share of delta that each gets is the same, so that any of them rings falsely with probability delta at most.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from tracer.stats import binomial
from tracer.stats.sequences import EProcess
from tracer.stats.testing import holm

Verdict = Literal["certified", "unproven", "violating"]


@dataclass(frozen=True, slots=True)
class ClassCount:
    """Handled audits predicted as one class. ``rang``: number of the audit at which its e-process rang, or None."""

    n: int = 0
    n_agreed: int = 0
    rang: int | None = None

    @property
    def n_disagreed(self) -> int:
        """Handled audits of the class on which the teacher said otherwise."""
        return self.n - self.n_agreed


@dataclass(frozen=True, slots=True)
class ClassRow:
    """What is known of one predicted class.

    ``lower`` and ``upper``: exact interval of its agreement; those of all classes hold together. ``p_certified`` and
    ``p_violating``: adjusted p-values of H: agreement < target, and of H: agreement >= target. ``log_e``: evidence that
    the class is below its floor.
    """

    label: str
    n: int
    n_agreed: int
    lower: float
    upper: float
    p_certified: float
    p_violating: float
    verdict: Verdict
    log_e: float
    rang: int | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ClassWatch:
    """The e-processes of ``n_classes`` classes against the agreement ``floor``, with error ``delta`` over all."""

    floor: float
    n_classes: int
    delta: float

    @property
    def process(self) -> EProcess:
        """Evidence that a class disagrees more often than its floor allows."""
        return EProcess(1.0 - self.floor, "above")

    def after(self, count: ClassCount, agreed: bool, number: int) -> ClassCount:
        """The count after one more handled audit of the class."""
        n, n_agreed, rang = count.n + 1, count.n_agreed + agreed, count.rang
        # The evidence only rises with a disagreement.
        if rang is None and not agreed and self.process.log_e(n - n_agreed, n) >= math.log(self.n_classes / self.delta):
            rang = number
        return ClassCount(n, n_agreed, rang)


def class_table(
    counts: Mapping[str, ClassCount], target: float, level: float, watch: ClassWatch
) -> tuple[ClassRow, ...]:
    """A row for each class seen, the most frequent first; ``level`` is the error over all ``watch.n_classes``."""
    labels = sorted(counts, key=lambda label: (-counts[label].n, label))
    if not labels:
        return ()
    n = np.array([counts[label].n for label in labels])
    wrong = np.array([counts[label].n_disagreed for label in labels])
    below = binomial.p_value(wrong, n, target)
    # P(at least so many disagree) under the target is P(at most so many agree) under the other rate.
    above = binomial.p_value(n - wrong, n, 1.0 - target)
    silent = np.ones(2 * max(watch.n_classes - len(labels), 0))
    adjusted = holm(np.concatenate([below, above, silent]))
    log_e = watch.process.log_e(wrong, n)
    rows = []
    for i, label in enumerate(labels):
        count = counts[label]
        lower, upper = binomial.agreement_interval(count.n_agreed, count.n, level / max(watch.n_classes, len(labels)))
        certified, violating = float(adjusted[i]), float(adjusted[len(labels) + i])
        verdict: Verdict = "certified" if certified <= level else "violating" if violating <= level else "unproven"
        rows.append(
            ClassRow(
                label, count.n, count.n_agreed, lower, upper, certified, violating, verdict, float(log_e[i]), count.rang
            )
        )
    return tuple(rows)
