"""The teacher's labels: near-duplicates that it labelled differently, likely errors, and accuracy where truth is known.

Each entry is a suspicion with its reasons, for a person to look at. Nothing here changes a label.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracer.errors import ConfigError
from tracer.explanations.examples import clip
from tracer.explanations.table import RoutingTable
from tracer.features.lexical import LexicalFeatures
from tracer.learning.heads import Block
from tracer.stats import binomial
from tracer.traces.rooms import normalised
from tracer.types import Dataset, Float32

BAR = 0.95
"""Cosine from which on two texts are near-duplicates."""
CONFIDENT = 0.9
"""Acceptor's score from which on a disagreement with the teacher is suspicious."""
_TILE = 1024
"""Rows of each side of a tile of similarities: a few megabytes, whatever n is."""
_NEIGHBOURS = 10
_LIMIT = 50
_TEXT = 400


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Labelled rows with unit vectors (n, d): a whole log, trained on or not. A `RoutingTable` serves as well."""

    ids: tuple[str, ...]
    texts: tuple[str, ...] | None
    labels: tuple[str, ...]
    vectors: Block

    @classmethod
    def of(cls, dataset: Dataset) -> Labelled:
        """All rows of a dataset, with their embeddings, or with lexical features where there are none."""
        if dataset.dense is not None:
            length = np.linalg.norm(dataset.dense, axis=1, keepdims=True)
            vectors: Block = (dataset.dense / np.maximum(length, np.float32(1e-12))).astype(np.float32)
        else:
            vectors = LexicalFeatures.fit_transform(dataset.texts or ())[1]
        return cls(dataset.ids, dataset.texts, dataset.labels, vectors)


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two inputs that read alike and carry different labels: ids, texts and labels of both, their cosine, and why."""

    ids: tuple[str, str]
    texts: tuple[str, str]
    labels: tuple[str, str]
    similarity: float
    why: str


@dataclass(frozen=True, slots=True)
class Conflicts:
    """``n_pairs`` pairs of distinct (text, label) at a cosine of ``bar`` or more; ``pairs`` are the most similar."""

    bar: float
    n_rows: int
    n_pairs: int
    pairs: tuple[Conflict, ...]


@dataclass(frozen=True, slots=True)
class LikelyError:
    """A trace whose label the surrogate contradicts with confidence and whose neighbours carry the surrogate's label.

    ``score`` is the acceptor's; ``n_support`` of the ``n_neighbours`` nearest traces carry ``suggested``.
    """

    id: str
    text: str
    label: str
    suggested: str
    score: float
    n_support: int
    n_neighbours: int
    why: str


