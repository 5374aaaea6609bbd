"""Slices found automatically: few false ones in a world without any, planted ones found, hostile texts survived.

A rate is judged by its exact one-sided Clopper-Pearson bound at 0.001; the seeds are fixed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import sparse, stats

from tracer.explanations import discovery
from tracer.explanations.discovery import LEVEL, Discovery, FoundSlice, discover
from tracer.explanations.table import RoutingTable
from tracer.stats import binomial

WORDS = [f"word{i}" for i in range(40)]
Make = Callable[..., RoutingTable]


def world(
    make_table: Make, seed: int, n: int, *, bad_word: float | None = None, bad_cluster: float | None = None
) -> RoutingTable:
    """Texts of eight words by Zipf's law and vectors of five clouds. Handled with 0.7, agreement with 0.9, whatever the
    input; ``bad_word`` and ``bad_cluster`` are the agreement where texts contain "refund", and in the first cloud."""
    rng = np.random.default_rng(seed)
    frequency = 1.0 / np.arange(2, len(WORDS) + 2)
    drawn = rng.choice(WORDS, size=(n, 8), p=frequency / frequency.sum())
    refund = rng.random(n) < 0.15
    texts = [" ".join(row) + (" refund" if r else "") for row, r in zip(drawn, refund, strict=True)]
    cloud = rng.integers(5, size=n)
    vectors = (np.eye(5, 8)[cloud] + rng.normal(0.0, 0.15, (n, 8))).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    agreement = np.full(n, 0.9)
    if bad_word is not None:
        agreement[refund] = bad_word
    if bad_cluster is not None:
        agreement[cloud == 0] = bad_cluster
    teacher = rng.choice(["a", "b"], size=n)
    other = np.where(teacher == "a", "b", "a")
    predicted = np.where(rng.random(n) < agreement, teacher, other)
    scores = np.where(rng.random(n) < 0.7, 0.9, 0.1)
    ids = [f"{seed}-{i}" for i in range(n)]
    return make_table(teacher.tolist(), predicted.tolist(), scores, texts=texts, vectors=vectors, ids=ids)


def fisher(found: FoundSlice) -> float:
    """The p-value of a found slice by another way."""
    inside = found.n_bad_inside, found.n_inside - found.n_bad_inside
    outside = found.n_bad_outside, found.n_outside - found.n_bad_outside
    return float(stats.fisher_exact(np.array([inside, outside]), alternative="greater").pvalue)


@pytest.mark.parametrize("n_reports", [200, pytest.param(2000, marks=pytest.mark.slow)])
def test_no_bad_slice_few_reports_with_one(make_table: Make, n_reports: int) -> None:
    """Every slice that is reported is false here, so the rate of false discoveries is the share of such reports."""
    reports = [discover(world(make_table, seed, 500)) for seed in range(n_reports)]
    with_any = sum(bool(report.found) for report in reports)
    lower, upper = binomial.agreement_interval(with_any, n_reports, 0.002)
    assert lower <= LEVEL
    # With many reports the whole interval lies below: the tests of so few rows are coarse, and never reach the rate.
    assert n_reports < 1000 or upper <= LEVEL
    # The half that proposes always sees something: there is much to be wrong about.
    assert np.mean([report.n_tested for report in reports]) > 5


def test_testing_on_the_proposing_half_would_be_wrong(make_table: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the same worlds do catch a search that tests on the rows it searched."""
    first = world(make_table, 0, 500)
    propose = discovery._propose
    monkeypatch.setattr(discovery, "_propose", lambda rules, rows, bad: propose(rules, np.ones(500, bool) ^ rows, bad))
    reports = [discover(world(make_table, seed, 500)) for seed in range(60)]
    with_any = sum(bool(report.found) for report in reports)
    assert len(first) == 500
    assert binomial.agreement_interval(with_any, len(reports), 0.002)[0] > LEVEL


def test_a_planted_word_is_found(make_table: Make) -> None:
    n_found = 0
    for seed in range(20):
        report = discover(world(make_table, seed, 1500, bad_word=0.6))
        words = [s for s in report.found if s.outcome == "agreement" and s.rule == 'contains "refund"']
        n_found += bool(words)
        for slice_ in words:
            assert slice_.rate_inside < slice_.rate_outside
            assert all("refund" in e.text and e.handled and e.label != e.predicted for e in slice_.examples)
    assert n_found >= 19


