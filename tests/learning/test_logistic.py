"""The logistic regression against scikit-learn's optimum of the same objective."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import sparse
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from tracer import pipeline
from tracer.errors import FeatureError, TrainingError
from tracer.learning import logistic
from tracer.learning.logistic import fit_logistic
from tracer.types import Dataset, Float32, Float64, Int32

N, D, K = 240, 6, 4


def data(seed: int = 0) -> tuple[Float32, Int32]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, K, N).astype(np.int32)
    centres = rng.normal(size=(K, D))
    return (centres[y] + rng.normal(size=(N, D))).astype(np.float32), y


def solve(*given: Any, **settings: Any) -> Float32:
    return fit_logistic(*given, **settings).coefficients


def objective(coefficients: NDArray[np.floating], x: Float32, y: Int32, penalty: float) -> float:
    weights, bias = coefficients[:-1].astype(np.float64), coefficients[-1].astype(np.float64)
    z: Float64 = x.astype(np.float64) @ weights + bias
    loss = logsumexp(z, axis=1) - z[np.arange(len(y)), y]
    return float(loss.mean() + 0.5 * penalty * (weights**2).sum())


def sklearn_optimum(x: Float32, y: Int32, penalty: float) -> Float64:
    model = LogisticRegression(C=1.0 / (penalty * len(y)), tol=1e-10, max_iter=10_000).fit(x.astype(np.float64), y)
    return np.vstack([model.coef_.T, model.intercept_])


@pytest.mark.parametrize("penalty", [1.0, 1e-1, 3e-3])
def test_it_reaches_the_optimum_of_scikit_learn(penalty: float) -> None:
    x, y = data()
    best = sklearn_optimum(x, y, penalty)
    optimum = objective(best, x, y, penalty)
    close = solve(x, y, K, penalty, tolerance=1e-8)
    assert objective(close, x, y, penalty) == pytest.approx(optimum, rel=1e-4)
    assert close[:-1] == pytest.approx(best[:-1], abs=0.02)
    loose = objective(solve(x, y, K, penalty), x, y, penalty)
    assert optimum * (1 - 1e-6) <= loose <= optimum * 1.03
    assert solve(x, y, K, penalty).dtype == np.float32


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_warm_start_reaches_the_same_optimum_and_leaves_the_start_alone(seed: int) -> None:
    x, y = data()
    start = np.random.default_rng(seed).normal(size=(D + 1, K)).astype(np.float32)
    before = start.copy()
    warm = solve(x, y, K, 1e-2, start=start, tolerance=1e-8)
    cold = solve(x, y, K, 1e-2, tolerance=1e-8)
    assert np.array_equal(start, before)
    assert objective(warm, x, y, 1e-2) == pytest.approx(objective(cold, x, y, 1e-2), rel=1e-4)
    assert warm[:-1] == pytest.approx(cold[:-1], abs=0.05)


def test_a_start_at_the_optimum_stays_there() -> None:
    x, y = data()
    optimum = solve(x, y, K, 1e-2, tolerance=1e-8)
    again = solve(x, y, K, 1e-2, start=optimum, tolerance=1e-3)
    assert objective(again, x, y, 1e-2) <= objective(optimum, x, y, 1e-2) * (1 + 1e-6)
    assert again == pytest.approx(optimum, abs=0.02)


def test_sparse_equals_dense() -> None:
    x, y = data()
    x[np.abs(x) < 0.7] = 0.0
    one = solve(x, y, K, 1e-2, tolerance=1e-8)
    two = solve(sparse.csr_matrix(x), y, K, 1e-2, tolerance=1e-8)
    assert two == pytest.approx(one, abs=0.02)
    assert objective(two, x, y, 1e-2) == pytest.approx(objective(one, x, y, 1e-2), rel=1e-5)


def test_the_intercept_is_free_and_carries_the_class_shares() -> None:
    y = np.repeat(np.arange(3, dtype=np.int32), [70, 20, 10])
    fitted = solve(np.zeros((100, 2), dtype=np.float32), y, 3, 1e3, tolerance=1e-9)
    shares = np.exp(fitted[-1] - logsumexp(fitted[-1]))
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.01)
    assert fitted[:-1] == pytest.approx(np.zeros((2, 3)), abs=1e-6)


def test_a_class_without_rows_becomes_unlikely() -> None:
    x, y = data()
    fitted = solve(x, np.minimum(y, K - 2), K, 1e-2)
    assert ((x @ fitted[:-1] + fitted[-1]).argmax(axis=1) != K - 1).all()


def test_a_start_with_its_step_needs_few_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = data()
    first = fit_logistic(x, y, K, 1e-2)
    passes = 0
    loss = logistic._Rows.loss

    def counted(self: Any, *given: Any) -> Any:
        nonlocal passes
        passes += 1
        return loss(self, *given)

    monkeypatch.setattr(logistic._Rows, "loss", counted)
    fit_logistic(x, y, K, 1e-2, start=first.coefficients, step=first.step)
    assert passes <= 3


def test_many_rows_reach_the_optimum_of_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks, threads and a start from every eighth row change the way, not the end."""
    x, y = data()
    whole = solve(x, y, K, 1e-2, tolerance=1e-8)
    for name, value in (("_CHUNK", 50), ("_MANY", 100), ("LARGE", 100)):
        monkeypatch.setattr(logistic, name, value)
    assert solve(x, y, K, 1e-2, tolerance=1e-8) == pytest.approx(whole, abs=0.02)
    rows = sparse.csr_matrix(x)
    assert solve(rows, y, K, 1e-2, tolerance=1e-8) == pytest.approx(whole, abs=0.02)


def test_a_loss_that_is_no_number_is_an_error_and_no_endless_search() -> None:
    _, y = data()
    start = np.zeros((D + 1, K), dtype=np.float32)
    start[D] = np.nan
    with pytest.raises(TrainingError, match="too large for float32"):
        fit_logistic(data()[0], y, K, 1e-2, start=start)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_one_embedding_beyond_float32_ends_the_fit_with_a_word() -> None:
    rng = np.random.default_rng(0)
    dense = rng.normal(size=(400, 16)).astype(np.float32)
    dense[7, 3] = 1e20
    labels = [("a", "b")[i] for i in rng.integers(0, 2, 400)]
    with pytest.raises((TrainingError, FeatureError), match="too large for float32"):
        pipeline.fit(Dataset.from_columns(labels, dense=dense))


def test_a_step_into_overflow_is_shortened() -> None:
    x, y = data()
    fitted = fit_logistic(x, y, K, 1e-2, step=1e30)
    assert np.isfinite(fitted.coefficients).all()
