"""Artefact A, slice summaries: what the surrogate handles by teacher label and by length, and how well.

The paper, section 3.5 (A). Slices that nobody thought of are found by ``discovery``.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tracer.explanations.discovery import Discovery, discover
from tracer.explanations.examples import MAX_LABELS, rows_by_label
from tracer.explanations.table import RoutingTable
from tracer.stats import binomial

LEVEL = 0.05
"""Error of each interval."""
_EDGES = (5, 9, 17, 33, 65, 129, 257, 513, 1025)
"""First length, in words, of each bin but the first. Each is twice as wide as the one before, whatever the log."""


@dataclass(frozen=True, slots=True)
class Slice:
    """Counts of a part of the rows: ``n`` of ``n_rows`` belong to it, ``n_handled`` of them are handled, and
    ``n_agreed`` of those agree with the teacher. Rates derive from the counts."""

    name: str
    n_rows: int
    n: int
    n_handled: int
    n_agreed: int

    def __post_init__(self) -> None:
        if not 0 <= self.n_agreed <= self.n_handled <= self.n <= self.n_rows:
            counts = (self.n_agreed, self.n_handled, self.n, self.n_rows)
            raise ValueError(f"slice {self.name!r} has impossible counts: {counts}")

    @classmethod
    def of(cls, table: RoutingTable, name: str, rows: NDArray[np.intp]) -> Slice:
        """Count these rows."""
        handled = table.handled[rows]
        n_agreed = int((handled & table.agree[rows]).sum())
        return cls(name, len(table), len(rows), int(handled.sum()), n_agreed)

    @property
    def share(self) -> float:
        """Share of all rows."""
        return self.n / self.n_rows if self.n_rows else 0.0

    @property
    def handled_rate(self) -> float:
        """Share of the slice that is handled."""
        return self.n_handled / self.n if self.n else 0.0

    @property
    def agreement(self) -> float | None:
        """Share of the handled in agreement; None where none is handled."""
        return self.n_agreed / self.n_handled if self.n_handled else None

    @property
    def agreement_lower(self) -> float:
        """Lower end of the exact interval (Clopper and Pearson) with error ``LEVEL``, for this slice alone."""
        return binomial.agreement_interval(self.n_agreed, self.n_handled, LEVEL)[0]

    @property
    def agreement_upper(self) -> float:
        """Upper end of the same interval."""
        return binomial.agreement_interval(self.n_agreed, self.n_handled, LEVEL)[1]


@dataclass(frozen=True, slots=True)
class Slices:
    """Slices by teacher label, the most frequent first, by length of the text, and those found automatically.

    ``lengths`` is empty where no texts are kept; ``n_labels_left_out`` of the rarest labels are not shown.
    """

    labels: tuple[Slice, ...]
    lengths: tuple[Slice, ...]
    found: Discovery
    n_labels_left_out: int


def summarise(table: RoutingTable) -> Slices:
    """The slice summaries of a table."""
    groups = rows_by_label(table.labels)
    return Slices(
        labels=tuple(Slice.of(table, label, rows) for label, rows in groups[:MAX_LABELS]),
        lengths=_by_length(table),
        found=discover(table),
        n_labels_left_out=max(len(groups) - MAX_LABELS, 0),
    )


def _by_length(table: RoutingTable) -> tuple[Slice, ...]:
    if table.texts is None:
        return ()
    n_words = np.fromiter((len(text.split()) for text in table.texts), dtype=np.int64, count=len(table))
    bins = np.searchsorted(_EDGES, n_words, side="right")
    edges = (0, *_EDGES)
    names = [f"{low} to {high - 1} words" for low, high in pairwise(edges)] + [f"{edges[-1]} words or more"]
    return tuple(Slice.of(table, names[i], np.flatnonzero(bins == i)) for i in np.unique(bins))
