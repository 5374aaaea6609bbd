"""The pool: recipes that train a head on a feature block.

The lean pool holds what wins on text in practice; the full pool adds the rest of the paper's families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from scipy import linalg
from sklearn.ensemble import ExtraTreesClassifier, RandomForestClassifier
from sklearn.linear_model import SGDClassifier
from sklearn.neural_network import MLPClassifier
from sklearn.tree import DecisionTreeClassifier

from tracer.config import PoolName
from tracer.errors import MissingExtraError, TrainingError
from tracer.learning.heads import Block, Head, KernelHead, LinearHead, MlpHead, OnnxHead, kernel, log_probabilities
from tracer.learning.logistic import fit_logistic
from tracer.learning.neighbours import MAX_PROTOTYPES
from tracer.learning.surrogates import BlockName
from tracer.types import Float32, Int32

_DENSE_SPREAD, _LEXICAL_SPREAD = 16.0, 20.0
_PENALTIES: dict[BlockName, tuple[float, ...]] = {"dense": (1e-1, 2e-2, 3e-3), "lexical": (2e-2, 1e-3)}
_FOREST: dict[str, Any] = {"n_estimators": 60, "min_samples_leaf": 2}
_MLP_EPOCHS, _MLP_GAIN = 40, 0.05
_PARITY = 1e-4
_CHUNK = 16_384


def _as_it_is(head: Head) -> Head:
    return head


@dataclass(frozen=True, slots=True)
class Learner:
    """A recipe: ``train(block, y, n_classes, start, seed)`` gives a head.

    ``start`` is a head of the same recipe to start from, or None. ``variant`` tells recipes of one family
    apart, ``rival`` names a family that fits the same kind of function: only the best of all these goes past the
    first fold. ``starts_warm``: it makes use of a start. ``export`` turns the final head into the
    one that serves.
    """

    family: str
    block: BlockName
    train: Callable[[Block, Int32, int, Head | None, int], Head]
    variant: str = ""
    max_rows: int | None = None
    export: Callable[[Head], Head] = _as_it_is
    rival: str = ""
    starts_warm: bool = False

    @property
    def name(self) -> str:
        """For instance ``dense logistic (1e-05)``."""
        return f"{self.block} {self.family}" + (f" ({self.variant})" if self.variant else "")

    @property
    def contest(self) -> tuple[str, BlockName]:
        """What only the best recipe of goes on."""
        return self.rival or self.family, self.block


@dataclass(frozen=True, slots=True)
class Scaling:
    """Centre and common factor of a dense block; folded into the head, so serving sees raw embeddings."""

    mean: Float32
    factor: float

    @classmethod
    def of(cls, block: Float32) -> Scaling:
        """Centred rows get a root mean squared length of 16. Raises TrainingError where they are too large for that."""
        mean = block.mean(axis=0, dtype=np.float64).astype(np.float32)
        squares = sum(
            float(((block[i : i + _CHUNK] - mean) ** 2).sum(dtype=np.float64)) for i in range(0, len(block), _CHUNK)
        )
        spread = float(np.sqrt(squares / len(block)))
        if not np.isfinite(spread):
            raise TrainingError("the embeddings are too large for float32")
        return cls(mean, _DENSE_SPREAD / max(spread, 1e-12))

    def apply(self, block: Float32) -> Float32:
        """The scaled block."""
        scaled = block - self.mean
        scaled *= np.float32(self.factor)
        return scaled

    def fold(self, weights: Float32, bias: Float32) -> tuple[Float32, Float32]:
        """Weights and bias that act on raw rows as the given ones act on scaled rows."""
        raw = weights * np.float32(self.factor)
        return raw, bias - self.mean @ raw


def learners(name: PoolName, blocks: frozenset[BlockName]) -> tuple[Learner, ...]:
    """The recipes of a pool for the blocks at hand."""
    out: list[Learner] = []
    for block, penalties in _PENALTIES.items():
        if block in blocks:
            # From strong to weak: on the first fold each starts from the one before.
            out += [Learner("logistic", block, _Logistic(p), f"penalty {p:g}", starts_warm=True) for p in penalties]
    if "dense" in blocks:
        out.append(Learner("kernel", "dense", _kernel, max_rows=MAX_PROTOTYPES))
        if name == "full":
            out += [
                Learner("sgd", "dense", _sgd, rival="logistic"),
                Learner("mlp", "dense", _mlp),
                Learner("tree", "dense", _Trees(DecisionTreeClassifier, {"min_samples_leaf": 5}), export=_exported),
                Learner("forest", "dense", _Trees(RandomForestClassifier, _FOREST), export=_exported),
                Learner("extra-trees", "dense", _Trees(ExtraTreesClassifier, _FOREST), export=_exported),
            ]
    return tuple(out)


@dataclass(frozen=True, slots=True)
class _Logistic:
    penalty: float

    def __call__(self, block: Block, y: Int32, k: int, start: Head | None, seed: int) -> Head:
        step = start.step if isinstance(start, LinearHead) else 0.0
        if isinstance(block, np.ndarray):
            scaling = Scaling.of(block)
            first = _unfold(start, scaling)
            fitted, step = fit_logistic(scaling.apply(block), y, k, self.penalty, start=first, step=step)
            return LinearHead(*scaling.fold(fitted[:-1], fitted[-1]), step)
        spread = np.float32(_LEXICAL_SPREAD)
        first = None
        if isinstance(start, LinearHead):
            first = np.vstack([start.weights / spread, start.bias])
        fitted, step = fit_logistic(block * spread, y, k, self.penalty, start=first, step=step)
        return LinearHead(fitted[:-1] * spread, fitted[-1], step)


def _unfold(start: Head | None, scaling: Scaling) -> Float32 | None:
    if not isinstance(start, LinearHead):
        return None
    return np.vstack([start.weights / np.float32(scaling.factor), start.bias + scaling.mean @ start.weights])


def _kernel(block: Block, y: Int32, k: int, start: Head | None, seed: int) -> Head:
    """Kernel ridge regression on one-hot labels, every row a prototype (Saunders et al. 1998)."""
    x = np.asarray(block, dtype=np.float32)
    centred = x - x.mean(axis=0)
    distance = 2.0 * float(np.mean((centred * centred).sum(axis=1)))
    width = np.float32(1.7 / max(distance, 1e-12))
    gram = kernel(x, x, float(width)).astype(np.float64)
    gram[np.diag_indices_from(gram)] += 0.3
    prior = np.bincount(y, minlength=k).astype(np.float64) / len(y)
    centred_labels = np.eye(k)[y] - prior
    weights = linalg.solve(gram, centred_labels, assume_a="pos", overwrite_a=True, overwrite_b=True)
    factor = np.float32(10.0)
    return KernelHead(
        x,
        weights.astype(np.float32) * factor,
        prior.astype(np.float32) * factor,
        np.array([width], dtype=np.float32),
    )


def _sgd(block: Block, y: Int32, k: int, start: Head | None, seed: int) -> Head:
    scaling = Scaling.of(np.asarray(block))
    # A fixed number of passes: averaging makes a stopping rule needless.
    model = SGDClassifier(loss="log_loss", alpha=1e-4, max_iter=6, tol=None, random_state=seed, average=True)
    model.fit(scaling.apply(np.asarray(block)), y)
    coefficients = np.asarray(model.coef_.T, dtype=np.float32), np.asarray(model.intercept_, dtype=np.float32)
    weights, bias = _both_classes(*coefficients)
    return LinearHead(*scaling.fold(*_all_classes(weights, bias, model.classes_, k)))


def _mlp(block: Block, y: Int32, k: int, start: Head | None, seed: int) -> Head:
    scaling = Scaling.of(np.asarray(block))
    x = scaling.apply(np.asarray(block))
    model = MLPClassifier((256,), alpha=1e-2, batch_size=min(512, len(y)), learning_rate_init=4e-3, random_state=seed)
    classes = np.unique(y)
    for epoch in range(_MLP_EPOCHS):
        before = model.loss_ if epoch else np.inf
        model.partial_fit(x, y, classes=classes)
        if model.loss_ > before * (1.0 - _MLP_GAIN):
            break
    layers = [
        (w.astype(np.float32), b.astype(np.float32)) for w, b in zip(model.coefs_, model.intercepts_, strict=True)
    ]
    layers[0] = scaling.fold(*layers[0])
    layers[-1] = _all_classes(*_both_classes(*layers[-1]), classes, k)
    return MlpHead(tuple(layers))


@dataclass(frozen=True, slots=True)
class _Trees:
    estimator: Callable[..., Any]
    settings: dict[str, Any] = field(default_factory=dict)

    def __call__(self, block: Block, y: Int32, k: int, start: Head | None, seed: int) -> Head:
        # Trees that cannot be exported cannot serve: say so before training them, without the seconds of an import.
        if not (find_spec("onnxruntime") and find_spec("skl2onnx")):
            raise _no_exporter()
        x = np.asarray(block, dtype=np.float32)
        model = self.estimator(random_state=seed, **self.settings).fit(x, y)
        columns = np.full(k, -1, dtype=np.int64)
        columns[model.classes_] = np.arange(len(model.classes_))
        return FittedTrees(model, columns, x[:200].copy())


@dataclass(frozen=True, slots=True, eq=False)
class FittedTrees:
    """Trees as scikit-learn trained them: enough for a fold, which is never archived."""

    model: Any
    columns: NDArray[np.int64]
    sample: Float32
    kind: ClassVar[str] = "onnx"

    def logits(self, block: Block) -> Float32:
        """Log probabilities as ``OnnxHead`` gives them."""
        probabilities = self.model.predict_proba(np.asarray(block, dtype=np.float32)).astype(np.float32)
        return log_probabilities(probabilities, self.columns)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Those of the exported head."""
        return _exported(self).arrays()


