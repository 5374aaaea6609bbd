"""The coins: what they draw, in which order, and what a label drawn so may prove."""

from __future__ import annotations

import random
from itertools import product

import pytest
from scipy import stats

from tracer.policies.serving_settings import Mode, ServingSettings
from tracer.serving.coins import final_reason, origin_of, toss
from tracer.types import Reason


class Counted(random.Random):
    """Draws that are counted."""

    n = 0

    def random(self) -> float:
        self.n += 1
        return super().random()


def test_each_rate_is_met() -> None:
    """Exact binomial tests at 1 in 10,000: a seed that fails is not chosen by luck."""
    n = 20_000
    drawn = toss(ServingSettings("canary", share=0.3, audit_rate=0.02), random.Random(5), n)
    assert stats.binomtest(drawn.count("audit"), n, 0.02).pvalue > 1e-4
    rest = n - drawn.count("audit")
    assert stats.binomtest(drawn.count("canary"), rest, 0.7).pvalue > 1e-4
    assert drawn.count(None) == rest - drawn.count("canary")


@pytest.mark.parametrize(
    ("mode", "rate", "share", "draws"),
    [
        ("live", 0.0, 1.0, 0),
        ("live", 0.5, 1.0, 1),
        ("shadow", 0.5, 1.0, 1),
        ("canary", 0.0, 0.5, 1),
        ("canary", 0.5, 0.5, 2),
    ],
)
def test_an_input_draws_the_same_numbers_whatever_they_say(mode: Mode, rate: float, share: float, draws: int) -> None:
    rng = Counted(1)
    toss(ServingSettings(mode, share, rate), rng, 100)
    assert rng.n == 100 * draws


@pytest.mark.parametrize("mode", ["live", "shadow", "canary"])
def test_a_batch_draws_as_one_by_one(mode: Mode) -> None:
    settings = ServingSettings(mode, share=0.4, audit_rate=0.3)
    together, one_by_one = random.Random(3), random.Random(3)
    assert toss(settings, together, 200) == [toss(settings, one_by_one, 1)[0] for _ in range(200)]


@pytest.mark.parametrize(
    ("settings", "all_of"),
    [
        (ServingSettings("live", audit_rate=0.0), None),
        (ServingSettings("live", audit_rate=1.0), "audit"),
        (ServingSettings("shadow", audit_rate=1.0), "audit"),
        (ServingSettings("shadow", audit_rate=0.0), "shadow"),
        (ServingSettings("canary", share=0.0, audit_rate=0.0), "canary"),
        (ServingSettings("canary", share=1.0, audit_rate=0.0), None),
    ],
)
def test_the_ends_are_certain(settings: ServingSettings, all_of: Reason | None) -> None:
    assert set(toss(settings, random.Random(0), 500)) == {all_of}


def test_who_decides_about_a_reason() -> None:
    plans: list[Reason | None] = [None, "audit", "shadow", "canary"]
    decided: list[Reason] = ["handled", "below_threshold", "error", "kill_switch"]
    found = {(plan, reason): final_reason(plan, reason) for plan, reason in product(plans, decided)}
    assert [found[None, reason] for reason in decided] == decided
    assert {found["audit", reason] for reason in decided} == {"audit"}, "nothing undoes the draw"
    assert [found["shadow", reason] for reason in decided] == ["shadow", "shadow", "shadow", "kill_switch"]
    assert [found["canary", reason] for reason in decided] == ["canary", "canary", "canary", "kill_switch"]


def test_what_was_chosen_by_the_input_is_no_plain_sample() -> None:
    plain: list[Reason] = ["audit", "shadow", "canary", "kill_switch", "no_policy"]
    assert [origin_of(reason) for reason in plain] == ["audit"] + ["bootstrap"] * 4
    chosen: list[Reason] = ["below_threshold", "novel", "always_defer", "error_cost", "class_floor"]
    assert {origin_of(reason) for reason in chosen} == {"deferred"}
    assert (origin_of("error"), origin_of("requested"), origin_of("handled")) == ("fallback", "requested", None)
