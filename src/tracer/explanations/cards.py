"""Artefact B, example cards: the input that best stands for what is handled, and for what is deferred, of each label.

The paper, section 3.5 (B): the input closest to the centroid of the group's vectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracer.explanations.examples import MAX_LABELS, Example, rows_by_label
from tracer.explanations.table import RoutingTable
from tracer.learning.heads import Block


@dataclass(frozen=True, slots=True)
class Card:
    """The typical row of a group: one teacher label, all handled or all deferred.

    ``n`` rows are in the group; ``similarity`` is the cosine of the example's vector and the group's centroid.
    """

    label: str
    handled: bool
    n: int
    similarity: float
    example: Example


@dataclass(frozen=True, slots=True)
class Cards:
    """Cards by label, the most frequent first, handled before deferred. Groups without rows have none."""

    cards: tuple[Card, ...]
    n_labels_left_out: int


def deal(table: RoutingTable) -> Cards:
    """The cards of a table."""
    groups = rows_by_label(table.labels)
    cards = []
    for label, rows in groups[:MAX_LABELS]:
        for handled in (True, False):
            group = rows[table.handled[rows] == handled]
            if len(group):
                nearest, similarity = central(table.vectors, group)
                cards.append(Card(label, handled, len(group), similarity, Example.of(table, nearest)))
    return Cards(tuple(cards), max(len(groups) - MAX_LABELS, 0))


def central(vectors: Block, rows: NDArray[np.intp]) -> tuple[int, float]:
    """The row whose unit vector is nearest to the centroid of these rows, and their cosine, in [-1, 1].

    Of equals the first. Where the vectors cancel out there is no direction, and the cosine is near 0.
    """
    group = vectors[rows]
    centroid = np.asarray(group.mean(axis=0, dtype=np.float64)).ravel()
    length = float(np.linalg.norm(centroid))
    similar = np.asarray(group @ centroid, dtype=np.float64).ravel() / max(length, 1e-6)
    best = int(similar.argmax())
    return int(rows[best]), float(np.clip(similar[best], -1.0, 1.0))
