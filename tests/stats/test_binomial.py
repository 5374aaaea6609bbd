"""Exact binomial statements, against scipy.stats (which the package itself does not import)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from tracer.stats import binomial

TARGETS = st.floats(0.5, 0.995)
LEVELS = st.floats(0.001, 0.2)
COUNTS = st.integers(1, 3000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@pytest.mark.parametrize("target", [0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize(("wrong", "handled"), [(0, 1), (0, 59), (3, 100), (12, 400), (100, 100), (250, 5000)])
def test_p_value_is_the_binomial_tail(target: float, wrong: int, handled: int) -> None:
    expected = stats.binom.cdf(wrong, handled, 1 - target)
    assert float(binomial.p_value(wrong, handled, target)) == pytest.approx(expected, rel=1e-9)


def test_p_value_broadcasts() -> None:
    wrong, handled = np.array([[0], [2]]), np.array([20, 50, 100])
    p = binomial.p_value(wrong, handled, 0.9)
    assert p.shape == (2, 3)
    np.testing.assert_allclose(p, stats.binom.cdf(wrong, handled, 1 - 0.9), rtol=1e-9)


def test_where_nothing_is_handled_nothing_is_shown() -> None:
    p = binomial.p_value([0, 0], [0, 40], 0.9)
    assert p[0] == 1.0
    assert p[1] == pytest.approx(0.9**40)


@pytest.mark.parametrize(("wrong", "handled"), [(3, 2), (-1, 5), (1, 0)])
def test_p_value_refuses_impossible_counts(wrong: int, handled: int) -> None:
    with pytest.raises(ValueError, match="n_disagreed must lie between 0 and n_handled"):
        binomial.p_value(wrong, handled, 0.9)


@pytest.mark.parametrize("level", [0.005, 0.05, 0.1])
@pytest.mark.parametrize(("agreed", "handled"), [(1, 1), (1, 10), (59, 59), (190, 200), (1987, 2000)])
def test_lower_bound_is_clopper_pearson(agreed: int, handled: int, level: float) -> None:
    bound = binomial.agreement_lower(agreed, handled, level)
    assert bound == pytest.approx(stats.beta.ppf(level, agreed, handled - agreed + 1), rel=1e-9)
    one_sided = stats.binomtest(agreed, handled, alternative="greater")
    interval = one_sided.proportion_ci(confidence_level=1 - level, method="exact")
    assert bound == pytest.approx(interval.low, rel=1e-7)


@pytest.mark.parametrize(("agreed", "handled"), [(0, 7), (0, 0)])
def test_no_agreement_bounds_nothing(agreed: int, handled: int) -> None:
    assert binomial.agreement_lower(agreed, handled, 0.05) == 0.0


def test_all_agreed_has_the_closed_form() -> None:
    # P(all n agree) = q**n, so the bound solves q**n = level.
    assert binomial.agreement_lower(100, 100, 0.05) == pytest.approx(0.05 ** (1 / 100))


@pytest.mark.parametrize("level", [0.01, 0.05, 0.2])
@pytest.mark.parametrize(("agreed", "handled"), [(0, 5), (1, 5), (5, 5), (47, 50), (900, 1000)])
def test_interval_is_clopper_pearson(agreed: int, handled: int, level: float) -> None:
    low, high = binomial.agreement_interval(agreed, handled, level)
    exact = stats.binomtest(agreed, handled).proportion_ci(confidence_level=1 - level, method="exact")
    assert (low, high) == pytest.approx((exact.low, exact.high), rel=1e-7)


def test_interval_of_nothing_is_everything() -> None:
    assert binomial.agreement_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("agreed", "handled"), [(3, 2), (-1, 4)])
def test_bounds_refuse_impossible_counts(agreed: int, handled: int) -> None:
    message = f"n_agreed = {agreed} must lie between 0 and n_handled = {handled}"
    with pytest.raises(ValueError, match=message):
        binomial.agreement_lower(agreed, handled, 0.05)
    with pytest.raises(ValueError, match=message):
        binomial.agreement_interval(agreed, handled)


@pytest.mark.parametrize(
    ("target", "level", "expected"),
    [
        (0.90, 0.05, 29), (0.95, 0.05, 59), (0.98, 0.05, 149), (0.99, 0.05, 299),
        (0.90, 0.10, 22), (0.95, 0.10, 45), (0.98, 0.10, 114), (0.99, 0.10, 230),
    ],
)  # fmt: skip
def test_n_min(target: float, level: float, expected: int) -> None:
    assert binomial.n_min(target, level) == expected


@given(TARGETS, LEVELS)
def test_n_min_is_the_smallest_that_certifies(target: float, level: float) -> None:
    n = binomial.n_min(target, level)
    # The relative slack is for targets**n that meet the level up to rounding.
    assert float(binomial.p_value(0, n, target)) <= level * (1 + 1e-9)
    assert n == 1 or float(binomial.p_value(0, n - 1, target)) > level * (1 - 1e-9)


@given(COUNTS, TARGETS, LEVELS)
def test_test_and_bound_are_one(counts: tuple[int, int], target: float, level: float) -> None:
    wrong, handled = counts
    p = float(binomial.p_value(wrong, handled, target))
    lower = binomial.agreement_lower(handled - wrong, handled, level)
    assume(abs(lower - target) > 1e-9)
    assert (p <= level) == (lower >= target)


@given(COUNTS, TARGETS)
def test_each_disagreement_weakens_the_evidence(counts: tuple[int, int], target: float) -> None:
    wrong, handled = counts
    more_wrong = float(binomial.p_value(wrong + 1, handled + 1, target))
    p = float(binomial.p_value(wrong, handled, target))
    more_right = float(binomial.p_value(wrong, handled + 1, target))
    assert more_right <= p * (1 + 1e-9)
    assert p <= more_wrong * (1 + 1e-9)


@given(COUNTS, LEVELS)
def test_interval_holds_the_rate_and_shrinks_with_confidence(counts: tuple[int, int], level: float) -> None:
    wrong, handled = counts
    agreed = handled - wrong
    low, high = binomial.agreement_interval(agreed, handled, level)
    wider_low, wider_high = binomial.agreement_interval(agreed, handled, level / 2)
    assert 0.0 <= wider_low <= low <= agreed / handled <= high <= wider_high <= 1.0


@pytest.mark.parametrize("rate", [0.8, 0.95])
def test_coverage_of_the_bound_is_exact(rate: float) -> None:
    # All outcomes of 200 requests enumerated: the bound fails with probability at most the level.
    n, level = 200, 0.05
    weights = stats.binom.pmf(np.arange(n + 1), n, rate)
    fails = np.array([binomial.agreement_lower(k, n, level) > rate for k in range(n + 1)])
    assert weights[fails].sum() <= level
    assert weights[fails].sum() > level / 4


@pytest.mark.parametrize("target", [0.5, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("level", [0.001, 0.04, 0.1])
def test_most_disagreements_is_the_test_turned_round(target: float, level: float) -> None:
    n = np.arange(0, 2001)
    most = binomial.most_disagreements(n, target, level)
    expected = stats.binom.ppf(level, n, 1 - target)
    expected = np.where(stats.binom.cdf(expected, n, 1 - target) <= level, expected, expected - 1)
    assert most[0] == -1
    np.testing.assert_array_equal(most[1:], expected[1:])
    assert (most >= 0).sum() == 2001 - binomial.n_min(target, level)
