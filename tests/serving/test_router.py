"""The router: handled, deferred, and every failure to the teacher, counted."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tracer.certification.proposals import ACCEPT_ALL
from tracer.errors import ArchiveError, EmbedderError, PolicyError, RouteError
from tracer.features.dense import PROBE_TEXTS, CallableEmbedder
from tracer.learning.heads import Block
from tracer.learning.surrogates import Part, Surrogate
from tracer.pipeline import Certified
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.serving.router import KILL_SWITCH, Router, check_embedder
from tracer.serving.teachers import ReplayTeacher
from tracer.types import Answer, Dataset, EmbedderIdentity, Float32

SURE, UNSURE = "refund my money", "hello there"


@dataclass(frozen=True, slots=True)
class BrokenHead:
    """Fails on every input, or only where a row has no known word."""

    head: Any
    only_blank: bool = False
    kind: ClassVar[str] = "broken"

    def logits(self, block: Block) -> Float32:
        if not self.only_blank or (np.asarray(block.sum(axis=1)) == 0).any():
            raise ZeroDivisionError("the head is broken")
        logits: Float32 = self.head.logits(block)
        return logits

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {}


def broken(policy: Policy, *, only_blank: bool = False) -> Policy:
    part = policy.candidate.surrogate.parts[0]
    parts = (Part(part.name, part.block, BrokenHead(part.head, only_blank), part.weight),)
    return replace(policy, candidate=replace(policy.candidate, surrogate=Surrogate(parts)))


def same(first: Sequence[Answer], second: Sequence[Answer]) -> bool:
    """Equal answers but for latency, version and the last bits of the scores."""

    def plain(answer: Answer) -> Answer:
        seen = answer.seen and replace(answer.seen, policy="", score=0.0)
        return replace(answer, latency_s=0.0, score=0.0, policy=None, seen=seen)

    assert [a.score for a in first] == pytest.approx([a.score for a in second], abs=1e-4)
    return [plain(a) for a in first] == [plain(a) for a in second]


def shout(text: str) -> str:
    return text.upper()


async def whisper(text: str) -> str:
    await asyncio.sleep(0)
    return text.lower()


def test_the_surrogate_answers_what_it_handles(tiny_policy: Policy) -> None:
    teacher = ReplayTeacher({})
    answer = Router(replace(tiny_policy, version="v0003"), teacher=teacher).route(SURE)
    assert (answer.label, answer.source, answer.reason, answer.handled) == ("refund", "surrogate", "handled", True)
    assert answer.surrogate_label == "refund"
    assert answer.score >= answer.threshold == 0.5
    assert answer.policy == "v0003"
    assert answer.latency_s > 0
    assert teacher.n_calls == 0


def test_without_a_teacher_a_deferred_input_has_no_label(tiny_policy: Policy) -> None:
    answer = Router(tiny_policy).route(UNSURE)
    assert (answer.label, answer.source, answer.handled) == (None, "none", False)
    assert answer.reason in ("below_threshold", "novel")
    assert answer.surrogate_label in tiny_policy.space.names
    assert answer.score < answer.threshold


def test_the_teacher_answers_what_is_deferred(tiny_policy: Policy) -> None:
    teacher = ReplayTeacher({UNSURE: "greeting"})
    router = Router(tiny_policy, teacher=teacher)
    answers = router.route_many([SURE, UNSURE, SURE])
    assert [(a.label, a.source) for a in answers] == [
        ("refund", "surrogate"), ("greeting", "teacher"), ("refund", "surrogate"),
    ]  # fmt: skip
    assert teacher.n_calls == 1
    assert router.counts == {"handled": 2, answers[1].reason: 1}


def test_without_a_policy_everything_goes_to_the_teacher() -> None:
    router = Router(None, teacher=shout)
    answer = router.route(SURE)
    assert (answer.label, answer.source, answer.reason, answer.policy) == (SURE.upper(), "teacher", "no_policy", None)
    assert answer.surrogate_label is None
    assert router.counts == {"no_policy": 1}


@pytest.mark.parametrize("value", ["1", "true", "YES", " on "])
def test_the_kill_switch_works_at_once(value: str, tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    router = Router(tiny_policy, teacher=shout)
    assert router.route(SURE).handled
    monkeypatch.setenv(KILL_SWITCH, value)
    answer = router.route(SURE)
    assert (answer.label, answer.source, answer.reason) == (SURE.upper(), "teacher", "kill_switch")
    monkeypatch.delenv(KILL_SWITCH)
    assert router.route(SURE).handled
    assert router.counts == {"handled": 2, "kill_switch": 1}


def test_the_kill_switch_has_this_name_and_other_values_do_nothing(
    tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert KILL_SWITCH == "TRACER_OFF"
    for value in ("0", "", "false", "off"):
        monkeypatch.setenv(KILL_SWITCH, value)
        assert Router(tiny_policy).route(SURE).handled


def test_the_async_teacher_answers_what_is_deferred(tiny_policy: Policy) -> None:
    router = Router(tiny_policy, async_teacher=whisper)
    handled, deferred = asyncio.run(router.aroute(SURE)), asyncio.run(router.aroute("HELLO There"))
    assert (handled.label, handled.source) == ("refund", "surrogate")
    assert (deferred.label, deferred.source) == ("hello there", "teacher")
    assert asyncio.run(Router(tiny_policy).aroute(UNSURE)).label is None


def test_many_async_requests_run_together(tiny_policy: Policy) -> None:
    waiting = 0

    async def all_at_once() -> list[Answer]:
        arrived = asyncio.Event()

        async def teacher(text: str) -> str:
            nonlocal waiting
            waiting += 1
            if waiting == 5:
                arrived.set()
            await asyncio.wait_for(arrived.wait(), 5)
            return text

        router = Router(tiny_policy, async_teacher=teacher)
        return await asyncio.gather(*(router.aroute(f"hello {i}") for i in range(5)))

    assert [a.label for a in asyncio.run(all_at_once())] == [f"hello {i}" for i in range(5)]


def failing(text: str) -> str:
    raise TimeoutError(f"no answer for {text}")


async def failing_later(text: str) -> str:
    raise TimeoutError(f"no answer for {text}")


def test_a_failing_teacher_is_a_route_error_with_its_cause(tiny_policy: Policy) -> None:
    router = Router(tiny_policy, teacher=failing, async_teacher=failing_later)
    asks: list[Callable[[], Answer]] = [lambda: router.route(UNSURE), lambda: asyncio.run(router.aroute(UNSURE))]
    for ask in asks:
        with pytest.raises(RouteError, match="the teacher failed: TimeoutError: no answer for hello there") as caught:
            ask()
        assert isinstance(caught.value.__cause__, TimeoutError)
    assert router.route(SURE).handled, "a failing teacher does not touch what the surrogate handles"


def test_a_broken_policy_defers_and_is_counted_and_logged(
    tiny_policy: Policy, caplog: pytest.LogCaptureFixture
) -> None:
    router = Router(broken(tiny_policy), teacher=shout)
    with caplog.at_level(logging.WARNING, logger="tracer.router"):
        answer = router.route("a secret text")
    assert (answer.label, answer.source, answer.reason) == ("A SECRET TEXT", "teacher", "error")
    assert router.counts == {"fault:policy": 1, "error": 1}
    assert "ZeroDivisionError" in caplog.text
    assert "the head is broken" not in caplog.text, "the message of an exception may quote the input"
    assert "secret" not in caplog.text


def test_one_bad_input_among_many_defers_alone(tiny_policy: Policy) -> None:
    router = Router(broken(tiny_policy, only_blank=True), teacher=shout)
    answers = router.route_many([SURE, "zzz", "where is my parcel"])
    assert [(a.label, a.reason) for a in answers] == [
        ("refund", "handled"), ("ZZZ", "error"), ("delivery", "handled"),
    ]  # fmt: skip
    assert router.counts == {"handled": 2, "error": 1, "fault:policy": 1}


def test_a_thing_that_is_no_text_defers_alone(tiny_policy: Policy) -> None:
    texts: Sequence[Any] = [SURE, None, 7, SURE]
    answers = Router(tiny_policy).route_many(texts)
    assert [a.reason for a in answers] == ["handled", "error", "error", "handled"]


def test_an_embedder_that_raises_defers_and_is_counted(policies: dict[str, Policy], small: Dataset) -> None:
    policy = policies["both"]
    assert policy.embedder is not None
    assert small.texts is not None
    identity = policy.embedder

    class Down:
        """An embedder that is known, and fails."""

        @property
        def identity(self) -> EmbedderIdentity:
            return identity

        def embed(self, texts: Sequence[str]) -> Float32:
            raise ConnectionError("refused")

    router = Router(policy, teacher=shout, embedder=Down())
    answers = router.route_many(small.texts[:3])
    assert [a.reason for a in answers] == ["error"] * 3
    assert [a.source for a in answers] == ["teacher"] * 3
    assert router.counts == {"fault:embedder": 1, "error": 3}
    given = router.route(small.texts[0], embedding=None if small.dense is None else small.dense[0])
    assert given.reason != "error", "a given embedding needs no embedder"


def test_a_cascade_answers_its_first_stage_while_the_embedder_is_down(
    policies: dict[str, Policy], messages: Dataset
) -> None:
    policy = policies["cascade"]
    decisions = policy.decide(messages.texts, messages.dense)
    first, second = (int(np.flatnonzero(decisions.stage == stage)[0]) for stage in (1, 2))
    assert messages.texts is not None
    answers = Router(policy, teacher=shout).route_many([messages.texts[first], messages.texts[second]])
    assert [a.reason for a in answers] == ["handled", "error"]


@pytest.mark.parametrize("kind", ["lexical", "dense", "both", "cascade"])
def test_one_by_one_and_many_are_routed_identically(kind: str, policies: dict[str, Policy], messages: Dataset) -> None:
    some = messages.take(np.arange(600, 800))
    assert some.texts is not None
    assert some.dense is not None
    router = Router(policies[kind], teacher=shout)
    together = router.route_many(some.texts, embeddings=some.dense)
    counted = router.counts
    alone = [router.route(t, embedding=e) for t, e in zip(some.texts, some.dense, strict=True)]
    assert same(alone, together)
    assert router.counts == {reason: 2 * n for reason, n in counted.items()}
    assert len({a.source for a in together}) == 2


def test_an_embedder_is_asked_where_no_embedding_is_given(
    policies: dict[str, Policy], small: Dataset, embedder: CallableEmbedder
) -> None:
    assert small.texts is not None
    router = Router(policies["both"], embedder=embedder)
    with_own = router.route_many(small.texts[:100])
    with_given = router.route_many(small.texts[:100], embeddings=small.dense[:100] if small.dense is not None else None)
    assert same(with_own, with_given)
    assert router.counts.get("error") is None


def test_embeddings_alone_are_routed_by_a_dense_policy(policies: dict[str, Policy], small: Dataset) -> None:
    assert small.dense is not None
    router = Router(policies["dense"])
    answers = router.route_many(embeddings=small.dense[:50])
    assert same([router.route(embedding=row) for row in small.dense[:50]], answers)
    assert same([router.route(embedding=[float(v) for v in small.dense[0]])], answers[:1])
    assert {a.source for a in answers} == {"surrogate", "none"}


def test_a_teacher_cannot_read_an_embedding(policies: dict[str, Policy], small: Dataset) -> None:
    assert small.dense is not None
    decisions = policies["dense"].decide(None, small.dense)
    deferred = small.dense[int(np.flatnonzero(~decisions.handled)[0])]
    router = Router(policies["dense"], teacher=shout, async_teacher=whisper)
    with pytest.raises(RouteError, match="a teacher reads text"):
        router.route(embedding=deferred)
    with pytest.raises(RouteError, match="a teacher reads text"):
        asyncio.run(router.aroute(embedding=deferred))


def test_an_embedding_of_another_size_defers(policies: dict[str, Policy]) -> None:
    router = Router(policies["dense"])
    assert router.route(embedding=np.ones(7)).reason == "error"
    assert router.route(embedding=np.full(384, np.nan)).reason == "error"
    assert router.counts == {"error": 2, "fault:policy": 2}


def test_nothing_to_route_is_nothing(tiny_policy: Policy) -> None:
    router = Router(tiny_policy, teacher=shout)
    assert router.route_many([]) == []
    assert router.counts == {}


def test_a_request_without_text_and_embedding_is_refused_by_name(tiny_policy: Policy) -> None:
    """Neither side can answer it."""
    router = Router(tiny_policy, teacher=shout, async_teacher=whisper)
    with pytest.raises(RouteError):
        router.route()
    with pytest.raises(RouteError):
        asyncio.run(router.aroute())


@pytest.mark.parametrize("n", [2, 4])
def test_texts_and_embeddings_that_are_not_as_many_are_not_paired_up(
    n: int, policies: dict[str, Policy], small: Dataset
) -> None:
    """A caller's list that slipped by one must not be answered by the surrogate with another text's embedding."""
    assert small.texts is not None
    assert small.dense is not None
    accepted = replace(policies["dense"], certificate=replace(policies["dense"].certificate, threshold=ACCEPT_ALL))
    router = Router(accepted)
    try:
        answers = router.route_many(small.texts[:3], embeddings=small.dense[:n])
    except RouteError:
        return
    assert [a.source for a in answers] == ["none"] * 3


def test_one_string_is_not_taken_for_its_letters(tiny_policy: Policy) -> None:
    answers: list[Answer] = []
    with pytest.raises(RouteError):
        answers = Router(tiny_policy).route_many(SURE)
    assert answers == []


def test_counts_are_exact_under_threads(tiny_policy: Policy) -> None:
    router, n, each = Router(tiny_policy, teacher=shout), 8, 60
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: [router.route(text) for text in (SURE, UNSURE) * (each // 2)])
            for _ in range(n)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    reason = router.route(UNSURE).reason
    assert router.counts == {"handled": n * each // 2, reason: n * each // 2 + 1}


def test_counts_are_a_copy(tiny_policy: Policy) -> None:
    router = Router(tiny_policy)
    router.route(SURE)
    router.counts["handled"] = 100
    assert router.counts == {"handled": 1}


def test_latency_is_measured_by_the_given_clock(tiny_policy: Policy) -> None:
    ticks = iter([10.0, 13.0])
    answers = Router(tiny_policy, clock=lambda: next(ticks)).route_many([SURE, SURE, SURE])
    assert [a.latency_s for a in answers] == [1.0, 1.0, 1.0]


# Which embedder a policy takes.


def identified(policy: Policy, embedder: CallableEmbedder, *, probes: bool = True) -> Policy:
    vectors = embedder.embed(PROBE_TEXTS) if probes else None
    return replace(policy, embedder=embedder.identity, probes=vectors)


def test_the_embedder_it_was_certified_with_is_taken(policies: dict[str, Policy], embedder: CallableEmbedder) -> None:
    for policy in (identified(policies["both"], embedder), identified(policies["dense"], embedder, probes=False)):
        assert Router(policy, embedder=embedder).embedder is embedder


def test_another_embedder_is_refused(policies: dict[str, Policy], embedder: CallableEmbedder) -> None:
    policy = identified(policies["both"], embedder)
    other = CallableEmbedder(lambda texts: np.ones((len(texts), 384)), "other", digest="other-1")
    with pytest.raises(EmbedderError, match=r"expected embedder 'table'.*got 'other'"):
        Router(policy, embedder=other)
    small = CallableEmbedder(lambda texts: np.ones((len(texts), 5)), "small", digest="table-1")
    with pytest.raises(EmbedderError, match="dimension 5"):
        Router(policy, embedder=small)


def test_an_embedder_that_drifted_is_refused(policies: dict[str, Policy], embedder: CallableEmbedder) -> None:
    drifted = CallableEmbedder(lambda texts: embedder.embed(texts) + np.float32(0.01), "table", digest="table-1")
    with pytest.raises(EmbedderError, match=r"probe texts differ by up to 0\.01"):
        Router(identified(policies["both"], embedder), embedder=drifted)


def test_precomputed_embeddings_take_any_embedder_of_their_size(
    policies: dict[str, Policy], embedder: CallableEmbedder
) -> None:
    assert policies["both"].embedder is not None
    assert policies["both"].embedder.digest == "precomputed"
    check_embedder(policies["both"], embedder)
    with pytest.raises(EmbedderError, match="dimension 5"):
        check_embedder(policies["both"], CallableEmbedder(lambda texts: np.ones((len(texts), 5)), "small", digest="x"))


def test_a_policy_without_embeddings_takes_none(tiny_policy: Policy, embedder: CallableEmbedder) -> None:
    with pytest.raises(PolicyError, match="reads no embeddings"):
        check_embedder(tiny_policy, embedder)


# From disk.


def test_a_router_loads_the_active_policy_or_another_version(
    fitted: tuple[Path, Certified], home: Path, live_texts: Sequence[str]
) -> None:
    verdict = fitted[1]
    direct, loaded = Router(verdict.policy), Router.load(home)
    assert same(loaded.route_many(live_texts[:100]), direct.route_many(live_texts[:100]))
    PolicyRegistry(home).save(replace(verdict.policy, parent="v0001"))
    assert loaded.route(live_texts[0]).policy == "v0001"
    assert Router.load(home, version="v0002").route(live_texts[0]).policy == "v0002"


def test_a_mismatching_embedder_is_refused_at_load(
    policies: dict[str, Policy], embedder: CallableEmbedder, tmp_path: Path
) -> None:
    registry = PolicyRegistry(tmp_path)
    registry.activate(registry.save(identified(policies["both"], embedder)).version)
    assert Router.load(tmp_path, embedder=embedder).embedder is embedder
    other = CallableEmbedder(lambda texts: np.ones((len(texts), 384)), "other", digest="other-1")
    with pytest.raises(EmbedderError, match="expected embedder 'table'"):
        Router.load(tmp_path, embedder=other)


def test_a_damaged_or_missing_policy_is_refused_at_load(home: Path, tmp_path: Path) -> None:
    with pytest.raises(PolicyError, match="no policy is active"):
        Router.load(tmp_path / "nowhere")
    (home / "policies" / "v0001" / "arrays.safetensors").write_bytes(b"")
    with pytest.raises(ArchiveError, match=r"arrays\.safetensors"):
        Router.load(home)


def test_the_replay_teacher_knows_only_what_was_recorded() -> None:
    teacher = ReplayTeacher({"a": "x"})
    assert teacher("a") == "x"
    with pytest.raises(RouteError, match="no recorded label for 'b'"):
        teacher("b")
    assert teacher.n_calls == 2


def test_one_failing_teacher_call_leaves_the_other_answers(tiny_policy: Policy) -> None:
    def moody(text: str) -> str:
        if text == "x":
            raise TimeoutError("late")
        return text.upper()

    router = Router(tiny_policy, teacher=moody)
    answers = router.route_many([SURE, "x", "y"])
    assert [a.source for a in answers] == ["surrogate", "none", "teacher"]
    assert answers[1].reason == "teacher_error"
    assert isinstance(answers[1].error, RouteError)
    assert isinstance(answers[1].error.__cause__, TimeoutError)
    assert router.counts["teacher_error"] == 1


def test_a_teacher_that_gives_no_label_has_failed(tiny_policy: Policy) -> None:
    with pytest.raises(RouteError, match="which is no label"):
        Router(tiny_policy, teacher=lambda _text: "").route(UNSURE)
    with pytest.raises(RouteError, match="give it as async_teacher"):
        Router(tiny_policy, teacher=whisper).route(UNSURE)  # type: ignore[arg-type]


def test_aroute_takes_a_sync_teacher_too(tiny_policy: Policy) -> None:
    answer = asyncio.run(Router(tiny_policy, teacher=shout).aroute(UNSURE))
    assert (answer.label, answer.source) == (UNSURE.upper(), "teacher")


def test_a_file_in_the_home_is_a_switch(tiny_policy: Policy, tmp_path: Path) -> None:
    switch = tmp_path / "OFF"
    router = Router(tiny_policy, switch=switch)
    assert router.route(SURE).handled
    switch.touch()
    assert router.route(SURE).reason == "kill_switch"
    switch.unlink()
    assert router.route(SURE).handled


def test_a_service_that_starts_switched_off_resumes(tiny_policy: Policy, tmp_path: Path) -> None:
    registry = PolicyRegistry(tmp_path)
    registry.activate(registry.save(tiny_policy).version)
    (tmp_path / "OFF").touch()
    router = Router.load(tmp_path, settings=ServingSettings(audit_rate=0.0))
    assert router.route(SURE).reason == "kill_switch"
    (tmp_path / "OFF").unlink()
    assert router.route(SURE).handled


def test_switched_off_a_damaged_policy_does_not_stop_a_start(tiny_policy: Policy, tmp_path: Path) -> None:
    registry = PolicyRegistry(tmp_path)
    saved = registry.save(tiny_policy)
    registry.activate(saved.version)
    (tmp_path / "policies" / saved.version / "manifest.json").write_bytes(b"{}")
    with pytest.raises(ArchiveError):
        Router.load(tmp_path)
    (tmp_path / "OFF").touch()
    assert Router.load(tmp_path, teacher=shout).route(UNSURE).source == "teacher"
