"""The acceptor: how likely is it that the surrogate agrees with the teacher on this input?

Logistic regression on evidence about one prediction: the paper's four features (top-1, top-2, margin,
normalised entropy), the margin and the doubt on the log scale, how far the lexical and the dense view agree, what
the nearest traces say, and how reliable the predicted class was out of fold. A function of the probabilities alone
cannot re-rank much; the last three kinds are where coverage comes from.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tracer.learning.neighbours import NAMES as NEIGHBOUR_NAMES
from tracer.learning.neighbours import Nearness, Prototypes
from tracer.types import Float32, Float64, Int32

PAPER_FEATURES = ("top_1", "top_2", "margin", "entropy")
TINY = 1e-7
"""Doubts below this are all the same."""
SURE = 20.0
"""Log odds where there is no other label."""
LOWEST_LOG_P = -15.0
_LARGEST = 700.0  # exp overflows soon after


@dataclass(frozen=True, slots=True, eq=False)
class Reliability:
    """Out-of-fold record of each predicted class: shrunk agreement (k,) and log count (k,)."""

    agreement: Float64
    log_count: Float64

    @classmethod
    def of(cls, predicted: Int32, agree: Float64, n_classes: int, shrinkage: float = 10.0) -> Reliability:
        """Agreement by predicted class, shrunk to the overall one as if by ``shrinkage`` more rows."""
        n = np.bincount(predicted, minlength=n_classes).astype(np.float64)
        agreed = np.bincount(predicted, weights=agree, minlength=n_classes)
        overall = float(agree.mean()) if len(agree) else 0.0
        return cls((agreed + shrinkage * overall) / (n + shrinkage), np.log1p(n))

    def columns(self, predicted: Int32) -> Float64:
        """The two features (n, 2) of each prediction."""
        return np.stack([self.agreement[predicted], self.log_count[predicted]], axis=1)


def feature_names(n_views: int, *, paper: bool = False, neighbours: bool = False) -> tuple[str, ...]:
    """Names of the acceptor's features, in order."""
    if paper:
        return PAPER_FEATURES
    views = [f"view_{i}_{what}" for i in range(n_views) for what in ("p", "log_p", "same")] if n_views > 1 else []
    near = NEIGHBOUR_NAMES if neighbours else ()
    return (*PAPER_FEATURES, "log_odds", "log_doubt", "max_logit", *views, *near, "class_agreement", "class_count")


def confidence(logits: Float32) -> tuple[Int32, Float64, Float64]:
    """Predicted code (n,), the paper's four features (n, 4) and three more on the log scale (n, 3).

    With others = sum over the other labels of exp(logit - largest logit), the largest probability is
    1 / (1 + others): what is left to the others keeps its digits however sure the surrogate is.
    """
    n, k = logits.shape
    rows = np.arange(n)
    predicted = logits.argmax(axis=1)
    top = logits[rows, predicted]
    rest: Float32 = logits - top[:, None]
    rest[rows, predicted] = -np.inf
    # The second largest by its place: numpy finds places faster than values.
    gap = rest[rows, rest.argmax(axis=1)] if k > 1 else np.full(n, -SURE, dtype=np.float32)
    p = np.exp(rest)
    rest[rows, predicted] = 0.0
    others = (p @ np.ones(k, dtype=np.float32)).astype(np.float64)
    total = 1.0 + others
    weighted = np.einsum("nk,nk->n", p, rest).astype(np.float64)
    top_1 = 1.0 / total
    top_2 = np.exp(gap, dtype=np.float64) / total if k > 1 else np.zeros(n)
    entropy = (np.log(total) - weighted / total) / np.log(max(k, 2))
    doubt = np.log(np.maximum(others / total, TINY))
    paper = np.stack([top_1, top_2, top_1 - top_2, entropy], axis=1)
    extra = np.stack([-gap.astype(np.float64), doubt, top.astype(np.float64)], axis=1)
    return predicted.astype(np.int32), paper, extra


def view_columns(views: tuple[Float32, ...], predicted: Int32) -> Float64:
    """Three features a view (n, 3 m): its probability and log probability of the prediction, and whether it
    would predict the same; none (n, 0) for a single view."""
    if len(views) == 1:
        return np.empty((len(predicted), 0))
    rows = np.arange(len(predicted))
    out = []
    for view in views:
        top = view.max(axis=1)
        own = view[rows, predicted]
        log_p = (own - top - np.log(np.exp(view - top[:, None]).sum(axis=1))).astype(np.float64)
        out += [np.exp(log_p), np.maximum(log_p, LOWEST_LOG_P), (own >= top).astype(np.float64)]
    return np.stack(out, axis=1)


@dataclass(frozen=True, slots=True, eq=False)
class Acceptor:
    """Standardised logistic regression: ``coefficients`` (p,) on ``(features - mean) / scale``.

    ``prototypes`` are there where neighbours are among the features.
    """

    names: tuple[str, ...]
    mean: Float64
    scale: Float64
    coefficients: Float64
    intercept: float
    reliability: Reliability
    prototypes: Prototypes | None = None

    def features(self, views: tuple[Float32, ...], nearness: Nearness | None = None) -> tuple[Int32, Float64, Float64]:
        """Predicted code (n,), features (n, p), and the largest logit (n,).

        ``nearness`` of the same inputs is needed where there are prototypes.
        """
        logits = views[0] if len(views) == 1 else np.sum(views, axis=0)
        predicted, paper, extra = confidence(logits)
        if self.names == PAPER_FEATURES:
            return predicted, paper, extra[:, 2]
        columns = [paper, extra, view_columns(views, predicted)]
        if nearness is not None:
            columns.append(nearness.columns(predicted))
        columns.append(self.reliability.columns(predicted))
        return predicted, np.concatenate(columns, axis=1), extra[:, 2]

    def probability(self, features: Float64) -> Float64:
        """P(surrogate agrees with teacher) (n,)."""
        z = ((features - self.mean) / self.scale) @ self.coefficients + self.intercept
        return 1.0 / (1.0 + np.exp(np.minimum(-z, _LARGEST)))
