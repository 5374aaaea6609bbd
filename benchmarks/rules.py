"""Rules that choose a threshold from labelled scores: what others do where Tracer tests a chain.

A rule sees acceptor scores (n,), agreement with the teacher (n,) and a target, and returns a threshold on the score
(handled where score >= threshold), ``ACCEPT_ALL``, or None where it refuses. ``oracle`` sees the truth.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tracer.certification.proposals import ACCEPT_ALL
from tracer.stats import binomial
from tracer.types import Bool, Float64

Rule = Callable[[Float64, Bool, float, np.random.Generator], float | None]
COVERAGE_FLOOR = 0.05


def largest_empirical(scores: Float64, agree: Bool, target: float, _rng: np.random.Generator) -> float | None:
    """The largest coverage whose agreement on these rows reaches the target: a confidence threshold as it is
    commonly set."""
    handled, agreed, thresholds = _steps(scores, agree)
    return _furthest(agreed >= target * handled, handled, thresholds, len(scores))


def paper(scores: Float64, agree: Bool, target: float, rng: np.random.Generator) -> float | None:
    """arXiv 2604.14531: swept on a calibration room (section 3.2), point estimate checked on a shadow room (3.3).

    The paper states no sizes: the rows given are both rooms, in the proportion 12.75 to 15 of ``mode="paper"``. Where all
    calibration rows qualify the threshold is the lowest of their scores.
    """
    order = rng.permutation(len(scores))
    cut = round(len(scores) * 12.75 / 27.75)
    calibration, shadow = order[:cut], order[cut:]
    threshold = largest_empirical(scores[calibration], agree[calibration], target, rng)
    if threshold is None:
        return None
    handled = scores[shadow] >= threshold
    n, agreed = int(handled.sum()), int((handled & agree[shadow]).sum())
    return threshold if n >= max(COVERAGE_FLOOR * len(shadow), 1) and agreed >= target * n else None


def peer(scores: Float64, agree: Bool, target: float, rng: np.random.Generator, *, delta: float = 0.10) -> float | None:
    """What ``tracer-llm`` 0.3.3 does, as a rule on scores; its nominal level is 0.10.

    Accept-all where the Clopper-Pearson bound on all rows clears the target. Else thresholds are selected on 70% of the
    rows by that bound (it splits by label; here at random), and the one of largest coverage whose point estimate reaches the
    target on the other 30% is taken; what it takes must also reach the target, as a point estimate, on all rows. With fewer than 40 rows the bound
    on all rows decides. (Its third family, a second surrogate on what the first leaves, is not modelled: it adds coverage,
    and chances to pass falsely.)
    """
    n = len(scores)
    allowed = _allowed(n, target, delta)
    if int((~agree).sum()) <= allowed[n]:
        return ACCEPT_ALL
    if n < 40:
        selection = verification = np.arange(n)
    else:
        order = rng.permutation(n)
        selection, verification = order[: round(0.7 * n)], order[round(0.7 * n) :]
    handled, agreed, thresholds = _steps(scores[selection], agree[selection])
    clears = (handled >= 10) & (handled - agreed <= allowed[handled])
    # Counts on the verification rows and on all rows at each threshold selected.
    n_v, k_v = _counts(scores[verification], agree[verification], thresholds)
    n_all, k_all = _counts(scores, agree, thresholds)
    good = clears & (n_v >= 10) & (k_v >= target * n_v) & (k_all >= target * n_all) & (n_all >= COVERAGE_FLOOR * n)
    chosen = np.flatnonzero(good)
    return float(thresholds[chosen[-1]]) if len(chosen) else None


def oracle(scores: Float64, agree: Bool, target: float, _rng: np.random.Generator) -> float | None:
    """The largest coverage that truly reaches the target, for rows that are the whole population."""
    handled, agreed, thresholds = _steps(scores, agree)
    return _furthest(agreed >= target * handled, handled, thresholds, len(scores))


def _furthest(good: Bool, handled: NDArray[np.int64], thresholds: Float64, n: int) -> float | None:
    reached = np.flatnonzero(good & (handled >= max(COVERAGE_FLOOR * n, 1)))
    return float(thresholds[reached[-1]]) if len(reached) else None


def _steps(scores: Float64, agree: Bool) -> tuple[NDArray[np.int64], NDArray[np.int64], Float64]:
    """Handled and agreed counts at each distinct finite score, falling; tied scores go together."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True) & np.isfinite(ranked)
    handled = np.arange(1, len(scores) + 1)[last]
    return handled.astype(np.int64), np.cumsum(agree[order], dtype=np.int64)[last], ranked[last]


def _counts(scores: Float64, agree: Bool, thresholds: Float64) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    order = np.argsort(-scores, kind="stable")
    handled = np.searchsorted(-scores[order], -thresholds, side="right")
    return handled, np.concatenate([[0], np.cumsum(agree[order])])[handled]


@lru_cache(maxsize=64)
def _allowed(n: int, target: float, delta: float) -> NDArray[np.int64]:
    return binomial.most_disagreements(np.arange(n + 1), target, delta)
