"""Heads: what is archived and served predicts what was trained, and survives its arrays."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier

from tracer.errors import ArchiveError
from tracer.learning import pool
from tracer.learning.heads import Head, KernelHead, LinearHead, MlpHead, head_from_arrays, softmax, stack
from tracer.learning.pool import FittedTrees, Learner, Scaling
from tracer.types import Dataset, Float32, Int32

K = 3


def blobs(k: int = K, n: int = 150, d: int = 5, seed: int = 0) -> tuple[Float32, Int32]:
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % k).astype(np.int32)
    centres = 3.0 * rng.normal(size=(k, d)) + 1.0
    return (centres[y] + rng.normal(size=(n, d))).astype(np.float32), y


def recipe(family: str, block: str = "dense") -> Learner:
    found = [
        r for r in pool.learners("full", frozenset(["lexical", "dense"])) if (r.family, r.block) == (family, block)
    ]
    return found[-1]


def trained(family: str, x: Float32, y: Int32, k: int = K) -> Head:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its own test is below
        return recipe(family).train(x, y, k, None, 0)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The scikit-learn models that the pool's recipes fit, as they are fitted."""
    models: list[Any] = []

    def recording(name: str, kind: type[Any]) -> None:
        def partial_fit(self: Any, x: Any, y: Any, classes: Any = None) -> Any:
            models.append(self)
            return kind.partial_fit(self, x, y, classes=classes)

        def fit(self: Any, x: Any, y: Any) -> Any:
            models.append(self)
            return kind.fit(self, x, y)

        monkeypatch.setattr(pool, name, type(kind.__name__, (kind,), {"fit": fit, "partial_fit": partial_fit}))

    recording("MLPClassifier", MLPClassifier)
    recording("SGDClassifier", SGDClassifier)
    return models


@pytest.mark.parametrize("family", ["logistic", "kernel", "sgd", "mlp", "tree", "forest", "extra-trees"])
def test_a_head_survives_its_arrays(family: str) -> None:
    x, y = blobs()
    head = trained(family, x, y)
    arrays = {name: array.copy() for name, array in head.arrays().items()}
    again = head_from_arrays(head.kind, arrays)
    assert softmax(again.logits(x)) == pytest.approx(softmax(head.logits(x)), abs=1e-4)
    assert np.array_equal(again.logits(x), head_from_arrays(head.kind, again.arrays()).logits(x))
    assert again.logits(x).dtype == np.float32
    assert head.logits(x).shape == (len(x), K)
    assert (head.logits(x).argmax(axis=1) == y).mean() > 0.9


def test_the_mlp_head_gives_the_probabilities_of_scikit_learn(recorded: list[Any]) -> None:
    x, y = blobs()
    head = trained("mlp", x, y)
    expected = recorded[0].predict_proba(Scaling.of(x).apply(x))
    assert softmax(head.logits(x)) == pytest.approx(expected, abs=1e-3)


def test_the_mlp_head_of_two_classes(recorded: list[Any]) -> None:
    x, y = blobs(k=2)
    head = trained("mlp", x, y, 2)
    expected = recorded[0].predict_proba(Scaling.of(x).apply(x))
    assert softmax(head.logits(x)) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("k", [2, 3])
def test_the_linear_head_decides_as_scikit_learn(k: int, recorded: list[Any]) -> None:
    x, y = blobs(k)
    head = trained("sgd", x, y, k)
    decision = recorded[0].decision_function(Scaling.of(x).apply(x))
    logits = head.logits(x)
    shown = logits if k > 2 else logits[:, 1] - logits[:, 0]
    assert shown == pytest.approx(decision, rel=1e-2, abs=1e-2)
    assert np.array_equal(logits.argmax(axis=1), recorded[0].predict(Scaling.of(x).apply(x)))


def test_no_recipe_of_the_full_pool_warns_on_real_messages(small: Dataset) -> None:
    """Warnings are errors in this suite: a recipe that warns would break a user's run with ``-W error``."""
    assert small.dense is not None
    rows = np.arange(300)
    heads = [
        recipe(family).train(small.dense[rows], small.y[rows], len(small.space), None, 0)
        for family in ("logistic", "kernel", "mlp", "tree", "sgd")
    ]
    assert all(np.isfinite(head.logits(small.dense[300:])).all() for head in heads)


