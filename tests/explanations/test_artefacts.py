"""All five artefacts: the paper's three regimes, real policies, hostile texts, and the way to a file and back."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tracer.errors import ArchiveError
from tracer.explanations.artefacts import Artefacts, build
from tracer.explanations.table import RoutingTable
from tracer.policies.policy import Policy
from tracer.types import Dataset

Make = Callable[..., RoutingTable]


def stored(artefacts: Artefacts) -> Any:
    """As a strict reader of JSON sees it."""
    return json.loads(json.dumps(artefacts.as_dict(), allow_nan=False))


@pytest.fixture(scope="module")
def live(messages: Dataset) -> Dataset:
    """Rows that no fixture was trained on."""
    return messages.take(np.arange(600, len(messages)))


@pytest.mark.parametrize("kind", ["lexical", "dense", "both", "cascade"])
def test_a_real_policy(policies: dict[str, Policy], live: Dataset, kind: str) -> None:
    table = RoutingTable.of(policies[kind], live, "messages left out")
    artefacts = build(table)
    assert Artefacts.from_dict(stored(artefacts)) == artefacts
    assert artefacts.n_rows == len(live) == sum(s.n for s in artefacts.slices.labels)
    assert artefacts.n_handled == sum(s.n_handled for s in artefacts.slices.lengths)
    assert artefacts.n_agreed == sum(s.n_agreed for s in artefacts.slices.labels)
    assert artefacts.n_handled - artefacts.n_agreed == artefacts.disagreements.n_handled
    assert artefacts.coverage == table.handled.mean()
    assert artefacts.deltas is None
    assert len(artefacts.cards.cards) == 2 * len(artefacts.slices.labels)
    for pair in artefacts.pairs.pairs:
        assert pair.handled.label == pair.deferred.label == pair.label
        assert pair.handled.handled
        assert not pair.deferred.handled


def test_lexical_vectors(policies: dict[str, Policy], live: Dataset, small_texts: Dataset) -> None:
    table = RoutingTable.of(policies["lexical"], small_texts, "texts alone")
    assert sparse.issparse(table.vectors)
    artefacts = build(table)
    assert artefacts.pairs.pairs
    assert all(-1.0 <= card.similarity <= 1.0 for card in artefacts.cards.cards)


def test_full_coverage_has_no_pairs(policies: dict[str, Policy], live: Dataset) -> None:
    artefacts = build(RoutingTable.of(policies["dense"], live, "messages left out", threshold=-2.0))
    assert artefacts.coverage == 1.0
    assert artefacts.pairs.pairs == ()
    assert all(s.handled_rate == 1.0 for s in artefacts.slices.labels)
    assert all(card.handled for card in artefacts.cards.cards)
    assert all(s.outcome == "agreement" for s in artefacts.slices.found.found)


def test_partial_coverage_has_both_pairs_of_each_label(policies: dict[str, Policy], live: Dataset) -> None:
    pairs = build(RoutingTable.of(policies["dense"], live, "messages left out")).pairs.pairs
    labels = [pair.label for pair in pairs]
    assert labels[::2] == labels[1::2]
    for by_score, by_closeness in zip(pairs[::2], pairs[1::2], strict=True):
        assert (by_score.chosen, by_closeness.chosen) == ("scores", "closeness")
        assert by_closeness.similarity >= by_score.similarity - 1e-6
        assert None not in (by_score.handled.score, by_score.deferred.score)
        assert (by_score.handled.score or 0.0) >= (by_closeness.handled.score or 0.0)


def test_a_refusal_explains_itself_by_disagreements(make_table: Make) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(["entailment", "neutral", "contradiction"], 600)
    predicted = np.where(rng.random(600) < 0.8, "neutral", labels)
    table = make_table(labels.tolist(), predicted.tolist(), rng.random(600) / 2, threshold=1e300, certified=False)
    artefacts = build(table)
    assert (artefacts.n_handled, artefacts.agreement, artefacts.certified) == (0, None, False)
    assert artefacts.pairs.pairs == ()
    assert artefacts.disagreements.cards[0].predicted == "neutral"
    assert artefacts.disagreements.diagnosis.default is not None
    assert Artefacts.from_dict(stored(artefacts)) == artefacts


def test_deltas_of_two_real_policies(policies: dict[str, Policy], live: Dataset) -> None:
    before, after = (RoutingTable.of(policies[kind], live, "messages left out") for kind in ("lexical", "dense"))
    artefacts = build(after, before)
    assert artefacts.deltas is not None
    overall = artefacts.deltas.overall
    assert overall.n_handled_after - overall.n_handled_before == overall.n_gained - overall.n_lost
    assert overall.n_gained == sum(delta.n_gained for delta in artefacts.deltas.labels)
    assert artefacts.deltas.n_moved == overall.n_gained + overall.n_lost
    assert Artefacts.from_dict(stored(artefacts)) == artefacts
    same = build(after, after).deltas
    assert same is not None
    assert (same.n_moved, same.overall.handled_change, same.overall.agreement_change) == (0, 0.0, 0.0)


HOSTILE = [
    "",
    "👩‍👩‍👧",
    "\u202e\u05e9\u05dc\u05d5\u05dd",
    "<script>alert(1)</script>",
    "x" * 100_000,
    "a\x00\ud800\n",
    "w " * 20_000,
    "&amp;",
]
ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "<b>", "new"]),
        st.sampled_from(["a", "b", "<b>"]),
        st.sampled_from([-np.inf, -0.3, 0.0, 0.4, 0.6, 1.8]),
        st.sampled_from(HOSTILE) | st.text(max_size=20),
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, threshold=st.sampled_from([-1.0, 0.5, 1e300]), with_texts=st.booleans(), is_sparse=st.booleans())
def test_any_table(make_table: Make, rows: list[Any], threshold: float, with_texts: bool, is_sparse: bool) -> None:
    labels, predicted, scores, texts = ([row[i] for row in rows] for i in range(4))
    vectors: Any = np.random.default_rng(0).normal(size=(len(rows), 3)).astype(np.float32)
    if is_sparse:
        vectors = sparse.csr_matrix(np.maximum(vectors, 0.0))
    table = make_table(
        labels, predicted, scores, texts=texts if with_texts else None, vectors=vectors, space=["a", "b", "<b>"],
        threshold=threshold,
    )  # fmt: skip
    artefacts = build(table, table)
    assert Artefacts.from_dict(stored(artefacts)) == artefacts
    assert build(table, table) == artefacts


def test_size_is_bounded(make_table: Make) -> None:
    rng = np.random.default_rng(0)
    labels = [f"label {i}" for i in rng.integers(2000, size=3000)]
    texts = [("word " * 300 + str(i)) for i in range(3000)]
    table = make_table(labels, scores=rng.random(3000), texts=texts, vectors=np.ones((3000, 1), dtype=np.float32))
    assert len(json.dumps(build(table, table).as_dict())) < 2_000_000


@pytest.mark.parametrize("damage", [{"n_handled": 99}, {"slices": {}}, {"threshold": None}, {"extra": 1}])
def test_a_damaged_file_is_refused(make_table: Make, damage: dict[str, Any]) -> None:
    with pytest.raises(ArchiveError):
        Artefacts.from_dict(stored(build(make_table(["a", "b"]))) | damage)
    with pytest.raises(ArchiveError, match="artefacts is no object"):
        Artefacts.from_dict([])
