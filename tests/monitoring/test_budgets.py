"""Audits that certify, against published counts and against simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from tracer.certification.certificate import Certificate
from tracer.errors import ConfigError
from tracer.monitoring import budgets
from tracer.monitoring.budgets import audits_needed, budget, expected_agreement, power, rate_for


@pytest.mark.parametrize(
    ("target", "agreement", "level", "even", "likely"),
    [
        (0.90, 0.92, 0.10, 415, 1410),
        (0.90, 0.94, 0.10, 120, 325),
        (0.90, 0.92, 0.05, 640, 1825),
        (0.90, 0.94, 0.05, 170, 440),
        (0.90, 0.96, 0.05, 80, 170),
        (0.95, 0.96, 0.10, 900, 3011),
        (0.95, 0.96, 0.05, 1375, 3748),
        (0.95, 0.97, 0.05, 365, 880),
        (0.95, 0.98, 0.05, 155, 365),
        (0.98, 0.985, 0.05, 2270, 6189),
        (0.98, 0.99, 0.05, 590, 1390),
        (0.98, 0.995, 0.05, 240, 525),
        (0.99, 0.995, 0.05, 1185, 2793),
        (0.99, 0.998, 0.05, 475, 915),
    ],
)
def test_counts_of_the_table(target: float, agreement: float, level: float, even: int, likely: int) -> None:
    # The table was computed on a grid of steps of five and more, hence a few per cent.
    wanted = budget(target, level, agreement)
    assert wanted.n_even == pytest.approx(even, rel=0.06)
    assert wanted.n_likely == pytest.approx(likely, rel=0.06)


@pytest.mark.parametrize(("target", "agreement", "odds"), [(0.9, 0.95, 0.9), (0.95, 0.98, 0.5), (0.8, 1.0, 0.9)])
def test_from_there_on_power_never_falls_short(target: float, agreement: float, odds: float) -> None:
    needed = audits_needed(target, 0.05, agreement, odds)
    assert needed is not None
    assert power(needed - 1, target, 0.05, agreement) < odds
    assert (power(np.arange(needed, 5 * needed), target, 0.05, agreement) >= odds).all()


def test_power_is_the_chance_of_a_certificate() -> None:
    for n in (44, 59, 100, 400):
        passing = [k for k in range(n + 1) if stats.binom.cdf(k, n, 0.05) <= 0.05]
        expected = stats.binom.cdf(max(passing), n, 0.02) if passing else 0.0
        assert float(power(n, 0.95, 0.05, 0.98)) == pytest.approx(expected, rel=1e-9)
    assert float(power(0, 0.95, 0.05, 0.98)) == 0.0


def test_perfect_agreement_needs_the_fewest_audits() -> None:
    assert audits_needed(0.95, 0.05, 1.0, 0.9) == 59


def test_out_of_reach() -> None:
    assert budget(0.95, 0.05, 0.95).n_likely is None
    assert budget(0.95, 0.05, 0.90).n_even is None
    assert budget(0.95, 0.05, 0.9502).n_likely is None


def test_expected_agreement_of_a_certificate(estimated: Certificate) -> None:
    assert expected_agreement(estimated) == 1560.5 / 1601


def plan(days: float = 30, requests: float = 10_000, **other: float) -> budgets.Plan:
    settings = {"target": 0.95, "level": 0.05, "agreement": 0.98, "coverage": 0.8} | other
    return rate_for(days, requests, **settings)


def test_the_rate_certifies_nine_times_in_ten() -> None:
    found = plan(days=2, requests=5000)
    assert found.reachable
    rng = np.random.default_rng(0)
    n = rng.binomial(10_000, found.rate * 0.8, size=4000)
    wrong = rng.binomial(n, 0.02)
    certified = int(np.count_nonzero(stats.binom.cdf(wrong, n, 0.05) <= 0.05))
    interval = stats.binomtest(certified, 4000).proportion_ci(0.999, method="exact")
    assert interval.low <= found.power <= interval.high
    assert found.power == pytest.approx(0.9, abs=0.002)


def test_the_rate_is_the_smallest() -> None:
    found = plan()
    n = 300_000
    assert budgets._certifies(n, found.rate * 0.999 * 0.8, 0.95, 0.05, 0.98) < 0.9 <= found.power
    # Close to what the counts say: so many handled audits of so much traffic.
    assert found.rate == pytest.approx(365 / (n * 0.8), rel=0.1)
    assert found.audits_per_day == pytest.approx(found.rate * 10_000)
    assert found.extra_calls_per_day == pytest.approx(found.rate * 8000)
    assert "An audit rate of 0.1" in found.statement()
    assert "30 days" in found.statement()


def test_more_time_or_traffic_needs_a_lower_rate() -> None:
    assert plan(days=60).rate < plan().rate
    assert plan(requests=20_000).rate < plan().rate
    assert plan(coverage=0.4).rate > plan().rate
    assert plan(agreement=0.97).rate > plan().rate


def test_what_cannot_be_reached_is_said() -> None:
    slow = plan(days=1, requests=100)
    assert not slow.reachable
    assert slow.rate == 1.0
    assert math.isclose((slow.days_needed or 0) * 80, budget(0.95, 0.05, 0.98).n_likely or 0)
    assert "cannot certify 0.95, even if all are audited" in slow.statement()
    never = plan(agreement=0.94)
    assert (never.rate, never.reachable, never.days_needed) == (0.0, False, None)
    assert "which is not above it" in never.statement()
    assert "too near the target" in plan(agreement=0.9501).statement()


def test_all_traffic_audited_and_handled() -> None:
    everything = plan(days=1, requests=400, coverage=1.0)
    assert everything.reachable
    assert 0.8 < everything.rate < 1.0
    assert budgets._certifies(400, 1.0, 0.95, 0.05, 0.98) == float(power(400, 0.95, 0.05, 0.98))
    assert plan(days=0.5, requests=1.0).power == 0.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"days": 0.0}, "days = 0.0: must be positive"),
        ({"requests": -1.0}, "requests_per_day = -1.0: must be positive"),
        ({"coverage": 0.0}, "coverage = 0.0"),
        ({"target": 1.0}, "target = 1.0"),
        ({"level": 0.0}, "level = 0.0"),
        ({"agreement": 1.2}, "agreement = 1.2"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(**change)
