"""Propose: from out-of-fold evidence alone, the grid of thresholds, where each chain starts, and the order.

Nothing here reads a shadow label. A proposal predicts what its chain will certify by running the same test
on out-of-fold rates scaled to the number of shadow traces.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracer.config import Contract
from tracer.stats import binomial
from tracer.types import Bool, Float64

SMALL_SAMPLE = 40
"""Below this expected number of tolerated disagreements, chains get three starts."""
_START_SHARES = (0.7, 0.85, 1.0)
_TYPICAL_FACTOR = 0.75
_AS_GOOD = 0.99
_REHEARSALS, _REHEARSAL_SEED = 256, 20260415
ACCEPT_ALL = -1.0
"""The threshold that handles every input that is not barred: scores lie above it, barred ones are -inf."""


@dataclass(frozen=True, slots=True)
class Promise:
    """What a chain tests: the contract and its numbers. No chain starts below ``coverage_floor``."""

    target: float
    contract: Contract = "agreement"
    handled_floor: float = 0.0
    coverage_floor: float = 0.0

    def p_values(self, n_disagreed: Float64, n_handled: Float64, n_shadow: int) -> Float64:
        """P-values (G,) of 'the promise is broken' from counts (G,) at each threshold.

        The overall contract must hold together with its floor on handled agreement: the larger of the two
        p-values is an intersection-union test at full level (Berger 1982, Technometrics 24, 295).
        """
        if self.contract == "agreement":
            return binomial.p_value(n_disagreed, n_handled, self.target)
        joint = binomial.p_value(n_disagreed, np.full_like(n_disagreed, n_shadow), self.target)
        return np.maximum(joint, binomial.p_value(n_disagreed, n_handled, self.handled_floor))

    def allowed(self, n_shadow: int, level: float) -> NDArray[np.int64]:
        """Most disagreements (n_shadow + 1,) among 0, 1, ..., n_shadow handled that the test still clears; -1 none."""
        n = np.arange(n_shadow + 1)
        if self.contract == "agreement":
            return binomial.most_disagreements(n, self.target, level)
        joint = binomial.most_disagreements(np.full_like(n, n_shadow), self.target, level)
        return np.minimum(joint, binomial.most_disagreements(n, self.handled_floor, level))


@dataclass(frozen=True, slots=True, eq=False)
class Proposal:
    """A chain fixed before any shadow label is read.

    ``thresholds`` (G,) fall from the most confident to accept-all; ``rates`` (G,) are out-of-fold selective
    risks, ``coverages`` (G,) out-of-fold coverages. ``predicted_coverage``: what the chain is expected to certify.
    """

    thresholds: Float64
    coverages: Float64
    rates: Float64
    starts: tuple[int, ...]
    predicted_coverage: float
    assumption: str

    @property
    def digest(self) -> str:
        """Digest of grid and starts: what was fixed in advance."""
        content = self.thresholds.tobytes() + np.asarray(self.starts, dtype=np.int64).tobytes()
        return hashlib.sha256(content).hexdigest()[:16]


def threshold_grid(scores: Float64, size: int) -> Float64:
    """Thresholds (G,) at evenly spaced coverages of the scores, falling, the last one accept-all.

    Scores of -inf are inputs that must never be handled, and accept-all handles all the others.
    """
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return np.array([ACCEPT_ALL])
    levels = np.arange(1, size) / size
    return np.append(np.unique(np.quantile(finite, 1.0 - levels))[::-1], ACCEPT_ALL)


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
    one_scale: bool = True,
) -> Proposal:
    """Fix a chain from out-of-fold scores (n,) and agreement (n,) for a gate with ``n_shadow`` traces.

    Where the chain starts decides its power: at the most confident end it would almost never certify, since a
    handful of traces cannot show an agreement of 0.95. So the gate is rehearsed on shadow rooms drawn from the
    out-of-fold rows. Among the starts whose mean coverage is as good as the best, the one with the smallest
    predicted p-value is taken: the others stand at the edge of a plateau. For small shadow rooms three starts
    compete with it, at a typical common level: the gate calibrates theirs on the counts it finds. They need a
    score of ``one_scale``: in a cascade, the least sure answers of the first stage rank above the surest of the
    second.
    """
    thresholds = threshold_grid(scores, grid_size)
    handled, wrong = counts_at(scores, agree, thresholds)
    coverages = handled / len(scores)
    rates = (wrong + 0.5) / (handled + 1.0)
    rehearsal = rehearse(handled, wrong, len(scores), n_shadow, promise.coverage_floor)
    single = rehearsal.mean_coverage(promise, level)
    n = np.maximum(np.round(coverages * n_shadow), 1.0)
    predicted_p = promise.p_values(np.minimum(np.round(rates * n), n), n, n_shadow)
    start = int(np.argmin(np.where(single >= _AS_GOOD * single.max(), predicted_p, np.inf)))
    starts: tuple[int, ...] = (start,)
    gained = float(single[start])
    if one_scale and promise.contract == "agreement" and n_shadow * (1.0 - promise.target) < SMALL_SAMPLE:
        spread = _spread(start)
        common = rehearsal.mean_coverage_from(spread, promise, _TYPICAL_FACTOR * level)
        if common > gained:
            starts, gained = spread, common
    assumption = "disagreement does not rise with the score" if len(starts) > 1 else ""
    return Proposal(thresholds, coverages, rates, starts, gained, assumption)


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """Gates rehearsed on simulated shadow rooms: handled and wrong counts (runs, G)."""

    handled: NDArray[np.int64]
    wrong: NDArray[np.int64]
    n_shadow: int
    coverage_floor: float

    def mean_coverage(self, promise: Promise, level: float) -> Float64:
        """Mean coverage (G,) that a chain certifies from each start; 0 where it refuses."""
        return np.asarray(self._reached(promise, level).mean(axis=0), dtype=np.float64)

    def mean_coverage_from(self, starts: tuple[int, ...], promise: Promise, level: float) -> float:
        """Mean of the furthest coverage that chains from these starts certify."""
        return float(self._reached(promise, level)[:, list(starts)].max(axis=1).mean())

    def _reached(self, promise: Promise, level: float) -> Float64:
        """Coverage (runs, G) certified from each start of each run."""
        passes = self.wrong <= promise.allowed(self.n_shadow, level)[self.handled]
        coverage = self.handled / self.n_shadow
        out = np.zeros(passes.shape)
        ahead = np.zeros(len(passes))
        for g in range(passes.shape[1] - 1, -1, -1):
            ahead = np.where(passes[:, g], np.maximum(ahead, coverage[:, g]), 0.0)
            out[:, g] = ahead
        out[out < self.coverage_floor] = 0.0
        return out


def rehearse(handled: Float64, wrong: Float64, n_rows: int, n_shadow: int, coverage_floor: float) -> Rehearsal:
    """Draw shadow rooms from out-of-fold counts (G,) at each threshold; seeded, so the same rows give the same."""
    right_band = np.diff(handled - wrong, prepend=0.0)
    wrong_band = np.diff(wrong, prepend=0.0)
    shares = np.concatenate([right_band, wrong_band, [n_rows - handled[-1]]]) / n_rows
    drawn = np.random.default_rng(_REHEARSAL_SEED).multinomial(n_shadow, shares / shares.sum(), size=_REHEARSALS)
    steps = len(handled)
    wrong_counts = drawn[:, steps : 2 * steps].cumsum(axis=1)
    return Rehearsal(drawn[:, :steps].cumsum(axis=1) + wrong_counts, wrong_counts, n_shadow, coverage_floor)


def _spread(start: int) -> tuple[int, ...]:
    return tuple(sorted({int(start * share) for share in _START_SHARES}))
