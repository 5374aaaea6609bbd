"""Testing an ordered chain of hypotheses.

A chain orders hypotheses g = 0, 1, ... from the most confident to full coverage. Testing in a fixed order,
each at the full level, and stopping at the first acceptance controls the family-wise error with no
assumption on dependence: the first true hypothesis in the order is fixed in advance, and an error needs its
rejection. Reference: Angelopoulos, Bates, Candes, Jordan and Lei (2021), "Learn then Test", arXiv 2110.01052.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tracer.stats import binomial


def fixed_sequence(p_values: NDArray[np.float64], start: int, level: float) -> int:
    """Index of the last rejected hypothesis of the chain that starts at ``start``; -1 if none is."""
    g = start
    while g < len(p_values) and p_values[g] <= level:
        g += 1
    return g - 1 if g > start else -1


def certified_steps(p_values: NDArray[np.float64], starts: Sequence[int], level: float) -> list[int]:
    """All indices that chains from the starts reject at the common ``level``, ascending."""
    steps: set[int] = set()
    for start in starts:
        steps.update(range(start, fixed_sequence(p_values, start, level) + 1))
    return sorted(steps)


def multi_start(p_values: NDArray[np.float64], starts: Sequence[int], level: float) -> int:
    """Furthest index that a chain from any of the starts rejects at the common ``level``; -1 if none does."""
    return max(fixed_sequence(p_values, start, level) for start in starts)


def multi_start_level(handled: ArrayLike, starts: Sequence[int], target: float, delta: float) -> float:
    """Common level x <= delta for chains from several starts, so that the family-wise error stays <= delta.

    ``handled`` (G,) are the counts handled at each step of the chain, ascending; labels play no part. Assumes
    that disagreement does not rise with the score. Then, with g* the first true hypothesis, an error needs
    p[g*] <= x or p[s] <= x for a start s > g*; x is the largest level at which the probability of that is <= delta
    for every g*, in the least favourable case: disagreement at exactly 1 - target everywhere. Given the counts the
    disagreements up to each step are a random walk with binomial increments, so the probabilities are exact.
    Without the assumption ``delta / len(starts)`` is valid, and is the floor of what is returned.
    """
    ordered = sorted(set(starts))
    floor = delta / len(ordered)
    if len(ordered) == 1:
        return floor
    counts = np.asarray(handled).astype(np.int64)[: ordered[-1] + 1]
    # From ``top`` disagreements on no test can pass any more: the walk need not be followed further.
    top = int(binomial.most_disagreements(counts[ordered], target, delta).max()) + 1
    if top == 0:
        return delta
    p = binomial.p_value(np.minimum(np.arange(top + 1), counts[:, None]), counts[:, None], target)
    p[:, top] = 1.0
    walk = _Walk(counts, tuple(ordered), p, target)
    levels = np.unique(np.append(p[(p >= floor) & (p <= delta)], [floor, delta]))
    low, high = 0, len(levels) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if walk.error(float(levels[middle])) <= delta:
            low = middle
        else:
            high = middle - 1
    return float(levels[low])


class _Walk:
    """Disagreements along a chain where each answer disagrees with probability 1 - target.

    ``p`` (G, top + 1): the p-value of each step by its disagreements so far; the last column stands for ``top`` or
    more.
    """

    def __init__(self, counts: NDArray[np.int64], starts: Sequence[int], p: NDArray[np.float64], target: float) -> None:
        self._starts, self._p = starts, p
        top = p.shape[1] - 1
        ahead = np.asarray(starts)[np.searchsorted(starts, np.arange(len(counts)))]
        self._so_far = _masses(counts, top, target)
        self._to_start = _masses(counts[ahead] - counts, top, target)
        self._to_next = _masses(np.diff(counts[list(starts)]), top, target)
        self._moved = np.minimum(np.add.outer(np.arange(top + 1), np.arange(top + 1)), top)

    def error(self, level: float) -> float:
        """Largest probability, over where the first true hypothesis lies, that a chain rejects it at this level."""
        survives = self._p > level
        safe, worst = np.ones(self._p.shape[1]), 0.0
        for i in range(len(self._starts) - 1, -1, -1):
            start = self._starts[i]
            # The chance, given the disagreements up to this start, that no chain from here on goes wrong.
            if i < len(self._to_next):
                safe = safe[self._moved] @ self._to_next[i]
            safe = survives[start] * safe
            if i == 0:
                return max(worst, 1.0 - float(self._so_far[start] @ safe))
            steps = slice(self._starts[i - 1] + 1, start)
            onward = self._to_start[steps] @ safe[self._moved].T
            kept = (self._so_far[steps] * survives[steps] * onward).sum(axis=1)
            worst = max(worst, 1.0 - float(kept.min(initial=1.0)))
        return worst


def _masses(n: NDArray[np.int64], top: int, target: float) -> NDArray[np.float64]:
    """Chances (len(n), top + 1) of 0, 1, ..., top - 1 disagreements among n, and of ``top`` or more."""
    j = np.minimum(np.arange(top), n[:, None])
    below = np.where(n[:, None] > 0, special.bdtr(j.astype(np.float64), np.maximum(n, 1)[:, None], 1.0 - target), 1.0)
    return np.diff(below, axis=1, prepend=0.0, append=1.0)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """P-values (m,) adjusted for all of them: those at most ``level`` hold together with error ``level``, under any
    dependence. Holm (1979), Scand. J. Statist. 6, 65."""
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p, kind="stable")
    out = np.empty(len(p))
    out[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return out


def spending(delta: float, attempt: int) -> float:
    """Level of attempt ``j`` >= 1 of a policy line: 6 delta / (pi^2 j^2), which sums to delta over all j."""
    if attempt < 1:
        raise ValueError(f"attempt = {attempt}: attempts count from 1")
    return 6.0 * delta / (math.pi**2 * attempt**2)
