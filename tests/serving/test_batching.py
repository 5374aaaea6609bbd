"""Encoding beside the event loop: batches of what runs side by side, with the decisions of one by one."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Sequence

import numpy as np
import pytest

from tracer.errors import EmbedderError
from tracer.features.dense import CallableEmbedder
from tracer.policies.policy import Policy
from tracer.serving.batching import Encoding
from tracer.serving.router import Router
from tracer.types import Answer, Dataset, EmbedderIdentity, Float32


class Gate:
    """An embedder that notes its batches; while it is ``shut``, a batch waits within it."""

    def __init__(self, inner: CallableEmbedder) -> None:
        self._inner, self.batches = inner, list[list[str]]()
        self.open, self.entered = threading.Event(), threading.Event()
        self.open.set()
        self.broken = False

    @property
    def identity(self) -> EmbedderIdentity:
        return self._inner.identity

    def embed(self, texts: Sequence[str]) -> Float32:
        self.batches.append(list(texts))
        self.entered.set()
        assert self.open.wait(20)
        time.sleep(0.005)  # long enough for some to gather
        if self.broken:
            raise OSError("the encoder is down")
        return self._inner.embed(texts)


@pytest.fixture
def gate(embedder: CallableEmbedder) -> Gate:
    return Gate(embedder)


def made(policy: Policy, gate: Gate, **settings: float) -> Router:
    router = Router(policy, embedder=gate, rng=random.Random(3), **settings)  # type: ignore[arg-type]
    gate.batches.clear()  # the probes of the check
    gate.entered.clear()
    return router


def said(answer: Answer) -> tuple[object, ...]:
    return (answer.label, answer.reason, answer.surrogate_label, answer.score, answer.audited, answer.origin)


@pytest.fixture
def texts(messages: Dataset) -> list[str]:
    assert messages.texts is not None
    return list(messages.texts[600:680])


async def together(router: Router, texts: Sequence[str]) -> list[Answer]:
    return list(await asyncio.gather(*(router.aroute(text) for text in texts)))


@pytest.mark.parametrize("kind", ["dense", "both", "cascade"])
def test_side_by_side_decides_as_one_by_one(
    kind: str, policies: dict[str, Policy], gate: Gate, texts: list[str]
) -> None:
    alone = made(policies[kind], gate, audit_rate=0.3)
    one_by_one = [said(alone.route(text)) for text in texts]
    n_embedded = sum(map(len, gate.batches))
    router = made(policies[kind], gate, audit_rate=0.3)
    assert [said(answer) for answer in asyncio.run(together(router, texts))] == one_by_one
    assert {audited for *_, audited, _ in one_by_one} == {True, False}
    assert sum(map(len, gate.batches)) == n_embedded
    assert len(gate.batches) < n_embedded / 2
    assert router.counts == alone.counts


def test_the_lexical_stage_needs_no_encoder(policies: dict[str, Policy], gate: Gate, texts: list[str]) -> None:
    policy = policies["cascade"]
    early = [text for text in texts if (decided := policy.decide_early(text)) is not None and decided.handled]
    router = made(policy, gate)
    gate.open.clear()
    answers = asyncio.run(together(router, early))
    gate.open.set()
    assert early
    assert all(answer.handled for answer in answers)
    assert gate.batches == []


def test_what_comes_meanwhile_is_the_next_batch(policies: dict[str, Policy], gate: Gate, texts: list[str]) -> None:
    router = made(policies["dense"], gate)

    async def run() -> list[Answer]:
        gate.open.clear()
        first = asyncio.ensure_future(router.aroute(texts[0]))
        await asyncio.to_thread(gate.entered.wait, 20)
        rest = [asyncio.ensure_future(router.aroute(text)) for text in texts[1:41]]
        await asyncio.sleep(0.01)  # all of them have been handed over
        gate.open.set()
        return list(await asyncio.gather(first, *rest))

    assert len(asyncio.run(run())) == 41
    assert [len(batch) for batch in gate.batches] == [1, 32, 8]


def test_who_leaves_harms_nobody(policies: dict[str, Policy], gate: Gate, texts: list[str]) -> None:
    router = made(policies["dense"], gate)

    async def run() -> list[Answer | BaseException]:
        gate.open.clear()
        first = asyncio.ensure_future(router.aroute(texts[0]))
        await asyncio.to_thread(gate.entered.wait, 20)
        rest = [asyncio.ensure_future(router.aroute(text)) for text in texts[1:5]]
        await asyncio.sleep(0.01)
        first.cancel()
        rest[1].cancel()
        gate.open.set()
        return list(await asyncio.gather(first, *rest, return_exceptions=True))

    found = asyncio.run(run())
    assert [isinstance(one, asyncio.CancelledError) for one in found] == [True, False, True, False, False]
    assert gate.batches == [[texts[0]], [texts[1], texts[3], texts[4]]]
    alone = made(policies["dense"], gate)
    assert [said(one) for one in found if isinstance(one, Answer)] == [said(alone.route(texts[i])) for i in (1, 3, 4)]


def test_a_batch_that_fails_goes_to_the_teacher(policies: dict[str, Policy], gate: Gate, texts: list[str]) -> None:
    router = made(policies["dense"], gate, audit_rate=0.3)
    gate.broken = True
    failed = asyncio.run(together(router, texts[:20]))
    assert {(answer.reason, answer.origin) for answer in failed} == {("error", "fallback"), ("audit", "audit")}
    assert all(answer.label is None and answer.seen is None for answer in failed)
    assert router.counts["fault:embedder"] == 20
    gate.broken = False
    assert all(answer.seen is not None for answer in asyncio.run(together(router, texts[:20])))


def test_what_waits_is_bounded(embedder: CallableEmbedder, texts: list[str]) -> None:
    gate = Gate(embedder)
    gate.open.clear()
    encoding = Encoding(waiting=2)
    first = encoding.submit(gate, texts[0])
    assert gate.entered.wait(20)
    waiting = [encoding.submit(gate, text) for text in texts[1:4]]
    with pytest.raises(EmbedderError, match="2 texts wait"):
        waiting[2].result(0)
    gate.open.set()
    for text, vector in zip(texts[:3], (first, *waiting[:2]), strict=True):
        np.testing.assert_array_equal(vector.result(20), embedder.embed([text])[0])


def test_one_text_that_the_embedder_refuses_harms_no_other(embedder: CallableEmbedder, texts: list[str]) -> None:
    class Picky:
        def __init__(self) -> None:
            self.identity, self.n = embedder.identity, 0

        def embed(self, asked: Sequence[str]) -> Float32:
            self.n += 1
            if "" in asked or self.n > 100:
                raise OSError("too long")
            return embedder.embed(asked)

    picky, encoding = Picky(), Encoding()
    some = [*texts[:10], "", *texts[10:20]]
    futures = [encoding.submit(picky, text) for text in some]
    failed = [text for text, future in zip(some, futures, strict=True) if future.exception(10) is not None]
    assert failed == [""]
    picky.n = 1000
    assert all(encoding.submit(picky, text).exception(10) is not None for text in texts[:5]), "it is down"
