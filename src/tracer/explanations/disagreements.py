"""Artefact E, disagreement cards: where surrogate and teacher differ, by what the surrogate says.

The paper, section 3.5 (E). All rows count, handled or not: what is deferred today shows what the surrogate cannot do.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from tracer.explanations.diagnosis import Diagnosis, diagnose
from tracer.explanations.examples import MAX_LABELS, Example, LabelCount, examples
from tracer.explanations.table import RoutingTable

_GIVEN, _EXAMPLES = 5, 3


@dataclass(frozen=True, slots=True)
class DisagreementCard:
    """Of ``n_predicted`` rows that the surrogate calls ``predicted``, ``n`` are called something else by the teacher.

    ``n_handled`` of the ``n`` are handled: the errors that users meet. ``given`` are the teacher's labels instead, the
    most frequent first, and ``n_given_left_out`` rows have others. Examples: handled ones first, by score.
    """

    predicted: str
    n_predicted: int
    n: int
    n_handled: int
    given: tuple[LabelCount, ...]
    n_given_left_out: int
    examples: tuple[Example, ...]

    def __post_init__(self) -> None:
        if not self.n_handled <= self.n <= self.n_predicted:
            raise ValueError(f"disagreement card {self.predicted!r} has impossible counts")

    @property
    def share(self) -> float:
        """Share of this prediction that the teacher contradicts."""
        return self.n / self.n_predicted if self.n_predicted else 0.0


@dataclass(frozen=True, slots=True)
class Disagreements:
    """Cards, those with most disagreements first, and what the disagreements have in common."""

    n_rows: int
    n: int
    n_handled: int
    cards: tuple[DisagreementCard, ...]
    n_cards_left_out: int
    diagnosis: Diagnosis


def gather(table: RoutingTable) -> Disagreements:
    """The disagreement cards of a table."""
    wrong = ~table.agree
    counts = np.bincount(table.predicted[wrong], minlength=len(table.space))
    classes = [int(c) for c in np.argsort(-counts, kind="stable") if counts[c]]
    return Disagreements(
        n_rows=len(table),
        n=int(wrong.sum()),
        n_handled=int((wrong & table.handled).sum()),
        cards=tuple(_card(table, code) for code in classes[:MAX_LABELS]),
        n_cards_left_out=max(len(classes) - MAX_LABELS, 0),
        diagnosis=diagnose(table),
    )


def _card(table: RoutingTable, code: int) -> DisagreementCard:
    predicted = table.predicted == code
    rows = np.flatnonzero(predicted & ~table.agree)
    given = sorted(Counter(table.labels[row] for row in rows).items(), key=lambda item: (-item[1], item[0]))
    order = np.lexsort((-table.scores[rows], ~table.handled[rows]))
    return DisagreementCard(
        predicted=table.label(code),
        n_predicted=int(predicted.sum()),
        n=len(rows),
        n_handled=int(table.handled[rows].sum()),
        given=tuple(LabelCount(label, n) for label, n in given[:_GIVEN]),
        n_given_left_out=sum(n for _, n in given[_GIVEN:]),
        examples=examples(table, rows[order][:_EXAMPLES]),
    )
