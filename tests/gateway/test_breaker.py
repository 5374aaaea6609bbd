from __future__ import annotations

import pytest

from tracer.errors import ConfigError
from tracer.gateway.breaker import Breaker, BreakerSettings, Permit


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def given(**settings: float) -> tuple[Breaker, Clock]:
    clock = Clock()
    return Breaker(BreakerSettings(**settings), clock, "main"), clock  # type: ignore[arg-type]


def state_of(breaker: Breaker) -> str:
    return breaker.state


def permit(breaker: Breaker) -> Permit:
    found = breaker.admit()
    assert found is not None
    return found


def test_failures_in_a_row_open_it_and_a_success_starts_the_count_anew() -> None:
    breaker, _ = given(failures=3)
    for good in (False, False, True, False, False):
        permit(breaker).succeeded() if good else permit(breaker).failed()
    assert state_of(breaker) == "closed"
    permit(breaker).failed()
    assert state_of(breaker) == "open"
    assert breaker.admit() is None
    assert breaker.retry_after == 15.0


def test_a_share_of_failures_within_the_window_opens_it() -> None:
    breaker, clock = given(failures=100, share=0.5, least=4, window_s=10.0)
    permit(breaker).failed()
    permit(breaker).failed()
    clock.now += 11.0  # these two are forgotten
    for good in (True, True, False):
        permit(breaker).succeeded() if good else permit(breaker).failed()
    assert state_of(breaker) == "closed"
    permit(breaker).failed()
    assert state_of(breaker) == "open", "two of four"


def test_the_window_holds_a_bounded_number_of_slices() -> None:
    breaker, clock = given(failures=10**6, share=1.0, window_s=10.0)
    for i in range(5000):
        clock.now += 0.01
        permit(breaker).succeeded() if i % 2 else permit(breaker).failed()
    assert len(breaker._slices) <= 10


@pytest.mark.parametrize(("good", "state"), [(True, "closed"), (False, "open")])
def test_one_trial_decides_after_the_pause(good: bool, state: str) -> None:
    breaker, clock = given(failures=1, open_s=5.0)
    permit(breaker).failed()
    clock.now += 4.9
    assert breaker.admit() is None
    clock.now += 0.1
    assert state_of(breaker) == "half_open"
    trial = permit(breaker)
    assert breaker.admit() is None, "one at a time"
    trial.succeeded() if good else trial.failed()
    assert state_of(breaker) == state
    assert (breaker.admit() is not None) is good


def test_a_trial_that_is_given_up_leaves_its_place_to_the_next() -> None:
    breaker, clock = given(failures=1, open_s=5.0)
    permit(breaker).failed()
    clock.now += 5.0
    permit(breaker).given_up()
    assert state_of(breaker) == "half_open"
    permit(breaker).succeeded()
    assert state_of(breaker) == "closed"


def test_results_from_before_the_state_changed_are_left_out() -> None:
    breaker, clock = given(failures=1, open_s=5.0)
    late_good, late_bad = permit(breaker), permit(breaker)
    permit(breaker).failed()
    late_good.succeeded()
    assert state_of(breaker) == "open"
    clock.now += 5.0
    permit(breaker).succeeded()
    late_bad.failed()
    assert state_of(breaker) == "closed"


def test_a_cut_after_success_counts_as_a_failure() -> None:
    breaker, _ = given(failures=1)
    one = permit(breaker)
    one.succeeded()
    one.failed()
    assert state_of(breaker) == "open"


@pytest.mark.parametrize("wrong", [{"failures": 0}, {"share": 0.0}, {"share": 1.1}, {"open_s": 0.0}, {"least": 0}])
def test_impossible_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        BreakerSettings(**wrong)  # type: ignore[arg-type]


def test_every_change_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    breaker, clock = given(failures=2)
    for _ in range(2):
        permit(breaker).failed()
    assert breaker.admit() is None
    clock.now += 15.0
    permit(breaker).given_up()
    permit(breaker).failed()
    clock.now += 15.0
    permit(breaker).succeeded()
    permit(breaker).succeeded()
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", "upstream main: left alone for 15 s after 2 failures"),
        ("WARNING", "upstream main: left alone for 15 s more"),
        ("WARNING", "upstream main answers again"),
    ]
