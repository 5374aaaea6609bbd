"""Tallies: read from their stored facts, checked, and summed."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tracer.errors import TraceError
from tracer.monitoring.tallies import Counts, Tally

NOON = datetime(2026, 4, 14, 12, tzinfo=UTC)


def test_a_tally_from_its_facts() -> None:
    facts = {"handled": 70, "novel": 2, "labels": {"card": 60, "fees": 38}, "errors": 2}
    tally = Tally.of("v0001", NOON, 60.0, 100, facts)
    assert tally == Tally("v0001", NOON, 60.0, 100, 70, 2, {"card": 60, "fees": 38}, 2)
    assert tally.n_decided == 98
    assert Tally.of("v0001", NOON, 60.0, 5, {}) == Tally("v0001", NOON, 60.0, 5, 0)


@pytest.mark.parametrize(
    "facts", [{"handled": 11}, {"handled": 9, "errors": 2}, {"novel": -1}, {"errors": 12}, {"labels": {"a": 6, "b": 5}}]
)
def test_impossible_counts_are_refused(facts: dict[str, object]) -> None:
    with pytest.raises(TraceError, match="a tally of 'v0001' has impossible counts"):
        Tally.of("v0001", NOON, 60.0, 10, facts)


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_impossible_times_are_refused(seconds: float) -> None:
    with pytest.raises(TraceError, match="seconds"):
        Tally.of("v0001", NOON, seconds, 10, {})


def test_sums() -> None:
    one = Tally("v0001", NOON, 60.0, 10, 7, 1, {"a": 6, "b": 3}, 1)
    two = Tally("v0001", NOON, 60.0, 4, 2, 0, {"b": 1, "c": 3})
    both = Counts().plus(60.0, one).plus(0.0, two)
    assert both == Counts(60.0, 14, 9, 1, 1, {"a": 6, "b": 4, "c": 3})
    assert both.plus(1.0, both).n == 28
