"""Proposals: the promise, the grid, the counts, and what is fixed from training evidence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from tracer.certification.proposals import (
    ACCEPT_ALL,
    SMALL_SAMPLE,
    Promise,
    counts_at,
    propose,
    threshold_grid,
)
from tracer.stats import binomial
from tracer.types import Bool, Float64

BARRED = -np.inf
VALUES = st.sampled_from([BARRED, -0.5, 0.0, 0.1, 0.25, 0.5, 0.75, 0.9])
SCORES = st.lists(VALUES, min_size=1, max_size=40).map(np.array)


def evidence(n: int, seed: int = 0) -> tuple[Float64, Bool]:
    """Confident inputs agree nearly always, the others at worst 7 times in 10."""
    rng = np.random.default_rng(seed)
    scores = rng.uniform(size=n)
    return scores, rng.uniform(size=n) >= 0.005 + 0.3 * (1 - scores) ** 3


# --- the grid ---------------------------------------------------------------------------------------------


def test_grid_has_even_coverages_and_ends_at_accept_all() -> None:
    scores = np.random.default_rng(1).permutation(np.arange(1, 1001) / 1000)
    grid = threshold_grid(scores, 10)
    assert len(grid) == 10
    assert (np.diff(grid) < 0).all()
    assert grid[-1] == ACCEPT_ALL
    handled, _ = counts_at(scores, np.ones(1000, dtype=bool), grid)
    assert handled.tolist() == [100, 200, 300, 400, 500, 600, 700, 800, 900, 1000]


def test_ties_make_one_step() -> None:
    scores = np.repeat([0.9, 0.5, 0.2], [50, 30, 20])
    grid = threshold_grid(scores, 200)
    handled, _ = counts_at(scores, np.ones(100, dtype=bool), grid)
    assert set(handled) == {50, 80, 100}
    assert (np.diff(grid) < 0).all()


def test_one_class_of_scores_leaves_accept_all_and_its_own_threshold() -> None:
    scores = np.full(30, 0.7)
    grid = threshold_grid(scores, 200)
    assert grid.tolist() == [0.7, ACCEPT_ALL]
    handled, wrong = counts_at(scores, np.arange(30) >= 3, grid)
    assert handled.tolist() == [30, 30]
    assert wrong.tolist() == [3, 3]


@pytest.mark.parametrize("seen_in_training", [True, False])
def test_barred_scores_are_never_handled(seen_in_training: bool) -> None:
    """Also where no barred input occurred in training: accept-all must not take the first one that comes."""
    training = np.array([0.9, 0.6, 0.3, BARRED if seen_in_training else 0.2])
    grid = threshold_grid(training, 50)
    shadow = np.array([BARRED, 0.8, BARRED, 0.01])
    handled, wrong = counts_at(shadow, np.array([False, True, False, True]), grid)
    assert handled[-1] == 2
    assert wrong[-1] == 0
    assert not (shadow[[0, 2]] >= grid[-1]).any()


def test_accept_all_takes_scores_below_all_seen_in_training() -> None:
    grid = threshold_grid(np.array([0.9, 0.8]), 10)
    # Novel inputs score lower by one than familiar ones.
    handled, _ = counts_at(np.array([0.1, -0.999]), np.ones(2, dtype=bool), grid)
    assert handled[-1] == 2


def test_where_all_are_barred_nothing_can_be_handled() -> None:
    grid = threshold_grid(np.full(5, BARRED), 10)
    handled, wrong = counts_at(np.full(5, BARRED), np.ones(5, dtype=bool), grid)
    assert (handled == 0).all()
    assert (wrong == 0).all()


@given(SCORES, st.data())
def test_counts_are_those_of_the_served_rule(scores: Float64, data: st.DataObject) -> None:
    agree = np.array(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    thresholds = threshold_grid(data.draw(SCORES), 20)
    handled, wrong = counts_at(scores, agree, thresholds)
    for i, threshold in enumerate(thresholds):
        served = scores >= threshold
        assert handled[i] == served.sum()
        assert wrong[i] == (served & ~agree).sum()


# --- the promise ------------------------------------------------------------------------------------------


def test_agreement_is_tested_on_the_handled() -> None:
    p = Promise(0.9).p_values(np.array([2.0, 30.0]), np.array([50.0, 400.0]), 1000)
    np.testing.assert_allclose(p, stats.binom.cdf([2, 30], [50, 400], 1 - 0.9), rtol=1e-9)


@pytest.mark.parametrize(
    ("wrong", "handled", "binding"),
    [(30, 900, "joint"), (30, 300, "floor"), (0, 5, "floor"), (0, 1000, "joint"), (1, 20, "floor")],
)
def test_overall_needs_both_bounds(wrong: int, handled: int, binding: str) -> None:
    promise = Promise(0.95, "overall", 0.9)
    p = float(promise.p_values(np.array([float(wrong)]), np.array([float(handled)]), 1000)[0])
    joint, floor = stats.binom.cdf(wrong, 1000, 1 - 0.95), stats.binom.cdf(wrong, handled, 1 - 0.9)
    assert p == pytest.approx(max(joint, floor), rel=1e-9)
    assert (joint >= floor) == (binding == "joint")


def test_overall_certifies_nothing_where_nothing_is_handled() -> None:
    promise = Promise(0.95, "overall", 0.9)
    assert promise.p_values(np.zeros(1), np.zeros(1), 1000)[0] == 1.0


@pytest.mark.parametrize("promise", [Promise(0.9), Promise(0.95, "overall", 0.85)])
def test_allowed_counts_are_the_test_turned_round(promise: Promise) -> None:
    allowed = promise.allowed(120, 0.05)
    n = np.arange(121, dtype=np.float64)
    assert allowed[0] == -1
    assert allowed.max() > 0
    clears = allowed >= 0
    k = allowed[clears].astype(np.float64)
    assert (promise.p_values(k, n[clears], 120) <= 0.05).all()
    more = np.minimum(allowed + 1.0, n)
    stuck = more > allowed
    assert (promise.p_values(more[stuck], n[stuck], 120) > 0.05).all()


# --- what is fixed in advance -----------------------------------------------------------------------------


def test_everything_is_fixed_by_the_training_evidence() -> None:
    scores, agree = evidence(2000)
    once = propose(scores, agree, 1000, Promise(0.95), 0.04)
    order = np.random.default_rng(3).permutation(2000)
    again = propose(scores[order], agree[order], 1000, Promise(0.95), 0.04)
    assert again.starts == once.starts
    assert again.digest == once.digest
    np.testing.assert_array_equal(again.thresholds, once.thresholds)


def test_digest_tells_grids_and_starts_apart() -> None:
    plan = propose(*evidence(2000), 1000, Promise(0.95), 0.04)
    assert len(plan.digest) == 16
    assert plan.digest != replace(plan, starts=(plan.starts[0] + 1,)).digest
    moved = plan.thresholds.copy()
    moved[0] += 1e-9
    assert plan.digest != replace(plan, thresholds=moved).digest


def test_the_chain_starts_where_it_can_pass() -> None:
    plan = propose(*evidence(4000), 1000, Promise(0.95), 0.04)
    assert plan.thresholds.shape == plan.coverages.shape == plan.rates.shape
    assert (np.diff(plan.coverages) >= 0).all()
    (start,) = plan.starts
    n = round(plan.coverages[start] * 1000)
    assert n >= binomial.n_min(0.95, 0.04)
    assert float(binomial.p_value(round(plan.rates[start] * n), n, 0.95)) <= 0.04
    assert plan.coverages[start] < plan.predicted_coverage <= 1.0


def test_hopeless_evidence_predicts_nothing() -> None:
    scores = np.random.default_rng(0).uniform(size=1000)
    plan = propose(scores, np.arange(1000) % 3 > 0, 1000, Promise(0.95), 0.05)
    assert plan.predicted_coverage == pytest.approx(0.0, abs=1e-3)


def test_perfect_evidence_predicts_all() -> None:
    scores = np.random.default_rng(0).uniform(size=1000)
    plan = propose(scores, np.ones(1000, dtype=bool), 1000, Promise(0.95), 0.05)
    assert plan.predicted_coverage == pytest.approx(1.0)
    assert plan.assumption == ""


def small_plans() -> list[tuple[int, float]]:
    """Sizes at which some evidence makes several starts worth their price."""
    return [(n, target) for n in (150, 250) for target in (0.95, 0.98)]


@pytest.mark.parametrize(("n_shadow", "target"), small_plans())
def test_the_assumption_is_named_exactly_where_it_is_made(n_shadow: int, target: float) -> None:
    assert n_shadow * (1 - target) < SMALL_SAMPLE
    for seed in range(3):
        plan = propose(*evidence(3 * n_shadow, seed), n_shadow, Promise(target), 0.05)
        if len(plan.starts) > 1:
            assert plan.assumption == "disagreement does not rise with the score"
        else:
            assert plan.assumption == ""


@pytest.mark.parametrize("promise", [Promise(0.95), Promise(0.5, "overall", 0.4), Promise(0.98, "overall", 0.9)])
def test_large_rooms_and_the_overall_contract_assume_nothing(promise: Promise) -> None:
    n_shadow = 1500 if promise.contract == "agreement" else 60
    plan = propose(*evidence(900), n_shadow, promise, 0.05)
    assert len(plan.starts) == 1
    assert plan.assumption == ""


@given(st.integers(1, 60), st.integers(1, 300), st.data())
def test_any_evidence_gives_a_lawful_chain(n: int, n_shadow: int, data: st.DataObject) -> None:
    scores: NDArray[np.float64] = data.draw(SCORES)
    agree = np.array(data.draw(st.lists(st.booleans(), min_size=len(scores), max_size=len(scores))))
    plan = propose(scores, agree, n_shadow, Promise(0.9), 0.05, 10 + n)
    assert plan.starts == tuple(sorted(set(plan.starts)))
    assert 0 <= plan.starts[0] <= plan.starts[-1] < len(plan.thresholds) <= 10 + n
    assert 0.0 <= plan.predicted_coverage <= 1.0
