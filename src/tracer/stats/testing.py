"""Testing an ordered chain of hypotheses.

A chain orders hypotheses g = 0, 1, ... from the most confident to full coverage. Testing in a fixed order,
each at the full level, and stopping at the first acceptance controls the family-wise error with no
assumption on dependence: the first true hypothesis in the order is fixed in advance, and an error needs its
rejection. Reference: Angelopoulos, Bates, Candes, Jordan and Lei (2021), "Learn then Test", arXiv 2110.01052.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracer.stats import binomial

_MONTE_CARLO = 20_000
_MONTE_CARLO_SEED = 20260414
_STEPS_TRIED = 24


def fixed_sequence(p_values: NDArray[np.float64], start: int, level: float) -> int:
    """Index of the last rejected hypothesis of the chain that starts at ``start``; -1 if none is."""
    g = start
    while g < len(p_values) and p_values[g] <= level:
        g += 1
    return g - 1 if g > start else -1


def multi_start(p_values: NDArray[np.float64], starts: Sequence[int], level: float) -> int:
    """Furthest index that a chain from any of the starts rejects at the common ``level``; -1 if none does."""
    return max(fixed_sequence(p_values, start, level) for start in starts)


def multi_start_level(handled: ArrayLike, starts: Sequence[int], target: float, delta: float) -> float:
    """Common level x <= delta for chains from several starts, so that the family-wise error stays <= delta.

    ``handled`` (G,) are the counts handled at each step of the chain, ascending; labels play no part. Assumes
    that disagreement does not rise with the score. Then, with g* the first true hypothesis, an error needs
    p[g*] <= x or p[s] <= x for a start s > g*; x solves sup over g* of that probability <= delta in the least
    favourable case, disagreement at exactly 1 - target everywhere, by seeded simulation given the counts, with
    one standard error kept in hand. Without the assumption ``delta / len(starts)`` is valid, and is the floor
    of what is returned.
    """
    ordered = sorted(set(starts))
    floor = delta / len(ordered)
    rank = int(delta * _MONTE_CARLO - math.sqrt(delta * (1 - delta) * _MONTE_CARLO)) - 1
    if len(ordered) == 1 or rank < 0:
        return floor
    counts = np.asarray(handled).astype(np.int64)
    between = [_steps_between(low, high) for low, high in pairwise(ordered)]
    columns = sorted({*ordered, *(g for gap in between for g in gap)})
    bands = np.diff(counts[columns], prepend=0)
    wrong = np.random.default_rng(_MONTE_CARLO_SEED).binomial(bands, 1.0 - target, size=(_MONTE_CARLO, len(bands)))
    wrong = wrong.cumsum(axis=1)
    # One p-value for each count that can occur, then look up: the simulation repeats few counts very often.
    p = {
        column: binomial.p_value(np.arange(counts[column] + 1), counts[column], target)[wrong[:, i]]
        for i, column in enumerate(columns)
    }
    level = delta
    for i in range(len(ordered)):
        later = np.min([p[start] for start in ordered[i:]], axis=0)
        for event in [later] if i == 0 else [np.minimum(p[g], later) for g in between[i - 1]]:
            # Strictly below the rank-th smallest: discrete p-values tie.
            level = min(level, float(np.nextafter(np.partition(event, rank)[rank], 0.0)))
    return max(level, floor)


def _steps_between(low: int, high: int) -> list[int]:
    """Steps after one start and before the next, at most ``_STEPS_TRIED``, evenly spaced, both ends among them."""
    if high - low < 2:
        return []
    return sorted(set(np.linspace(low + 1, high - 1, min(high - low - 1, _STEPS_TRIED)).astype(int).tolist()))


def spending(delta: float, attempt: int) -> float:
    """Level of attempt ``j`` >= 1 of a policy line: 6 delta / (pi^2 j^2), which sums to delta over all j."""
    if attempt < 1:
        raise ValueError(f"attempt = {attempt}: attempts count from 1")
    return 6.0 * delta / (math.pi**2 * attempt**2)
