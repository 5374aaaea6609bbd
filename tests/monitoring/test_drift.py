"""Early warnings from traffic: what rings, what does not, and what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tracer.certification.certificate import Certificate
from tracer.errors import ConfigError
from tracer.monitoring.drift import Drift, DriftConfig, DriftState
from tracer.monitoring.tallies import Tally
from tracer.types import FAILED, Trace

START = datetime(2026, 4, 14, tzinfo=UTC)
MIX = {"card": 0.4, "fees": 0.3, "refund": 0.2, "transfer": 0.1}
DRIFT = Drift("v0001", n_shadow=1000, n_handled=800, labels={"card": 400, "fees": 300, "refund": 200, "transfer": 100})


def hours(
    n_hours: int,
    *,
    handled: float = 0.8,
    novel: float = 0.02,
    mix: dict[str, float] | None = None,
    start: int = 0,
    n: int = 200,
    seed: int = 0,
) -> Iterator[Tally]:
    """A tally an hour of n requests."""
    rng, shares = np.random.default_rng([seed, start]), mix or MIX
    for hour in range(start, start + n_hours):
        counts = rng.multinomial(n, list(shares.values()))
        yield Tally(
            "v0001",
            START + timedelta(hours=hour),
            3600.0,
            n,
            int(rng.binomial(n, handled)),
            int(rng.binomial(n, novel)),
            {label: int(count) for label, count in zip(shares, counts, strict=True)},
        )


def kinds(state: DriftState) -> list[str]:
    return [warning.kind for warning in state.warnings()]


def test_traffic_as_it_was_gives_no_warning() -> None:
    assert kinds(DRIFT.over(hours(2000))) == []


@pytest.mark.parametrize("rate", [0.55, 0.95])
def test_the_handled_rate_is_watched_on_both_sides(rate: float) -> None:
    (warning,) = DRIFT.over([*hours(200), *hours(48, handled=rate, start=200)]).warnings()
    assert warning.kind == "handled_rate"
    assert warning.expected == 0.8
    assert warning.value == pytest.approx(rate, abs=0.03)
    assert warning.since is not None
    assert START + timedelta(hours=200) <= warning.since <= START + timedelta(hours=224)
    assert warning.message.endswith("of recent requests would be handled; when certified it was 80.0%.")


def test_novelty() -> None:
    (warning,) = DRIFT.over([*hours(100), *hours(72, novel=0.08, start=100)]).warnings()
    assert (warning.kind, warning.expected) == ("novelty", 0.02)
    assert warning.value > 0.05
    assert "unlike any trace; 2.0% is expected." in warning.message
    # Up to its limit novelty is normal, however much traffic says so.
    assert kinds(DRIFT.over(hours(2000, novel=0.028, n=500))) == []


def test_the_label_that_moved_is_named() -> None:
    moved = {"card": 0.25, "fees": 0.3, "refund": 0.2, "transfer": 0.25}
    (warning,) = DRIFT.over([*hours(100), *hours(72, mix=moved, start=100)]).warnings()
    assert warning.kind == "label_mix"
    assert "are predicted 'transfer'; when certified it was 10.0%." in warning.message
    assert warning.value == pytest.approx(0.25, abs=0.03)
    assert warning.expected == 0.1


def test_a_label_that_was_never_predicted() -> None:
    new = {"card": 0.4, "fees": 0.3, "refund": 0.2, "transfer": 0.05, "crypto": 0.05}
    (warning,) = DRIFT.over([*hours(100), *hours(150, mix=new, start=100)]).warnings()
    assert "'(other)'" in warning.message
    assert warning.value == pytest.approx(0.05, abs=0.02)


def test_small_moves_are_no_news() -> None:
    near = {"card": 0.42, "fees": 0.29, "refund": 0.19, "transfer": 0.1}
    assert kinds(DRIFT.over(hours(2000, handled=0.78, mix=near, n=500))) == []


def test_a_warning_goes_with_its_cause() -> None:
    ringing = DRIFT.over([*hours(100), *hours(60, handled=0.5, start=100)])
    assert kinds(ringing) == ["handled_rate"]
    assert kinds(ringing.fold(hours(48, start=160))) == []


def test_other_policies_say_nothing() -> None:
    others = (replace(tally, policy="v0002") for tally in hours(100, handled=0.1))
    assert DRIFT.over(others) == DRIFT.start()


def test_in_pieces_through_json_is_at_once() -> None:
    tallies = [*hours(60), *hours(60, handled=0.5, novel=0.1, start=60)]
    state = DRIFT.start()
    for low, high in ((0, 17), (17, 17), (17, 80), (80, 120)):
        state = DriftState.from_dict(json.loads(json.dumps(state.as_dict(), allow_nan=False))).fold(tallies[low:high])
    assert state == DRIFT.over(tallies)
    assert len(state.warnings()) == 2
    assert state.as_dict()["warnings"][0]["since"].startswith("2026-04-16")


def test_processes_side_by_side_share_their_time() -> None:
    alone = DRIFT.over(hours(20))
    halves = []
    for tally in hours(20):
        labels = {label: count // 2 for label, count in tally.labels.items()}
        rest = {label: tally.labels[label] - count for label, count in labels.items()}
        half = replace(tally, n=sum(labels.values()), n_handled=tally.n_handled // 2, n_novel=0, labels=labels)
        handled = tally.n_handled - tally.n_handled // 2
        halves += [half, replace(half, n=sum(rest.values()), n_handled=handled, n_novel=tally.n_novel, labels=rest)]
    together = DRIFT.over(halves)
    assert together.clock == alone.clock
    assert together.current.seconds == alone.current.seconds == 72_000.0
    for one, other in ((together.handled, alone.handled), (together.novel, alone.novel), (together.mix, alone.mix)):
        np.testing.assert_allclose(one, other, rtol=1e-9)


def test_figures_are_of_the_last_day_or_two() -> None:
    state = DRIFT.over([*hours(240), *hours(49, handled=0.4, start=240)])
    (warning,) = state.warnings()
    assert state.previous.seconds == 86_400.0
    assert warning.value == pytest.approx(0.4, abs=0.03)


def test_requests_without_a_decision_are_left_out() -> None:
    failing = (replace(tally, n=tally.n + 300, n_errors=300) for tally in hours(200))
    assert kinds(DRIFT.over(failing)) == []


def test_the_teachers_labels_join_the_warnings() -> None:
    rows = [(i, Trace(f"t{i}", "x", "crypto" if i == 3 else FAILED if i > 50 else "card")) for i in range(1, 80)]
    state = DRIFT.start().fold_labels(rows, ("card", "fees"))
    assert kinds(state) == ["unknown_label", "teacher_failed"]
    assert DriftState.from_dict(json.loads(json.dumps(state.as_dict()))) == state


def test_expectations_of_a_certificate(estimated: Certificate) -> None:
    drift = Drift.of("v0001", estimated, {"card": 3})
    assert drift == Drift("v0001", estimated.n_shadow, estimated.n_handled, {"card": 3})


def test_nothing_known_nothing_watched() -> None:
    blank = Drift("v0001", 0, 0, {})
    assert kinds(blank.over(hours(200, handled=0.1))) == []


def test_quiet_hours_and_empty_tallies() -> None:
    nothing = (replace(tally, n=0, n_handled=0, n_novel=0, labels={}) for tally in hours(500))
    assert kinds(DRIFT.over(nothing)) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"days": 0.0}, "days = 0.0"),
        ({"odds": 0.9}, "odds = 0.9"),
        ({"novel": 0.05}, "novel = 0.05, novel_limit = 0.03"),
        ({"level": 1.0}, "level = 1.0"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DriftConfig(**change)


def test_impossible_expectations_and_foreign_states_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_handled = 5 must lie between 0 and n_shadow = 4"):
        Drift("v0001", 4, 5, {})
    with pytest.raises(ConfigError, match="does not have the fields it should"):
        DriftState.from_dict({"drift": {}})
