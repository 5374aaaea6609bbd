"""The baselines on vectors whose neighbours are known."""

from __future__ import annotations

import numpy as np

from benchmarks import baselines
from tracer.types import Dataset


def blobs(n: int, seed: int) -> Dataset:
    """Two classes on two axes, a tenth of the labels swapped; the truth is the axis."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, size=n)
    vectors = np.eye(2, 4)[y] + rng.normal(scale=0.05, size=(n, 4))
    names = np.array(["left", "right"])
    labels = names[np.where(rng.uniform(size=n) < 0.1, 1 - y, y)].tolist()
    return Dataset.from_columns(labels, dense=vectors.astype(np.float32), truth=names[y].tolist())


def test_a_cache_answers_with_the_label_of_the_nearest_trace() -> None:
    train = Dataset.from_columns(["a", "b"], dense=np.eye(2, dtype=np.float32))
    test = Dataset.from_columns(
        ["a", "a"], dense=np.array([[2.0, 0.0], [1.0, 2.0]], dtype=np.float32), truth=["a", "b"]
    )
    scores = baselines.nearest(train, test)
    assert scores.agree.tolist() == [True, False]
    assert scores.right.tolist() == [True, True]
    np.testing.assert_allclose(scores.score, [1.0, 2.0 / np.sqrt(5.0)], rtol=1e-6)


def test_counts_defer_to_the_teacher_below_the_threshold() -> None:
    test = blobs(400, 1)
    scores = baselines.confidence(blobs(400, 0), test, 10.0)
    none, everything = scores.counts(test, None), scores.counts(test, 0.0)
    assert none["n_handled"] == 0
    assert none["n_right"] == sum(a == b for a, b in zip(test.labels, test.truth, strict=True))
    # The surrogate is right where the teacher errs at random.
    assert everything["n_handled"] == 400
    assert everything["n_right"] > none["n_right"]
    assert everything["n_agreed"] < everything["n_right"]


def test_both_are_swept_at_each_target() -> None:
    result = baselines.run(blobs(600, 2), blobs(300, 3), (0.8, 0.99), seed=0)
    for name in ("confidence", "cache"):
        assert [cell["target"] for cell in result[name]] == [0.8, 0.99]
        assert result[name][0]["calibrated"]["n_handled"] >= result[name][1]["calibrated"]["n_handled"]
    oracle = result["confidence"][0]["oracle"]
    assert oracle["n_agreed"] >= 0.8 * oracle["n_handled"]
