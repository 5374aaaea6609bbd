"""Figures of merit against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from tracer.learning import selection
from tracer.types import OUTSIDE, Bool, Float64

ranked = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=1, max_size=40)


def columns(rows: list[tuple[int, bool]]) -> tuple[Float64, Bool]:
    return np.array([s for s, _ in rows], dtype=np.float64), np.array([a for _, a in rows], dtype=bool)


def prefixes(rows: list[tuple[int, bool]]) -> list[tuple[int, int]]:
    """(handled, wrong) of the n most confident for each n; equal scores in the order given."""
    order = sorted(range(len(rows)), key=lambda i: (-rows[i][0], i))
    return [(n, sum(not rows[i][1] for i in order[:n])) for n in range(1, len(rows) + 1)]


@given(ranked)
@settings(max_examples=100, deadline=None)
def test_areas_equal_their_definitions(rows: list[tuple[int, bool]]) -> None:
    scores, agree = columns(rows)
    counts = prefixes(rows)
    assert selection.aurc(scores, agree) == pytest.approx(np.mean([wrong / n for n, wrong in counts]))
    assert selection.augrc(scores, agree) == pytest.approx(np.mean([wrong / len(rows) for _, wrong in counts]))


@given(ranked, st.sampled_from([0.5, 0.75, 0.9, 0.95]))
@settings(max_examples=150, deadline=None)
def test_coverage_at_a_target_is_the_best_threshold(rows: list[tuple[int, bool]], target: float) -> None:
    scores, agree = columns(rows)
    best = 0.0
    for threshold in np.unique(scores):
        handled = scores >= threshold
        if agree[handled].sum() >= target * handled.sum():
            best = max(best, float(handled.mean()))
    assert selection.coverage_at(scores, agree, target) == best


def test_ties_go_together() -> None:
    scores = np.array([0.9, 0.5, 0.5, 0.5])
    agree = np.array([True, True, True, False])
    assert selection.coverage_at(scores, agree, 0.9) == 0.25
    assert selection.coverage_at(scores, agree[::-1], 0.9) == 0.0
    assert selection.coverage_at(scores, agree, 0.75) == 1.0


def test_the_areas_know_a_perfect_order() -> None:
    agree = np.array([True] * 8 + [False] * 2)
    good = np.arange(10.0)[::-1]
    assert selection.augrc(good, agree) == pytest.approx((1 + 2) / 100)
    assert selection.augrc(good, agree) < selection.augrc(-good, agree)
    assert selection.aurc(good, agree) < selection.aurc(-good, agree)


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40))
@settings(max_examples=80, deadline=None)
def test_macro_f1_is_that_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    predicted, y = (np.array(column, dtype=np.int32) for column in zip(*pairs, strict=True))
    present = sorted({*predicted.tolist(), *y.tolist()})
    expected = f1_score(y, predicted, labels=present, average="macro", zero_division=0.0)
    assert selection.macro_f1(predicted, y, 5) == pytest.approx(expected)


def test_labels_outside_the_space_are_misses() -> None:
    predicted = np.array([0, 0, 1], dtype=np.int32)
    y = np.array([0, OUTSIDE, 1], dtype=np.int32)
    expected = f1_score(y, predicted, labels=[0, 1], average="macro")
    assert selection.macro_f1(predicted, y, 2) == pytest.approx(expected)
    assert selection.macro_f1(predicted, y, 2) == pytest.approx((2 / 3 + 1) / 2)
