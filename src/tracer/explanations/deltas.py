"""Artefact D, temporal deltas: what changed between two policies on the same rows, and what is beyond noise.

The paper, section 3.5 (D), shows changes in handled rate. Both policies decide on the same rows, so only the rows on
which they differ say anything: of those, either direction is as likely if nothing changed (McNemar, 1947, Psychometrika
12, 153; here with the exact binomial). Labels are marked with Benjamini and Hochberg's procedure at the rate ``LEVEL``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tracer.errors import TraceError
from tracer.explanations.examples import MAX_LABELS, Example, rows_by_label
from tracer.explanations.table import RoutingTable

LEVEL = 0.1
"""Expected share of false marks among the labels marked."""
_EXAMPLES = 20


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed on the ``n`` rows of one teacher label, or on all.

    ``n_gained`` rows are handled now and were not before, ``n_lost`` the reverse. Of the ``n_both`` rows handled both
    before and after, ``n_better`` agree now and did not, ``n_worse`` the reverse. The ``q_`` values are p-values
    adjusted for all labels.
    """

    label: str
    n: int
    n_handled_before: int
    n_handled_after: int
    n_agreed_before: int
    n_agreed_after: int
    n_gained: int
    n_lost: int
    n_both: int
    n_better: int
    n_worse: int
    q_handled: float = 1.0
    q_agreement: float = 1.0

    def __post_init__(self) -> None:
        before, after = self.n_handled_before, self.n_handled_after
        possible = (
            self.n_agreed_before <= before <= self.n
            and self.n_agreed_after <= after <= self.n
            and self.n_gained == after - self.n_both
            and self.n_lost == before - self.n_both
            and self.n_better + self.n_worse <= self.n_both
        )
        if not possible:
            raise ValueError(f"delta of {self.label!r} has impossible counts")

    @property
    def handled_change(self) -> float:
        """Change in handled rate, in [-1, 1]."""
        return (self.n_handled_after - self.n_handled_before) / self.n if self.n else 0.0

    @property
    def agreement_change(self) -> float | None:
        """Change in agreement, each policy on the rows it handles; None where one of them handles none."""
        if not self.n_handled_before or not self.n_handled_after:
            return None
        return self.n_agreed_after / self.n_handled_after - self.n_agreed_before / self.n_handled_before

    @property
    def p_handled(self) -> float:
        """P-value of H: rows changed hands as often one way as the other."""
        return mcnemar(self.n_gained, self.n_lost)

    @property
    def p_agreement(self) -> float:
        """P-value of H: on rows that both handle, the answers became better as often as worse."""
        return mcnemar(self.n_better, self.n_worse)

    @property
    def handled_beyond_noise(self) -> bool:
        """The change in handled rate is marked."""
        return self.q_handled <= LEVEL

    @property
    def agreement_beyond_noise(self) -> bool:
        """The change of answers on rows that both handle is marked."""
        return self.q_agreement <= LEVEL


@dataclass(frozen=True, slots=True)
class Change:
    """A row that changed hands: as it is now, and the surrogate's answer and score before (None: barred)."""

    row: Example
    predicted_before: str
    score_before: float | None

    @property
    def gained(self) -> bool:
        """Handled now, deferred before."""
        return self.row.handled


@dataclass(frozen=True, slots=True)
class Deltas:
    """Changes from the policy ``previous``: over all rows, by label (the most frequent first), and rows that moved.

    ``moved`` holds at most ``_EXAMPLES`` rows gained and as many lost; ``n_moved`` counts all.
    """

    previous: str
    overall: Delta
    labels: tuple[Delta, ...]
    moved: tuple[Change, ...]
    n_moved: int
    n_labels_left_out: int

    @property
    def level(self) -> float:
        """The rate of false marks."""
        return LEVEL


def compare(previous: RoutingTable, current: RoutingTable) -> Deltas:
    """Deltas between two tables of the same rows, in any order.

    Raises TraceError where the ids or the teacher's labels differ.
    """
    before = _aligned(previous, current)
    groups = rows_by_label(current.labels)
    labels = [_delta(label, rows, previous, before, current) for label, rows in groups]
    overall = _delta("(all)", np.arange(len(current)), previous, before, current)
    moved = changed_hands(previous, current)
    gained = [change for change in moved if change.gained][:_EXAMPLES]
    lost = [change for change in moved if not change.gained][:_EXAMPLES]
    return Deltas(
        previous=previous.policy,
        overall=_adjusted([overall])[0],
        labels=tuple(_adjusted(labels)[:MAX_LABELS]),
        moved=(*gained, *lost),
        n_moved=len(moved),
        n_labels_left_out=max(len(labels) - MAX_LABELS, 0),
    )


def changed_hands(previous: RoutingTable, current: RoutingTable) -> tuple[Change, ...]:
    """All rows that one policy handles and the other defers; those the current one handles first, by its score.

    Raises TraceError where the ids or the teacher's labels differ.
    """
    before = _aligned(previous, current)
    moved = np.flatnonzero(previous.handled[before] != current.handled)
    moved = moved[np.lexsort((-current.scores[moved], ~current.handled[moved]))]
    was = [Example.of(previous, int(row)) for row in before[moved]]
    return tuple(
        Change(Example.of(current, int(row)), old.predicted, old.score) for row, old in zip(moved, was, strict=True)
    )


def mcnemar(n_one: int, n_other: int) -> float:
    """Exact two-sided p-value of H: both directions are as likely; 1 where no row differs."""
    return min(1.0, 2.0 * float(special.bdtr(min(n_one, n_other), n_one + n_other, 0.5)))


def _aligned(previous: RoutingTable, current: RoutingTable) -> NDArray[np.intp]:
    """Of each current row, the row of ``previous`` with the same id."""
    place = {row_id: i for i, row_id in enumerate(previous.ids)}
    if len(previous) != len(current) or not place.keys() >= set(current.ids):
        raise TraceError("the two policies did not decide on the same rows: their ids differ")
    before = np.fromiter((place[row_id] for row_id in current.ids), dtype=np.intp, count=len(current))
    if any(previous.labels[i] != label for i, label in zip(before, current.labels, strict=True)):
        raise TraceError("the two policies did not decide on the same rows: the teacher's labels differ")
    return before


def _delta(
    label: str, rows: NDArray[np.intp], previous: RoutingTable, before: NDArray[np.intp], current: RoutingTable
) -> Delta:
    was, now = previous.handled[before[rows]], current.handled[rows]
    agreed, agrees = previous.agree[before[rows]], current.agree[rows]
    both = was & now
    return Delta(
        label=label,
        n=len(rows),
        n_handled_before=int(was.sum()),
        n_handled_after=int(now.sum()),
        n_agreed_before=int((was & agreed).sum()),
        n_agreed_after=int((now & agrees).sum()),
        n_gained=int((now & ~was).sum()),
        n_lost=int((was & ~now).sum()),
        n_both=int(both.sum()),
        n_better=int((both & agrees & ~agreed).sum()),
        n_worse=int((both & agreed & ~agrees).sum()),
    )


def _adjusted(deltas: Sequence[Delta]) -> list[Delta]:
    """With the p-values adjusted for both tests of all of them."""
    from scipy import stats

    if not deltas:
        return []
    p_values = [p for delta in deltas for p in (delta.p_handled, delta.p_agreement)]
    q_values = iter(stats.false_discovery_control(p_values).tolist())
    return [replace(delta, q_handled=next(q_values), q_agreement=next(q_values)) for delta in deltas]
