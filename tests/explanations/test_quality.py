"""Suspicious labels: planted ones are found, by hand and against a slow reference."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import sparse

from tracer.errors import ConfigError
from tracer.explanations import quality
from tracer.explanations.quality import Labelled, Share, accuracy, conflicts, likely_errors
from tracer.explanations.table import RoutingTable
from tracer.stats import binomial
from tracer.traces.rooms import normalised
from tracer.types import Dataset, LabelSpace

SPACE = LabelSpace(("refund", "delivery", "other"))


def table_of(
    labels: list[str], vectors: Any, texts: list[str] | None, predicted: list[int] | None = None, **columns: Any
) -> RoutingTable:
    n = len(labels)
    y = SPACE.encode(labels)
    scores = columns.pop("scores", np.full(n, 0.99))
    values: dict[str, Any] = {
        "space": SPACE, "ids": tuple(f"r{i}" for i in range(n)), "texts": None if texts is None else tuple(texts),
        "labels": tuple(labels), "truth": (None,) * n, "y": y,
        "predicted": y if predicted is None else np.array(predicted, dtype=np.int32),
        "scores": scores, "shown": scores, "handled": scores >= 0.5, "bars": np.zeros(n, np.int8),
        "stage": np.full(n, 2, np.int8), "vectors": vectors, "threshold": 0.5, "stands_on": "rows", "policy": "v0001",
        "certified": True,
    }  # fmt: skip
    return RoutingTable(**(values | columns))


def unit(rows: Any) -> Any:
    vectors = np.asarray(rows, dtype=np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_one_text_with_two_labels_is_a_conflict_whatever_the_vectors() -> None:
    texts = ["Where is it?", "where  IS it?", "where is it?", "a refund", "🔥 <script>", "🔥 <SCRIPT>"]
    labels = ["delivery", "refund", "delivery", "refund", "other", "refund"]
    found = conflicts(table_of(labels, np.zeros((6, 1), dtype=np.float32), texts))
    assert (found.n_pairs, found.n_rows) == (2, 6)
    assert [pair.ids for pair in found.pairs] == [("r0", "r1"), ("r4", "r5")]
    assert found.pairs[0].labels == ("delivery", "refund")
    assert found.pairs[0].texts == ("Where is it?", "where  IS it?")
    assert {pair.why for pair in found.pairs} == {"the same text, two labels"}


@pytest.mark.parametrize("sparse_rows", [False, True])
def test_near_duplicates_equal_a_slow_reference(monkeypatch: pytest.MonkeyPatch, sparse_rows: bool) -> None:
    monkeypatch.setattr(quality, "_TILE", 7)
    rng = np.random.default_rng(0)
    vectors = unit(rng.normal(size=(40, 3)))
    texts = [f"text {i % 33}" for i in range(40)]
    labels = [SPACE.names[i] for i in rng.integers(0, 3, 40)]
    table = table_of(labels, sparse.csr_matrix(vectors) if sparse_rows else vectors, texts)
    first: dict[tuple[str, str], int] = {}
    for i in range(40):
        first.setdefault((normalised(texts[i]), labels[i]), i)
    rows = list(first.values())
    expected = {
        (f"r{i}", f"r{j}")
        for a, i in enumerate(rows)
        for j in rows[a + 1 :]
        if labels[i] != labels[j] and (texts[i] == texts[j] or vectors[i] @ vectors[j] >= 0.9)
    }
    found = conflicts(table, bar=0.9, limit=10_000)
    assert {pair.ids for pair in found.pairs} == expected
    assert found.n_pairs == len(expected) > 10
    same = [pair.why.startswith("the same") for pair in found.pairs]
    assert same == sorted(same, reverse=True)
    rest = [pair.similarity for pair in found.pairs if not pair.why.startswith("the same")]
    assert rest == sorted(rest, reverse=True)
    few = conflicts(table, bar=0.9, limit=3)
    assert few.pairs == found.pairs[:3]
    assert few.n_pairs == found.n_pairs


def test_a_whole_log_is_looked_through(messages: Any) -> None:
    rows = messages.take(np.arange(300))
    again = messages.take(np.arange(2))
    labels = [next(name for name in rows.space.names if name != label) for label in again.labels]
    both = Dataset.from_columns(
        [*rows.labels, *labels], texts=[*rows.texts, *again.texts], dense=np.concatenate([rows.dense, again.dense])
    )
    for dataset in (both, replace(both, dense=None)):
        found = conflicts(Labelled.of(dataset), bar=0.999)
        assert found.n_rows == 302
        assert {(pair.labels[0], pair.labels[1]) for pair in found.pairs[:2]} == set(
            zip(again.labels, labels, strict=True)
        )
    assert conflicts(Labelled.of(Dataset.from_columns(["x", "y"], texts=["\ud800", "a\x00"]))).n_pairs == 0


def test_rows_without_texts_and_bars_that_cannot_be() -> None:
    table = table_of(["refund", "delivery", "refund"], unit([[1, 0], [1, 0.01], [0, 1]]), None)
    found = conflicts(table)
    assert [pair.ids for pair in found.pairs] == [("r0", "r1")]
    assert found.pairs[0].texts == ("", "")
    assert found.pairs[0].why == "cosine 1.000, two labels"
    for bar in (0.0, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="bar = "):
            conflicts(table, bar=bar)


def test_a_planted_error_is_found_and_a_lone_opinion_is_not() -> None:
    """Row 0 sits among refunds and says delivery. Row 9 is contradicted too, but its neighbours are the teacher's."""
    vectors = unit([[1, 0.01 * i] for i in range(6)] + [[0.01 * i, 1] for i in range(4)])
    labels = ["delivery", *["refund"] * 5, *["other"] * 4]
    predicted = [0] * 6 + [2, 2, 2, 0]
    table = table_of(labels, vectors, [f"text {i}" for i in range(10)], predicted)
    found = likely_errors(table, neighbours=4)
    assert [error.id for error in found] == ["r0"]
    (error,) = found
    assert (error.label, error.suggested, error.n_support, error.n_neighbours) == ("delivery", "refund", 4, 4)
    assert error.why == (
        "the surrogate says 'refund' with score 0.99; of the 4 nearest traces 4 carry that label and 0 carry 'delivery'"
    )
    unsure = replace(table, shown=np.full(10, 0.8))
    assert likely_errors(unsure, neighbours=4) == ()
    assert [e.id for e in likely_errors(unsure, neighbours=4, confident=0.7)] == ["r0"]


