"""Deltas between two tables: known answers, the test at the binomial's own numbers, and its error in repetition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from tracer.errors import TraceError
from tracer.explanations.deltas import Delta, changed_hands, compare, mcnemar
from tracer.explanations.table import RoutingTable
from tracer.stats import binomial


def test_known_changes(make_table: Callable[..., RoutingTable]) -> None:
    labels, ids = list("aaaabb"), list("uvwxyz")
    before = make_table(labels, list("abaabb"), [0.9, 0.9, 0.1, 0.2, 0.9, 0.9], ids=ids, policy="000001")
    after = make_table(labels, list("aaaaba"), [0.9, 0.9, 0.8, 0.9, 0.1, 0.9], ids=ids)
    deltas = compare(before, after)
    a, b = deltas.labels
    assert (a.label, a.n, a.n_handled_before, a.n_handled_after, a.n_gained, a.n_lost) == ("a", 4, 2, 4, 2, 0)
    assert (a.n_agreed_before, a.n_agreed_after, a.n_both, a.n_better, a.n_worse) == (1, 4, 2, 1, 0)
    assert (a.handled_change, a.agreement_change, a.p_handled, a.p_agreement) == (0.5, 0.5, 0.5, 1.0)
    assert (b.n_gained, b.n_lost, b.n_better, b.n_worse, b.agreement_change) == (0, 1, 0, 1, -1.0)
    assert (deltas.overall.n, deltas.overall.n_gained, deltas.overall.n_lost) == (6, 2, 1)
    assert not a.handled_beyond_noise
    assert [(c.row.id, c.gained, c.score_before) for c in deltas.moved] == [
        ("x", True, 0.2),
        ("w", True, 0.1),
        ("y", False, 0.9),
    ]
    assert (deltas.previous, deltas.n_moved) == ("000001", 3)


def test_rows_in_another_order_are_the_same_rows(make_table: Callable[..., RoutingTable]) -> None:
    before = make_table(list("ab"), scores=[0.9, 0.1], ids=["x", "y"])
    after = make_table(list("ba"), scores=[0.1, 0.9], ids=["y", "x"])
    assert changed_hands(before, after) == ()
    assert compare(before, after).overall.handled_change == 0.0


def test_other_rows_are_refused(make_table: Callable[..., RoutingTable]) -> None:
    one = make_table(["a", "b"], ids=["x", "y"])
    with pytest.raises(TraceError, match="ids differ"):
        compare(one, make_table(["a", "b"], ids=["x", "z"]))
    with pytest.raises(TraceError, match="ids differ"):
        compare(one, make_table(["a"], ids=["x"]))
    with pytest.raises(TraceError, match="labels differ"):
        compare(one, make_table(["a", "a"], ids=["x", "y"]))


def test_no_rows(make_table: Callable[..., RoutingTable]) -> None:
    deltas = compare(make_table([]), make_table([]))
    assert (deltas.labels, deltas.moved, deltas.overall.p_handled, deltas.overall.handled_change) == ((), (), 1.0, 0.0)


def test_agreement_needs_handled_rows_on_both_sides(make_table: Callable[..., RoutingTable]) -> None:
    deltas = compare(make_table(["a"], scores=[0.1]), make_table(["a"], scores=[0.9]))
    assert deltas.overall.agreement_change is None


def test_what_moved_is_bounded_and_counted(make_table: Callable[..., RoutingTable]) -> None:
    deltas = compare(make_table(["a"] * 300, scores=np.zeros(300)), make_table(["a"] * 300))
    assert (len(deltas.moved), deltas.n_moved) == (20, 300)
    assert deltas.labels[0].handled_beyond_noise
    assert deltas.overall.handled_beyond_noise


@pytest.mark.parametrize(("n_one", "n_other"), [(0, 0), (0, 1), (1, 9), (5, 5), (30, 12)])
def test_mcnemar_is_the_exact_binomial(n_one: int, n_other: int) -> None:
    expected = stats.binomtest(n_one, n_one + n_other).pvalue if n_one + n_other else 1.0
    assert mcnemar(n_one, n_other) == pytest.approx(expected)
    assert mcnemar(n_one, n_other) == mcnemar(n_other, n_one)


def test_a_refit_that_changes_nothing_is_seldom_marked(make_table: Callable[..., RoutingTable]) -> None:
    """Decisions of both policies are exchangeable: any mark is false, and a comparison has one with at most 0.1."""
    trials, marked = 200, 0
    labels = np.array(list("abcdefgh"))
    for seed in range(trials):
        rng = np.random.default_rng(seed)
        teacher = labels[rng.integers(8, size=400)]
        # A row is easy or hard for both policies alike, and each has noise of its own.
        difficulty = rng.random(400)
        tables = [
            make_table(
                teacher.tolist(),
                np.where(rng.random(400) < 0.1, labels[rng.integers(8, size=400)], teacher).tolist(),
                difficulty + rng.normal(0.0, 0.2, 400),
                vectors=np.zeros((400, 1), dtype=np.float32),
            )
            for _ in range(2)
        ]
        deltas = compare(*tables).labels
        marked += any(delta.handled_beyond_noise or delta.agreement_beyond_noise for delta in deltas)
    assert binomial.agreement_lower(marked, trials, 0.001) <= 0.1


def test_a_label_that_was_lost_is_marked_and_the_others_are_not(make_table: Callable[..., RoutingTable]) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(list("abcd"), 60)
    scores = rng.random(240)
    worse = np.where(labels == "c", scores - 0.4, scores)
    deltas = compare(make_table(labels.tolist(), scores=scores), make_table(labels.tolist(), scores=worse))
    assert {delta.label for delta in deltas.labels if delta.handled_beyond_noise} == {"c"}


def test_impossible_counts() -> None:
    with pytest.raises(ValueError, match="impossible counts"):
        Delta("a", 3, 2, 2, 1, 1, n_gained=1, n_lost=0, n_both=2, n_better=0, n_worse=0)