@pytest.mark.parametrize("family", ["tree", "forest", "extra-trees"])
def test_trees_agree_with_scikit_learn_through_onnx(family: str) -> None:
    x, y = blobs()
    head = trained(family, x, y)
    assert isinstance(head, FittedTrees)
    served = head_from_arrays("onnx", head.arrays())
    again = trained(family, x, y)
    assert np.array_equal(again.arrays()["model"], head.arrays()["model"]), "the same bytes for the same traces"
    other = np.random.default_rng(3).normal(scale=4.0, size=(200, x.shape[1])).astype(np.float32)
    for block in (x, other):
        expected = np.maximum(head.model.predict_proba(block), 1e-6)
        assert np.exp(served.logits(block)) == pytest.approx(expected, abs=1e-4)
        assert np.exp(head.logits(block)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("family", ["logistic", "kernel", "sgd", "mlp", "tree"])
def test_a_class_without_training_rows_is_never_predicted(family: str) -> None:
    x, y = blobs()
    gap = np.array([0, 2, 3], dtype=np.int32)[y]
    logits = trained(family, x, gap, 5).logits(x)
    assert logits.shape == (len(x), 5)
    assert set(logits.argmax(axis=1).tolist()) == {0, 2, 3}
    assert np.isfinite(logits).all()


def test_the_kernel_head_is_its_formula() -> None:
    rng = np.random.default_rng(1)
    x, prototypes = rng.normal(size=(7, 4)), rng.normal(size=(5, 4))
    weights, bias, width = rng.normal(size=(5, 3)), rng.normal(size=3), 0.37
    arrays = (a.astype(np.float32) for a in (prototypes, weights, bias, np.array([width])))
    head = KernelHead(*arrays)
    expected = [
        sum(np.exp(-width * ((row - p) ** 2).sum()) * w for p, w in zip(prototypes, weights, strict=True)) + bias
        for row in x
    ]
    assert head.logits(x.astype(np.float32)) == pytest.approx(np.array(expected), abs=1e-4)


def test_the_kernel_recipe_solves_ridge_regression() -> None:
    x, y = blobs(n=60)
    head = trained("kernel", x, y)
    arrays = head.arrays()
    gram = np.exp(-float(arrays["width"][0]) * ((x[:, None] - x[None]) ** 2).sum(axis=2))
    prior = np.bincount(y, minlength=K) / len(y)
    weights = np.linalg.solve(gram + 0.3 * np.eye(len(x)), np.eye(K)[y] - prior)
    assert head.logits(x) == pytest.approx(10.0 * (gram @ weights + prior), abs=1e-2)


def test_the_scaling_folds_into_the_weights() -> None:
    x, _ = blobs()
    scaling = Scaling.of(x)
    scaled = scaling.apply(x)
    assert scaled.mean(axis=0) == pytest.approx(np.zeros(x.shape[1]), abs=1e-4)
    assert np.sqrt((scaled**2).sum(axis=1).mean()) == pytest.approx(16.0, rel=1e-3)
    rng = np.random.default_rng(2)
    weights, bias = rng.normal(size=(x.shape[1], K)).astype(np.float32), rng.normal(size=K).astype(np.float32)
    raw = LinearHead(*scaling.fold(weights, bias))
    assert raw.logits(x) == pytest.approx(scaled @ weights + bias, rel=1e-3, abs=1e-3)


def test_a_constant_block_does_not_break_the_scaling() -> None:
    x, y = np.ones((30, 4), dtype=np.float32), (np.arange(30) % 3).astype(np.int32)
    assert np.isfinite(trained("logistic", x, y).logits(x)).all()


def test_a_lexical_head_reads_sparse_rows() -> None:
    x, y = blobs()
    x[x < 0.5] = 0.0
    head = recipe("logistic", "lexical").train(sparse.csr_matrix(x), y, K, None, 0)
    assert head.logits(sparse.csr_matrix(x)) == pytest.approx(head.logits(x), abs=1e-3)
    warm = recipe("logistic", "lexical").train(sparse.csr_matrix(x), y, K, head, 0)
    assert warm.logits(x) == pytest.approx(head.logits(x), rel=0.1, abs=0.5)


def test_an_mlp_without_hidden_layers_is_linear() -> None:
    x, _ = blobs()
    weights, bias = np.ones((x.shape[1], K), dtype=np.float32), np.arange(K, dtype=np.float32)
    assert np.array_equal(MlpHead(((weights, bias),)).logits(x), LinearHead(weights, bias).logits(x))


def test_unknown_kinds_and_missing_arrays_are_refused() -> None:
    with pytest.raises(ArchiveError, match="'magic' is not one of linear, kernel, mlp, onnx"):
        head_from_arrays("magic", {})
    for kind in ("linear", "kernel", "onnx"):
        with pytest.raises(ArchiveError, match=f"the {kind} head lacks array"):
            head_from_arrays(kind, {})
    with pytest.raises(ArchiveError, match="cannot be loaded"):
        head_from_arrays("onnx", {"model": np.frombuffer(b"no model", np.uint8), "columns": np.arange(2)})


def test_blocks_stack_in_their_own_kind() -> None:
    dense = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert np.array_equal(np.asarray(stack(dense, dense[:1])), np.vstack([dense, dense[:1]]))
    both = stack(sparse.csr_matrix(dense), sparse.csr_matrix(dense[:1]))
    assert sparse.issparse(both)
    assert np.array_equal(both.toarray(), np.vstack([dense, dense[:1]]))


def test_softmax_does_not_overflow() -> None:
    p = softmax(np.array([[1e4, 0.0], [-1e4, -1e4]], dtype=np.float32))
    assert np.array_equal(p, np.array([[1.0, 0.0], [0.5, 0.5]], dtype=np.float32))
