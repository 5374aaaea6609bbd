"""Confidence sequences: their equations are solved, and they agree with simple bounds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import special

from tracer.stats import binomial
from tracer.stats.confidence import average_bounds, constant_rate, running_average, squared_error


@pytest.mark.parametrize("prior", [(0.5, 0.5), (1.0, 19.0)])
@pytest.mark.parametrize(("ones", "n"), [(1, 1), (3, 10), (12, 400), (399, 400), (5000, 100_000)])
def test_bounds_are_where_the_ratio_meets_the_level(ones: int, n: int, prior: tuple[float, float]) -> None:
    a, b = prior
    for p in map(float, constant_rate(ones, n, 0.05, prior)):
        if 0.0 < p < 1.0:
            mixture = special.betaln(a + ones, b + n - ones) - special.betaln(a, b)
            assert mixture - ones * math.log(p) - (n - ones) * math.log1p(-p) == pytest.approx(math.log(20), rel=1e-6)


def test_a_confidence_sequence_holds_the_exact_interval() -> None:
    for ones, n in ((0, 50), (12, 400), (50, 50)):
        lower, upper = constant_rate(ones, n, 0.05)
        low, high = binomial.agreement_interval(ones, n, 0.05)
        assert lower <= low
        assert high <= upper


def test_nothing_seen_bounds_nothing() -> None:
    assert tuple(map(float, constant_rate(0, 0, 0.05))) == (0.0, 1.0)
    assert tuple(map(float, average_bounds(0, 0, 0.0, 0.05))) == (0.0, 1.0)


def test_the_end_that_cannot_be_ruled_out() -> None:
    lower, upper = constant_rate([0, 30], [30, 30], 0.05)
    assert lower[0] == 0.0
    assert upper[1] == 1.0


def test_impossible_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="n_ones must lie between 0 and n"):
        constant_rate(3, 2, 0.05)


def test_the_running_average_is_that_of_its_counts() -> None:
    x = np.random.default_rng(0).random((2, 80)) < 0.1
    lower, upper = running_average(x, 0.05)
    assert lower.shape == upper.shape == (2, 80)
    ones, squares = 0, 0.0
    for n, event in enumerate(x[1]):
        squares += squared_error(int(event), ones, n)
        ones += int(event)
        low, high = average_bounds(ones, n + 1, squares, 0.05)
        assert (float(low), float(high)) == (lower[1, n], upper[1, n])


def test_the_running_average_narrows_with_variance() -> None:
    n = 5000
    widths = {}
    for rate in (0.0, 0.05, 0.5):
        x = np.random.default_rng(1).random(n) < rate
        lower, upper = running_average(x, 0.05)
        widths[rate] = upper[-1] - lower[-1]
        # About sqrt(2 log(2 / level) + log of a grid) standard errors; never a vacuous interval.
        assert widths[rate] < 8.0 * math.sqrt(rate * (1 - rate) / n) + 50.0 / n
    assert widths[0.0] < widths[0.05] < widths[0.5]


def test_the_margin_solves_its_equation() -> None:
    grid = np.geomspace(0.002, 0.9, 24)
    psi = -np.log1p(-grid) - grid
    for squares in (0.0, 3.0, 4000.0):
        lower, _ = average_bounds(500_000, 1_000_000, squares, 0.05)
        margin = 500_000 - float(lower) * 1_000_000
        assert np.exp(grid * margin - psi * squares).mean() == pytest.approx(40.0, rel=1e-5)
