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
from numpy.typing import NDArray

from tracer.stats import binomial

_MONTE_CARLO = 50_000
_MONTE_CARLO_SEED = 20260414


def fixed_sequence(p_values: NDArray[np.float64], start: int, level: float) -> int:
    """Index of the last rejected hypothesis of the chain that starts at ``start``; -1 if none is."""
    g = start
    while g < len(p_values) and p_values[g] <= level:
        g += 1
    return g - 1 if g > start else -1


def multi_start(p_values: NDArray[np.float64], starts: Sequence[int], level: float) -> int:
    """Furthest index that a chain from any of the starts rejects at the common ``level``; -1 if none does."""
    return max(fixed_sequence(p_values, start, level) for start in starts)


def multi_start_level(
    n_shadow: int, coverages: NDArray[np.float64], starts: Sequence[int], target: float, delta: float
) -> float:
    """Common level x <= delta for chains from several starts, so that the family-wise error stays <= delta.

    ``coverages`` (G,) ascending: the share expected to be handled at each step of the chain.
    Assumes that selective risk crosses 1 - target once along the chain (disagreement does not rise with the
    score). Then, with g* the first true hypothesis, an error needs p[g*] <= x or p[s] <= x for a start
    s > g*; x solves sup over g* of that probability <= delta in the least favourable case, disagreement at
    exactly 1 - target everywhere, by seeded simulation with one standard error kept in hand. Without
    the assumption ``delta / len(starts)`` is valid, and is the floor of what is returned.
    """
    ordered = sorted(set(starts))
    if len(ordered) == 1:
        return delta
    last = len(coverages) - 1
    columns = sorted({*ordered, *(min(s + 1, last) for s in ordered)})
    n, k = _simulate(n_shadow, coverages[columns], 1.0 - target)
    p = binomial.p_value(k, n, target)
    rank = int(delta * _MONTE_CARLO - math.sqrt(delta * (1 - delta) * _MONTE_CARLO)) - 1
    level = delta
    for i in range(len(ordered)):
        first = [] if i == 0 else [min(ordered[i - 1] + 1, last)]
        involved = [columns.index(c) for c in {*first, *ordered[i:]}]
        smallest = np.partition(p[:, involved].min(axis=1), rank)[rank]
        # Strictly below the rank-th smallest minimum: discrete p-values tie.
        level = min(level, float(np.nextafter(smallest, 0.0)))
    return max(level, delta / len(ordered))


def _simulate(
    n_shadow: int, coverages: NDArray[np.float64], rate: float
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Handled and disagreeing counts (runs, columns) at nested coverages, disagreement ``rate`` everywhere."""
    rng = np.random.default_rng(_MONTE_CARLO_SEED)
    bands = np.diff(np.concatenate([[0.0], coverages, [1.0]])).clip(0.0)
    counts = rng.multinomial(n_shadow, bands / bands.sum(), size=_MONTE_CARLO)[:, :-1]
    wrong = rng.binomial(counts, rate)
    return counts.cumsum(axis=1), wrong.cumsum(axis=1)


def spending(delta: float, attempt: int) -> float:
    """Level of attempt ``j`` >= 1 of a policy line: 6 delta / (pi^2 j^2), which sums to delta over all j."""
    if attempt < 1:
        raise ValueError(f"attempt = {attempt}: attempts count from 1")
    return 6.0 * delta / (math.pi**2 * attempt**2)
