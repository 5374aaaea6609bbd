"""The acceptor's evidence, number by number."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from tracer.learning import fitting
from tracer.learning.acceptors import PAPER_FEATURES, Acceptor, Reliability, confidence, feature_names, view_columns
from tracer.learning.heads import softmax
from tracer.types import Float32

rng = np.random.default_rng(0)
LOGITS = rng.normal(scale=3.0, size=(200, 4)).astype(np.float32)


def test_the_paper_features_are_their_formulas() -> None:
    predicted, paper, extra = confidence(LOGITS)
    for row, code, four, three in zip(LOGITS.astype(np.float64), predicted, paper, extra, strict=True):
        p = np.exp(row - row.max())
        p /= p.sum()
        best, second = np.sort(p)[::-1][:2]
        entropy = -(p * np.log(p)).sum() / np.log(4)
        assert code == row.argmax()
        assert four == pytest.approx([best, second, best - second, entropy], abs=1e-4)
        top = np.sort(row)[::-1]
        assert three == pytest.approx([top[0] - top[1], np.log(1 - best), top[0]], rel=1e-2, abs=1e-3)


def test_a_space_of_one_label_is_certain_and_finite() -> None:
    predicted, paper, extra = confidence(np.array([[2.0], [-1.0]], dtype=np.float32))
    assert predicted.tolist() == [0, 0]
    assert paper[:, :3].tolist() == [[1.0, 0.0, 1.0]] * 2
    assert np.isfinite(extra).all()


def test_extreme_logits_stay_finite() -> None:
    wild = np.array([[1e4, -1e4], [0.0, 0.0], [-1e4, -1e4]], dtype=np.float32)
    _, paper, extra = confidence(wild)
    assert np.isfinite(paper).all()
    assert np.isfinite(extra).all()
    assert np.isfinite(view_columns((wild, -wild), np.array([0, 0, 0], dtype=np.int32))).all()


def test_views_say_how_far_they_agree() -> None:
    other = rng.normal(size=LOGITS.shape).astype(np.float32)
    predicted = (LOGITS + other).argmax(axis=1).astype(np.int32)
    columns = view_columns((LOGITS, other), predicted)
    assert columns.shape == (len(LOGITS), 6)
    rows = np.arange(len(LOGITS))
    for i, view in enumerate((LOGITS, other)):
        p = softmax(view)[rows, predicted]
        assert columns[:, 3 * i] == pytest.approx(p, abs=1e-5)
        assert columns[:, 3 * i + 1] == pytest.approx(np.maximum(np.log(p), -15.0), abs=1e-3)
        assert np.array_equal(columns[:, 3 * i + 2] == 1.0, view.argmax(axis=1) == predicted)
    assert view_columns((LOGITS,), predicted).shape == (len(LOGITS), 0)


def test_reliability_is_shrunk_to_the_overall_agreement() -> None:
    predicted = np.array([0] * 30 + [1] * 10, dtype=np.int32)
    agree = np.array([1.0] * 30 + [0.0] * 10)
    record = Reliability.of(predicted, agree, 3, shrinkage=10.0)
    assert record.agreement.tolist() == pytest.approx([37.5 / 40, 7.5 / 20, 0.75])
    assert record.log_count.tolist() == pytest.approx(np.log([31, 11, 1]).tolist())
    assert record.columns(np.array([2, 0], dtype=np.int32)).tolist() == pytest.approx(
        np.array([[0.75, 0.0], [37.5 / 40, np.log(31)]])
    )
    assert Reliability.of(predicted[:0], agree[:0], 3).agreement.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("n_views", [1, 2, 3])
def test_there_is_a_name_for_every_feature(n_views: int) -> None:
    views: tuple[Float32, ...] = tuple(LOGITS + np.float32(i) for i in range(n_views))
    record = Reliability(np.full(4, 0.5), np.zeros(4))
    for names in (feature_names(n_views), PAPER_FEATURES):
        acceptor = Acceptor(names, np.zeros(1), np.ones(1), np.zeros(1), 0.0, record)
        _, features, largest = acceptor.features(views)
        assert features.shape == (len(LOGITS), len(names))
        assert len(set(names)) == len(names)
        assert largest == pytest.approx(np.sum(views, axis=0).max(axis=1), rel=1e-5)


def test_the_probability_is_a_logistic_function_of_standardised_features() -> None:
    features = rng.normal(size=(5, 2))
    acceptor = Acceptor(
        ("a", "b"), np.array([1.0, 2.0]), np.array([0.5, 4.0]), np.array([0.3, -0.7]), 0.2, Reliability.of(
            np.zeros(0, dtype=np.int32), np.zeros(0), 1
        ),
    )  # fmt: skip
    expected = [expit(0.3 * (a - 1.0) / 0.5 - 0.7 * (b - 2.0) / 4.0 + 0.2) for a, b in features]
    assert acceptor.probability(features) == pytest.approx(expected)


def test_the_record_of_a_class_comes_from_the_other_folds() -> None:
    """With one's own fold in the record, a class seen once would tell its own answer."""
    n, k = 120, 60
    predicted = np.repeat(np.arange(k, dtype=np.int32), 2)
    logits = np.full((n, k), -1.0, dtype=np.float32)
    logits[np.arange(n), predicted] = 1.0
    agree = np.random.default_rng(1).random(n) < 0.5
    folds = np.tile(np.array([0, 1], dtype=np.int8), k)
    acceptor = fitting.fit_acceptor((logits,), predicted, agree, folds, k)
    record = Reliability.of(predicted, agree.astype(np.float64), k)
    leaked = replace(acceptor, reliability=record).features((logits,))[1]
    cheat = LogisticRegression(C=1.0).fit((leaked - leaked.mean(0)) / np.maximum(leaked.std(0), 1e-9), agree)
    own = abs(acceptor.coefficients[acceptor.names.index("class_agreement")])
    assert own < 0.5 * abs(cheat.coef_[0][acceptor.names.index("class_agreement")])


def test_an_acceptor_of_constant_agreement_gives_its_rate() -> None:
    predicted = LOGITS.argmax(axis=1).astype(np.int32)
    folds = (np.arange(len(LOGITS)) % 5).astype(np.int8)
    for value, low, high in ((True, 0.99, 1.0), (False, 0.0, 0.01)):
        agree = np.full(len(LOGITS), value)
        acceptor = fitting.fit_acceptor((LOGITS,), predicted, agree, folds, 4)
        p = acceptor.probability(acceptor.features((LOGITS,))[1])
        assert low < p.min() <= p.max() < high


def test_a_fitted_acceptor_ranks_the_sure_above_the_doubtful() -> None:
    predicted = LOGITS.argmax(axis=1).astype(np.int32)
    p = softmax(LOGITS).max(axis=1)
    agree = np.random.default_rng(2).random(len(LOGITS)) < p
    folds = (np.arange(len(LOGITS)) % 5).astype(np.int8)
    acceptor = fitting.fit_acceptor((LOGITS,), predicted, agree, folds, 4)
    scores = acceptor.probability(acceptor.features((LOGITS,))[1])
    assert scores[p > 0.95].mean() > scores[p < 0.6].mean() + 0.2
