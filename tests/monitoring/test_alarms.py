"""The live monitor: what it counts, when it rings, and that it can be put down and taken up."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.certification.certificate import Certificate
from tracer.errors import ConfigError, TraceError
from tracer.monitoring.alarms import Monitor, MonitorConfig, MonitorState
from tracer.monitoring.observations import Observation
from tracer.stats import binomial
from tracer.stats.confidence import running_average
from tracer.stats.sequences import Detector, EProcess

LABELS = ("card", "fees", "refund", "transfer")
MONITOR = Monitor(target=0.95, policy="v0001", n_classes=4, config=MonitorConfig(window=100))


def audits(
    rates: Sequence[float], *, policy: str = "v0001", coverage: float = 0.8, seed: int = 0, start: int = 1
) -> list[Observation]:
    """One audit a rate of disagreement, numbered by threes."""
    rng = np.random.default_rng(seed)
    draws = rng.random((len(rates), 2))
    labels = rng.choice(LABELS, len(rates))
    return [
        Observation(start + 3 * i, policy, str(labels[i]), bool(draws[i, 0] >= rate), bool(draws[i, 1] < coverage))
        for i, rate in enumerate(rates)
    ]


def test_counts_and_evidence_of_a_good_policy() -> None:
    observations = audits([0.01] * 1500)
    state = MONITOR.over(observations)
    handled = [o for o in observations if o.handled]
    wrong = np.array([not o.agreed for o in handled])
    assert (state.n_audits, state.n_handled, state.n_agreed) == (1500, len(handled), int((~wrong).sum()))
    assert state.n_line == state.n_counted == len(handled)
    assert state.last == observations[-1].number
    assert state.status == "quiet"
    assert state.rang is None
    assert state.detector_value == Detector.above(1.0 - 0.95, 20_000).values(wrong)[-1]
    assert state.log_rollback == EProcess(1.0 - 0.95, "above").log_e_values(wrong)[-1]
    assert state.log_promotion == EProcess(1.0 - 0.95, "below").log_e_values(wrong)[-1]
    at = EProcess(1.0 - 0.95, "below").crossing(wrong, 0.05)
    assert at is not None
    assert state.promoted is not None
    assert (state.promoted.number, state.promoted.index) == (handled[at].number, at + 1)
    assert state.agreement == 1 - wrong.mean()


def test_intervals() -> None:
    observations = audits([0.03] * 800, coverage=1.0)
    state = MONITOR.over(observations)
    wrong = np.array([not o.agreed for o in observations])
    low, high = running_average(wrong, 0.05)
    assert state.average_interval == (1 - high[-1], 1 - low[-1])
    agreed = sum(o.agreed for o in observations[-100:])
    assert state.recent_interval == binomial.agreement_interval(agreed, 100, 0.05)
    assert state.agreement is not None
    assert state.average_interval[0] < state.interval[0] < state.agreement < state.interval[1]


def test_nothing_seen() -> None:
    state = MONITOR.start()
    assert state.interval == state.average_interval == state.recent_interval == (0.0, 1.0)
    assert (state.agreement, state.status, state.log_promotion, state.log_rollback) == (None, "quiet", 0.0, 0.0)
    assert state.class_table() == ()
    assert MONITOR.over([]) == state


def test_a_change_warns_and_then_rings() -> None:
    observations = audits([0.02] * 2000 + [0.25] * 300, coverage=1.0)
    state = MONITOR.over(observations)
    values = Detector.above(1.0 - 0.95, 20_000).values([not o.agreed for o in observations])
    assert state.status == "alarm"
    assert state.warned is not None
    assert state.rang is not None
    assert state.rang.cause == "detector"
    assert (state.warned.index, state.rang.index) == (
        1 + int((values >= 1000).argmax()),
        1 + int((values >= 20_000).argmax()),
    )
    assert 2000 < state.warned.index < state.rang.index < 2100
    assert state.rang.number == observations[state.rang.index - 1].number
    # Between the two marks it warns; and it was quiet before.
    assert MONITOR.over(observations[: state.rang.index - 1]).status == "warn"
    assert MONITOR.over(observations[: state.warned.index - 1]).status == "quiet"


def test_a_warning_passes_and_an_alarm_stays() -> None:
    lull = [0.0] * 400
    warned = MONITOR.over(audits([0.0] * 50 + [1.0] * 5 + lull, coverage=1.0))
    assert warned.warned is not None
    assert warned.status == "quiet"
    rang = MONITOR.over(audits([0.0] * 50 + [1.0] * 30 + lull * 3, coverage=1.0))
    assert rang.detector_value < 1000
    assert rang.status == "alarm"


def test_a_policy_that_is_bad_from_its_start_is_rolled_back() -> None:
    # An average run length so long that the detector never rings first.
    patient = replace(MONITOR, config=MonitorConfig(arl=1e12))
    observations = audits([0.2] * 400, coverage=1.0)
    state = patient.over(observations)
    at = EProcess(1.0 - 0.95, "above").crossing([not o.agreed for o in observations], 0.01)
    assert at is not None
    assert state.rang is not None
    assert (state.rang.cause, state.rang.index, state.rang.number) == ("rollback", at + 1, observations[at].number)
    assert state.status == "alarm"
    assert state.log_rollback > math.log(100)


def test_warnings_double_the_audit_rate() -> None:
    quiet, loud = MONITOR.over(audits([0.0] * 100)), MONITOR.over(audits([0.5] * 200))
    assert quiet.advised_rate(0.02) == 0.02
    assert loud.advised_rate(0.02) == 0.04
    assert loud.advised_rate(0.15) == 0.2
    assert loud.advised_rate(0.5) == 0.5


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(0, 600), max_size=4), rate=st.sampled_from([0.02, 0.06, 0.3]))
def test_folding_in_pieces_through_json_is_folding_at_once(cuts: list[int], rate: float) -> None:
    observations = audits([rate] * 600, seed=7)
    state = MONITOR.start()
    for low, high in zip([0, *sorted(cuts)], [*sorted(cuts), 600], strict=True):
        state = MonitorState.from_dict(json.loads(json.dumps(state.as_dict()))).fold(observations[low:high])
    assert state == MONITOR.over(observations)
    assert state.as_dict() == MONITOR.over(observations).as_dict()


def test_a_refit_keeps_the_detector_and_begins_the_counts() -> None:
    before, after = audits([0.08] * 300), audits([0.08] * 300, policy="v0002", start=1000, seed=1)
    carried = MONITOR.over(before).succeeded("v0002").fold(after)
    at_once = replace(MONITOR, policy="v0002").over(before + after)
    assert carried == at_once
    assert carried.n_audits == 300
    assert carried.n_line == sum(o.handled for o in before + after)
    alone = replace(MONITOR, policy="v0002").over(after)
    assert (carried.n_agreed, carried.classes, carried.log_promotion) == (
        alone.n_agreed,
        alone.classes,
        alone.log_promotion,
    )
    assert carried.detector_value != alone.detector_value


def test_a_restart_forgets_what_came_before() -> None:
    before, after = audits([0.5] * 200), audits([0.01] * 200, start=1000, seed=1)
    assert MONITOR.over(before + after).status == "alarm"
    fresh = replace(MONITOR, restart=before[-1].number)
    state = fresh.over(before + after)
    assert state.status == "quiet"
    assert state == fresh.over(after)


def test_audits_come_in_order_and_once() -> None:
    observations = audits([0.0] * 10)
    state = MONITOR.over(observations)
    with pytest.raises(TraceError, match="audit number 28 comes after 28"):
        state.fold(observations[-1:])
    with pytest.raises(TraceError, match="give audits in order, once"):
        MONITOR.over(observations[::-1])


def test_the_overall_contract_counts_deferred_audits_as_no_contradiction() -> None:
    # 8% of the handled half disagree: 4% of all.
    observations = audits([0.08] * 3000, coverage=0.5)
    handled = MONITOR.over(observations)
    overall = replace(MONITOR, contract="overall", handled_floor=0.92).over(observations)
    assert handled.status == "alarm"
    assert overall.status == "quiet"
    assert overall.n_line == overall.n_counted == 3000
    assert overall.n_handled == handled.n_handled
    assert overall.interval == handled.interval
    assert overall.log_promotion < replace(MONITOR, contract="overall").over(observations).log_promotion


def test_classes_are_counted_and_watched() -> None:
    observations = [replace(o, agreed=o.agreed and o.label != "fees") for o in audits([0.0] * 400, coverage=1.0)]
    state = MONITOR.over(observations)
    rows = {row.label: row for row in state.class_table()}
    assert sum(row.n for row in rows.values()) == state.n_handled == 400
    assert rows["fees"].verdict == "violating"
    assert rows["fees"].rang is not None
    assert rows["card"].verdict == "certified"
    assert [row.rang for label, row in rows.items() if label != "fees"] == [None, None, None]


def test_classes_are_held_to_what_is_promised_on_handled_traffic(estimated: Certificate) -> None:
    agreement = Monitor.of("v0001", estimated, 4, config=MonitorConfig(class_slack=0.02), restart=7)
    assert agreement == Monitor(0.95, "v0001", 4, MonitorConfig(class_slack=0.02), restart=7)
    assert agreement.promised == 0.95
    assert agreement.classes.floor == pytest.approx(0.93)
    overall = Monitor.of("v0001", replace(estimated, contract="overall", handled_floor=0.8), 4)
    assert (overall.promised, overall.allowed) == (0.8, agreement.allowed)
    assert overall.classes.floor == pytest.approx(0.75)
    # Nine in ten agree in every class: below the target, above what is promised of handled traffic.
    state = overall.over(audits([0.1] * 900, coverage=1.0))
    assert {row.verdict for row in state.class_table()} == {"certified"}
    assert replace(overall, handled_floor=None).classes.floor == 0.01


def test_what_is_shown_is_json() -> None:
    shown = json.loads(json.dumps(MONITOR.over(audits([0.3] * 300)).as_dict(), allow_nan=False))["shown"]
    assert shown["status"] in {"warn", "alarm"}
    assert shown["n_recent"] == 100
    assert {row["label"] for row in shown["classes"]} == set(LABELS)


def test_foreign_states_are_refused() -> None:
    stored = MONITOR.start().as_dict()
    for broken in ({k: v for k, v in stored.items() if k != "monitor"}, stored | {"more": 1}, {"monitor": 3}):
        with pytest.raises(ConfigError, match="does not have the fields it should"):
            MonitorState.from_dict(broken)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arl": 1.0}, "arl = 1.0"),
        ({"arl": float("inf")}, "arl = inf"),
        ({"warn_share": 0.0}, "warn_share = 0.0"),
        ({"rollback_delta": 1.0}, "rollback_delta = 1.0"),
        ({"level": 2.0}, "level = 2.0"),
        ({"window": 0}, "window = 0"),
        ({"class_slack": -0.1}, "class_slack = -0.1"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MonitorConfig(**change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"target": 1.0}, "target = 1.0"), ({"n_classes": 0}, "n_classes = 0"), ({"handled_floor": 1.0}, "handled_floor")],
)
def test_impossible_monitors_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(MONITOR, **change)  # type: ignore[arg-type]


def test_a_target_below_one_half_can_be_watched() -> None:
    low = Monitor(target=0.4, policy="v0001", n_classes=4)
    assert low.over(audits([0.3] * 400)).status == "quiet"
    assert low.over(audits([0.9] * 400)).status == "alarm"
