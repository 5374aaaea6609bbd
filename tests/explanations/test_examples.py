"""Rows as examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tracer.explanations.examples import Example, clip, rows_by_label
from tracer.explanations.table import RoutingTable


def test_an_example_shows_the_acceptors_own_score(make_table: Callable[..., RoutingTable]) -> None:
    table = make_table(["a", "a"], ["b", "a"], [1.7, -np.inf], texts=["x" * 500, ""], threshold=1.0)
    table = replace(table, shown=np.array([0.7, -np.inf]), stage=np.array([1, 2], dtype=np.int8))
    assert Example.of(table, 0) == Example("row-0", "x" * 399 + "…", "a", "b", True, 0.7, 1)
    assert Example.of(table, 1) == Example("row-1", "", "a", "a", False, None, 2)


def test_groups_come_by_frequency_then_name() -> None:
    groups = [(label, rows.tolist()) for label, rows in rows_by_label(["c", "b", "a", "c", "b"])]
    assert groups == [("b", [1, 4]), ("c", [0, 3]), ("a", [2])]
    assert rows_by_label([]) == []


@given(st.lists(st.text(max_size=3)))
def test_groups_split_the_rows(labels: list[str]) -> None:
    groups = rows_by_label(labels)
    assert sorted(int(row) for _, rows in groups for row in rows) == list(range(len(labels)))
    assert all(labels[row] == label for label, rows in groups for row in rows)


@given(st.text(max_size=20), st.integers(1, 12))
def test_clipped_text_is_a_beginning(text: str, length: int) -> None:
    clipped = clip(text, length)
    assert len(clipped) <= length
    assert clipped == text or text.startswith(clipped.removesuffix("…"))
