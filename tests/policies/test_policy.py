"""Deciding: one code path for one and for many, no embedding that is not needed, and inputs that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from tracer.certification.proposals import ACCEPT_ALL
from tracer.errors import FeatureError
from tracer.features.dense import CallableEmbedder
from tracer.policies.policy import Policy
from tracer.types import Dataset, Float32

KINDS = ["lexical", "dense", "both", "cascade"]


class Counting:
    """Embeds through an embedder, and remembers how many texts it was given at each call."""

    def __init__(self, embedder: CallableEmbedder) -> None:
        self.embedder = embedder
        self.calls: list[list[str]] = []

    def __call__(self, texts: Sequence[str]) -> Float32:
        self.calls.append(list(texts))
        return self.embedder.embed(texts)


@pytest.mark.parametrize("kind", KINDS)
def test_one_and_many_decide_identically(kind: str, policies: dict[str, Policy], messages: Dataset) -> None:
    some = messages.take(np.arange(600, 2600 if kind == "lexical" else 1600))
    policy, texts, dense = policies[kind], some.texts, some.dense
    assert texts is not None
    assert dense is not None
    together = policy.decide(texts, dense)
    alone = [policy.decide(texts[i : i + 1], dense[i : i + 1]) for i in range(len(texts))]
    assert tuple(d.labels[0] for d in alone) == together.labels
    assert tuple(d.reasons[0] for d in alone) == together.reasons
    assert [bool(d.handled[0]) for d in alone] == together.handled.tolist()
    assert [int(d.stage[0]) for d in alone] == together.stage.tolist()
    assert np.array([d.scores[0] for d in alone]) == pytest.approx(together.scores, abs=1e-4)
    assert 0.2 < together.coverage < 0.8


def test_a_batch_moves_a_lexical_score_by_no_more_than_the_last_bits_of_float32(
    policies: dict[str, Policy], small: Dataset
) -> None:
    assert small.texts is not None
    together = policies["lexical"].decide(small.texts)
    alone = [policies["lexical"].decide([text]).scores[0] for text in small.texts]
    assert np.abs(together.scores - alone).max() < 2e-6


@pytest.mark.parametrize("kind", KINDS)
def test_order_and_company_change_nothing(kind: str, policies: dict[str, Policy], small: Dataset) -> None:
    forward = policies[kind].decide(small.texts, small.dense)
    turned = small.take(np.arange(len(small))[::-1])
    backward = policies[kind].decide(turned.texts, turned.dense)
    assert backward.labels[::-1] == forward.labels
    assert np.array_equal(backward.handled[::-1], forward.handled)


@pytest.mark.parametrize("kind", ["dense", "both", "cascade"])
def test_embedding_on_demand_decides_as_given_embeddings(
    kind: str, policies: dict[str, Policy], messages: Dataset, embedder: CallableEmbedder
) -> None:
    some = messages.take(np.arange(600, 900))
    given, made = policies[kind].decide(some.texts, some.dense), policies[kind].decide(some.texts, None, embedder.embed)
    assert given.labels == made.labels
    assert given.reasons == made.reasons
    assert given.scores == pytest.approx(made.scores, abs=1e-4)


def test_a_cascade_embeds_only_what_its_first_stage_leaves(
    policies: dict[str, Policy], messages: Dataset, embedder: CallableEmbedder
) -> None:
    policy, texts = policies["cascade"], messages.texts
    assert texts is not None
    counting = Counting(embedder)
    decisions = policy.decide(texts, None, counting)
    left = [text for text, stage in zip(texts, decisions.stage, strict=True) if stage == 2]
    assert counting.calls == [left]
    assert 0 < len(left) < len(texts)
    first = [text for text, stage in zip(texts, decisions.stage, strict=True) if stage == 1]
    again = policy.decide(first, None, counting)
    assert len(counting.calls) == 1
    assert (again.stage == 1).all()
    assert policy.decide(first).labels == again.labels, "no embedder is needed for what the first stage answers"


def test_a_first_stage_answer_ranks_above_all_of_the_second(policies: dict[str, Policy], messages: Dataset) -> None:
    policy = policies["cascade"]
    assert policy.first_stage is not None
    decisions = policy.decide(messages.texts, messages.dense)
    first = decisions.stage == 1
    assert decisions.handled[first].all()
    assert decisions.scores[first].min() >= policy.first_stage.cut
    raised = np.where(first, decisions.scores + 1.0, decisions.scores)
    assert raised[first].min() > raised[~first].max()
    assert np.array_equal(decisions.handled, raised >= policy.threshold)


def test_a_lexical_policy_ignores_embeddings_and_embedders(
    policies: dict[str, Policy], small: Dataset, embedder: CallableEmbedder
) -> None:
    counting = Counting(embedder)
    policy = policies["lexical"]
    plain = policy.decide(small.texts)
    for other in (policy.decide(small.texts, small.dense), policy.decide(small.texts, None, counting)):
        assert np.array_equal(plain.scores, other.scores)
    assert counting.calls == []


def test_a_dense_policy_decides_on_embeddings_alone(policies: dict[str, Policy], small: Dataset) -> None:
    policy = policies["dense"]
    with_texts, without = policy.decide(small.texts, small.dense), policy.decide(None, small.dense)
    assert np.array_equal(with_texts.scores, without.scores)


@pytest.mark.parametrize("kind", KINDS)
def test_no_inputs_give_no_decisions(kind: str, policies: dict[str, Policy]) -> None:
    dimension = 384
    decisions = policies[kind].decide([], np.empty((0, dimension), dtype=np.float32))
    assert (len(decisions), decisions.labels, decisions.reasons) == (0, (), ())
    assert decisions.coverage == 0.0
    assert decisions.scores.shape == decisions.handled.shape == decisions.stage.shape == (0,)
    assert decisions.handled.dtype == np.bool_


def test_inputs_that_do_not_fit_are_refused(policies: dict[str, Policy], small: Dataset) -> None:
    both, dense = policies["both"], small.dense
    assert dense is not None
    assert small.texts is not None
    with pytest.raises(FeatureError, match="nothing to decide on"):
        both.decide()
    with pytest.raises(FeatureError, match="this policy reads texts"):
        both.decide(None, dense)
    with pytest.raises(FeatureError, match="this policy reads embeddings"):
        both.decide(small.texts)
    with pytest.raises(FeatureError, match="600 texts, 599 embeddings"):
        both.decide(small.texts, dense[:-1])
    with pytest.raises(FeatureError, match="embeddings have 383 columns, the policy was fitted on 384"):
        both.decide(small.texts, dense[:, :-1])
    with pytest.raises(FeatureError, match=r"two-dimensional \(n, d\), not \(384,\)"):
        both.decide(small.texts[:1], dense[0])
    for bad in (np.nan, np.inf, 1e300):
        broken = dense.astype(np.float64)
        broken[5, 7] = bad
        with pytest.raises(FeatureError, match="NaN or infinity"), np.errstate(over="ignore"):
            both.decide(small.texts, broken)


def test_a_cascade_needs_embeddings_only_where_it_reads_them(policies: dict[str, Policy], small: Dataset) -> None:
    with pytest.raises(FeatureError, match="this policy reads embeddings"):
        policies["cascade"].decide(small.texts)


@pytest.mark.parametrize("kind", ["dense", "both", "cascade"])
def test_an_embedder_that_answers_another_number_of_rows_is_refused(
    kind: str, policies: dict[str, Policy], small: Dataset, embedder: CallableEmbedder
) -> None:
    assert small.texts is not None
    with pytest.raises(FeatureError):
        policies[kind].decide(small.texts, None, lambda texts: embedder.embed(texts)[:1])


def test_one_string_is_not_taken_for_its_letters(tiny_policy: Policy) -> None:
    with pytest.raises(FeatureError):
        tiny_policy.decide("refund")


def test_the_threshold_itself_is_handled(tiny_policy: Policy) -> None:
    score = float(tiny_policy.decide(["refund my money"]).scores[0])
    for threshold, handled in ((score, True), (np.nextafter(score, 2.0), False), (ACCEPT_ALL, True)):
        policy = replace(tiny_policy, certificate=replace(tiny_policy.certificate, threshold=float(threshold)))
        assert policy.decide(["refund my money"]).handled.tolist() == [handled]


def test_accept_all_handles_everything_that_no_rule_bars(tiny_policy: Policy) -> None:
    rules = replace(tiny_policy.candidate.rules, always_defer=np.array([0], dtype=np.int32))
    barred = replace(
        tiny_policy,
        candidate=replace(tiny_policy.candidate, rules=rules),
        certificate=replace(tiny_policy.certificate, threshold=ACCEPT_ALL),
    )
    decisions = barred.decide(["refund my money", "where is my parcel", ""])
    assert decisions.reasons == ("always_defer", "handled", "always_defer")
