"""Self-agreement: counts by hand, sentences that claim no more than the counts bear, and the bound in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.explanations.asking import AskedTwice
from tracer.explanations.consistency import SelfAgreement, asked_again, asked_twice_in
from tracer.stats import binomial
from tracer.types import Dataset


def test_rows_of_one_text_are_paired_once_each() -> None:
    texts = ["a b", "A  b", "a b", "a b", "a b", "other", "c", "c"]
    labels = ["x", "x", "x", "y", "y", "x", "x", "x"]
    origins = ["bootstrap"] * 6 + ["bootstrap", "deferred"]
    found = asked_twice_in(Dataset.from_columns(labels, texts=texts, origins=origins))  # type: ignore[arg-type]
    # Rows 0 and 1 agree, 2 and 3 differ, 4 stays alone; of "c" one row is no plain sample of traffic.
    assert (found.n_pairs, found.n_agreed) == (2, 1)
    assert found.interval == binomial.agreement_interval(1, 2)


def test_two_teachers_are_not_one() -> None:
    columns = Dataset.from_columns(["x", "y"], texts=["a", "a"], teachers=["large", "small"])
    assert asked_twice_in(columns).n_pairs == 0


def test_embeddings_alone_have_no_pairs() -> None:
    found = asked_twice_in(Dataset.from_columns(["x", "y"], dense=np.ones((2, 2))))
    assert (found.n_pairs, found.rate) == (0, None)
    assert found.interval == (0.0, 1.0)
    assert found.statement(0.95) == (
        "Nothing is known of how often your teacher agrees with itself: no text is there twice."
    )


def test_answers_count_once_a_trace() -> None:
    answers = [AskedTwice("1", "x", "x", "t"), AskedTwice("2", "x", "y", "t"), AskedTwice("1", "x", "y", "t")]
    found = asked_again(answers)
    assert (found.n_pairs, found.n_agreed) == (2, 1)
    assert asked_again([]).source == "no trace was asked again"


@pytest.mark.parametrize(
    ("agreed", "n", "target", "words"),
    [
        (940, 1000, 0.99, "at full coverage no surrogate can be expected to reach 0.99, nor anything above 0.977"),
        (
            940,
            1000,
            0.975,
            "0.975 is above 0.970, the most that this rate allows, but its interval does not rule it out",
        ),
        (940, 1000, 0.95, "the best surrogate reaches between 0.923 and 0.977; whether 0.95 can be reached is open"),
        (940, 1000, 0.9, "the teacher's wavering does not stand in the way of 0.9"),
        (50, 50, 0.98, "whether 0.98 can be reached is open"),
        (0, 5, 0.9, "no surrogate can be expected to reach 0.9"),
    ],
)
def test_the_sentence_follows_the_interval(agreed: int, n: int, target: float, words: str) -> None:
    assert words in SelfAgreement(n, agreed, "asked again").statement(target)


def test_the_sentence_carries_its_counts() -> None:
    said = SelfAgreement(1000, 940, "texts that the log holds twice").statement(0.98)
    assert said == (
        "Your teacher agrees with itself 94.0% of the time (940 of 1,000 pairs, texts that the log holds twice; exact "
        "95% interval 92.3% to 95.4%): at full coverage no surrogate can be expected to reach 0.98, nor anything above "
        "0.977; on the inputs that it handles a surrogate may."
    )


@given(st.lists(st.floats(0.001, 1.0), min_size=1, max_size=30))
def test_the_inequality_of_the_docstring(weights: list[float]) -> None:
    p = np.array(weights) / np.sum(weights)
    same, best = float((p**2).sum()), float(p.max())
    assert same <= best + 1e-12
    assert best <= math.sqrt(same) + 1e-12


@given(st.integers(0, 500), st.integers(0, 500), st.floats(0.01, 0.999))
def test_every_sentence_can_be_said(agreed: int, more: int, target: float) -> None:
    found = SelfAgreement(agreed + more, agreed, "asked again")
    low, high = found.ceiling
    assert 0.0 <= low <= high <= 1.0
    assert f"{target:g}" in found.statement(target) or found.rate is None


def test_the_bound_in_simulation() -> None:
    """The best surrogate lies between A and its root, and the stated ceiling fails no more often than its level."""
    rng = np.random.default_rng(20260414)
    worlds, n, failed_low, failed_high, outside = 400, 300, 0, 0, 0
    for _ in range(worlds):
        k = int(rng.integers(2, 12))
        p = rng.dirichlet(np.full(k, rng.choice([0.05, 0.3, 1.0])), size=4000)
        self_agreement, best = float((p**2).sum(axis=1).mean()), float(p.max(axis=1).mean())
        assert self_agreement <= best <= math.sqrt(self_agreement)
        asked = p[rng.integers(0, len(p), n)].cumsum(axis=1)
        first, second = ((rng.random((n, 1)) > asked[:, :-1]).sum(axis=1) for _ in range(2))
        found = SelfAgreement(n, int((first == second).sum()), "simulated")
        low, high = found.interval
        outside += not low <= self_agreement <= high
        failed_low += best < found.ceiling[0]
        failed_high += best > found.ceiling[1]
    # Each side of the exact interval fails with probability 0.025 at most; four standard errors above that.
    allowed = worlds * 0.025 + 4 * math.sqrt(worlds * 0.025)
    assert failed_low <= allowed
    assert failed_high <= allowed
    assert outside <= worlds * 0.05 + 4 * math.sqrt(worlds * 0.05)
