"""Disagreement cards by hand."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tracer.explanations.disagreements import DisagreementCard, gather
from tracer.explanations.table import RoutingTable

Make = Callable[..., RoutingTable]


def test_cards_by_predicted_class(make_table: Make) -> None:
    labels, predicted = list("abbccxa"), list("aaaabbb")
    scores = [0.9, 0.2, 0.6, 0.9, -np.inf, 0.9, 0.8]
    found = gather(make_table(labels, predicted, scores, space="abc", threshold=0.5))
    first, second = found.cards
    assert (first.predicted, first.n_predicted, first.n, first.n_handled, first.share) == ("a", 4, 3, 2, 0.75)
    assert [(count.label, count.n) for count in first.given] == [("b", 2), ("c", 1)]
    # Handled ones first, by score; then the others.
    assert [example.id for example in first.examples] == ["row-3", "row-2", "row-1"]
    assert (second.predicted, second.n, second.n_handled) == ("b", 3, 2)
    assert [(count.label, count.n) for count in second.given] == [("a", 1), ("c", 1), ("x", 1)]
    assert second.examples[-1].score is None
    assert (found.n_rows, found.n, found.n_handled) == (7, 6, 4)


def test_agreement_everywhere(make_table: Make) -> None:
    found = gather(make_table(list("abab")))
    assert (found.cards, found.n) == ((), 0)
    assert found.diagnosis.sentences() == ("Surrogate and teacher agree on all 4 rows.",)


def test_labels_given_are_bounded(make_table: Make) -> None:
    (card,) = gather(make_table([f"l{i}" for i in range(9)], ["z"] * 9, space="z")).cards
    assert (len(card.given), card.n_given_left_out, len(card.examples)) == (5, 4, 3)


def test_impossible_counts() -> None:
    with pytest.raises(ValueError, match="impossible counts"):
        DisagreementCard("a", 3, 4, 0, (), 0, ())


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("abcx"), st.sampled_from("abc"), st.floats(0, 1)), max_size=40))
def test_counts_add_up(make_table: Make, rows: list[tuple[str, str, float]]) -> None:
    labels, predicted, scores = ([row[i] for row in rows] for i in range(3))
    found = gather(make_table(labels, predicted, scores, space="abc"))
    assert found.n == sum(card.n for card in found.cards) == sum(a != b for a, b in zip(labels, predicted, strict=True))
    assert found.n_handled == sum(card.n_handled for card in found.cards)
    for card in found.cards:
        assert sum(count.n for count in card.given) + card.n_given_left_out == card.n
