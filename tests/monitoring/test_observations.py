"""Which traces are observations, and when the teacher agrees."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from tracer.monitoring.observations import Observation, observed
from tracer.types import FAILED, Origin, Seen, Trace

SEEN = Seen(policy="v0003", label="refund", handled=True, score=0.9)
NOON = datetime(2026, 4, 14, 12, tzinfo=UTC)
AUDIT = Trace("a", "where is my money?", "refund", origin="audit", time=NOON, seen=SEEN)


def test_an_audit_that_agrees() -> None:
    assert Observation.of(AUDIT, 7) == Observation(7, "v0003", "refund", True, True, NOON)


@pytest.mark.parametrize("label", ["card", FAILED])
def test_another_label_and_a_failed_call_disagree(label: str) -> None:
    observation = Observation.of(replace(AUDIT, label=label), 7)
    assert observation is not None
    assert not observation.agreed
    assert observation.label == "refund"


def test_a_surrogate_cannot_agree_with_a_failed_call() -> None:
    seen = replace(SEEN, label=FAILED)
    observation = Observation.of(replace(AUDIT, label=FAILED, seen=seen), 7)
    assert observation is not None
    assert not observation.agreed


@pytest.mark.parametrize("origin", ["bootstrap", "deferred", "requested", "fallback", "imported"])
def test_only_audits_count(origin: Origin) -> None:
    assert Observation.of(replace(AUDIT, origin=origin), 7) is None


def test_an_audit_that_no_policy_saw_says_nothing() -> None:
    assert Observation.of(replace(AUDIT, seen=None), 7) is None


def test_order_and_numbers_are_kept() -> None:
    traces = [(3, AUDIT), (4, replace(AUDIT, origin="deferred")), (9, replace(AUDIT, id="b", label="card"))]
    assert [(o.number, o.agreed) for o in observed(traces)] == [(3, True), (9, False)]
