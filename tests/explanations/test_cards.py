"""Cards by hand: the row nearest to the centroid."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import sparse

from tracer.explanations.cards import central, deal
from tracer.explanations.table import RoutingTable

UP, RIGHT = [0.0, 1.0], [1.0, 0.0]
BETWEEN = [0.6, 0.8]


def test_the_middle_row_of_each_group(make_table: Callable[..., RoutingTable]) -> None:
    vectors = np.array([UP, BETWEEN, RIGHT, UP, RIGHT, RIGHT], dtype=np.float32)
    texts = ["up", "between", "right", "deferred up", "deferred right", "b"]
    table = make_table(list("aaaaab"), scores=[0.7, 0.8, 0.9, 0.1, 0.2, 0.9], vectors=vectors, texts=texts)
    first, second, third = deal(table).cards
    assert (first.label, first.handled, first.n, first.example.text) == ("a", True, 3, "between")
    assert first.example.score == pytest.approx(0.8)
    assert first.similarity == pytest.approx((0.6 * 1.6 + 0.8 * 1.8) / np.hypot(1.6, 1.8))
    # Both are as near: the first is shown.
    assert (second.label, second.handled, second.n, second.example.text) == ("a", False, 2, "deferred up")
    assert second.similarity == pytest.approx(np.sqrt(0.5))
    assert (third.label, third.handled) == ("b", True)
    assert third.similarity == pytest.approx(1.0)


def test_a_barred_row_has_no_score(make_table: Callable[..., RoutingTable]) -> None:
    (card,) = deal(make_table(["a"], scores=[-np.inf])).cards
    assert card.example.score is None
    assert not card.handled


def test_sparse_vectors_give_the_same_cards(make_table: Callable[..., RoutingTable]) -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(60, 12)).astype(np.float32) * (rng.random((60, 12)) < 0.4)
    dense /= np.maximum(np.linalg.norm(dense, axis=1, keepdims=True), 1e-6)
    labels, scores = list("abc" * 20), rng.random(60)
    one = deal(make_table(labels, scores=scores, vectors=dense)).cards
    other = deal(make_table(labels, scores=scores, vectors=sparse.csr_matrix(dense))).cards
    assert [card.example for card in one] == [card.example for card in other]
    assert [card.similarity for card in one] == pytest.approx([card.similarity for card in other], abs=1e-6)


def test_vectors_of_nothing(make_table: Callable[..., RoutingTable]) -> None:
    (card,) = deal(make_table(["a", "a"], vectors=np.zeros((2, 1), dtype=np.float32))).cards
    assert (card.example.id, card.similarity) == ("row-0", 0.0)


def test_vectors_that_cancel_out() -> None:
    row, similarity = central(np.array([RIGHT, [-1.0, 0.0]], dtype=np.float32), np.arange(2))
    assert (row, similarity) == (0, 0.0)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_no_row_is_nearer(n: int, d: int, seed: int) -> None:
    vectors = np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    centroid = vectors.mean(axis=0, dtype=np.float64)
    assume(np.linalg.norm(centroid) > 1e-3)
    row, similarity = central(vectors, np.arange(n))
    cosines = vectors @ centroid / np.linalg.norm(centroid)
    assert similarity == pytest.approx(cosines.max(), abs=1e-4)
    assert cosines[row] == pytest.approx(cosines.max(), abs=1e-4)
