"""Diagnoses of surrogates that fail in a known way."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tracer.explanations.diagnosis import diagnose
from tracer.explanations.table import RoutingTable

Make = Callable[..., RoutingTable]


def test_a_default_class(make_table: Make) -> None:
    labels = ["entailment"] * 100 + ["neutral"] * 100 + ["contradiction"] * 100
    predicted = ["entailment"] * 10 + ["neutral"] * 90 + ["neutral"] * 200
    predicted[250] = "contradiction"
    found = diagnose(make_table(labels, predicted))
    assert found.default is not None
    assert (found.default.label, found.default.n_predicted) == ("neutral", 289)
    assert (found.default.n_teacher, found.default.n_wrong) == (100, 189)
    assert 'falls back on "neutral"' in " ".join(found.sentences())


def test_no_default_class_where_errors_are_spread(make_table: Make) -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(list("abc"), 600).tolist()
    found = diagnose(make_table(labels, rng.choice(list("abc"), 600).tolist()))
    assert found.default is None
    assert {(o.first, o.second) for o in found.overlaps} == {("a", "b"), ("a", "c"), ("b", "c")}


def test_a_few_rows_are_no_default_class(make_table: Make) -> None:
    assert diagnose(make_table(list("abb"), list("aab"))).default is None


def test_overlapping_labels_count_both_ways(make_table: Make) -> None:
    labels = ["card"] * 50 + ["cash"] * 50 + ["fee"] * 50
    predicted = ["cash"] * 12 + ["card"] * 38 + ["card"] * 7 + ["cash"] * 43 + ["cash"] * 9 + ["fee"] * 41
    found = diagnose(make_table(labels, predicted))
    (overlap,) = found.overlaps  # fee is taken for cash, and cash never for fee
    assert (overlap.first, overlap.second, overlap.n_second, overlap.n_first) == ("card", "cash", 12, 7)
    assert (overlap.n, overlap.n_rows) == (19, 100)
    assert '"card" and "cash" (12 and 7)' in " ".join(found.sentences())


def test_labels_that_are_never_predicted_or_not_learned(make_table: Make) -> None:
    labels, predicted = ["a"] * 5 + ["rare"] * 2 + ["new"] * 3, ["a"] * 10
    found = diagnose(make_table(labels, predicted, space=["a", "rare", "absent"]))
    assert [(c.label, c.n) for c in found.never_predicted] == [("rare", 2)]
    assert [(c.label, c.n) for c in found.not_learned] == [("new", 3)]
    said = " ".join(found.sentences())
    assert 'Never predicted, though the teacher gives them: "rare" (2).' in said
    assert 'the surrogate can never agree there: "new" (3).' in said


def test_lists_are_bounded_and_say_so(make_table: Make) -> None:
    found = diagnose(make_table([f"new {i:02}" for i in range(25)], ["a"] * 25, space="a"))
    assert (len(found.not_learned), found.n_not_learned) == (10, 25)
    assert "and 15 more" in " ".join(found.sentences())


def test_no_cause_stands_out(make_table: Make) -> None:
    found = diagnose(make_table(list("abcabc"), list("abcabb")))
    assert found.sentences()[-1].startswith("No single cause stands out")


def test_one_label(make_table: Make) -> None:
    assert diagnose(make_table(["a"] * 5)).default is None
    assert diagnose(make_table([])).n_rows == 0


def test_no_better_than_the_commonest_label(make_table: Make) -> None:
    rng = np.random.default_rng(0)
    labels, predicted = (rng.choice(list("abc"), 900, p=[0.4, 0.3, 0.3]).tolist() for _ in range(2))
    found = diagnose(make_table(labels, predicted))
    assert found.commonest is not None
    assert (found.commonest.label, found.commonest.n) == ("a", labels.count("a"))
    assert found.gain == 1 - found.n_disagreed / (900 - labels.count("a"))
    assert 'hardly better than always saying "a"' in found.sentences()[1]
    good = diagnose(make_table(labels, [*labels[:800], *predicted[800:]]))
    assert good.gain > 0.8
    assert "hardly better" not in " ".join(good.sentences())


def test_gain_where_there_is_nothing_to_gain(make_table: Make) -> None:
    assert diagnose(make_table(["a"] * 4)).gain == 1.0
    assert diagnose(make_table(["a"] * 4, ["a", "a", "b", "b"])).gain == 1.0
    assert diagnose(make_table([])).gain == 1.0
