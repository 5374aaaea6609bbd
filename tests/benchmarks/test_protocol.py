"""The tables of the paper's protocol: what a cell says, and what a boundary looks like from outside."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from benchmarks import figures, protocol, regimes, tables
from tracer.policies.policy import Policy
from tracer.types import Dataset


def counts(n_handled: int, n_agreed: int, n: int = 1000) -> dict[str, Any]:
    """As ``on_test`` counts."""
    return {"n": n, "n_handled": n_handled, "n_agreed": n_agreed, "n_right": n_agreed}


def result(peer: bool = True) -> dict[str, Any]:
    """A small result of the protocol on one data set, target 0.95."""
    days = [{"day": i + 1, "promoted": True, "test": counts(700 + 50 * i, 680 + 50 * i)} for i in range(5)]
    days[-1]["ceiling"] = counts(950, 903)
    base = {"calibrated": counts(800, 770), "oracle": counts(850, 808)}
    return {
        "environment": {"cores": 2, "processor": "one", "python": "3", "packages": {"numpy": "2"}},
        "data": "banking77", "digest": "d1", "seed": 0, "n_traces": 5000, "targets": [0.95],
        "teacher": {"n": 1000, "n_right": 880},
        "certified": {"0.95": days}, "paper": {"0.95": [*days[:4], {"day": 5, "promoted": False, "test": None}]},
        "baselines": {"confidence": [base], "cache": [base], "cache_default": counts(900, 800)},
        "peer": {"0.95": days} if peer else None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        (None, "-"),
        (counts(0, 0), "0.000 / -"),
        (counts(500, 475), "0.500 / 0.950"),
        (counts(500, 474), "0.500 / 0.948 †"),
        (counts(500, 450), "0.500 / 0.900 ††"),
        ({"published": (0.832, None)}, "0.832 / not available"),
        ({"published": (1.0, 0.930)}, "1.000 / 0.930 †"),
    ],
)
def test_a_cell(cell: dict[str, Any] | None, shown: str) -> None:
    assert protocol.cell(0.95, cell) == shown


def test_the_section_has_every_method_and_day() -> None:
    page = protocol.render(result())
    for line in (
        "| Tracer, certified | 0.900 / 0.978 |",
        "| Tracer, paper mode | - |",
        "| tracer-llm 0.3.3 | 0.900 / 0.978 |",
        "| semantic cache at 0.8 | 0.900 / 0.889 †† |",
        "| the paper, published | 0.832 / 0.959 |",
        "| 3 | 3,000 | 0.800 / 0.975 | 0.800 / 0.975 | 0.800 / 0.975 | 0.745 |",
    ):
        assert line in page, line


def test_without_the_peer_its_lines_are_left_out() -> None:
    page = protocol.render(result(peer=False))
    assert "| tracer-llm" not in page
    assert "`tracer-llm` was not measured." in page


def test_the_readme_s_table_and_the_figure_take_the_strictest_target() -> None:
    results = {"protocol_banking77": result()}
    assert "| Tracer, certified | 0.900 / 0.978 |" in tables.summary(results)
    points = figures.coverage_points(results)["banking77"]
    assert points["Tracer, certified"] == [(0.95, 0.9, True)]
    assert points["semantic cache, calibrated"] == [(0.95, 0.8, True)]
    # Nothing promoted: nothing handled, and no promise broken.
    assert points["Tracer, paper mode"] == [(0.95, 0.0, True)]
    changed = result()
    changed["certified"]["0.95"][-1]["test"] = counts(901, 880)
    assert figures.digest(figures.coverage_points({"protocol_banking77": changed})) != figures.digest(
        figures.coverage_points(results)
    )


def test_the_page_leaves_out_what_was_not_measured() -> None:
    assert "## " not in tables.page({}).replace("# Benchmarks", "")
    page = tables.page({"protocol_banking77": result()})
    assert "- [The paper's protocol: Banking77](#the-papers-protocol-banking77)" in page
    assert "## The paper's protocol: Banking77" in page
    assert "Signatures of the regimes" in page
    assert "The promise in worlds" not in page


def test_a_signature_counts_labels_on_both_sides(policies: dict[str, Policy], messages: Dataset) -> None:
    found = regimes.signature(policies["lexical"], messages)
    handled = policies["lexical"].decide(messages.texts, messages.dense).handled
    by_label = Counter(zip(messages.labels, handled.tolist(), strict=True))
    labels = set(messages.labels)
    assert found["n_labels"] == len(labels)
    assert found["n_labels_with_pairs"] == sum(bool(by_label[x, True] and by_label[x, False]) for x in labels)
    assert sum(part["n"] for part in found["lengths"].values()) == len(messages)
    assert sum(part["n_handled"] for part in found["lengths"].values()) == handled.sum()
    lowest, highest = found["lowest"], found["highest"]
    assert lowest["n_handled"] / lowest["n"] <= highest["n_handled"] / highest["n"]
