"""Rows as examples, and how rows group by label: what the artefacts share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracer.explanations.table import RoutingTable

MAX_LABELS = 200
"""Labels that an artefact shows, the most frequent first: a teacher's free text may invent thousands."""
_TEXT = 400
"""Characters of a text that an example shows."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row: its id, the beginning of its text, the teacher's label, the surrogate's, the decision.

    ``score`` is the acceptor's own, None where a rule barred the input; ``stage`` is 1 where the lexical stage of a
    cascade answered, whose scores are on a scale of their own.
    """

    id: str
    text: str
    label: str
    predicted: str
    handled: bool
    score: float | None
    stage: int

    @classmethod
    def of(cls, table: RoutingTable, row: int) -> Example:
        """The example of a row."""
        score = float(table.shown[row])
        return cls(
            id=table.ids[row],
            text=clip(table.text(row), _TEXT),
            label=table.labels[row],
            predicted=table.label(int(table.predicted[row])),
            handled=bool(table.handled[row]),
            score=score if np.isfinite(score) else None,
            stage=int(table.stage[row]),
        )


def examples(table: RoutingTable, rows: Iterable[int]) -> tuple[Example, ...]:
    """The examples of some rows, in their order."""
    return tuple(Example.of(table, int(row)) for row in rows)


@dataclass(frozen=True, slots=True)
class LabelCount:
    """A label and how often it occurs."""

    label: str
    n: int


def rows_by_label(labels: Sequence[str]) -> list[tuple[str, NDArray[np.intp]]]:
    """Each label with the rows that carry it, ascending; the most frequent label first, then by name."""
    names = sorted(set(labels))
    code = {name: i for i, name in enumerate(names)}
    codes = np.fromiter((code[label] for label in labels), dtype=np.intp, count=len(labels))
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes, minlength=len(names))
    groups = np.split(order, np.cumsum(counts)[:-1]) if names else []
    return [(names[i], groups[i]) for i in np.argsort(-counts, kind="stable")]


def clip(text: str, length: int) -> str:
    """At most ``length`` characters, with an ellipsis where some are left out."""
    return text if len(text) <= length else text[: length - 1] + "…"
