"""What the nearest traces say: do they carry the predicted label, and by how much more than any other?

At most ``MAX_PROTOTYPES`` traces are kept, so that a decision never costs O(traces). Similarity is the cosine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracer.types import Float32, Float64, Int32

MAX_PROTOTYPES = 2000
MAX_ROWS = 50_000
"""Training rows up to which neighbours are tried: the more rows, the less a fixed number of prototypes says."""
NAMES = ("nearest", "mean_near", "share_near", "same_over_other", "nearest_same")
NEAR = 10
"""How many of the nearest traces are looked at."""
SHARPNESS = 10.0
_CHUNK = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Nearness:
    """Of n rows: labels (n, m) and similarities (n, m) of the nearest prototypes, and the best similarity by
    class (n, k), 0 where a class has no prototype."""

    labels: Int32
    similarities: Float32
    by_class: Float32

    def columns(self, predicted: Int32) -> Float64:
        """The features ``NAMES`` (n, 5) of each prediction."""
        rows = np.arange(len(predicted))
        weights = np.exp(np.float32(SHARPNESS) * self.similarities)
        share = (weights * (self.labels == predicted[:, None])).sum(axis=1) / weights.sum(axis=1)
        same = self.by_class[rows, predicted]
        others = self.by_class.copy()
        others[rows, predicted] = 0.0
        nearest = self.similarities.max(axis=1)
        columns = [nearest, self.similarities.mean(axis=1), share, same - others.max(axis=1), same]
        return np.stack(columns, axis=1).astype(np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Prototypes:
    """``vectors`` (m, d) of unit length, ordered by ``labels`` (m,) in a space of ``n_classes``."""

    vectors: Float32
    labels: Int32
    n_classes: int

    @classmethod
    def draw(cls, dense: Float32, y: Int32, n_classes: int, seed: int) -> tuple[Prototypes, NDArray[np.intp]]:
        """At most ``MAX_PROTOTYPES`` rows at random, and which rows they are, in the same order."""
        rows = np.random.default_rng(seed).permutation(len(y))[:MAX_PROTOTYPES]
        rows = rows[np.argsort(y[rows], kind="stable")]
        return cls(_unit(dense[rows]), y[rows], n_classes), rows

    def nearness(self, dense: Float32) -> Nearness:
        """Nearness of n rows (n, d)."""
        parts = [self._nearness(dense[i : i + _CHUNK]) for i in range(0, max(len(dense), 1), _CHUNK)]
        if len(parts) == 1:
            return parts[0]
        return Nearness(
            np.concatenate([p.labels for p in parts]),
            np.concatenate([p.similarities for p in parts]),
            np.concatenate([p.by_class for p in parts]),
        )

    def without(self, rows: NDArray[np.bool_]) -> Prototypes:
        """The prototypes that ``rows`` (m,) does not name."""
        return Prototypes(self.vectors[~rows], self.labels[~rows], self.n_classes)

    def _nearness(self, dense: Float32) -> Nearness:
        similar = _unit(dense) @ self.vectors.T
        n_near = min(NEAR, similar.shape[1])
        near = np.argpartition(similar, similar.shape[1] - n_near, axis=1)[:, -n_near:]
        present, first = np.unique(self.labels, return_index=True)
        by_class = np.zeros((len(dense), self.n_classes), dtype=np.float32)
        by_class[:, present] = np.maximum(np.maximum.reduceat(similar, first, axis=1), 0.0)
        return Nearness(self.labels[near], np.take_along_axis(similar, near, axis=1), by_class)


def _unit(dense: Float32) -> Float32:
    length = np.sqrt((dense * dense).sum(axis=1, keepdims=True))
    return np.asarray(dense / np.maximum(length, np.float32(1e-12)), dtype=np.float32)
