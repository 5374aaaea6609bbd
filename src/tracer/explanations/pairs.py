"""Artefact C, contrastive boundary pairs: the same teacher label, opposite decisions.

The paper, section 3.5 (C), pairs the highest with the lowest score. Beside it stands the closest such pair in the space
of the vectors: the least that has to change for the decision to change (Wachter et al., 2017, arXiv 1711.00399).
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracer.explanations.examples import MAX_LABELS, Example, clip, rows_by_label
from tracer.explanations.table import RoutingTable
from tracer.learning.heads import Block

Chosen = Literal["scores", "closeness"]

_SIDE = 4096
"""Rows of a label that are compared on each side, those next to the threshold first."""
_ENTRIES = 1 << 21
"""Similarities that are held at a time."""
_WORDS_READ, _WORDS_SHOWN, _CHARACTERS = 100, 30, 40


@dataclass(frozen=True, slots=True)
class Pair:
    """A handled row and a deferred one of the same teacher label, and the words that only one of them has.

    ``chosen`` "scores": the highest score and the lowest; "closeness": the pair with the largest cosine.
    """

    label: str
    chosen: Chosen
    similarity: float
    handled: Example
    deferred: Example
    only_handled: tuple[str, ...]
    only_deferred: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Two pairs a label, the most frequent label first; none for a label that is all handled or all deferred."""

    pairs: tuple[Pair, ...]
    n_labels_left_out: int


def contrast(table: RoutingTable) -> Pairs:
    """The boundary pairs of a table. Barred rows have no score and take no part."""
    pairs, scored = [], np.isfinite(table.scores)
    groups = [(label, rows[scored[rows]]) for label, rows in rows_by_label(table.labels)]
    split = [(label, rows[table.handled[rows]], rows[~table.handled[rows]]) for label, rows in groups]
    split = [(label, handled, deferred) for label, handled, deferred in split if len(handled) and len(deferred)]
    for label, handled, deferred in split[:MAX_LABELS]:
        high, low = handled[[table.scores[handled].argmax()]], deferred[[table.scores[deferred].argmin()]]
        pairs.append(_pair(table, label, "scores", *closest(table.vectors, high, low)))
        at_edge = handled[np.argsort(table.scores[handled], kind="stable")[:_SIDE]]
        below_edge = deferred[np.argsort(-table.scores[deferred], kind="stable")[:_SIDE]]
        pairs.append(_pair(table, label, "closeness", *closest(table.vectors, at_edge, below_edge)))
    return Pairs(tuple(pairs), max(len(split) - MAX_LABELS, 0))


def closest(vectors: Block, a: NDArray[np.intp], b: NDArray[np.intp]) -> tuple[int, int, float]:
    """The row of ``a`` and the row of ``b`` whose unit vectors have the largest cosine, and that cosine in [-1, 1].

    A chunk of ``a`` at a time: no more than ``_ENTRIES`` similarities, or one row of them, are held.
    """
    others = vectors[b].T
    best = (int(a[0]), int(b[0]), -np.inf)
    step = max(_ENTRIES // len(b), 1)
    for start in range(0, len(a), step):
        product: Any = vectors[a[start : start + step]] @ others
        similar = product if isinstance(product, np.ndarray) else product.toarray()
        i, j = np.unravel_index(similar.argmax(), similar.shape)
        if similar[i, j] > best[2]:
            best = int(a[start + i]), int(b[j]), float(similar[i, j])
    return best[0], best[1], float(np.clip(best[2], -1.0, 1.0))


def differing_words(first: str, second: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Words that an alignment of the two texts finds only in the first, and only in the second, in their order.

    Case does not count. At most ``_WORDS_READ`` words are aligned: the work is quadratic, and an example shows no more.
    """
    a, b = first.split()[:_WORDS_READ], second.split()[:_WORDS_READ]
    matcher = SequenceMatcher(None, [w.casefold() for w in a], [w.casefold() for w in b], autojunk=False)
    changes = [code for code in matcher.get_opcodes() if code[0] != "equal"]
    only_a = [clip(word, _CHARACTERS) for _, i, j, _, _ in changes for word in a[i:j]]
    only_b = [clip(word, _CHARACTERS) for _, _, _, i, j in changes for word in b[i:j]]
    return tuple(only_a[:_WORDS_SHOWN]), tuple(only_b[:_WORDS_SHOWN])


def _pair(table: RoutingTable, label: str, chosen: Chosen, handled: int, deferred: int, similarity: float) -> Pair:
    words = differing_words(table.text(handled), table.text(deferred))
    return Pair(label, chosen, similarity, Example.of(table, handled), Example.of(table, deferred), *words)