def test_a_planted_cluster_is_found(make_table: Make) -> None:
    reports = [discover(world(make_table, seed, 1500, bad_cluster=0.6)) for seed in range(20)]
    assert sum(any(s.kind == "cluster" and s.outcome == "agreement" for s in r.found) for r in reports) >= 19


def test_a_word_that_is_deferred_is_found_with_its_counts(make_table: Make) -> None:
    texts = ["please refund this", "where is it"] * 200
    table = make_table(["a"] * 400, scores=[0.1, 0.9] * 200, texts=texts, vectors=np.zeros((400, 1), np.float32))
    report = discover(table)
    first = report.found[0]
    assert (first.outcome, first.kind) == ("handled", "words")
    assert (first.n_inside + first.n_outside, report.n_proposing + report.n_testing) == (report.n_testing, 400)
    assert (first.n_bad_inside, first.n_bad_outside) == (first.n_inside, 0)
    assert first.p_value == pytest.approx(fisher(first))
    # The words of the same texts are one slice.
    assert len(report.found) == 1


def test_p_values_are_those_of_fisher_and_of_benjamini_and_hochberg(make_table: Make) -> None:
    report = discover(world(make_table, 1, 1500, bad_word=0.6))
    assert report.found
    for s in report.found:
        assert s.p_value == pytest.approx(fisher(s))
        assert s.p_value <= s.q_value <= LEVEL
        assert s.q_value <= s.p_value * report.n_tested


def test_only_the_testing_half_is_reported(make_table: Make) -> None:
    """What the proposing half says never reaches the counts: with its outcomes turned, the same rule's stay."""
    table = world(make_table, 3, 1500, bad_word=0.5)
    testing = discovery._testing_half(table.ids)
    rule = 'contains "refund"'
    (found,) = [s for s in discover(table).found if s.rule == rule]
    predicted = table.predicted.copy()
    refund = np.array(["refund" in text for text in table.texts or ()])
    predicted[~testing & refund] = 1 - table.y[~testing & refund]
    (again,) = [s for s in discover(replace(table, predicted=predicted)).found if s.rule == rule]
    assert (again.n_bad_inside, again.n_inside, again.p_value) == (found.n_bad_inside, found.n_inside, found.p_value)


def test_the_half_of_a_row_depends_on_its_id_alone(make_table: Make) -> None:
    ids = [f"id-{i}" for i in range(1000)]
    half = discovery._testing_half(ids)
    assert 430 < half.sum() < 570
    assert discovery._testing_half(ids[::-1]).tolist() == half[::-1].tolist()


def test_the_same_table_gives_the_same_report(make_table: Make) -> None:
    table = world(make_table, 5, 600, bad_word=0.5)
    assert discover(table) == discover(table)


HOSTILE = [
    "",
    "   ",
    "👩‍👩‍👧 👍🏽",
    "\u202e\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd",
    "<script>alert(1)</script>",
    "x" * 200_000,
    "\x00\ud800",
    "w " * 50_000,
]


@pytest.mark.parametrize("threshold", [-1.0, 0.5, 2.0], ids=["all handled", "some", "none handled"])
@pytest.mark.parametrize("texts", [HOSTILE * 15, None], ids=["hostile texts", "no texts"])
def test_hostile_inputs(make_table: Make, texts: Sequence[str] | None, threshold: float) -> None:
    scores = np.linspace(0.0, 1.0, 120)
    vectors = sparse.csr_matrix(np.zeros((120, 9), dtype=np.float32))
    table = make_table(["a"] * 120, scores=scores, texts=texts, vectors=vectors, threshold=threshold)
    report = discover(table)
    assert isinstance(report, Discovery)
    if threshold != 0.5:
        assert report.found == ()


def test_sparse_vectors_cluster_like_dense_ones(make_table: Make) -> None:
    table = replace(world(make_table, 2, 1500, bad_cluster=0.5), texts=None)
    found = discover(replace(table, vectors=sparse.csr_matrix(table.vectors))).found
    assert {s.kind for s in found} == {"cluster"}
    assert all(s.rule.startswith('like "2-') for s in found)


def test_no_rows(make_table: Make) -> None:
    assert discover(make_table([], texts=[])) == Discovery(LEVEL, 0, 0, 0, ())
