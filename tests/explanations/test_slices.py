"""Slices by label and by length, by hand."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tracer.explanations.slices import Slice, summarise
from tracer.explanations.table import RoutingTable
from tracer.stats import binomial


def test_counts_by_label(make_table: Callable[..., RoutingTable]) -> None:
    table = make_table(list("aaaabb"), list("aabbbb"), [0.9, 0.1, 0.9, 0.2, 0.9, 0.9])
    a, b = summarise(table).labels
    assert (a.name, a.n_rows, a.n, a.n_handled, a.n_agreed) == ("a", 6, 4, 2, 1)
    assert (b.name, b.n, b.n_handled, b.n_agreed) == ("b", 2, 2, 2)
    assert a.share == pytest.approx(2 / 3)
    assert (a.handled_rate, a.agreement) == (0.5, 0.5)
    assert (a.agreement_lower, a.agreement_upper) == binomial.agreement_interval(1, 2, 0.05)


def test_counts_by_length(make_table: Callable[..., RoutingTable]) -> None:
    texts = ["", "one", "one two three four", "a b c d e", "w " * 1024, "w " * 1025, "w " * 100_000]
    lengths = summarise(make_table(["a"] * 7, texts=texts)).lengths
    assert [(slice_.name, slice_.n) for slice_ in lengths] == [
        ("0 to 4 words", 3),
        ("5 to 8 words", 1),
        ("513 to 1024 words", 1),
        ("1025 words or more", 2),
    ]


def test_nothing_handled_has_no_agreement(make_table: Callable[..., RoutingTable]) -> None:
    (only,) = summarise(make_table(["a"] * 3, scores=[0.1, 0.2, 0.3])).labels
    assert only.agreement is None
    assert (only.agreement_lower, only.agreement_upper) == (0.0, 1.0)
    assert only.handled_rate == 0.0


def test_no_texts_no_lengths(make_table: Callable[..., RoutingTable]) -> None:
    assert summarise(make_table(["a"])).lengths == ()


def test_no_rows(make_table: Callable[..., RoutingTable]) -> None:
    slices = summarise(make_table([], texts=[]))
    assert (slices.labels, slices.lengths, slices.found.found) == ((), (), ())


def test_a_teacher_that_invents_labels_is_bounded(make_table: Callable[..., RoutingTable]) -> None:
    labels = ["often"] * 5 + [f"invented {i:03}" for i in range(250)]
    slices = summarise(make_table(labels))
    assert slices.labels[0].name == "often"
    assert (len(slices.labels), slices.n_labels_left_out) == (200, 51)


def test_impossible_counts() -> None:
    with pytest.raises(ValueError, match="impossible counts"):
        Slice("a", n_rows=5, n=3, n_handled=4, n_agreed=1)
