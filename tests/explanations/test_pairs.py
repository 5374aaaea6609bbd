"""Boundary pairs by hand, and against all pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from tracer.explanations import pairs
from tracer.explanations.pairs import closest, contrast, differing_words
from tracer.explanations.table import RoutingTable


def unit(rows: Any) -> np.ndarray[Any, np.dtype[np.float32]]:
    vectors = np.asarray(rows, dtype=np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def test_the_pair_of_scores_and_the_closest_pair(make_table: Callable[..., RoutingTable]) -> None:
    texts = ["are there fees", "is there a fee", "is there some fee", "my card", "other"]
    vectors = unit([[1, 0, 0], [0, 1, 0], [0, 1, 0.1], [0, 0, 1], [1, 1, 1]])
    table = make_table(list("aaaab"), scores=[0.95, 0.6, 0.4, 0.0, 0.9], texts=texts, vectors=vectors)
    by_score, by_closeness = contrast(table).pairs
    assert (by_score.chosen, by_score.label) == ("scores", "a")
    assert (by_score.handled.id, by_score.deferred.id) == ("row-0", "row-3")
    assert (by_score.handled.score, by_score.deferred.score, by_score.similarity) == (0.95, 0.0, 0.0)
    assert (by_closeness.chosen, by_closeness.handled.id, by_closeness.deferred.id) == ("closeness", "row-1", "row-2")
    assert by_closeness.similarity == pytest.approx(1 / np.sqrt(1.01))
    assert (by_closeness.only_handled, by_closeness.only_deferred) == (("a",), ("some",))


@pytest.mark.parametrize("scores", [[0.9, 0.8, 0.7], [0.1, 0.2, 0.3]], ids=["all handled", "none handled"])
def test_no_boundary_no_pairs(make_table: Callable[..., RoutingTable], scores: list[float]) -> None:
    assert contrast(make_table(["a"] * 3, scores=scores)).pairs == ()


def test_opposite_decisions_of_different_labels_are_no_pair(make_table: Callable[..., RoutingTable]) -> None:
    assert contrast(make_table(["a", "b"], scores=[0.9, 0.1])).pairs == ()


def test_barred_rows_take_no_part(make_table: Callable[..., RoutingTable]) -> None:
    assert contrast(make_table(["a", "a"], scores=[0.9, -np.inf])).pairs == ()
    found = contrast(make_table(["a", "a", "a"], scores=[0.9, -np.inf, 0.2])).pairs
    assert {pair.deferred.id for pair in found} == {"row-2"}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40), st.booleans(), st.integers(0, 2**32 - 1))
def test_closest_is_the_closest_of_all(n: int, m: int, entries: int, is_sparse: bool, seed: int) -> None:
    vectors = unit(np.random.default_rng(seed).normal(size=(n + m, 3)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "_ENTRIES", entries)
        block = sparse.csr_matrix(vectors) if is_sparse else vectors
        i, j, similarity = closest(block, np.arange(n), np.arange(n, n + m))
    everything = vectors[:n] @ vectors[n:].T
    assert i < n <= j < n + m
    assert similarity == pytest.approx(min(everything.max(), 1.0), abs=1e-5)
    assert everything[i, j - n] == pytest.approx(everything.max(), abs=1e-5)


@pytest.mark.parametrize(
    ("first", "second", "words"),
    [
        ("", "", ((), ())),
        ("same Words", "SAME words", ((), ())),
        ("where is my refund", "where is the refund now", (("my",), ("the", "now"))),
        ("👍 👍", "👍", (("👍",), ())),
        ("שלום עולם", "שלום", (("עולם",), ())),
        ("<script> x", "x", (("<script>",), ())),
    ],
)
def test_words_that_differ(first: str, second: str, words: tuple[tuple[str, ...], tuple[str, ...]]) -> None:
    assert differing_words(first, second) == words


def test_words_of_very_long_texts_are_bounded() -> None:
    ours, theirs = differing_words("a" * 100_000, " ".join(map(str, range(100_000))))
    assert (len(ours), len(ours[0]), len(theirs)) == (1, 40, 30)
