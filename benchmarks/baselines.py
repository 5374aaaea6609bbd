"""What a team would use instead: a confidence threshold, or a nearest-neighbour (semantic) cache.

Both read the same MiniLM vectors. A threshold is set three ways: swept on 20% of the traces, held out, for the largest
coverage that reaches the target there (what can be done); with hindsight on the test traces after training on all
traces (the oracle; this is the paper's baseline); and for the cache also at a similarity of 0.8, a common default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks import rules
from tracer.types import Bool, Dataset, Float32, Float64

CACHE_DEFAULT = 0.8
_CALIBRATION = 0.2
PENALTIES = (1.0, 10.0, 100.0)
"""Inverse penalties C of the logistic regression, of which the best on held-out traces is taken."""


@dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """A baseline on some traces: score (n,), agreement with the teacher (n,), and whether the answer is true (n,)."""

    score: Float64
    agree: Bool
    right: Bool

    def counts(self, test: Dataset, threshold: float | None) -> dict[str, Any]:
        """Counts on test traces, as ``common.on_test`` has them."""
        handled = self.score >= (np.inf if threshold is None else threshold)
        teacher_right = np.array([a == b for a, b in zip(test.labels, test.truth, strict=True)])
        return {
            "threshold": threshold, "n": len(test), "n_handled": int(handled.sum()),
            "n_agreed": int((handled & self.agree).sum()),
            "n_right": int(np.where(handled, self.right, teacher_right).sum()),
        }  # fmt: skip


def run(train: Dataset, test: Dataset, targets: tuple[float, ...], seed: int) -> dict[str, Any]:
    """Counts of both baselines at each target, by how the threshold was set."""
    rows = np.random.default_rng(seed).permutation(len(train))
    cut = round(len(train) * _CALIBRATION)
    fitting, calibration = train.take(np.sort(rows[cut:])), train.take(np.sort(rows[:cut]))
    penalty = best_penalty(fitting, calibration)
    on_calibration = {
        "confidence": confidence(fitting, calibration, penalty),
        "cache": nearest(fitting, calibration),
    }
    part = {"confidence": confidence(fitting, test, penalty), "cache": nearest(fitting, test)}
    whole = {"confidence": confidence(train, test, penalty), "cache": nearest(train, test)}
    out: dict[str, Any] = {"seed": seed, "inverse_penalty": penalty}
    for name in ("confidence", "cache"):
        cells = []
        for target in targets:
            swept = _sweep(on_calibration[name], target)
            hindsight = _sweep(whole[name], target)
            cells.append(
                {
                    "target": target,
                    "calibrated": part[name].counts(test, swept),
                    "oracle": whole[name].counts(test, hindsight),
                }
            )
        out[name] = cells
    out["cache_default"] = whole["cache"].counts(test, CACHE_DEFAULT)
    return out


def _sweep(scores: Scores, target: float) -> float | None:
    return rules.largest_empirical(scores.score, scores.agree, target, np.random.default_rng(0))


def confidence(train: Dataset, test: Dataset, inverse_penalty: float) -> Scores:
    """Logistic regression on the vectors; the score is the largest class probability."""
    model = LogisticRegression(C=inverse_penalty, max_iter=2000).fit(_dense(train), train.labels)
    probabilities = model.predict_proba(_dense(test))
    best = probabilities.argmax(axis=1)
    return _scores(probabilities[np.arange(len(test)), best], model.classes_[best].tolist(), test)


def best_penalty(train: Dataset, held: Dataset) -> float:
    """The inverse penalty with the most agreement on held-out traces."""
    return max(PENALTIES, key=lambda c: int(confidence(train, held, c).agree.sum()))


def nearest(train: Dataset, test: Dataset) -> Scores:
    """The label of the most similar trace; the score is the cosine similarity."""
    known = _unit(_dense(train))
    best, score = np.empty(len(test), dtype=np.intp), np.empty(len(test))
    for start in range(0, len(test), 1024):
        similar = _unit(_dense(test)[start : start + 1024]) @ known.T
        best[start : start + 1024] = similar.argmax(axis=1)
        score[start : start + 1024] = similar.max(axis=1)
    return _scores(score, [train.labels[i] for i in best], test)


def _scores(score: Float64, labels: list[str], test: Dataset) -> Scores:
    agree = np.array([a == b for a, b in zip(labels, test.labels, strict=True)])
    right = np.array([a == b for a, b in zip(labels, test.truth, strict=True)])
    return Scores(score, agree, right)


def _dense(dataset: Dataset) -> Float32:
    assert dataset.dense is not None
    return dataset.dense


def _unit(vectors: Float32) -> Float32:
    out: Float32 = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return out
