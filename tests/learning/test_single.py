"""One input at a time gives the numbers of many at once, whatever the candidate is made of."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.errors import FeatureError
from tracer.features.lexical import LexicalFeatures
from tracer.learning.acceptors import PAPER_FEATURES, Acceptor, Reliability, feature_names
from tracer.learning.candidates import Candidate, NoveltyGuard, Rules
from tracer.learning.heads import Head, KernelHead, LinearHead, MlpHead
from tracer.learning.neighbours import Prototypes
from tracer.learning.single import SingleScorer
from tracer.learning.surrogates import BlockName, Blocks, Part, Surrogate
from tracer.types import Float32

D, N = 6, 40
WORDS = ["refund", "lamp", "late", "where", "parcel", "naïve", "3", "!"]
TEXTS = [" ".join(np.random.default_rng(i).choice(WORDS, 5)) for i in range(N - 1)] + [""]
LEXICAL = LexicalFeatures.fit(TEXTS)


def head(kind: str, d: int, k: int, rng: np.random.Generator) -> Head:
    def drawn(*shape: int) -> Float32:
        return rng.normal(size=shape).astype(np.float32)

    if kind == "mlp":
        return MlpHead(((drawn(d, 8), drawn(8)), (drawn(8, k), drawn(k))))
    if kind == "kernel":
        return KernelHead(drawn(9, d), drawn(9, k), drawn(k), np.array([0.2], dtype=np.float32))
    return LinearHead(drawn(d, k), drawn(k))


def candidate(
    parts: list[tuple[BlockName, str]], k: int, rng: np.random.Generator, *, paper: bool, near: bool
) -> Candidate:
    names = PAPER_FEATURES if paper else feature_names(len(parts), neighbours=near)
    p = len(names)
    prototypes = None
    if near:
        labels = np.sort(rng.integers(0, k, 15)).astype(np.int32)
        vectors = rng.normal(size=(15, D)).astype(np.float32)
        prototypes = Prototypes(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), labels, k)
    record = Reliability(rng.random(k), 3.0 * rng.random(k))
    acceptor = Acceptor(
        names, rng.normal(size=p), 0.5 + rng.random(p), rng.normal(size=p), float(rng.normal()), record, prototypes
    )
    made = [
        Part(kind, block, head(kind, LEXICAL.dimension if block == "lexical" else D, k, rng), 0.2 + float(rng.random()))
        for block, kind in parts
    ]
    return Candidate(Surrogate(tuple(made)), acceptor, NoveltyGuard(), Rules())


def same(tested: Candidate, dense: Float32) -> None:
    blocks: Blocks = {"lexical": LEXICAL.transform(TEXTS), "dense": dense}
    many = tested.score(blocks)
    scorer = SingleScorer(tested)
    ones = [scorer.score(LEXICAL.transform_one(text), row) for text, row in zip(TEXTS, dense, strict=True)]
    assert [one.predicted for one in ones] == many.predicted.tolist()
    assert [one.bar for one in ones] == many.bars.tolist()
    assert np.array([one.score for one in ones]) == pytest.approx(many.scores, abs=5e-6)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    k=st.integers(1, 5),
    parts=st.lists(
        st.sampled_from([("lexical", "linear"), ("dense", "linear"), ("dense", "mlp"), ("dense", "kernel")]),
        min_size=1,
        max_size=3,
    ),
    paper=st.booleans(),
    near=st.booleans(),
)
def test_one_scores_as_many(seed: int, k: int, parts: list[tuple[BlockName, str]], paper: bool, near: bool) -> None:
    rng = np.random.default_rng(seed)
    near = near and not paper and any(block == "dense" for block, _ in parts)
    tested = candidate(parts, k, rng, paper=paper, near=near)
    same(tested, rng.normal(size=(N, D)).astype(np.float32))


@pytest.mark.parametrize("mode", ["rank", "defer"])
def test_guard_and_rules_bar_the_same_inputs(mode: str) -> None:
    k, rng = 4, np.random.default_rng(7)
    dense = rng.normal(size=(N, D)).astype(np.float32)
    plain = candidate([("dense", "linear"), ("lexical", "linear")], k, rng, paper=False, near=False)
    blocks: Blocks = {"lexical": LEXICAL.transform(TEXTS), "dense": dense}
    largest = np.sum(plain.surrogate.views(blocks), axis=0).max(axis=1)
    scored = plain.score(blocks)
    often = np.argsort(-np.bincount(scored.predicted, minlength=k))
    one, two = (float(np.median(scored.scores[scored.predicted == code])) for code in often[:2])
    ratio, floor = np.zeros(k), np.zeros(k)
    ratio[often[0]], floor[often[1]] = 1.0 / (1.0 - one), two
    rules = Rules(always_defer=often[2:3].astype(np.int32), error_ratio=ratio, class_floor=floor)
    guard = NoveltyGuard("rank" if mode == "rank" else "defer", float(np.quantile(largest, 0.4)))
    tested = replace(plain, guard=guard, rules=rules)
    bars = set(tested.score(blocks).bars.tolist())
    assert bars == {0, 1, 2, 3, 4}, "every rule bars somebody here"
    same(tested, dense)


def test_a_very_sure_surrogate_keeps_its_digits() -> None:
    """One minus the largest probability is lost in float32 long before the surrogate is beyond doubt."""
    k = 3
    tested = candidate([("dense", "linear")], k, np.random.default_rng(1), paper=False, near=False)
    scale = np.float32(40.0)
    same(tested, np.random.default_rng(2).normal(size=(N, D)).astype(np.float32) * scale)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["linear", "kernel", "mlp"])
def test_an_embedding_that_is_no_number_is_refused(kind: str, bad: float) -> None:
    tested = candidate([("dense", kind)], 3, np.random.default_rng(0), paper=False, near=False)
    vector = np.ones(D, dtype=np.float32)
    vector[3] = bad
    with pytest.raises(FeatureError, match="NaN or infinity"):
        SingleScorer(tested).score(None, vector)
    with pytest.raises(FeatureError, match="NaN or infinity"):
        tested.score({"dense": np.stack([np.ones(D, dtype=np.float32), vector])})


def test_what_is_not_read_need_not_be_given() -> None:
    rng = np.random.default_rng(3)
    text = candidate([("lexical", "linear")], 3, rng, paper=False, near=False)
    assert SingleScorer(text).score(LEXICAL.transform_one("a late lamp"), None).bar == 0
    dense = candidate([("dense", "linear")], 3, rng, paper=False, near=False)
    assert SingleScorer(dense).score(None, np.ones(D, dtype=np.float32)).bar == 0
    with pytest.raises(FeatureError, match="lexical row"):
        SingleScorer(text).score(None, np.ones(D, dtype=np.float32))
    with pytest.raises(FeatureError, match="an embedding is needed"):
        SingleScorer(dense).score(LEXICAL.transform_one("a"), None)
