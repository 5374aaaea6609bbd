"""From cross-fitted members to candidates: blend, train the acceptor out of fold, set guard and floors."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

from tracer.config import Novelty
from tracer.errors import TrainingError
from tracer.learning import blending, selection
from tracer.learning.acceptors import PAPER_FEATURES, Acceptor, Reliability, feature_names
from tracer.learning.candidates import Candidate, NoveltyGuard, Rules, Scored
from tracer.learning.crossfit import Member
from tracer.learning.neighbours import NEAR, Nearness, Prototypes
from tracer.learning.surrogates import Part, Surrogate
from tracer.learning.threads import n_workers, one_thread_each
from tracer.types import Bool, Float32, Float64, Int32

NOVELTY_QUANTILE = 0.02
"""Share of the out-of-fold traces whose largest logit falls below the novelty floor."""
_NEIGHBOURS_EARN = 0.02
"""Share of the area under the generalised risk-coverage curve that neighbours must take away: a decision with them
costs 2,000 products more."""
_FLOOR_MARGIN, _FLOOR_SHRINKAGE = 0.05, 10.0


@dataclass(frozen=True, slots=True, eq=False)
class Trained:
    """A candidate with its out-of-fold evidence on the training rows.

    ``paper_scores`` (n,) are those of an acceptor on the paper's four features alone, for comparison.
    """

    candidate: Candidate
    scored: Scored
    agree: Bool
    log_loss: float
    macro_f1: float
    paper_scores: Float64

    @property
    def name(self) -> str:
        """The candidate's name."""
        return self.candidate.name


@dataclass(frozen=True, slots=True, eq=False)
class OutOfFoldNeighbours:
    """Prototypes, and the nearness of the training rows to those of other folds."""

    prototypes: Prototypes
    nearness: Nearness

    @classmethod
    def of(
        cls, dense: Float32, y: Int32, folds: NDArray[np.int8], n_classes: int, seed: int
    ) -> OutOfFoldNeighbours | None:
        """Draw prototypes from the training rows (n, d); None where a fold would be left with too few of others."""
        prototypes, rows = Prototypes.draw(dense, y, n_classes, seed)
        own = folds[rows]
        n_folds = int(folds.max()) + 1
        if len(own) - int(np.bincount(own, minlength=n_folds).max()) < NEAR:
            return None
        inside = [np.flatnonzero(folds == fold) for fold in range(n_folds)]

        def near(fold: int) -> Nearness:
            return prototypes.without(own == fold).nearness(dense[inside[fold]])

        with one_thread_each(), ThreadPoolExecutor(n_workers(len(inside))) as workers:
            parts = list(workers.map(near, range(len(inside))))
        back = np.argsort(np.concatenate(inside))
        return cls(
            prototypes,
            Nearness(
                np.concatenate([part.labels for part in parts])[back],
                np.concatenate([part.similarities for part in parts])[back],
                np.concatenate([part.by_class for part in parts])[back],
            ),
        )


@dataclass(frozen=True, slots=True)
class RuleSettings:
    """What the user asks of every candidate's score."""

    novelty: Novelty
    rules: Rules
    per_class_target: float | None = None


def build(
    members: Sequence[Member],
    y: Int32,
    folds: NDArray[np.int8],
    n_classes: int,
    settings: RuleSettings,
    neighbours: OutOfFoldNeighbours | None = None,
) -> Trained:
    """A candidate from one member or an ensemble of several. Weights, acceptor, guard and floors are fitted
    on out-of-fold logits. ``neighbours`` join the acceptor where a linear or deep head reads embeddings (a
    kernel head carries what they say) and they earn what they cost at each decision."""
    weights, loss = blending.fit_weights([m.logits for m in members], y)
    kept = [i for i, w in enumerate(weights) if w > 0] or [int(np.argmax(weights))]
    chosen = [(members[i], max(float(weights[i]), 1e-6)) for i in kept]
    surrogate = Surrogate(tuple(Part(m.learner.family, m.learner.block, m.head, w) for m, w in chosen))
    views = tuple(m.logits * np.float32(w) for m, w in chosen)
    logits = views[0] if len(views) == 1 else np.sum(views, axis=0)
    predicted = logits.argmax(axis=1).astype(np.int32)
    agree = predicted == y
    families = {(m.learner.block, m.learner.family) for m, _ in chosen}
    acceptor = fit_acceptor(views, predicted, agree, folds, n_classes)
    nearness = None
    if neighbours and any(block == "dense" for block, _ in families) and ("dense", "kernel") not in families:
        informed = fit_acceptor(views, predicted, agree, folds, n_classes, neighbours=neighbours)
        if _ranks_better(informed, acceptor, views, neighbours.nearness, agree):
            acceptor, nearness = informed, neighbours.nearness
    guard = NoveltyGuard(settings.novelty, float(np.quantile(logits.max(axis=1), NOVELTY_QUANTILE)))
    candidate = Candidate(surrogate, acceptor, guard, settings.rules)
    scored = candidate.score_views(views, nearness)
    if settings.per_class_target is not None:
        # Floors compare with the acceptor's own probability, before guard and rules.
        plain = Candidate(surrogate, acceptor, NoveltyGuard(), Rules()).score_views(views, nearness)
        floors = class_floors(plain, agree, n_classes, settings.per_class_target - _FLOOR_MARGIN)
        rules = Rules(settings.rules.always_defer, settings.rules.error_ratio, floors)
        candidate = Candidate(surrogate, acceptor, guard, rules)
        scored = candidate.score_views(views, nearness)
    f1 = selection.macro_f1(predicted, y, n_classes)
    paper = fit_acceptor(views, predicted, agree, folds, n_classes, paper=True)
    return Trained(candidate, scored, agree, loss, f1, paper.probability(paper.features(views)[1]))