def test_fewer_than_half_of_the_neighbours_are_too_few() -> None:
    vectors = unit([[1, 0.01 * i] for i in range(6)])
    for n_support, expected in ((1, []), (2, ["r0"])):
        labels = ["delivery", *["refund"] * n_support, *["other"] * (4 - n_support), "delivery"]
        table = table_of(labels, vectors, None, [0, *SPACE.encode(labels[1:]).tolist()])
        assert [error.id for error in likely_errors(table, neighbours=4)] == expected


def test_labels_that_are_not_learned_and_rows_without_vectors_are_no_errors() -> None:
    vectors = unit([[1, 0.01 * i] for i in range(4)])
    table = table_of(["zebra", "refund", "refund", "refund"], vectors, None, [0, 0, 0, 0])
    assert likely_errors(table) == ()
    bare = table_of(["delivery", "refund", "refund"], np.zeros((3, 1), dtype=np.float32), None, [0, 0, 0])
    assert likely_errors(bare) == ()
    assert likely_errors(table_of(["delivery"], unit([[1.0]]), None, [0])) == ()


def test_accuracy_where_truth_is_known() -> None:
    labels = ["refund", "refund", "delivery", "other", "refund"]
    truth = ("refund", "delivery", "delivery", "other", None)
    scores = np.array([0.9, 0.9, 0.1, 0.9, 0.9])
    table = table_of(labels, np.zeros((5, 1)), None, [0, 1, 0, 0, 0], truth=truth, scores=scores)
    found = accuracy(table)
    assert found is not None
    # Served: the surrogate on rows 0, 1 and 3 (right, right, wrong), the teacher on row 2 (right).
    assert (found.teacher, found.surrogate, found.hybrid) == (Share(3, 4), Share(2, 4), Share(3, 4))
    assert found.teacher.interval == binomial.agreement_interval(3, 4)
    assert found.teacher.rate == 0.75
    assert accuracy(replace(table, truth=(None,) * 5)) is None


def test_real_messages_with_a_planted_error(messages: Any, policies: Any) -> None:
    rows = messages.take(np.arange(600, 1200))
    table = RoutingTable.of(policies["both"], rows, "later messages")
    sure = int(np.flatnonzero(table.agree & (table.shown > 0.97))[0])
    wrong = next(name for name in table.space.names if name != table.labels[sure])
    labels = (*table.labels[:sure], wrong, *table.labels[sure + 1 :])
    planted = replace(table, labels=labels, y=table.space.encode(labels))
    assert table.ids[sure] in {error.id for error in likely_errors(planted)}
