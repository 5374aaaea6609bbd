"""Exact binomial statements on integer counts.

``n_disagreed`` of ``n_handled`` independent requests disagree. With true disagreement rate q the count is
Binomial(n_handled, q); nothing else is assumed. References: Clopper and Pearson (1934), Biometrika 26, 404.

``scipy.special`` is used rather than ``scipy.stats``: the same functions, a tenth of the import time, and
serving imports this module.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special


def p_value(n_disagreed: ArrayLike, n_handled: ArrayLike, target: float) -> NDArray[np.float64]:
    """P-value of H: agreement < ``target``, P(Binomial(n_handled, 1 - target) <= n_disagreed).

    Arrays broadcast. Where nothing is handled the p-value is 1.
    """
    n = np.asarray(n_handled).astype(np.int64)
    k = np.asarray(n_disagreed, dtype=np.float64)
    if np.any(k > n) or np.any(k < 0):
        raise ValueError("n_disagreed must lie between 0 and n_handled")
    return np.asarray(np.where(n > 0, _cdf(k, n, target), 1.0), dtype=np.float64)


def most_disagreements(n_handled: ArrayLike, target: float, level: float) -> NDArray[np.int64]:
    """Largest count with ``p_value(count, n_handled, target) <= level``; -1 where even 0 is too many."""
    n = np.atleast_1d(np.asarray(n_handled).astype(np.int64))
    rate = 1.0 - target
    # A guess by the normal law with its skewness (Cornish and Fisher 1938); the test itself settles each count.
    z = float(special.ndtri(level))
    guess = n * rate + z * np.sqrt(n * rate * target) + (z * z - 1.0) * (target - rate) / 6.0 - 0.5
    count = np.clip(np.floor(guess), -1.0, n - 1.0)
    rising = np.flatnonzero(n > 0)
    while len(rising):
        rising = rising[(count[rising] < n[rising]) & (_cdf(count[rising] + 1.0, n[rising], target) <= level)]
        count[rising] += 1.0
    falling = np.flatnonzero((count >= 0) & (n > 0))
    while len(falling):
        falling = falling[(count[falling] >= 0) & (_cdf(np.maximum(count[falling], 0.0), n[falling], target) > level)]
        count[falling] -= 1.0
    return np.asarray(count, dtype=np.int64).reshape(np.shape(n_handled))


def _cdf(k: NDArray[np.float64], n: NDArray[np.int64], target: float) -> NDArray[np.float64]:
    """P(Binomial(n, 1 - target) <= k). With integer n scipy takes its fast loop."""
    return np.asarray(special.bdtr(k, np.maximum(n, 1), 1.0 - target), dtype=np.float64)


def agreement_lower(n_agreed: int, n_handled: int, level: float) -> float:
    """Clopper-Pearson lower bound on agreement that fails with probability at most ``level``."""
    _check_counts(n_agreed, n_handled)
    if n_agreed == 0:
        return 0.0
    return float(special.betaincinv(n_agreed, n_handled - n_agreed + 1, level))


def agreement_interval(n_agreed: int, n_handled: int, level: float = 0.05) -> tuple[float, float]:
    """Clopper-Pearson two-sided interval with error at most ``level`` (half on each side)."""
    _check_counts(n_agreed, n_handled)
    if n_handled == 0:
        return 0.0, 1.0
    upper = 1.0
    if n_agreed < n_handled:
        upper = float(special.betaincinv(n_agreed + 1, n_handled - n_agreed, 1.0 - level / 2))
    return agreement_lower(n_agreed, n_handled, level / 2), upper


def n_min(target: float, level: float) -> int:
    """Fewest handled requests, all in agreement, that can certify ``target`` at ``level``.

    Solves target**n <= level.
    """
    n = max(math.ceil(math.log(level) / math.log(target)), 1)
    # The quotient of two rounded logarithms may lie just above a whole number.
    return n - 1 if n > 1 and target ** (n - 1) <= level else n


def _check_counts(n_agreed: int, n_handled: int) -> None:
    if not 0 <= n_agreed <= n_handled:
        raise ValueError(f"n_agreed = {n_agreed} must lie between 0 and n_handled = {n_handled}")
