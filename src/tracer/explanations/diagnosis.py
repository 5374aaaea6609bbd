"""What the disagreements have in common, in plain words: above all after a refusal, why the surrogate fails."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tracer.explanations.examples import LabelCount, clip, rows_by_label
from tracer.explanations.table import RoutingTable
from tracer.types import OUTSIDE

_TOO_OFTEN = 1.25
"""A default class is predicted at least this many times as often as the teacher gives it ..."""
_MOST = 0.5
"""... draws at least this share of the disagreements ..."""
_LEVEL = 0.01
"""... and more rows come in wrongly than go out wrongly, beyond chance at this level over all classes."""
_BOTH_WAYS = 0.2
"""Of the confusions of an overlapping pair at least this share goes the rarer way ..."""
_OFTEN = 0.02
"""... and there are at least this share of all disagreements, and three."""
_LITTLE = 0.1
"""Share of the errors of always giving the commonest label that a surrogate worth its name must avoid."""
_SHOWN = 10


@dataclass(frozen=True, slots=True)
class DefaultClass:
    """The class that the surrogate falls back on: ``n_wrong`` of its ``n_predicted`` rows are not the teacher's."""

    label: str
    n_predicted: int
    n_teacher: int
    n_wrong: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two labels that are taken for each other: ``n_second`` rows that the teacher calls ``first`` are predicted
    ``second``, ``n_first`` the reverse; ``n_rows`` rows carry either label."""

    first: str
    second: str
    n_second: int
    n_first: int
    n_rows: int

    @property
    def n(self) -> int:
        """Confusions both ways."""
        return self.n_first + self.n_second


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Findings on ``n_rows`` rows with ``n_disagreed`` disagreements; counts of a label are the teacher's rows.

    ``commonest`` is the teacher's most frequent label, None where there are no rows.
    Lists hold at most ``_SHOWN`` entries, the largest first; the ``n_`` fields count all.
    """

    n_rows: int
    n_disagreed: int
    commonest: LabelCount | None
    default: DefaultClass | None
    overlaps: tuple[Overlap, ...]
    n_overlaps: int
    never_predicted: tuple[LabelCount, ...]
    n_never_predicted: int
    not_learned: tuple[LabelCount, ...]
    n_not_learned: int

    @property
    def gain(self) -> float:
        """Share of the errors of always giving the commonest label that the surrogate avoids, negative where it makes
        more; 1 where there is no error to avoid. Goodman and Kruskal's lambda (1954), J. Am. Stat. Assoc. 49, 732."""
        n_others = self.n_rows - (self.commonest.n if self.commonest else 0)
        return 1.0 - self.n_disagreed / n_others if n_others else 1.0

    def sentences(self) -> tuple[str, ...]:
        """The findings in plain sentences, the gravest first."""
        if not self.n_disagreed:
            return (f"Surrogate and teacher agree on all {self.n_rows:,} rows.",)
        out = [f"Surrogate and teacher disagree on {self.n_disagreed:,} of {self.n_rows:,} rows."]
        if self.commonest is not None and self.gain < _LITTLE:
            out.append(
                f"That is hardly better than always saying {_name(self.commonest.label)}, which the teacher says "
                f"{self.commonest.n:,} times: the features tell next to nothing of the label, or the teacher's labels "
                "are close to chance. How often the teacher agrees with itself (tracer ask-twice) tells the two apart."
            )
        if self.default is not None:
            d = self.default
            out.append(
                f"The surrogate falls back on {_name(d.label)}: it says so {d.n_predicted:,} times, the teacher "
                f"{d.n_teacher:,} times, and {d.n_wrong:,} of the disagreements are there. That marks features "
                "that do not tell the labels apart: a richer representation may help more than more traces."
            )
        if self.overlaps:
            pairs = [
                f"{_name(o.first)} and {_name(o.second)} ({o.n_second:,} and {o.n_first:,})" for o in self.overlaps
            ]
            out.append(
                f"Labels taken for each other, both ways: {_listed(pairs, self.n_overlaps)}. "
                "Does the teacher itself draw the line between them reliably?"
            )
        if self.never_predicted:
            out.append(
                "Never predicted, though the teacher gives them: "
                f"{_listed(_counted(self.never_predicted), self.n_never_predicted)}. "
                "They are too rare to learn, or another label swallows them."
            )
        if self.not_learned:
            names = _listed(_counted(self.not_learned), self.n_not_learned)
            out.append(f"Not learned, so the surrogate can never agree there: {names}.")
        if len(out) == 1:
            out.append("No single cause stands out: the disagreements are spread over the labels.")
        return tuple(out)