def _ranks_better(
    informed: Acceptor, plain: Acceptor, views: tuple[Float32, ...], nearness: Nearness, agree: Bool
) -> bool:
    with_neighbours = selection.augrc(informed.probability(informed.features(views, nearness)[1]), agree)
    without = selection.augrc(plain.probability(plain.features(views)[1]), agree)
    return with_neighbours <= (1.0 - _NEIGHBOURS_EARN) * without


def fit_acceptor(
    views: tuple[Float32, ...],
    predicted: Int32,
    agree: Bool,
    folds: NDArray[np.int8],
    n_classes: int,
    *,
    paper: bool = False,
    neighbours: OutOfFoldNeighbours | None = None,
) -> Acceptor:
    """Logistic regression on out-of-fold evidence.

    The record of a predicted class is taken from the other folds while training, from all folds in service.
    """
    names = PAPER_FEATURES if paper else feature_names(len(views), neighbours=neighbours is not None)
    record = Reliability.of(predicted, agree.astype(np.float64), n_classes)
    neutral = Acceptor(names, np.zeros(1), np.ones(1), np.zeros(1), 0.0, record)
    _, features, _ = neutral.features(views, neighbours.nearness if neighbours is not None else None)
    if not paper:
        for fold in np.unique(folds):
            inside = folds == fold
            others = Reliability.of(predicted[~inside], agree[~inside].astype(np.float64), n_classes)
            features[inside, -2:] = others.columns(predicted[inside])
    mean, scale = features.mean(axis=0), features.std(axis=0)
    scale[scale < 1e-9] = 1.0
    coefficients, intercept = _logistic((features - mean) / scale, agree)
    prototypes = neighbours.prototypes if neighbours is not None else None
    return Acceptor(names, mean, scale, coefficients, intercept, record, prototypes)


def _logistic(z: Float64, agree: Bool) -> tuple[Float64, float]:
    if agree.all() or not agree.any():
        # Nothing to tell apart: every input is as good as the next, at a rate that a class cannot teach.
        rate = (agree.sum() + 0.5) / (len(agree) + 1.0)
        return np.zeros(z.shape[1]), float(np.log(rate / (1.0 - rate)))
    model = LogisticRegression(C=1.0, max_iter=1000).fit(z, agree)
    if not np.isfinite(model.coef_).all():
        raise TrainingError("the acceptor did not converge")
    return model.coef_[0].astype(np.float64), float(model.intercept_[0])


def class_floors(scored: Scored, agree: Bool, n_classes: int, floor: float) -> Float64:
    """Lowest score (k,) at which each predicted class keeps a shrunk out-of-fold agreement >= ``floor``.

    inf where a class never does: it is deferred.
    """
    overall = float(agree.mean())
    out = np.full(n_classes, -np.inf)
    for code in range(n_classes):
        rows = np.flatnonzero((scored.predicted == code) & np.isfinite(scored.scores))
        if not len(rows):
            continue
        rows = rows[np.argsort(-scored.scores[rows], kind="stable")]
        n = np.arange(1, len(rows) + 1)
        shrunk = (np.cumsum(agree[rows]) + _FLOOR_SHRINKAGE * overall) / (n + _FLOOR_SHRINKAGE)
        if shrunk[-1] >= floor:
            continue
        good = np.flatnonzero(shrunk >= floor)
        out[code] = scored.scores[rows[good[-1]]] if len(good) else np.inf
    return out
