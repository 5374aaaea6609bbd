"""Audits, modes and records: every teacher call says how it came about, and what the policy saw."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from itertools import count
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tests.serving.test_router import SURE, UNSURE, broken, same, shout
from tracer.certification.proposals import ACCEPT_ALL
from tracer.errors import PolicyError, RouteError, TraceError
from tracer.features.dense import CallableEmbedder
from tracer.policies.policy import Policy
from tracer.serving.router import KILL_SWITCH, Router
from tracer.types import FAILED, Answer, Dataset, Seen, Trace, Usage

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def router_of(policy: Policy | None, kept: list[Trace] | None = None, seed: int = 0, **given: Any) -> Router:
    """A router with seeded coins, ids that count up and a clock that stands still."""
    ids = count(1)
    given = {"teacher": shout, "new_id": lambda: f"t{next(ids)}", "clock_utc": lambda: NOON} | given
    record = kept.append if kept is not None else None
    return Router(policy, rng=random.Random(seed), record=record, **given)


def test_a_bare_router_audits_nothing_and_draws_nothing(tiny_policy: Policy) -> None:
    class NoDraw(random.Random):
        def random(self) -> float:
            raise AssertionError("a coin was tossed")

    assert Router(tiny_policy, rng=NoDraw()).settings.audit_rate == 0.0
    assert Router(tiny_policy, rng=NoDraw()).route(SURE).handled


def test_an_audit_asks_the_teacher_and_the_policy_decides_beside(tiny_policy: Policy) -> None:
    kept: list[Trace] = []
    policy = replace(tiny_policy, version="v0007")
    router = router_of(policy, kept, audit_rate=1.0, teacher_name="big", prompt="p1")
    sure, unsure = router.route_many([SURE, UNSURE])
    assert (sure.label, sure.source, sure.reason, sure.audited, sure.origin) == (
        SURE.upper(), "teacher", "audit", True, "audit",
    )  # fmt: skip
    assert sure.seen == Seen("v0007", "refund", True, sure.score)
    assert sure.surrogate_label == "refund"
    assert not sure.handled
    assert unsure.seen is not None
    assert (unsure.seen.handled, unsure.origin) == (False, "audit"), "an audit of what is deferred is an audit"
    assert kept == [
        Trace(f"t{i}", text, text.upper(), "big", NOON, "audit", prompt="p1", seen=answer.seen)
        for i, (text, answer) in enumerate([(SURE, sure), (UNSURE, unsure)], 1)
    ]
    assert router.counts == {"audit": 2}


def test_audits_are_independent_of_the_score(policies: dict[str, Policy], messages: Dataset) -> None:
    """Fisher's exact test on audited against would-be-handled: one seed, fixed beforehand, at 1 in 1,000."""
    texts = messages.texts or ()
    answers = router_of(policies["lexical"], seed=20, audit_rate=0.2).route_many(texts)
    table = np.zeros((2, 2), dtype=int)
    for answer in answers:
        assert answer.seen is not None
        table[int(answer.audited), int(answer.seen.handled)] += 1
    assert table.min() > 50
    assert stats.fisher_exact(table).pvalue > 1e-3
    assert stats.binomtest(int(table[1].sum()), len(texts), 0.2).pvalue > 1e-3


@pytest.mark.parametrize("settings", [{}, {"mode": "shadow"}, {"mode": "canary", "share": 0.5}])
@pytest.mark.parametrize("kind", ["lexical", "both", "cascade"])
def test_batch_async_and_one_by_one_toss_alike(
    kind: str, settings: dict[str, Any], policies: dict[str, Policy], small: Dataset
) -> None:
    texts, dense = small.texts or (), small.dense
    assert dense is not None
    texts, dense = texts[:150], dense[:150]

    def fresh() -> Router:
        return router_of(policies[kind], seed=4, audit_rate=0.3, **settings)

    together, alone, later = fresh(), fresh(), fresh()
    answers = together.route_many(texts, embeddings=dense)
    assert same(answers, [alone.route(t, embedding=e) for t, e in zip(texts, dense, strict=True)])
    assert same(answers, asyncio.run(later.aroute_many(texts, embeddings=dense)))
    assert together.counts == alone.counts == later.counts
    assert 20 < sum(a.audited for a in answers) < 70


