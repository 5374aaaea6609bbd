"""Scores: whatever bars an input or ranks it lower is inside the one number that the gate certifies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tracer.config import Novelty
from tracer.learning.acceptors import Acceptor, Reliability, feature_names
from tracer.learning.candidates import ALWAYS_DEFER_PROBABILITY, BARS, Candidate, NoveltyGuard, Rules, Scored
from tracer.learning.fitting import class_floors
from tracer.learning.heads import LinearHead, softmax
from tracer.learning.surrogates import Part, Surrogate
from tracer.types import Float32

K = 3


def candidate(rules: Rules | None = None, guard: NoveltyGuard | None = None, parts: int = 1) -> Candidate:
    """Reads logits as they are given; its score is a rising function of the top probability."""
    head = LinearHead(np.eye(K, dtype=np.float32), np.zeros(K, dtype=np.float32))
    names = feature_names(parts)
    coefficients = np.zeros(len(names))
    coefficients[0] = 6.0
    acceptor = Acceptor(
        names, np.zeros(len(names)), np.ones(len(names)), coefficients, -4.0, Reliability(np.full(K, 0.9), np.ones(K))
    )
    surrogate = Surrogate(tuple(Part("logistic", "dense", head, 1.0 / parts) for _ in range(parts)))
    return Candidate(surrogate, acceptor, guard or NoveltyGuard(), rules or Rules())


def score(rows: Sequence[Sequence[float]], rules: Rules | None = None, guard: NoveltyGuard | None = None) -> Scored:
    return candidate(rules, guard).score({"dense": np.array(rows, dtype=np.float32)})


def reasons(scored: Scored) -> list[str]:
    return [BARS[bar] for bar in scored.bars]


SURE, FAIR, WEAK, FAINT = [6.0, 0.0, 0.0], [0.0, 2.0, 0.0], [1.0, 0.6, 0.0], [-4.0, -4.2, -4.1]


def test_plain_scores_are_the_acceptor_and_barred_by_nothing() -> None:
    scored = score([SURE, FAIR, WEAK])
    top = softmax(np.array([SURE, FAIR, WEAK], dtype=np.float32)).max(axis=1)
    assert scored.scores == pytest.approx(1 / (1 + np.exp(4.0 - 6.0 * top)), rel=1e-5)
    assert scored.predicted.tolist() == [0, 1, 0]
    assert reasons(scored) == ["below_threshold"] * 3


def test_a_score_does_not_depend_on_the_number_of_parts_that_say_the_same() -> None:
    block: Float32 = np.array([SURE, FAIR, WEAK], dtype=np.float32)
    one, two = (candidate(parts=n).score({"dense": block}) for n in (1, 2))
    assert one.scores == pytest.approx(two.scores)


@pytest.mark.parametrize("mode", ["rank", "defer", "off"])
def test_novel_inputs_are_last_never_or_like_others(mode: Novelty) -> None:
    rows = [SURE, FAINT, WEAK, [-3.0, -9.0, -9.0]]
    plain = score(rows).scores
    scored = score(rows, guard=NoveltyGuard(mode, 0.0))
    novel = np.array([False, True, False, True])
    assert scored.scores[~novel] == pytest.approx(plain[~novel])
    if mode == "off":
        assert scored.scores == pytest.approx(plain)
        assert reasons(scored) == ["below_threshold"] * 4
        return
    assert [reason == "novel" for reason in reasons(scored)] == novel.tolist()
    if mode == "defer":
        assert np.isneginf(scored.scores[novel]).all()
    else:
        assert scored.scores[novel].max() < scored.scores[~novel].min()
        assert scored.scores[novel] == pytest.approx(plain[novel] - 1.0)
        assert plain[3] > plain[0] - 0.2, "the novel row is confident, and still ranks last"


def test_always_defer_bars_the_label_and_the_suspicion_of_it() -> None:
    rules = Rules(always_defer=np.array([1], dtype=np.int32))
    rows = [SURE, FAIR, WEAK, [3.0, 0.0, 0.0], [3.0, 0.2, 0.0]]
    scored = score(rows, rules)
    suspicion = softmax(np.array(rows, dtype=np.float32))[:, 1]
    assert suspicion[3] < ALWAYS_DEFER_PROBABILITY < suspicion[4]
    assert np.isneginf(scored.scores).tolist() == [False, True, True, False, True]
    assert reasons(scored) == [
        "below_threshold", "always_defer", "always_defer", "below_threshold", "always_defer",
    ]  # fmt: skip


def test_always_defer_adds_up_over_labels() -> None:
    row = [3.0, -0.6, -0.6]
    alone = [score([row], Rules(always_defer=np.array([code], dtype=np.int32))) for code in (1, 2)]
    both = score([row], Rules(always_defer=np.array([1, 2], dtype=np.int32)))
    single = float(softmax(np.array([row], dtype=np.float32))[0, 1])
    assert single < ALWAYS_DEFER_PROBABILITY / 1 and 2 * single >= ALWAYS_DEFER_PROBABILITY  # noqa: PT018
    assert [np.isfinite(s.scores[0]) for s in alone] == [True, True]
    assert np.isneginf(both.scores[0])


def test_error_cost_defers_where_the_expected_error_costs_more_than_a_call() -> None:
    rows = [SURE, FAIR, WEAK, [0.0, 6.0, 0.0]]
    plain = score(rows).scores
    ratio = np.array([0.0, 20.0, 0.0])
    scored = score(rows, Rules(error_ratio=ratio))
    predicted = score(rows).predicted
    expected = (1.0 - plain) * ratio[predicted] > 1.0
    assert expected.tolist() == [False, True, False, True]
    assert np.isneginf(scored.scores).tolist() == expected.tolist()
    assert [reason == "error_cost" for reason in reasons(scored)] == expected.tolist()
    cheap = score(rows, Rules(error_ratio=ratio / 1000))
    assert np.isfinite(cheap.scores).all()


def test_error_cost_weighs_the_score_before_the_novelty_penalty() -> None:
    guard = NoveltyGuard("rank", 10.0)
    scored = score([SURE], Rules(error_ratio=np.array([1.0, 1.0, 1.0])), guard)
    assert np.isfinite(scored.scores[0])
    assert reasons(scored) == ["novel"]


def test_class_floors_bar_only_their_class() -> None:
    rows = [SURE, WEAK, FAIR]
    plain = score(rows).scores
    floor = np.array([(plain[0] + plain[1]) / 2, -np.inf, np.inf])
    scored = score(rows, Rules(class_floor=floor))
    assert np.isneginf(scored.scores).tolist() == [False, True, False]
    assert reasons(scored) == ["below_threshold", "class_floor", "below_threshold"]


def test_the_reason_shown_is_the_last_rule_that_bars() -> None:
    rules = Rules(
        always_defer=np.array([0], dtype=np.int32), error_ratio=np.full(K, 1e6), class_floor=np.full(K, np.inf)
    )
    assert reasons(score([SURE], rules, NoveltyGuard("rank", 100.0))) == ["always_defer"]


def test_floors_keep_the_agreement_of_each_class() -> None:
    n = 200
    scores = np.linspace(1.0, 0.0, 2 * n)
    predicted = np.tile(np.array([0, 1], dtype=np.int32), n)
    good = np.arange(2 * n) < n  # the upper half agrees, the lower half of label 1 does not
    agree = np.where(predicted == 1, good, True)
    floors = class_floors(Scored(predicted, scores, np.zeros(2 * n, dtype=np.int8)), agree, 4, 0.8)
    assert floors[0] == -np.inf
    assert floors[2] == floors[3] == -np.inf
    kept = (predicted == 1) & (scores >= floors[1])
    below = (predicted == 1) & (scores < floors[1])
    assert 0 < kept.sum() < n
    assert agree[kept].mean() >= 0.75
    assert agree[below].mean() < 0.3


def test_a_class_that_never_keeps_its_floor_is_deferred_whole() -> None:
    predicted = np.array([0] * 50 + [1] * 50, dtype=np.int32)
    scored = Scored(predicted, np.linspace(1, 0, 100), np.zeros(100, dtype=np.int8))
    floors = class_floors(scored, predicted == 0, 2, 0.9)
    assert floors.tolist() == [-np.inf, np.inf]