def _exported(head: Head) -> Head:
    """Trees as ONNX. Raises TrainingError where they do not answer as the trained ones."""
    if not isinstance(head, FittedTrees):
        return head
    exported = OnnxHead(_to_onnx(head.model, head.sample.shape[1]), head.columns)
    worst = float(np.abs(np.exp(exported.logits(head.sample)) - np.exp(head.logits(head.sample))).max())
    if worst > _PARITY:
        raise TrainingError(f"the exported trees differ from the trained ones by {worst:.2g} ({_PARITY:g} allowed)")
    return exported


def _to_onnx(model: Any, dimension: int) -> NDArray[np.uint8]:
    to_onnx, tensor_type = _onnx_exporter()
    exported = to_onnx(model, initial_types=[("input", tensor_type([None, dimension]))], options={"zipmap": False})
    return np.frombuffer(exported.SerializeToString(), dtype=np.uint8)


def _onnx_exporter() -> tuple[Any, Any]:
    try:
        import onnxruntime  # noqa: F401 - serving will need it
        from skl2onnx import to_onnx
        from skl2onnx.common.data_types import FloatTensorType
    except ImportError as error:
        raise _no_exporter() from error
    return to_onnx, FloatTensorType


def _no_exporter() -> MissingExtraError:
    return MissingExtraError("skl2onnx and onnxruntime", "trees", "A tree surrogate")


def _both_classes(weights: Float32, bias: Float32) -> tuple[Float32, Float32]:
    """scikit-learn keeps one column for two classes: give each class its own."""
    if weights.shape[1] != 1:
        return weights, bias
    half = np.float32(0.5)
    return np.hstack([-weights, weights]) * half, np.concatenate([-bias, bias]) * half


def _all_classes(weights: Float32, bias: Float32, seen: Int32, k: int) -> tuple[Float32, Float32]:
    """Pad columns for classes that a fold never saw: they get a low constant logit."""
    full = np.zeros((weights.shape[0], k), dtype=np.float32)
    level = np.full(k, -20.0, dtype=np.float32)
    full[:, seen], level[seen] = weights, bias
    return full, level
