"""Neighbours out of fold: from the other folds only, and none where these are too few."""

from __future__ import annotations

import numpy as np

from tracer.learning.fitting import OutOfFoldNeighbours
from tracer.learning.neighbours import NEAR


def test_neighbours_of_a_row_lie_in_other_folds() -> None:
    rng = np.random.default_rng(0)
    n = 60
    folds = (np.arange(n) % 4).astype(np.int8)
    dense = rng.normal(size=(n, 5)).astype(np.float32)
    dense[1::4] = dense[0::4]  # a twin in the next fold
    y = (np.arange(n) % 3).astype(np.int32)
    near = OutOfFoldNeighbours.of(dense, y, folds, 3, 0)
    assert near is not None
    best = near.nearness.similarities.max(axis=1)
    assert np.allclose(best[folds <= 1], 1.0, atol=1e-5), "the twin is found, in the order of the rows"
    assert (best[folds > 1] < 0.999).all(), "and no row is its own neighbour"
    assert near.nearness.labels.shape == (n, NEAR)


def test_one_fold_that_holds_nearly_all_rows_leaves_no_neighbours() -> None:
    """One heavy user: the rows of its fold would have hardly any others to look at."""
    n = 200
    folds = np.zeros(n, dtype=np.int8)
    folds[: NEAR - 1] = 1
    dense = np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32)
    assert OutOfFoldNeighbours.of(dense, np.zeros(n, dtype=np.int32), folds, 2, 0) is None