def test_shadow_never_answers_itself(tiny_policy: Policy) -> None:
    kept: list[Trace] = []
    router = router_of(tiny_policy, kept, mode="shadow")
    answers = router.route_many([SURE, UNSURE])
    assert [(a.source, a.reason, a.origin, a.audited) for a in answers] == [
        ("teacher", "shadow", "bootstrap", False)
    ] * 2
    assert [t.seen.handled for t in kept if t.seen] == [True, False]
    assert router_of(tiny_policy, mode="shadow", teacher=None).route(SURE).source == "none"


def test_canary_serves_a_share(tiny_policy: Policy) -> None:
    kept: list[Trace] = []
    answers = router_of(tiny_policy, kept, seed=9, mode="canary", share=0.25).route_many([SURE] * 2000)
    live = sum(a.handled for a in answers)
    assert stats.binomtest(live, 2000, 0.25).pvalue > 1e-3
    assert {(a.reason, a.origin) for a in answers if not a.handled} == {("canary", "bootstrap")}
    assert len(kept) == 2000 - live
    deferred = router_of(tiny_policy, seed=9, mode="canary", share=1.0).route(UNSURE)
    assert deferred.origin == "deferred", "the live side defers by the input"


def test_a_request_for_the_teacher_is_no_sample(tiny_policy: Policy) -> None:
    kept: list[Trace] = []
    router = router_of(tiny_policy, kept, audit_rate=1.0)
    answer = router.route(SURE, ask_teacher=True)
    assert (answer.label, answer.reason, answer.origin, answer.audited) == (
        SURE.upper(),
        "requested",
        "requested",
        False,
    )
    assert (answer.seen, answer.surrogate_label, kept[0].origin) == (None, None, "requested")
    assert router.counts == {"requested": 1}
    assert router.take_tally() is None, "no part of the traffic that coverage is said of"
    assert asyncio.run(router.aroute(SURE, ask_teacher=True)).origin == "requested"
    with pytest.raises(RouteError):
        router.route(ask_teacher=True)