@dataclass(frozen=True, slots=True)
class Share:
    """``n_right`` of ``n`` answers are right."""

    n_right: int
    n: int

    @property
    def rate(self) -> float:
        """Accuracy in [0, 1]."""
        return self.n_right / self.n

    @property
    def interval(self) -> tuple[float, float]:
        """Exact two-sided interval (Clopper and Pearson) at level 0.05."""
        return binomial.agreement_interval(self.n_right, self.n)


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Against ground truth, on the same rows: the teacher, the surrogate alone, and what is served: both together."""

    teacher: Share
    surrogate: Share
    hybrid: Share


def conflicts(labelled: Labelled | RoutingTable, *, bar: float = BAR, limit: int = _LIMIT) -> Conflicts:
    """Near-duplicates that carry different labels.

    Rows of one normalised text are alike whatever their vectors; others where the cosine of their vectors reaches
    ``bar``. Rows with the same text and label count once. Similarities are computed in tiles, never n x n at once;
    the time grows with n squared.
    """
    if not 0.0 < bar <= 1.0:
        raise ConfigError(f"bar = {bar}: a cosine to reach must lie in (0, 1]")
    rows = _distinct(labelled)
    text = _codes([labelled.ids[i] if labelled.texts is None else normalised(labelled.texts[i]) for i in rows])
    label = _codes([labelled.labels[i] for i in rows])
    vectors = labelled.vectors[rows]
    n_pairs = 0
    found: list[tuple[float, int, int]] = []
    for start in range(0, len(rows), _TILE):
        for other in range(start, len(rows), _TILE):
            a, b = slice(start, start + _TILE), slice(other, other + _TILE)
            similar = cosines(vectors[a], vectors[b])
            same = text[a, None] == text[None, b]
            alike = (label[a, None] != label[None, b]) & (same | (similar >= bar))
            if start == other:
                alike = np.triu(alike, 1)
            i, j = np.nonzero(alike)
            n_pairs += len(i)
            order = np.lexsort((j, i, -similar[i, j], ~same[i, j]))[:limit]
            tile = [
                (-2.0 if same[i[k], j[k]] else -float(similar[i[k], j[k]]), int(i[k]) + start, int(j[k]) + other)
                for k in order
            ]
            found = heapq.nsmallest(limit, [*found, *tile])
    pairs = tuple(_conflict(labelled, int(rows[i]), int(rows[j]), -key) for key, i, j in found)
    return Conflicts(bar, len(labelled.ids), n_pairs, pairs)


def likely_errors(
    table: RoutingTable, *, confident: float = CONFIDENT, neighbours: int = _NEIGHBOURS, limit: int = _LIMIT
) -> tuple[LikelyError, ...]:
    """Traces that the teacher may have labelled wrongly, the most suspicious first.

    The surrogate, which never saw the row, says another label with a score of ``confident`` or more, and of its nearest
    other rows at least half carry the surrogate's label and fewer the teacher's. Labels that are not learned are left
    out: the surrogate has no say on them. A table of out-of-fold decisions serves as well as one of shadow rows.
    """
    suspects = np.flatnonzero(~table.agree & (table.y >= 0) & (table.shown >= confident))
    if not len(suspects) or len(table) < 2:
        return ()
    nearest = min(neighbours, len(table) - 1)
    found = []
    for start in range(0, len(suspects), _TILE // 4):
        chunk = suspects[start : start + _TILE // 4]
        similar = cosines(table.vectors[chunk], table.vectors)
        similar[np.arange(len(chunk)), chunk] = -np.inf
        for row, near in zip(chunk.tolist(), similar, strict=True):
            close = np.argpartition(near, len(near) - nearest)[-nearest:]
            close = close[near[close] > 0.0]
            support = int((table.y[close] == table.predicted[row]).sum())
            own = int((table.y[close] == table.y[row]).sum())
            if support > own and 2 * support >= len(close):
                found.append(_likely(table, row, support, own, len(close)))
    found.sort(key=lambda error: (-error.n_support / error.n_neighbours, -error.score, error.id))
    return tuple(found[:limit])


def accuracy(table: RoutingTable) -> Accuracy | None:
    """Accuracy of teacher, surrogate and hybrid on rows whose truth is known; None where there is none.

    The hybrid answers as served: the surrogate where the policy handles, else the teacher.
    """
    rows = [i for i, truth in enumerate(table.truth) if truth is not None]
    if not rows:
        return None
    teacher = np.array([table.labels[i] == table.truth[i] for i in rows])
    surrogate = np.array([table.label(int(table.predicted[i])) == table.truth[i] for i in rows])
    hybrid = np.where(table.handled[rows], surrogate, teacher)
    return Accuracy(*(Share(int(right.sum()), len(rows)) for right in (teacher, surrogate, hybrid)))


def _codes(names: list[str]) -> NDArray[np.intp]:
    """A number for each name: numpy's own strings end at a zero and know no lone surrogates."""
    code: dict[str, int] = {}
    return np.fromiter((code.setdefault(name, len(code)) for name in names), dtype=np.intp, count=len(names))


def _distinct(labelled: Labelled | RoutingTable) -> NDArray[np.intp]:
    """The first row of each text and label; all rows where there are no texts."""
    if labelled.texts is None:
        return np.arange(len(labelled.ids))
    first: dict[tuple[str, str], int] = {}
    for i, (text, label) in enumerate(zip(labelled.texts, labelled.labels, strict=True)):
        first.setdefault((normalised(text), label), i)
    return np.fromiter(first.values(), dtype=np.intp, count=len(first))


def cosines(a: Block, b: Block) -> Float32:
    """Cosines (n, m) of unit rows; a row without features is unlike all."""
    product = a @ b.T
    return np.asarray(product if isinstance(product, np.ndarray) else product.toarray(), dtype=np.float32)


def _conflict(labelled: Labelled | RoutingTable, i: int, j: int, key: float) -> Conflict:
    similarity = min(float(cosines(labelled.vectors[[i]], labelled.vectors[[j]])[0, 0]), 1.0)
    texts = labelled.texts
    why = "the same text, two labels" if key > 1.5 else f"cosine {similarity:.3f}, two labels"
    return Conflict(
        (labelled.ids[i], labelled.ids[j]),
        ("", "") if texts is None else (clip(texts[i], _TEXT), clip(texts[j], _TEXT)),
        (labelled.labels[i], labelled.labels[j]),
        similarity,
        why,
    )


def _likely(table: RoutingTable, row: int, support: int, own: int, n: int) -> LikelyError:
    label, suggested, score = table.labels[row], table.label(int(table.predicted[row])), float(table.shown[row])
    why = (
        f"the surrogate says {suggested!r} with score {score:.2f}; of the {n} nearest traces {support} carry that "
        f"label and {own} carry {label!r}"
    )
    return LikelyError(table.ids[row], clip(table.text(row), _TEXT), label, suggested, score, support, n, why)
