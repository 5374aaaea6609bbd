"""The words of the house, validated at birth."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.errors import FeatureError, TraceError, TracerError
from tracer.types import GENERATED, OUTSIDE, Answer, Dataset, Decisions, EmbedderIdentity, LabelSpace, Trace, Usage

DENSE = np.arange(6, dtype=np.float64).reshape(3, 2)
IDENTITY = EmbedderIdentity("e", 2, "digest")


def three(**changes: Any) -> Dataset:
    columns: dict[str, Any] = {
        "texts": ["one", "two", "three"], "dense": DENSE, "embedder": IDENTITY, "ids": ["a", "b", "c"],
        "origins": ["bootstrap", "audit", "deferred"], "groups": ["g", None, "g"], "times": [1.0, 2.0, np.nan],
        "truth": [None, "x", None],
    }  # fmt: skip
    return Dataset.from_columns(["x", "y", "x"], **(columns | changes))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": ""}, "needs an id"),
        ({"text": " \n"}, "trace 't': the input text is empty"),
        ({"label": ""}, "trace 't': the teacher's label is empty"),
        ({"origin": "elsewhere"}, "origin 'elsewhere' is not one of bootstrap, audit"),
    ],
)
def test_a_trace_that_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(TraceError, match=message):
        Trace(**({"id": "t", "text": "x", "label": "y"} | fields))


def test_words_are_frozen() -> None:
    trace = Trace("t", "x", "y")
    with pytest.raises(FrozenInstanceError):
        trace.label = "z"  # type: ignore[misc]
    with pytest.raises(TraceError, match="must not be negative: -1, 2"):
        Usage(-1, 2)


def test_a_label_space_codes_names_and_knows_what_is_outside() -> None:
    space = LabelSpace(("b", "a"))
    assert space.encode(["a", "b", "c", "a"]).tolist() == [1, 0, OUTSIDE, 1]
    assert space.encode([]).dtype == np.int32
    assert len(space) == 2
    assert LabelSpace.observed(["b", "a", "b"]) == LabelSpace(("a", "b"))
    with pytest.raises(TraceError, match="repeated names: a, c"):
        LabelSpace(("a", "c", "a", "c", "b"))
    with pytest.raises(TraceError, match="at least one label"):
        LabelSpace(())


@given(st.lists(st.text(min_size=1), min_size=1, max_size=20))
@settings(max_examples=60, deadline=None)
def test_observed_labels_code_and_decode(labels: list[str]) -> None:
    space = LabelSpace.observed(labels)
    assert [space.names[code] for code in space.encode(labels)] == labels
    assert list(space.names) == sorted(set(labels))


def test_columns_get_their_neutral_values() -> None:
    plain = Dataset.from_columns(["x", "y"], texts=["one", "two"])
    assert all(key.startswith(GENERATED) for key in plain.ids)
    twice = Dataset.from_columns(["x", "x"], texts=["one", "one"])
    assert len(set(twice.ids)) == 2, "equal rows are two requests"
    assert plain.origins == ("bootstrap", "bootstrap")
    assert plain.groups == plain.truth == (None, None)
    assert np.isnan(plain.times).all()
    assert plain.y.tolist() == [0, 1]
    assert plain.dense is None


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"texts": ["one"]}, FeatureError, "texts has 1 rows, labels has 3"),
        ({"dense": DENSE[:2]}, FeatureError, "embeddings has 2 rows, labels has 3"),
        ({"ids": ["a", "b"]}, FeatureError, "ids has 2 rows, labels has 3"),
        ({"groups": []}, FeatureError, "groups has 0 rows"),
        ({"times": [1.0]}, FeatureError, "times has 1 rows"),
        ({"truth": ["x"]}, FeatureError, "truth has 1 rows"),
        ({"origins": ["audit"]}, FeatureError, "origins has 1 rows"),
        ({"ids": ["a", "b", "a"]}, TraceError, "ids repeat: 3 rows, 2 distinct"),
        ({"texts": None, "dense": None, "embedder": None}, FeatureError, "texts, embeddings or both"),
        ({"dense": np.array([[0, 1], [np.nan, 0], [1, 1]])}, FeatureError, "embeddings row 1 holds NaN or infinity"),
        ({"dense": np.array([[0, 1], [1, 0], [np.inf, 1]])}, FeatureError, "row 2"),
        ({"dense": np.ones((3, 5))}, FeatureError, "embeddings have 5 columns, embedder 'e' gives 2"),
        ({"dense": np.ones(3)}, FeatureError, r"two-dimensional \(n, d\), not \(3,\)"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, Any], error: type[TracerError], message: str) -> None:
    with pytest.raises(error, match=message):
        three(**changes)


def test_an_embedder_of_no_dimension_is_refused() -> None:
    with pytest.raises(FeatureError, match="dimension 0 must be positive"):
        EmbedderIdentity("e", 0, "digest")


def test_taking_rows_takes_every_column() -> None:
    whole = three()
    some = whole.take(np.array([2, 0]))
    assert some.labels == ("x", "x")
    assert some.texts == ("three", "one")
    assert some.ids == ("c", "a")
    assert some.origins == ("deferred", "bootstrap")
    assert some.groups == ("g", "g")
    assert some.truth == (None, None)
    assert some.y.tolist() == [0, 0]
    assert some.dense is not None
    assert some.dense.tolist() == [[4.0, 5.0], [0.0, 1.0]]
    assert np.isnan(some.times[0])
    assert some.space is whole.space
    assert len(whole.take(np.array([], dtype=np.intp))) == 0


def test_another_space_codes_the_same_labels_anew() -> None:
    declared = three().with_space(LabelSpace(("y", "z"), declared=True))
    assert declared.y.tolist() == [OUTSIDE, 0, OUTSIDE]
    assert declared.labels == ("x", "y", "x")


def test_embeddings_are_kept_in_single_precision() -> None:
    other = three().with_dense(DENSE * 2, IDENTITY)
    assert other.dense is not None
    assert other.dense.dtype == np.float32
    assert other.dense.flags.c_contiguous
    assert np.array_equal(other.dense, DENSE * 2)


def test_traces_become_columns() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    dataset = Dataset.from_traces(
        [Trace("a", "one", "x", time=at, group="g", truth="t"), Trace("b", "two", "y", origin="audit")], dense=DENSE[:2]
    )
    assert dataset.times[0] == at.timestamp()
    assert np.isnan(dataset.times[1])
    assert (dataset.groups, dataset.truth, dataset.origins) == (("g", None), ("t", None), ("bootstrap", "audit"))
    with pytest.raises(TraceError, match="there are no traces"):
        Dataset.from_traces([])


def test_coverage_is_the_share_handled() -> None:
    stage = np.full(4, 2, dtype=np.int8)
    handled = np.array([True, False, True, True])
    decisions = Decisions(("a",) * 4, np.zeros(4), handled, ("handled",) * 4, stage)
    assert decisions.coverage == 0.75
    assert replace(decisions, labels=(), handled=handled[:0]).coverage == 0.0


def test_an_answer_is_handled_only_by_the_surrogate() -> None:
    answer = Answer("a", "surrogate", "handled", "a", 0.9, 0.5, "v0001", 0.1)
    assert answer.handled
    assert not replace(answer, source="teacher").handled
    assert not replace(answer, source="none").handled


def test_units_are_groups_and_rows_without_one() -> None:
    labels = ["a", "b", "a", "b", "a"]
    plain = Dataset.from_columns(labels, texts=labels)
    assert plain.n_units == 5
    grouped = Dataset.from_columns(labels, texts=labels, groups=["g", "g", None, "h", None])
    assert grouped.n_units == 4