def test_where_no_policy_is_asked_all_is_a_plain_sample(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    assert router_of(None).route(SURE).origin == "bootstrap"
    audited = router_of(None, audit_rate=1.0).route(SURE)
    assert (audited.reason, audited.origin, audited.seen) == ("audit", "audit", None)
    monkeypatch.setenv(KILL_SWITCH, "1")
    for settings in ({}, {"mode": "shadow"}, {"mode": "canary", "share": 0.0}):
        answer = router_of(tiny_policy, **settings).route(SURE)
        assert (answer.reason, answer.origin, answer.seen) == ("kill_switch", "bootstrap", None)
    assert router_of(tiny_policy, audit_rate=1.0).route(SURE).origin == "audit"


def test_what_fails_is_a_fallback_unless_it_was_drawn(tiny_policy: Policy) -> None:
    bad = broken(tiny_policy)
    for settings, reason, origin in (
        ({}, "error", "fallback"),
        ({"audit_rate": 1.0}, "audit", "audit"),
        ({"mode": "shadow"}, "shadow", "bootstrap"),
    ):
        router = router_of(bad, **settings)
        answer = router.route(SURE)
        assert (answer.reason, answer.origin, answer.seen) == (reason, origin, None)
        assert router.counts == {reason: 1, "fault:policy": 1}


def test_what_the_surrogate_answers_has_no_origin(tiny_policy: Policy) -> None:
    kept: list[Trace] = []
    answer = router_of(tiny_policy, kept).route(SURE)
    assert (answer.origin, answer.audited, kept) == (None, False, [])
    assert answer.seen == Seen("", "refund", True, answer.score)


# The teacher of an audit fails.


def flaky(failures: int) -> tuple[Callable[[str], str], list[str]]:
    calls: list[str] = []

    def teacher(text: str) -> str:
        calls.append(text)
        if len(calls) <= failures:
            raise TimeoutError("late")
        return "late but there"

    return teacher, calls


def asked(router: Router, how: str) -> Answer:
    return router.route(SURE) if how == "sync" else asyncio.run(router.aroute(SURE))


def teachers(how: str, failures: int) -> tuple[dict[str, Any], list[str]]:
    teacher, calls = flaky(failures)

    async def later(text: str) -> str:
        return teacher(text)

    given: dict[str, dict[str, Any]] = {
        "sync": {"teacher": teacher},
        "async": {"teacher": None, "async_teacher": later},
        "thread": {"teacher": teacher},
    }
    return given[how], calls


@pytest.mark.parametrize("how", ["sync", "async", "thread"])
def test_a_failed_audit_is_tried_again(how: str, tiny_policy: Policy) -> None:
    kept: list[Trace] = []
    given, calls = teachers(how, 1)
    answer = asked(router_of(tiny_policy, kept, audit_rate=1.0, **given), how)
    assert (answer.label, len(calls)) == ("late but there", 2)
    assert [t.label for t in kept] == ["late but there"]


@pytest.mark.parametrize("how", ["sync", "async", "thread"])
def test_an_audit_that_fails_twice_is_kept_as_failed(how: str, tiny_policy: Policy) -> None:
    kept: list[Trace] = []
    given, calls = teachers(how, 9)
    router = router_of(tiny_policy, kept, audit_rate=1.0, **given)
    with pytest.raises(RouteError, match="the teacher failed: TimeoutError: late"):
        asked(router, how)
    assert len(calls) == 2
    (trace,) = kept
    assert (trace.label, trace.origin, trace.seen and trace.seen.handled) == (FAILED, "audit", True)
    assert router.counts == {"audit": 1, "teacher_error": 1}


@pytest.mark.parametrize("settings", [{"mode": "shadow"}, {"mode": "canary", "share": 0.0}])
def test_other_failures_are_neither_tried_again_nor_kept(settings: dict[str, Any], tiny_policy: Policy) -> None:
    kept: list[Trace] = []
    teacher, calls = flaky(9)
    answer = router_of(tiny_policy, kept, teacher=teacher, **settings).route_many([SURE])[0]
    assert (answer.reason, answer.origin, len(calls), kept) == ("teacher_error", "bootstrap", 1, [])


def test_the_label_of_a_failure_is_no_label(tiny_policy: Policy) -> None:
    with pytest.raises(RouteError, match="which is no label"):
        router_of(tiny_policy, teacher=lambda _text: FAILED).route(UNSURE)


def test_an_audit_is_kept_where_the_caller_hangs_up(tiny_policy: Policy) -> None:
    kept: list[Trace] = []

    async def never(text: str) -> str:
        await asyncio.sleep(60)
        return text

    async def hang_up(router: Router) -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(router.aroute(SURE), 0.05)

    asyncio.run(hang_up(router_of(tiny_policy, kept, audit_rate=1.0, async_teacher=never)))
    assert [(t.label, t.origin) for t in kept] == [(FAILED, "audit")]
    asyncio.run(hang_up(router_of(tiny_policy, kept, mode="shadow", async_teacher=never)))
    assert len(kept) == 1, "only an audit is missed"


def test_an_audit_is_kept_where_the_caller_hangs_up_before_the_teacher_is_asked(tiny_policy: Policy) -> None:
    kept: list[Trace] = []
    asked_for: list[str] = []

    async def teacher(text: str) -> str:
        asked_for.append(text)
        return text

    async def hang_up(router: Router) -> None:
        request = asyncio.create_task(router.aroute_many([SURE, UNSURE]))
        asyncio.get_running_loop().call_soon(request.cancel)  # after its first step, before those that it starts
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(hang_up(router_of(tiny_policy, kept, audit_rate=1.0, async_teacher=teacher)))
    assert asked_for == []
    assert [(t.label, t.origin, t.seen is not None) for t in kept] == [(FAILED, "audit", True)] * 2


def test_an_audit_is_kept_where_the_caller_hangs_up_while_it_is_embedded(
    policies: dict[str, Policy], embedder: CallableEmbedder
) -> None:
    kept: list[Trace] = []

    async def hang_up(router: Router) -> None:
        began = asyncio.Event()
        loop = asyncio.get_running_loop()

        def slow(texts: list[str]) -> NDArray[np.float32]:
            loop.call_soon_threadsafe(began.set)
            return embedder.embed(texts)

        router._state = replace(router._state, embedder=CallableEmbedder(slow, "table", digest="table-1"))
        request = asyncio.create_task(router.aroute(SURE))
        await began.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request

    asyncio.run(hang_up(router_of(policies["both"], kept, audit_rate=1.0)))
    assert [(t.label, t.origin, t.seen) for t in kept] == [(FAILED, "audit", None)]


# What the caller records, and what cannot be recorded.


def test_the_caller_who_asks_the_teacher_makes_the_trace(tiny_policy: Policy) -> None:
    router = router_of(tiny_policy, audit_rate=1.0, teacher=None)
    answer = router.route(SURE)
    assert (answer.label, answer.source, answer.reason) == (None, "none", "audit")
    usage = Usage(10, 1)
    trace = answer.trace(
        SURE, "refund", id="a", time=NOON, teacher="big", prompt="p", group="g", usage=usage, metadata={"k": 1}
    )
    assert trace == Trace(
        "a", SURE, "refund", "big", NOON, "audit", "g", usage=usage, metadata={"k": 1}, prompt="p", seen=answer.seen
    )
    with pytest.raises(TraceError, match="label is empty"):
        answer.trace(SURE, "", id="a")


def test_a_label_asked_for_after_the_answer_was_known_is_no_sample(tiny_policy: Policy) -> None:
    answer = Router(tiny_policy).route(SURE)
    assert answer.handled
    assert answer.trace(SURE, "refund", id="a").origin == "requested"


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_failing_record_fails_no_request(how: str, tiny_policy: Policy, caplog: pytest.LogCaptureFixture) -> None:
    def full(trace: Trace) -> None:
        raise OSError(f"disk full: {trace.text}")

    router = Router(tiny_policy, teacher=shout, audit_rate=1.0, record=full)
    with caplog.at_level(logging.WARNING, logger="tracer.router"):
        assert asked(router, how).label == SURE.upper()
    assert router.counts == {"audit": 1, "fault:record": 1}
    assert "OSError" in caplog.text
    assert SURE not in caplog.text


def test_a_text_that_no_trace_can_hold_is_answered_and_counted() -> None:
    kept: list[Trace] = []
    router = router_of(None, kept, teacher=lambda _text: "x")
    assert router.route("   ").label == "x"
    assert (router.counts["fault:record"], kept) == (1, [])


def test_what_the_teacher_here_cannot_read_is_not_audited(policies: dict[str, Policy], small: Dataset) -> None:
    assert small.dense is not None
    policy = replace(policies["dense"], certificate=replace(policies["dense"].certificate, threshold=ACCEPT_ALL))
    assert router_of(policy, audit_rate=1.0).route(embedding=small.dense[0]).handled
    by_caller = router_of(policy, audit_rate=1.0, teacher=None).route(embedding=small.dense[0])
    assert (by_caller.audited, by_caller.label) == (True, None)
    with pytest.raises(RouteError, match="a teacher reads text"):
        router_of(policy, mode="shadow").route(embedding=small.dense[0])


def test_settings_that_cannot_be_are_refused(tiny_policy: Policy) -> None:
    with pytest.raises(PolicyError, match=r"audit_rate = 1\.5"):
        Router(tiny_policy, audit_rate=1.5)
