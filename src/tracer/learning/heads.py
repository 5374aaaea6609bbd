"""Heads: the forward pass of a trained classifier, in NumPy, as it is archived and served.

A head maps a feature block (n, d) to logits (n, k). Serving imports this module; it must not import
scikit-learn, nor scipy. Trees are run by ONNX Runtime, imported when a policy with trees is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from tracer.errors import ArchiveError, MissingExtraError
from tracer.types import Float32

if TYPE_CHECKING:
    from scipy import sparse

Block: TypeAlias = Union["sparse.csr_matrix", Float32]
_PROBABILITY_FLOOR = 1e-6


class Head(Protocol):
    """Something that turns a feature block into logits, and into arrays for the archive."""

    kind: ClassVar[str]

    def logits(self, block: Block) -> Float32:
        """Logits (n, k)."""

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Named arrays that rebuild the head."""


@dataclass(frozen=True, slots=True, eq=False)
class LinearHead:
    """``weights`` (d, k), ``bias`` (k,). ``step``: length of the optimiser's last steps, for a start from here."""

    weights: Float32
    bias: Float32
    step: float = 0.0
    kind: ClassVar[str] = "linear"

    def logits(self, block: Block) -> Float32:
        """``block @ weights + bias``."""
        out = np.asarray(block @ self.weights, dtype=np.float32)
        out += self.bias
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        """``weights`` and ``bias``."""
        return {"weights": self.weights, "bias": self.bias}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild from ``arrays``."""
        return cls(arrays["weights"], arrays["bias"])


@dataclass(frozen=True, slots=True, eq=False)
class KernelHead:
    """Radial basis functions around ``prototypes`` (m, d) with ``weights`` (m, k), ``width`` gamma (1,)."""

    prototypes: Float32
    weights: Float32
    bias: Float32
    width: Float32
    kind: ClassVar[str] = "kernel"

    def logits(self, block: Block) -> Float32:
        """``exp(-gamma |x - p|^2) @ weights + bias``."""
        return kernel(np.asarray(block), self.prototypes, float(self.width[0])) @ self.weights + self.bias

    def arrays(self) -> dict[str, NDArray[Any]]:
        """All four arrays."""
        return {n: getattr(self, n) for n in ("prototypes", "weights", "bias", "width")}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild from ``arrays``."""
        return cls(arrays["prototypes"], arrays["weights"], arrays["bias"], arrays["width"])


@dataclass(frozen=True, slots=True, eq=False)
class MlpHead:
    """Fully connected layers with rectifiers between them: ``layers`` of (weights, bias)."""

    layers: tuple[tuple[Float32, Float32], ...]
    kind: ClassVar[str] = "mlp"

    def logits(self, block: Block) -> Float32:
        """Forward pass; the last layer is linear."""
        out = np.asarray(block, dtype=np.float32)
        for weights, bias in self.layers[:-1]:
            out = np.maximum(out @ weights + bias, 0.0)
        weights, bias = self.layers[-1]
        return np.asarray(out @ weights + bias, dtype=np.float32)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """``weights.i`` and ``bias.i`` for each layer i."""
        out: dict[str, NDArray[Any]] = {}
        for i, (weights, bias) in enumerate(self.layers):
            out[f"weights.{i}"], out[f"bias.{i}"] = weights, bias
        return out

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild from ``arrays``."""
        n = len(arrays) // 2
        return cls(tuple((arrays[f"weights.{i}"], arrays[f"bias.{i}"]) for i in range(n)))


@dataclass(frozen=True, slots=True, eq=False)
class OnnxHead:
    """A model run by ONNX Runtime that gives class probabilities; ``columns`` (k,) maps its classes to ours.

    ``columns[j]`` is the position of our label j among the model's classes, -1 where it never saw it.
    """

    model: NDArray[np.uint8]
    columns: NDArray[np.int64]
    session: Any = field(default=None, compare=False)
    kind: ClassVar[str] = "onnx"

    def __post_init__(self) -> None:
        object.__setattr__(self, "session", _onnx_session(self.model))

    def logits(self, block: Block) -> Float32:
        """Log probabilities, floored: a class that was never seen is unlikely rather than impossible."""
        given = np.ascontiguousarray(block, dtype=np.float32)
        probabilities = self.session.run([self.session.get_outputs()[-1].name], {"input": given})[0]
        return log_probabilities(probabilities, self.columns)

    def arrays(self) -> dict[str, NDArray[Any]]:
        """``model`` bytes and ``columns``."""
        return {"model": self.model, "columns": self.columns}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        """Rebuild from ``arrays``."""
        return cls(arrays["model"], arrays["columns"])


_KINDS: dict[str, type[LinearHead | KernelHead | MlpHead | OnnxHead]] = {
    head.kind: head for head in (LinearHead, KernelHead, MlpHead, OnnxHead)
}


def head_from_arrays(kind: str, arrays: Mapping[str, NDArray[Any]]) -> Head:
    """Rebuild an archived head. Raises ArchiveError for an unknown kind or missing arrays."""
    if kind not in _KINDS:
        raise ArchiveError(f"head kind {kind!r} is not one of {', '.join(_KINDS)}")
    try:
        return _KINDS[kind].from_arrays(arrays)
    except KeyError as error:
        raise ArchiveError(f"the {kind} head lacks array {error}") from error


def stack(first: Block, second: Block) -> Block:
    """Rows of one block under those of another of the same kind."""
    if isinstance(first, np.ndarray) or isinstance(second, np.ndarray):
        return np.vstack([np.asarray(first), np.asarray(second)])
    from scipy import sparse

    return sparse.csr_matrix(sparse.vstack([first, second]))


def kernel(x: Float32, prototypes: Float32, width: float) -> Float32:
    """``exp(-width |x - p|^2)`` (n, m)."""
    squared: Float32 = (x * x).sum(axis=1)[:, None] + (prototypes * prototypes).sum(axis=1)
    squared -= 2.0 * (x @ prototypes.T)
    np.maximum(squared, 0.0, out=squared)
    squared *= -np.float32(width)
    np.exp(squared, out=squared)
    return squared


def log_probabilities(probabilities: Float32, columns: NDArray[np.int64]) -> Float32:
    """Class probabilities (n, m) as logits (n, k): column ``columns[j]`` for label j, the floor where it is -1."""
    padded = np.concatenate([probabilities, np.zeros((len(probabilities), 1), dtype=np.float32)], axis=1)
    return np.asarray(np.log(np.maximum(padded[:, columns], _PROBABILITY_FLOOR)), dtype=np.float32)


def softmax(logits: Float32) -> Float32:
    """Probabilities (n, k), computed without overflow."""
    out: Float32 = logits - logits.max(axis=1, keepdims=True)
    np.exp(out, out=out)
    out /= out.sum(axis=1, keepdims=True)
    return out


def _onnx_session(model: NDArray[np.uint8]) -> Any:
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "trees", "A surrogate made of trees") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(model.tobytes(), sess_options=options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ArchiveError(f"the archived tree model cannot be loaded: {error}") from error
