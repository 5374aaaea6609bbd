"""The numbers of a report are those of the table."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse

from tests.reporting.conftest import report_of, table_of_texts
from tracer.reporting import figures, projection
from tracer.reporting.context import Facts
from tracer.stats import binomial

LABELS = [f"label {i % 7}" for i in range(700)]
TABLE = table_of_texts([f"text {i}" for i in range(700)], LABELS)


def test_ownership_adds_up() -> None:
    own = figures.ownership(TABLE)
    assert own["n_handled"] + own["n_deferred"] == own["n"] == 700
    assert sum(why["n"] for why in own["reasons"]) == own["n_deferred"]
    assert own["n_agreed"] == (TABLE.handled & TABLE.agree).sum()
    assert {why["reason"] for why in own["reasons"]} == {"below_threshold", "always_defer"}


def test_the_curve_is_counted_from_the_highest_score_down() -> None:
    curve = figures.curve(TABLE)
    assert len(curve) == 100
    for point in (curve[0], curve[50], curve[-1]):
        k = round(point["coverage"] * 700)
        top = np.argsort(-TABLE.scores, kind="stable")[:k]
        agreed = int(TABLE.agree[top].sum())
        assert point["agreement"] == pytest.approx(agreed / k)
        assert (point["low"], point["high"]) == binomial.agreement_interval(agreed, k)
    assert curve[-1]["coverage"] < 1.0  # barred rows are never handled


def test_equal_scores_are_one_point_of_the_curve() -> None:
    tied = replace(TABLE, scores=np.ones(700))
    assert [p["coverage"] for p in figures.curve(tied)] == [1.0]


def test_the_frontier_shows_held_out_counts_beside_the_estimate() -> None:
    rows = figures.frontier(TABLE, report_of(TABLE))
    assert [row["n_handled"] for row in rows] == [630, 420, None]
    assert rows[2]["agreement"] is None
    assert rows[1]["low"] < rows[1]["agreement"] < rows[1]["high"]
    assert figures.frontier(None, report_of(TABLE))[0]["n_handled"] is None


def test_classes_add_up_and_the_most_frequent_comes_first() -> None:
    rows = figures.classes(figures.counts(TABLE))
    assert [row["label"] for row in rows] == [f"label {i}" for i in range(7)]
    assert sum(row["n"] for row in rows) == 700
    assert sum(row["n_handled"] for row in rows) == TABLE.handled.sum()
    assert all(row["n_agreed"] + row["n_disagreed"] == row["n_handled"] for row in rows)


def test_labels_that_are_not_learned_share_a_row() -> None:
    y = TABLE.y.copy()
    y[:10] = -1
    rows = figures.counts(replace(TABLE, y=y))
    assert next(row["n"] for row in rows if row["label"] == figures.NOT_LEARNED) == 10


def test_the_map_is_an_even_draw_that_keeps_every_label() -> None:
    labels = tuple(["common"] * 5_000 + ["rare"] + ["other"] * 1_000)
    rows = projection.even_draw(labels, 500)
    assert len(rows) <= 500
    assert len(np.unique(rows)) == len(rows)
    assert {labels[i] for i in rows} == {"common", "rare", "other"}
    assert 60 < sum(labels[i] == "other" for i in rows) < 105


def test_more_labels_than_points_leave_the_rarest_out() -> None:
    labels = tuple(["often"] * 50 + [f"once {i}" for i in range(1_000)])
    rows = projection.even_draw(labels, 100)
    assert len(rows) <= 100
    assert labels[rows[0]] == "often"


@pytest.mark.parametrize("lexical", [False, True])
def test_the_map_is_the_same_each_time_and_lies_in_the_unit_square(lexical: bool) -> None:
    table = replace(TABLE, vectors=sparse.csr_matrix(np.abs(np.asarray(TABLE.vectors)))) if lexical else TABLE
    atlas = projection.traces_map(table, most=300)
    assert atlas == projection.traces_map(table, most=300)
    assert atlas["n"] == 700
    assert atlas["n_shown"] == len(atlas["points"]) <= 300
    assert all(0.0 <= p["x"] <= 1.0 and 0.0 <= p["y"] <= 1.0 for p in atlas["points"])
    assert ("words" in atlas["method"]) == lexical


def test_rows_that_cannot_be_told_apart_still_make_a_map() -> None:
    for vectors in (np.ones((700, 16), dtype=np.float32), np.zeros((700, 1), dtype=np.float32)):
        atlas = projection.traces_map(replace(TABLE, vectors=vectors))
        assert {(p["x"], p["y"]) for p in atlas["points"]} == {(0.5, 0.5)}


@pytest.mark.parametrize("kind", ["success", "refusal", "hostile"])
def test_facts_are_plain_json(kind: str, request: pytest.FixtureRequest) -> None:
    facts: Facts = request.getfixturevalue(kind)
    text = json.dumps(facts, allow_nan=False, ensure_ascii=False)
    assert json.loads(text) == facts
    text.encode()


def test_a_success_says_what_was_promised_and_what_changed(success: Facts) -> None:
    certificate = success["certificate"]
    assert success["verdict"] == "certified"
    assert f"{certificate['coverage']:.1%}" in success["headline"]
    assert "80%" in success["headline"]
    assert success["frontier"]["point"]["n_agreed"] == certificate["n_agreed"]
    assert success["ownership"]["n_handled"] == certificate["n_handled"]
    assert success["artefacts"]["deltas"]["previous"] == "v0001"
    assert success["money"]["saved_year_usd"] is not None
    assert success["missing"] is None


def test_a_refusal_says_the_counts_and_what_would_clear_the_gate(refusal: Facts) -> None:
    near = refusal["refusal"]["attempts"][0]
    assert refusal["verdict"] == "refused"
    assert f"{near['n_agreed']:,} of {near['n_handled']:,}" in refusal["headline"]
    assert refusal["refusal"]["advice"]
    assert refusal["certificate"] is None
    assert refusal["money"]["saved_year_usd"] is None
    assert refusal["diagnosis"]
