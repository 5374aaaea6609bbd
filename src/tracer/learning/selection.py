"""Figures of merit of a score that ranks predictions, all from scores (n,) and agreement (n,)."""

from __future__ import annotations

import numpy as np

from tracer.types import Bool, Float64, Int32


def augrc(scores: Float64, agree: Bool) -> float:
    """Area under the generalised risk-coverage curve, lower is better (Traub et al. 2024, arXiv 2407.01032)."""
    wrong = ~agree[np.argsort(-scores, kind="stable")]
    return float(np.cumsum(wrong).mean() / len(wrong))


def aurc(scores: Float64, agree: Bool) -> float:
    """Area under the risk-coverage curve, lower is better (Geifman and El-Yaniv 2017, arXiv 1705.08500)."""
    wrong = ~agree[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(wrong) / np.arange(1, len(wrong) + 1)).mean())


def coverage_at(scores: Float64, agree: Bool, target: float) -> float:
    """Largest share that can be handled at this empirical agreement, in [0, 1]; tied scores go together."""
    order = np.argsort(-scores, kind="stable")
    good = np.cumsum(agree[order])
    n = np.arange(1, len(order) + 1)
    last_of_tie = np.append(scores[order][1:] != scores[order][:-1], True)
    reached = np.flatnonzero((good >= target * n) & last_of_tie)
    return float(n[reached[-1]] / len(order)) if len(reached) else 0.0


def macro_f1(predicted: Int32, y: Int32, n_classes: int) -> float:
    """Mean F1 over the classes that occur in ``y`` or ``predicted``."""
    hit = np.bincount(y[predicted == y], minlength=n_classes)
    total = np.bincount(predicted, minlength=n_classes) + np.bincount(y[y >= 0], minlength=n_classes)
    present = total > 0
    return float((2.0 * hit[present] / total[present]).mean()) if present.any() else 0.0
