"""The rules of others, on rows small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import rules
from tracer.certification.proposals import ACCEPT_ALL
from tracer.stats import binomial
from tracer.types import Bool, Float64

RNG = np.random.default_rng(0)
SCORES = np.linspace(1.0, 0.01, 100)


def agreeing(wrong: list[int], n: int = 100) -> Bool:
    """Agreement of n rows ranked by falling score, ``wrong`` the ranks that disagree."""
    out = np.ones(n, dtype=bool)
    out[wrong] = False
    return out


def handled(scores: Float64, threshold: float | None) -> int:
    """Rows handled at a threshold."""
    return 0 if threshold is None else int((scores >= threshold).sum())


def test_the_largest_empirical_coverage() -> None:
    # The third error comes at rank 59: 2 of 59 is 0.966, 3 of 60 is 0.95, and the fourth at once breaks it.
    agree = agreeing([10, 30, 59, 60, *range(61, 100, 2)])
    assert handled(SCORES, rules.largest_empirical(SCORES, agree, 0.95, RNG)) == 60


def test_tied_scores_go_together() -> None:
    scores = np.repeat([0.9, 0.5], 50)
    agree = agreeing([*range(50, 60)])
    assert handled(scores, rules.largest_empirical(scores, agree, 0.95, RNG)) == 50


def test_less_than_the_coverage_floor_is_a_refusal() -> None:
    agree = agreeing([*range(3, 100)])
    assert rules.largest_empirical(SCORES, agree, 0.95, RNG) is None


def test_barred_inputs_are_never_handled() -> None:
    scores = np.where(np.arange(100) < 90, SCORES, -np.inf)
    assert handled(scores, rules.oracle(scores, agreeing([]), 0.95, RNG)) == 90


def test_the_paper_checks_the_point_estimate_on_other_rows() -> None:
    rng = np.random.default_rng(1)
    scores, agree = rng.uniform(size=20_000), rng.uniform(size=20_000) < 0.97
    threshold = rules.paper(scores, agree, 0.95, rng)
    assert handled(scores, threshold) > 19_990
    assert rules.paper(scores, rng.uniform(size=20_000) < 0.90, 0.95, rng) is None


def test_the_peer_accepts_all_by_a_lower_bound() -> None:
    allowed = int(binomial.most_disagreements(1000, 0.95, 0.10))
    scores = np.linspace(1, 0, 1000)
    just = agreeing([*range(0, 1000, 1000 // allowed)][:allowed], 1000)
    assert rules.peer(scores, just, 0.95, np.random.default_rng(0)) == ACCEPT_ALL
    one_more = just.copy()
    one_more[-1] = False
    assert rules.peer(scores, one_more, 0.95, np.random.default_rng(0)) != ACCEPT_ALL


def test_the_peer_has_no_fall_back_below_forty_rows_but_the_bound() -> None:
    scores = np.linspace(1, 0, 39)
    threshold = rules.peer(scores, agreeing([*range(30, 39)], 39), 0.90, RNG)
    # 22 rows without an error are needed at level 0.10; 30 are there.
    assert handled(scores, threshold) >= 30
    assert rules.peer(scores, agreeing([*range(10, 39)], 39), 0.90, RNG) is None


@pytest.mark.parametrize("rule", [rules.paper, rules.peer, rules.largest_empirical])
def test_a_hopeless_score_is_refused(rule: rules.Rule) -> None:
    rng = np.random.default_rng(2)
    assert rule(rng.uniform(size=2000), rng.uniform(size=2000) < 0.5, 0.95, rng) is None
