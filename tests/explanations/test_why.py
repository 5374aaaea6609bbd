"""Why one input: known answers by hand, sums that come out, and texts that mean harm."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tracer.errors import FeatureError
from tracer.explanations.plain import to_plain
from tracer.explanations.table import RoutingTable
from tracer.explanations.why import explain
from tracer.features.lexical import ngrams
from tracer.learning.heads import LinearHead
from tracer.learning.surrogates import Surrogate
from tracer.policies.policy import Policy
from tracer.types import Dataset, Float32

TEXTS = ("refund my money", "where is my parcel", "i want a refund now", "hello", "parcel parcel late")
LABELS = ("refund", "delivery", "refund", "refund", "delivery")
HOSTILE = [
    "",
    " \t\n",
    "<script>alert(1)</script>",
    "🔥" * 40,
    "خصم على الطلب",
    "a\u202eb [bold]",
    "\ud800",
    "word " * 5000,
]


@pytest.fixture(scope="module")
def table(tiny_policy: Policy) -> RoutingTable:
    rows = Dataset.from_columns(LABELS, texts=TEXTS, ids=[f"t{i}" for i in range(5)], space=tiny_policy.space)
    return RoutingTable.of(tiny_policy, rows, "five rows")


def test_the_decision_is_the_policys_own(tiny_policy: Policy, table: RoutingTable) -> None:
    for text in TEXTS:
        found, decided = explain(tiny_policy, text, None, table), tiny_policy.decide([text])
        assert (found.label, found.handled, found.reason) == (
            decided.labels[0], bool(decided.handled[0]), decided.reasons[0],
        )  # fmt: skip
        assert found.score == decided.scores[0]
        assert found.threshold == 0.5
        assert found.stands_on == "five rows"
        assert found.certified
        assert sum(share.probability for share in found.classes) == pytest.approx(1.0)
        assert found.classes[0].label == found.label
        assert found.runner_up == ("delivery" if found.label == "refund" else "refund")


def test_ngrams_add_their_weight_times_their_value(tiny_policy: Policy, table: RoutingTable) -> None:
    """One word of the vocabulary, by hand: its tf-idf over the length of the row, times the difference of weights."""
    text = "refund"
    lexical, head = tiny_policy.lexical, tiny_policy.candidate.surrogate.parts[0].head
    assert lexical is not None
    assert isinstance(head, LinearHead)
    known = [ngram for ngram in ngrams(text) if ngram.hash in lexical.hashes]
    columns = [int(np.searchsorted(lexical.hashes, ngram.hash)) for ngram in known]
    length = float(np.sqrt((lexical.idf[columns] ** 2).sum()))
    found = explain(tiny_policy, text, None, table)
    by_name = {(piece.kind, piece.text): piece.contribution for piece in found.pieces}
    for ngram, column in zip(known, columns, strict=True):
        gap = float(head.weights[column, 0] - head.weights[column, 1])
        if (ngram.kind, ngram.text) in by_name:
            assert by_name[ngram.kind, ngram.text] == pytest.approx(lexical.idf[column] / length * gap, rel=1e-5)
    assert ("word", "refund") in by_name
    assert all(piece.contribution > 0 for piece in found.pieces)
    assert (
        found.how[0]
        == f"each n-gram's weight times its value; {len(known)} of {len(known)} n-grams are known to the policy"
    )


def test_contributions_and_the_rest_are_the_lead(tiny_policy: Policy, table: RoutingTable) -> None:
    head = tiny_policy.candidate.surrogate.parts[0].head
    assert isinstance(head, LinearHead)
    for text in (*TEXTS, *HOSTILE):
        found = explain(tiny_policy, text, None, table)
        assert found.lead is not None
        assert found.lead_of_words is not None
        assert found.lead == pytest.approx(found.lead_of_words, abs=1e-4)  # no bias in the hand-made head
        assert [abs(p.contribution) for p in found.pieces] == sorted(abs(p.contribution) for p in found.pieces)[::-1]


def test_the_weight_of_a_part_counts_and_its_bias_is_no_word(tiny_policy: Policy, table: RoutingTable) -> None:
    (part,) = tiny_policy.candidate.surrogate.parts
    assert isinstance(part.head, LinearHead)
    shifted = replace(part, weight=0.5, head=LinearHead(part.head.weights, np.array([0.25, 0.75], dtype=np.float32)))
    candidate = replace(tiny_policy.candidate, surrogate=Surrogate((shifted,)))
    plain = explain(tiny_policy, "refund my money", None, table)
    found = explain(replace(tiny_policy, candidate=candidate), "refund my money", None, table)
    assert found.lead is not None
    assert found.lead_of_words is not None
    assert plain.lead_of_words is not None
    assert found.lead_of_words == pytest.approx(0.5 * plain.lead_of_words, rel=1e-6)
    assert found.lead - found.lead_of_words == pytest.approx(0.5 * (0.25 - 0.75), abs=1e-5)


def test_neighbours_are_the_nearest_of_each_decision(tiny_policy: Policy, table: RoutingTable) -> None:
    found = explain(tiny_policy, "refund my money", None, table)
    assert found.near_handled[0].trace.id == "t0"
    assert found.near_handled[0].similarity == pytest.approx(1.0, abs=1e-6)
    assert all(n.trace.handled for n in found.near_handled)
    assert not any(n.trace.handled for n in found.near_deferred)
    # "hello" shares no known n-gram with anything: it is nobody's neighbour.
    assert "t3" not in {n.trace.id for n in (*found.near_handled, *found.near_deferred)}
    nothing = explain(tiny_policy, "zzzz", None, table)
    assert (nothing.near_handled, nothing.near_deferred, nothing.pieces) == ((), (), ())
    assert nothing.how[0].startswith("each n-gram's weight times its value; 0 of ")


@given(st.text(max_size=60))
@example("\ud800")
@settings(max_examples=60, deadline=None)
def test_any_text_is_explained_and_fits_json(tiny_policy: Policy, table: RoutingTable, text: str) -> None:
    found = explain(tiny_policy, text, None, table)
    json.dumps(to_plain(found), allow_nan=False)
    assert found.text == text
    assert len(found.pieces) <= 12


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts(tiny_policy: Policy, table: RoutingTable, text: str) -> None:
    found = explain(tiny_policy, text, None, table)
    assert len(found.text) <= 2000
    json.dumps(to_plain(found), allow_nan=False)


def test_a_refused_candidate_is_judged_at_the_threshold_of_the_table(tiny_policy: Policy) -> None:
    rows = Dataset.from_columns(LABELS, texts=TEXTS, space=tiny_policy.space)
    none = replace(tiny_policy, certificate=replace(tiny_policy.certificate, threshold=1e300))
    table = RoutingTable.of(none, rows, "five rows", threshold=0.5)
    found = explain(none, "refund my money", None, table)
    assert found.handled
    assert not found.certified
    assert found.threshold == 0.5


def test_a_barred_input_has_no_score(tiny_policy: Policy) -> None:
    rules = replace(tiny_policy.candidate.rules, always_defer=np.array([0], dtype=np.int32))
    policy = replace(tiny_policy, candidate=replace(tiny_policy.candidate, rules=rules))
    table = RoutingTable.of(policy, Dataset.from_columns(LABELS, texts=TEXTS, space=policy.space), "five rows")
    found = explain(policy, "refund my money", None, table)
    assert (found.score, found.reason, found.handled) == (None, "always_defer", False)


@pytest.mark.parametrize("kind", ["lexical", "dense", "both", "cascade"])
def test_every_kind_of_policy(kind: str, policies: dict[str, Policy], messages: Dataset) -> None:
    policy, rows = policies[kind], messages.take(np.arange(600, 900))
    table = RoutingTable.of(policy, rows, "later messages")
    assert rows.texts is not None
    assert rows.dense is not None
    stages = set()
    for i in range(12):
        found = explain(policy, rows.texts[i], rows.dense[i], table)
        stages.add(found.stage)
        assert found.handled == table.handled[i]
        assert found.reason == table.reason(i)
        assert found.label == table.label(int(table.predicted[i]))
        assert found.score == pytest.approx(table.shown[i], abs=1e-4)
        if found.score is not None and abs(found.score - found.threshold) > 1e-4:
            assert (found.score >= found.threshold) == found.handled
        if found.stage == 1 and policy.first_stage is not None:
            assert found.threshold == policy.first_stage.cut  # all that reaches it is handled: the threshold is below 1
        near = (*found.near_handled, *found.near_deferred)
        assert max(near, key=lambda n: n.similarity).similarity == pytest.approx(1.0, abs=1e-5)
        assert found.how[1] == "neighbours by their embeddings"
        if kind == "dense":
            assert found.pieces == ()
            assert "attach its embedder" in found.how[0]
        else:
            assert found.pieces
    assert stages == ({1, 2} if kind == "cascade" else {2})


def test_leaving_one_word_out_is_the_change_in_the_lead(policies: dict[str, Policy], messages: Dataset) -> None:
    """An embedder that adds up one vector a word, so that each word's part can be computed again."""
    policy, rows = policies["dense"], messages.take(np.arange(600, 700))
    assert rows.dense is not None
    dense = rows.dense

    def embed(texts: Sequence[str]) -> Float32:
        return np.stack([np.sum([dense[len(w)] for w in t.split()] or [dense[0]], axis=0) for t in texts])

    table = RoutingTable.of(policy, rows, "later messages")
    text = "my lamp is broken"
    found = explain(policy, text, embed([text])[0], table, embed)
    assert {piece.text for piece in found.pieces} <= set(text.split())
    assert found.lead_of_words is None
    assert found.lead is not None
    assert "without each word in turn" in found.how[0]
    first, second = (policy.space.names.index(name or "") for name in (found.label, found.runner_up))
    head = policy.candidate.surrogate.parts[0]
    for piece in found.pieces:
        rest = " ".join(word for word in text.split() if word != piece.text)
        logits = head.head.logits(embed([rest]))[0] * head.weight
        assert piece.contribution == pytest.approx(found.lead - float(logits[first] - logits[second]), abs=1e-4)
    assert "one word cannot be taken apart" in explain(policy, "lamp", dense[0], table, embed).how[0]
    long = explain(policy, "my lamp " * 300, dense[0], table, embed)
    assert "of the first 64, of 600" in long.how[0]


def test_a_lexical_policy_beside_rows_with_embeddings_needs_none(
    policies: dict[str, Policy], messages: Dataset
) -> None:
    table = RoutingTable.of(policies["lexical"], messages.take(np.arange(600, 700)), "later messages")
    found = explain(policies["lexical"], table.text(3), None, table)
    assert found.how[1] == "neighbours by the n-grams they share"
    near = (*found.near_handled, *found.near_deferred)
    assert table.ids[3] in {n.trace.id for n in near}


def test_what_does_not_fit_is_an_error(policies: dict[str, Policy], messages: Dataset) -> None:
    policy, rows = policies["dense"], messages.take(np.arange(600, 700))
    table = RoutingTable.of(policy, rows, "later messages")
    with pytest.raises(FeatureError, match="reads embeddings"):
        explain(policy, "a text", None, table)
    with pytest.raises(FeatureError, match="3 columns"):
        explain(policy, "a text", np.ones(3, dtype=np.float32), table)
    with pytest.raises(FeatureError, match="NaN or infinity"):
        explain(policy, "a text", np.full(384, np.nan, dtype=np.float32), table)
