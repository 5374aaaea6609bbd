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
    n = np.asarray(n_handled, dtype=np.float64)
    k = np.asarray(n_disagreed, dtype=np.float64)
    if np.any(k > n) or np.any(k < 0):
        raise ValueError("n_disagreed must lie between 0 and n_handled")
    out = special.bdtr(k, np.maximum(n, 1), 1.0 - target)
    return np.asarray(np.where(n > 0, out, 1.0), dtype=np.float64)


def most_disagreements(n_handled: ArrayLike, target: float, level: float) -> NDArray[np.int64]:
    """Largest count with ``p_value(count, n_handled, target) <= level``; -1 where even 0 is too many."""
    n = np.asarray(n_handled, dtype=np.float64)
    safe = np.maximum(n, 1.0)
    found = np.floor(np.nan_to_num(special.bdtrik(level, safe, 1.0 - target), nan=-1.0)).clip(-1.0, safe)
    # The inverse is continuous and rounded: settle each count by the test itself.
    for step in (1.0, 0.0):
        higher = np.minimum(found + step, safe)
        found = np.where(
            special.bdtr(np.maximum(higher, 0.0), safe, 1.0 - target) <= level, np.maximum(higher, 0.0), found
        )
    clears = (found >= 0) & (special.bdtr(np.maximum(found, 0.0), safe, 1.0 - target) <= level)
    found = np.where(clears, found, found - 1.0)
    clears = (found >= 0) & (special.bdtr(np.maximum(found, 0.0), safe, 1.0 - target) <= level)
    return np.where(clears & (n > 0), found, -1.0).astype(np.int64)


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
    return math.ceil(math.log(level) / math.log(target))


def _check_counts(n_agreed: int, n_handled: int) -> None:
    if not 0 <= n_agreed <= n_handled:
        raise ValueError(f"n_agreed = {n_agreed} must lie between 0 and n_handled = {n_handled}")
