"""Propose: from out-of-fold evidence alone, the grid of thresholds, where each chain starts, and the order.

Nothing here reads a shadow label. A proposal predicts what its chain will certify by running the same test
on out-of-fold rates scaled to the number of shadow traces.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from tracer.config import Contract
from tracer.stats import binomial, testing
from tracer.types import Bool, Float64

SMALL_SAMPLE = 40
"""Below this expected number of tolerated disagreements, chains get three starts."""
_START_SHARES = (0.7, 0.85, 1.0)
_DRAFT_FACTOR = 0.75


@dataclass(frozen=True, slots=True)
class Promise:
    """What a chain tests: the contract and its numbers."""

    target: float
    contract: Contract = "agreement"
    handled_floor: float = 0.0

    def p_values(self, n_disagreed: Float64, n_handled: Float64, n_shadow: int) -> Float64:
        """P-values (G,) of 'the promise is broken' from counts (G,) at each threshold.

        The overall contract must hold together with its floor on handled agreement: the larger of the two
        p-values is an intersection-union test at full level (Berger 1982, Technometrics 24, 295).
        """
        if self.contract == "agreement":
            return binomial.p_value(n_disagreed, n_handled, self.target)
        joint = binomial.p_value(n_disagreed, np.full_like(n_disagreed, n_shadow), self.target)
        return np.maximum(joint, binomial.p_value(n_disagreed, n_handled, self.handled_floor))


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A chain fixed before any shadow label is read.

    ``thresholds`` (G,) fall from the most confident to accept-all; ``rates`` (G,) are out-of-fold selective
    risks, ``coverages`` (G,) out-of-fold coverages. ``predicted`` is the step the chain should reach, -1 none;
    ``smallest_p`` the smallest predicted p-value.
    """

    thresholds: Float64
    coverages: Float64
    rates: Float64
    starts: tuple[int, ...]
    level_factor: float
    predicted: int
    smallest_p: float
    assumption: str

    @property
    def predicted_coverage(self) -> float:
        """Coverage that the chain is expected to certify; 0 where none."""
        return float(self.coverages[self.predicted]) if self.predicted >= 0 else 0.0

    @property
    def digest(self) -> str:
        """Digest of grid and starts: what was fixed in advance."""
        content = self.thresholds.tobytes() + np.asarray(self.starts, dtype=np.int64).tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def threshold_grid(scores: Float64, size: int) -> Float64:
    """Thresholds (G,) at evenly spaced coverages of the scores, falling, the last one accept-all.

    Scores of -inf are inputs that must never be handled: accept-all then means all the others, so its
    threshold is the lowest finite number rather than -inf.
    """
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return np.array([np.inf])
    everything = -np.inf if len(finite) == len(scores) else np.finfo(np.float64).min
    levels = np.arange(1, size) / size
    return np.append(np.unique(np.quantile(finite, 1.0 - levels))[::-1], everything)


def counts_at(scores: Float64, agree: Bool, thresholds: Float64) -> tuple[Float64, Float64]:
    """Handled and disagreeing counts (G,), (G,) with score >= threshold, for falling thresholds."""
    order = np.argsort(-scores, kind="stable")
    wrong = np.concatenate([[0], np.cumsum(~agree[order])])
    handled = np.searchsorted(-scores[order], -thresholds, side="right")
    return handled.astype(np.float64), wrong[handled].astype(np.float64)


def propose(
    scores: Float64,
    agree: Bool,
    n_shadow: int,
    promise: Promise,
    level: float,
    grid_size: int = 200,
    *,
    draft: bool = False,
) -> Proposal:
    """Fix a chain from out-of-fold scores (n,) and agreement (n,) for a gate with ``n_shadow`` traces.

    The chain starts where the predicted p-value is smallest: started at the most confident end it would
    almost never certify, since a handful of traces cannot show an agreement of 0.95. A ``draft`` serves
    to compare candidates: it takes a typical level for chains with several starts instead of simulating it.
    """
    thresholds = threshold_grid(scores, grid_size)
    handled, wrong = counts_at(scores, agree, thresholds)
    coverages = handled / len(scores)
    rates = (wrong + 0.5) / (handled + 1.0)
    n = np.maximum(np.round(coverages * n_shadow), 1.0)
    expected = np.minimum(np.round(rates * n), n)
    predicted_p = promise.p_values(expected, n, n_shadow)
    start = int(np.argmin(predicted_p))
    starts: tuple[int, ...] = (start,)
    factor, assumption = 1.0, ""
    if promise.contract == "agreement" and n_shadow * (1.0 - promise.target) < SMALL_SAMPLE:
        starts = _spread(start)
        if len(starts) > 1:
            factor = _DRAFT_FACTOR if draft else _level_factor(n_shadow, coverages, starts, promise, level)
        assumption = "disagreement does not rise with the score" if len(starts) > 1 else ""
    predicted = testing.multi_start(predicted_p, starts, factor * level)
    return Proposal(thresholds, coverages, rates, starts, factor, predicted, float(predicted_p[start]), assumption)


def _level_factor(n_shadow: int, coverages: Float64, starts: tuple[int, ...], promise: Promise, level: float) -> float:
    return testing.multi_start_level(n_shadow, coverages, starts, promise.target, level) / level


def _spread(start: int) -> tuple[int, ...]:
    return tuple(sorted({int(start * share) for share in _START_SHARES}))
