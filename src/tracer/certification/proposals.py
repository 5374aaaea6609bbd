"""Propose: from out-of-fold evidence alone, the grid of thresholds, where each chain starts, and the order.

Nothing here reads a shadow label. A proposal predicts what its chain will certify by running the same test
on out-of-fold rates scaled to the number of shadow traces.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tracer.config import Contract
from tracer.stats import binomial, testing
from tracer.types import Bool, Float64

SMALL_SAMPLE = 60
"""Below this expected number of tolerated disagreements, chains may have several starts."""
_SPREADS = ((0.7, 0.85, 1.0), (0.5, 0.75, 1.0, 1.15), (0.3, 0.5, 0.7, 0.85, 1.0, 1.2))
"""Several starts, as multiples of the best single one."""
_REFUSAL = 0.3
"""What a refusal costs beyond its coverage, as a share of requests, when starts are chosen: whoever is refused has
nothing, and where the out-of-fold curve errs, one of several starts may still pass."""
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
        return _allowed(self, n_shadow, level)


@lru_cache(maxsize=32)
def _allowed(promise: Promise, n_shadow: int, level: float) -> NDArray[np.int64]:
    # All contenders of a fit ask for the same few tables.
    n = np.arange(n_shadow + 1)
    if promise.contract == "agreement":
        return binomial.most_disagreements(n, promise.target, level)
    joint = binomial.most_disagreements(np.full_like(n, n_shadow), promise.target, level)
    return np.minimum(joint, binomial.most_disagreements(n, promise.handled_floor, level))


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
    """`Evidence.propose` on the evidence of these scores (n,) and agreement (n,)."""
    evidence = Evidence.of(scores, agree, n_shadow, grid_size, promise.coverage_floor)
    return evidence.propose(promise, level, one_scale=one_scale)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What the out-of-fold rows say, and a rehearsal of it; serves any number of promises.

    ``thresholds`` (G,) fall; ``coverages`` (G,) and selective risks ``rates`` (G,) are those out of fold.
    """

    thresholds: Float64
    coverages: Float64
    rates: Float64
    rehearsal: Rehearsal

    @classmethod
    def of(
        cls, scores: Float64, agree: Bool, n_shadow: int, grid_size: int = 200, coverage_floor: float = 0.0
    ) -> Evidence:
        """From out-of-fold scores (n,) and agreement (n,), for a gate with ``n_shadow`` traces."""
        thresholds = threshold_grid(scores, grid_size)
        handled, wrong = counts_at(scores, agree, thresholds)
        rehearsal = rehearse(handled, wrong, len(scores), n_shadow, coverage_floor)
        return cls(thresholds, handled / len(scores), (wrong + 0.5) / (handled + 1.0), rehearsal)

    def propose(self, promise: Promise, level: float, *, one_scale: bool = True) -> Proposal:
        """Fix a chain.

        Where the chain starts decides its power: at the most confident end it would almost never certify, since a
        handful of traces cannot show an agreement of 0.95. So the gate is rehearsed on shadow rooms drawn from the
        out-of-fold rows. Among the starts whose mean coverage is as good as the best, the one with the smallest
        predicted p-value is taken: the others stand at the edge of a plateau. For small shadow rooms several starts
        compete with it, at the common level of the counts expected; the gate calibrates theirs on the counts it
        finds. They need a score of ``one_scale``: in a cascade, the least sure answers of the first stage rank
        above the surest of the second.
        """
        n_shadow = self.rehearsal.n_shadow
        reached = self.rehearsal.coverages(promise, level)
        single = reached.mean(axis=0)
        n = np.maximum(np.round(self.coverages * n_shadow), 1.0)
        predicted_p = promise.p_values(np.minimum(np.round(self.rates * n), n), n, n_shadow)
        start = int(np.argmin(np.where(single >= _AS_GOOD * single.max(), predicted_p, np.inf)))
        starts: tuple[int, ...] = (start,)
        best = reached[:, start]
        if one_scale and promise.contract == "agreement" and n_shadow * (1.0 - promise.target) < SMALL_SAMPLE:
            floor = int(np.searchsorted(self.coverages, promise.coverage_floor))
            for spread in _spreads(start, floor, len(self.thresholds) - 1):
                common = testing.multi_start_level(n, spread, promise.target, level)
                furthest = self.rehearsal.coverages(promise, common)[:, list(spread)].max(axis=1)
                if _worth(furthest) > _worth(best):
                    starts, best = spread, furthest
        assumption = "disagreement does not rise with the score" if len(starts) > 1 else ""
        return Proposal(self.thresholds, self.coverages, self.rates, starts, float(best.mean()), assumption)


@dataclass(frozen=True, slots=True, eq=False)
class Rehearsal:
    """Gates rehearsed on simulated shadow rooms: handled and wrong counts (runs, G)."""

    handled: NDArray[np.int64]
    wrong: NDArray[np.int64]
    n_shadow: int
    coverage_floor: float

    def coverages(self, promise: Promise, level: float) -> Float64:
        """Coverage (runs, G) that a chain from each start certifies in each run; 0 where it refuses."""
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
    """Draw shadow rooms from out-of-fold counts (G,) at each threshold; seeded, so the same rows give the same.

    Each room has shares of its own, drawn around the out-of-fold ones (the Bayesian bootstrap, Rubin 1981, Annals of
    Statistics 9, 130): few rows out of fold say little about where the risk lies, and a start must stand that.
    """
    right_band = np.diff(handled - wrong, prepend=0.0)
    wrong_band = np.diff(wrong, prepend=0.0)
    rng = np.random.default_rng(_REHEARSAL_SEED)
    bands = np.concatenate([right_band, wrong_band, [n_rows - handled[-1]]])
    shares = rng.standard_gamma(np.broadcast_to(bands, (_REHEARSALS, len(bands))))
    drawn = rng.multinomial(n_shadow, shares / shares.sum(axis=1, keepdims=True))
    steps = len(handled)
    wrong_counts = drawn[:, steps : 2 * steps].cumsum(axis=1)
    return Rehearsal(drawn[:, :steps].cumsum(axis=1) + wrong_counts, wrong_counts, n_shadow, coverage_floor)


def _worth(coverages: Float64) -> float:
    """Mean coverage (runs,) less what its refusals cost."""
    return float(coverages.mean() - _REFUSAL * (coverages == 0.0).mean())


def _spreads(start: int, floor: int, last: int) -> list[tuple[int, ...]]:
    """Sets of several starts around one, none below the coverage floor or beyond accept-all."""
    spreads = [tuple(sorted({min(max(int(start * x), floor), last) for x in shares})) for shares in _SPREADS]
    return [spread for spread in spreads if len(spread) > 1]