def diagnose(table: RoutingTable) -> Diagnosis:
    """What the disagreements of a table have in common."""
    k = len(table.space)
    known = table.y != OUTSIDE
    confusion = np.zeros((k, k), dtype=np.int64)  # teacher, surrogate
    np.add.at(confusion, (table.y[known], table.predicted[known]), 1)
    predicted = np.bincount(table.predicted, minlength=k)
    teacher = confusion.sum(axis=1)
    groups = rows_by_label(table.labels)[:1]
    commonest = LabelCount(groups[0][0], len(groups[0][1])) if groups else None
    overlaps = _overlaps(table, confusion)
    unheard = np.flatnonzero((teacher > 0) & (predicted == 0)).tolist()
    silent = [LabelCount(table.label(c), int(teacher[c])) for c in unheard]
    unknown = Counter(label for label, is_known in zip(table.labels, known, strict=True) if not is_known)
    outside = [LabelCount(label, n) for label, n in unknown.items()]
    for found in (silent, outside):
        found.sort(key=lambda count: (-count.n, count.label))
    return Diagnosis(
        n_rows=len(table),
        n_disagreed=int((~table.agree).sum()),
        commonest=commonest,
        default=_default(table, predicted, teacher, np.diag(confusion)),
        overlaps=tuple(overlaps[:_SHOWN]),
        n_overlaps=len(overlaps),
        never_predicted=tuple(silent[:_SHOWN]),
        n_never_predicted=len(silent),
        not_learned=tuple(outside[:_SHOWN]),
        n_not_learned=len(outside),
    )


def _default(
    table: RoutingTable, predicted: NDArray[np.int64], teacher: NDArray[np.int64], right: NDArray[np.int64]
) -> DefaultClass | None:
    came, went = predicted - right, teacher - right
    c = int(came.argmax())
    n_disagreed = int(came.sum())
    # Were wrong rows as likely to come as to go, the count that came would be Binomial(came + went, 1/2).
    chance = float(special.bdtr(went[c], came[c] + went[c], 0.5)) * len(table.space)
    if n_disagreed == 0 or predicted[c] < _TOO_OFTEN * teacher[c] or came[c] < _MOST * n_disagreed or chance > _LEVEL:
        return None
    return DefaultClass(table.label(c), int(predicted[c]), int(teacher[c]), int(came[c]))


def _overlaps(table: RoutingTable, confusion: NDArray[np.int64]) -> list[Overlap]:
    n_disagreed = int((~table.agree).sum())
    total = np.triu(confusion + confusion.T, 1)
    rarer = np.minimum(confusion, confusion.T)
    often = total >= max(3.0, _OFTEN * n_disagreed)
    pairs = np.argwhere(often & (rarer >= _BOTH_WAYS * total))
    teacher = confusion.sum(axis=1)
    found = [
        Overlap(
            table.label(i), table.label(j), int(confusion[i, j]), int(confusion[j, i]), int(teacher[i] + teacher[j])
        )
        for i, j in pairs.tolist()
    ]
    return sorted(found, key=lambda overlap: (-overlap.n, overlap.first, overlap.second))


def _name(label: str) -> str:
    return f'"{clip(label, 60)}"'


def _counted(counts: tuple[LabelCount, ...]) -> list[str]:
    return [f"{_name(count.label)} ({count.n:,})" for count in counts]


def _listed(shown: list[str], n_all: int) -> str:
    more = f" and {n_all - len(shown):,} more" if n_all > len(shown) else ""
    return ", ".join(shown) + more
