"""Chains of hypotheses: fixed sequence, several starts and their level, spending."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tracer.stats import binomial, testing

P = np.array([0.30, 0.01, 0.02, 0.20, 0.01, 0.001])
STEPS = np.arange(1, 101) / 100


@pytest.mark.parametrize(
    ("start", "level", "expected"),
    [
        (1, 0.05, 2),  # rejects 1 and 2, stops at 3 for good: 4 and 5 are never looked at
        (0, 0.05, -1),  # fails at its first step
        (3, 0.05, -1),
        (4, 0.05, 5),  # runs to the end
        (5, 0.001, 5),  # p equal to the level is a rejection
        (2, 0.02, 2),
        (1, 0.005, -1),
        (0, 1.0, 5),
    ],
)
def test_fixed_sequence(start: int, level: float, expected: int) -> None:
    assert testing.fixed_sequence(P, start, level) == expected


@pytest.mark.parametrize(
    ("starts", "expected"), [((0,), -1), ((0, 1), 2), ((1, 4), 5), ((0, 3), -1), ((1, 2), 2), ((2, 3, 5), 5)]
)
def test_multi_start_takes_the_furthest(starts: tuple[int, ...], expected: int) -> None:
    assert testing.multi_start(P, starts, 0.05) == expected


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array),
    st.data(),
    st.floats(0, 1),
)
def test_chains_by_definition(p: NDArray[np.float64], data: st.DataObject, level: float) -> None:
    start = data.draw(st.integers(0, len(p) - 1))
    last = testing.fixed_sequence(p, start, level)
    if last == -1:
        assert p[start] > level
    else:
        assert (p[start : last + 1] <= level).all()
        assert last == len(p) - 1 or p[last + 1] > level
    starts = data.draw(st.lists(st.integers(0, len(p) - 1), min_size=1, max_size=3))
    furthest = testing.multi_start(p, starts, level)
    assert furthest == max(testing.fixed_sequence(p, s, level) for s in starts)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=30).map(np.array), st.floats(0, 1), st.floats(0, 1))
def test_a_smaller_level_never_reaches_further(p: NDArray[np.float64], one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert testing.fixed_sequence(p, 0, low) <= testing.fixed_sequence(p, 0, high)


def test_a_single_start_has_the_full_level() -> None:
    assert testing.multi_start_level(np.round(STEPS * 200), (40,), 0.9, 0.05) == 0.05
    assert testing.multi_start_level(np.round(STEPS * 200), (40, 40), 0.9, 0.05) == 0.05


@settings(max_examples=8, deadline=None)
@given(
    st.integers(30, 600),
    st.sets(st.integers(0, 99), min_size=2, max_size=3).map(sorted),
    st.sampled_from([0.8, 0.9, 0.95, 0.98]),
    st.sampled_from([0.1, 0.05, 0.005]),
)
def test_level_lies_between_bonferroni_and_delta(n_shadow: int, starts: list[int], target: float, delta: float) -> None:
    level = testing.multi_start_level(np.round(STEPS * n_shadow), starts, target, delta)
    assert delta / len(starts) <= level <= delta


def test_level_pays_for_starts_that_are_far_apart() -> None:
    # 900 expected at the last step: little slack from discreteness, little correlation.
    level = testing.multi_start_level(np.round(STEPS * 1000), (9, 29, 89), 0.9, 0.05)
    assert 0.05 / 3 < level < 0.035
    close = testing.multi_start_level(np.round(STEPS * 1000), (87, 88, 89), 0.9, 0.05)
    assert level < close < 0.05


def test_level_is_deterministic_and_ignores_the_order_of_starts() -> None:
    once = testing.multi_start_level(np.round(STEPS * 300), (48, 59, 70), 0.9, 0.05)
    assert once == testing.multi_start_level(np.round(STEPS * 300), (70, 48, 59), 0.9, 0.05)
    assert once < 0.05


def test_level_holds_at_the_least_favourable_point() -> None:
    # Fresh simulation of 300 shadow traces that disagree at exactly 1 - target, whatever the score. All
    # steps are true nulls, so any rejection from any start is an error.
    n_shadow, target, delta, starts = 300, 0.9, 0.05, (48, 59, 70)
    level = testing.multi_start_level(np.round(STEPS * n_shadow), starts, target, delta)
    rng = np.random.default_rng(5)
    counts = rng.multinomial(n_shadow, np.full(100, 0.01), size=20_000)
    wrong = rng.binomial(counts, 1 - target).cumsum(axis=1)[:, starts]
    p = binomial.p_value(wrong, counts.cumsum(axis=1)[:, starts], target)
    errors = int((p.min(axis=1) <= level).sum())
    slack = binomial.agreement_lower(errors, 20_000, 0.001)
    assert slack <= delta
    uncorrected = int((p.min(axis=1) <= delta).sum())
    assert binomial.agreement_lower(uncorrected, 20_000, 0.001) > delta


@pytest.mark.parametrize(("n_shadow", "starts"), [(150, (70, 85, 99)), (600, (20, 35, 55)), (80, (5, 30, 31, 90))])
def test_level_is_the_largest_that_holds(n_shadow: int, starts: tuple[int, ...]) -> None:
    # The probability of an error, for each place where the first true hypothesis may lie, by simulation.
    counts = np.round(STEPS * n_shadow).astype(int)
    rng = np.random.default_rng(n_shadow)
    wrong = rng.binomial(np.diff(counts, prepend=0), 0.1, size=(40_000, 100)).cumsum(axis=1)
    p = binomial.p_value(wrong, counts[None, :], 0.9)
    level = testing.multi_start_level(counts, starts, 0.9, 0.05)

    def worst(at: float) -> float:
        rejected = p <= at
        errors = [
            (rejected[:, [g, *(s for s in starts if s > g)]].any(axis=1)).mean() for g in range(starts[0], starts[-1])
        ]
        return float(max(errors))

    assert worst(level) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 40_000)
    if level < 0.05:
        # The next p-value that can occur would be too much.
        possible = np.unique(p[:, starts[0] : starts[-1] + 1])
        assert worst(float(possible[possible > level * (1 + 1e-9)][0])) > 0.05 - 3 * np.sqrt(0.05 * 0.95 / 40_000)


def test_where_no_count_passes_the_level_is_free() -> None:
    assert testing.multi_start_level(np.array([1, 2, 3]), (0, 2), 0.99, 0.05) == 0.05


def test_spending_adds_up_to_delta() -> None:
    spent = [testing.spending(0.05, j) for j in range(1, 20_001)]
    assert sum(spent) < 0.05
    assert sum(spent) == pytest.approx(0.05, abs=3e-6)
    assert spent[0] == pytest.approx(0.05 * 6 / math.pi**2)
    assert spent[1] == pytest.approx(spent[0] / 4)
    assert spent == sorted(spent, reverse=True)


@pytest.mark.parametrize("attempt", [0, -3])
def test_attempts_count_from_one(attempt: int) -> None:
    with pytest.raises(ValueError, match=f"attempt = {attempt}: attempts count from 1"):
        testing.spending(0.05, attempt)


def test_holm() -> None:
    # 0.01 x 4, 0.02 x 3, then never less: 0.025 x 2 would be.
    np.testing.assert_allclose(testing.holm([0.02, 0.01, 0.025, 0.9]), [0.06, 0.04, 0.06, 0.9])
    assert testing.holm([]).tolist() == []
    assert testing.holm([0.7, 0.8]).tolist() == [1.0, 1.0]
