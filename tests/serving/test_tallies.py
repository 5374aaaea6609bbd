"""Tallies: what each version decided, taken and begun anew."""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tests.serving.test_router import SURE, UNSURE, broken, shout
from tracer.certification.proposals import ACCEPT_ALL
from tracer.learning.candidates import NoveltyGuard
from tracer.policies.policy import Policy
from tracer.serving.router import KILL_SWITCH, Router
from tracer.serving.tallies import Tallies, Tally
from tracer.types import Decided

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_a_tally_counts_what_the_policy_decided(tiny_policy: Policy) -> None:
    router = Router(
        replace(tiny_policy, version="v0001"),
        teacher=shout,
        mode="shadow",
        audit_rate=1.0,
        clock_utc=lambda: NOON,
    )
    answers = [*router.route_many([SURE, UNSURE, "where is my parcel"]), router.route(SURE)]
    labels = Counter(a.surrogate_label for a in answers)
    facts = {"handled": 3, "served": 0, "novel": 1, "errors": 0, "audits": 4, "labels": dict(labels)}
    (looked,) = router.tallies()
    assert replace(looked, seconds=0.0) == Tally("v0001", NOON, 0.0, 4, facts), "a look takes nothing away"
    tally = router.take_tally()
    assert tally is not None
    assert tally.seconds >= looked.seconds >= 0.0
    assert replace(tally, seconds=0.0) == Tally("v0001", NOON, 0.0, 4, facts)
    assert router.take_tally() is None


def test_errors_are_counted_and_have_no_label(tiny_policy: Policy) -> None:
    router = Router(broken(replace(tiny_policy, version="v0001"), only_blank=True), teacher=shout)
    router.route_many([SURE, "zzz"])
    tally = router.take_tally()
    assert tally is not None
    assert (tally.n, tally.facts["errors"], tally.facts["labels"]) == (2, 1, {"refund": 1})


def test_what_no_policy_decided_is_apart(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router(replace(tiny_policy, version="v0001"))
    router.route(SURE)
    monkeypatch.setenv(KILL_SWITCH, "1")
    router.route_many([SURE, SURE])
    assert [(t.policy, t.n) for t in (router.take_tally(), router.take_tally()) if t] == [("v0001", 1), (None, 2)]
    assert router.take_tally() is None


@pytest.mark.parametrize("mode", ["rank", "defer"])
def test_unfamiliar_inputs_are_counted_even_where_they_are_handled(mode: str, tiny_policy: Policy) -> None:
    guard = NoveltyGuard("rank" if mode == "rank" else "defer", np.inf)  # everything is unfamiliar
    policy = replace(
        tiny_policy,
        candidate=replace(tiny_policy.candidate, guard=guard),
        certificate=replace(tiny_policy.certificate, threshold=ACCEPT_ALL),
    )
    router = Router(policy)
    handled = router.route(SURE).handled
    assert handled == (mode == "rank")
    tally = router.take_tally()
    assert tally is not None
    assert tally.facts["novel"] == 1


def decisions(label: str) -> list[Decided]:
    return [Decided(label, 0.9, True, "handled", 2)]


def test_a_wall_clock_that_is_set_back_changes_no_duration() -> None:
    times, ticks = iter([NOON, NOON - timedelta(days=1)]), iter([5.0, 95.0])
    tallies = Tallies(lambda: next(times), lambda: next(ticks))
    tallies.add("v1", decisions("a"), [None])
    tally = tallies.take()
    assert tally is not None
    assert (tally.started, tally.seconds) == (NOON, 90.0)


def test_versions_that_are_never_taken_are_bounded() -> None:
    tallies = Tallies(lambda: NOON)
    for i in range(100):
        tallies.add(f"v{i:04d}", decisions("a"), [None])
    taken = []
    while (tally := tallies.take()) is not None:
        taken.append(tally.policy)
    assert taken == [f"v{i:04d}" for i in range(68, 100)]


def test_tallies_are_exact_under_threads() -> None:
    tallies, taken, n = Tallies(lambda: NOON), [], 8
    done = threading.Event()

    def take() -> None:
        while not done.is_set():
            if tally := tallies.take():
                taken.append(tally)

    taker = threading.Thread(target=take)

    def add() -> None:
        for _ in range(300):
            tallies.add("v1", decisions("a"), ["audit"])

    adders = [threading.Thread(target=add) for _ in range(n)]
    for thread in (taker, *adders):
        thread.start()
    for thread in adders:
        thread.join()
    done.set()
    taker.join()
    while tally := tallies.take():
        taken.append(tally)
    assert sum(t.n for t in taken) == sum(int(str(t.facts["audits"])) for t in taken) == 300 * n
