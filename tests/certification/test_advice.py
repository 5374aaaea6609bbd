"""Refusals that help: words from out-of-fold rates alone."""

from __future__ import annotations

import re

import numpy as np
import pytest

from tracer.certification.advice import explain_refusal
from tracer.certification.certificate import Attempt, Refusal
from tracer.certification.proposals import Promise, propose
from tracer.config import FitConfig
from tracer.stats import binomial

CONFIG = FitConfig()


def attempt(name: str, agreed: int, handled: int, n_shadow: int, target: float = 0.95, level: float = 0.04) -> Attempt:
    """A chain that failed, or a sliver that passed its test."""
    p = float(binomial.p_value(handled - agreed, handled, target))
    return Attempt(name, "l2d", target, level, False, 0.5, n_shadow, handled, agreed, p)


def refuse(rate: float, n_shadow: int, *attempts: Attempt, target: float = 0.95) -> Refusal:
    """A refusal where out of fold the surrogate disagrees at ``rate``, whatever the score."""
    n = 4000
    scores = (np.arange(n) + 0.5) / n
    agree = np.random.default_rng(0).permutation(n) >= rate * n
    promise = Promise(target, coverage_floor=CONFIG.coverage_floor)
    plan = propose(scores, agree, n_shadow, promise, 0.04)
    tried = attempts or (attempt("lexical logistic", 40, 50, n_shadow),)
    return explain_refusal(tried, [plan], promise, 0.04, n_shadow, CONFIG)


def test_too_few_traces() -> None:
    refusal = refuse(0.0, 40)
    needed = binomial.n_min(0.95, 0.04)
    assert needed == 63
    assert (
        f"0.95 at this share of delta needs at least {needed} handled shadow traces without one disagreement; "
        "there are 40 in all."
    ) in refusal.advice


@pytest.mark.parametrize("n_shadow", [63, 500])
def test_enough_traces_are_not_called_few(n_shadow: int) -> None:
    assert not any("without one disagreement" in line for line in refuse(0.2, n_shadow).advice)


def test_the_nearest_attempt_is_named_with_its_counts() -> None:
    tried = (
        attempt("first", 180, 200, 1000),
        attempt("second", 930, 1000, 1000),
        attempt("third", 470, 500, 1000),
    )
    nearest = min(tried, key=lambda a: a.p_value)
    refusal = refuse(0.07, 1000, *tried)
    assert refusal.attempts == tried
    assert refusal.target == 0.95
    assert nearest.candidate == "third"
    assert refusal.reason == (
        "No candidate cleared the gate at target 0.95: the nearest, third, agreed on 470 of 500 handled shadow "
        "traces (94.0%) of 1,000."
    )
    assert refusal.statement().startswith(refusal.reason)


def test_a_sliver() -> None:
    sliver = attempt("first", 70, 70, 2000)
    assert sliver.p_value <= sliver.level
    assert refuse(0.3, 2000, sliver).reason == (
        "Only a sliver cleared the gate at target 0.95: less than the coverage floor of 5% of the shadow traces."
    )


def test_how_many_traces_would_do() -> None:
    # 3.5% disagreement clears 0.95 with enough of it.
    refusal = refuse(0.035, 200)
    (line,) = [a for a in refusal.advice if "would clear it" in a]
    (number,) = re.findall(r"about ([\d,]+) traces", line)
    total = int(number.replace(",", ""))
    n = round(total * CONFIG.shadow_share_for(total))
    assert n > 200
    assert float(binomial.p_value(round(0.035 * n), n, 0.95)) < 0.15, "of the right order, if rounded"


def test_where_more_traces_do_not_help_it_says_so() -> None:
    refusal = refuse(0.2, 1000)
    assert not any("would clear it" in line for line in refusal.advice)
    (line,) = [a for a in refusal.advice if "More traces of this kind would hardly help" in a]
    shown = float(re.findall(r"([\d.]+)%", line)[-1])
    assert 78.0 < shown < 92.0


def test_a_lower_target_that_should_do() -> None:
    refusal = refuse(0.07, 1000)
    (line,) = [a for a in refusal.advice if "a target of about" in a]
    match = re.search(r"about ([\d.]+) should certify (\d+)% coverage", line)
    assert match is not None
    target, coverage = float(match[1]), int(match[2])
    assert target < 0.95
    n = coverage * 10
    assert float(binomial.p_value(round(0.07 * n), n, target)) <= 0.06


def test_no_lower_target_is_promised_where_none_would_do() -> None:
    assert not any("a target of about" in line for line in refuse(0.9, 200).advice)
