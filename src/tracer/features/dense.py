"""Dense embeddings: what an embedder is, and the checks that every embedder passes through."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

from tracer.errors import EmbedderError, FeatureError, TracerError
from tracer.types import EmbedderIdentity, Float32

PROBE_TEXTS: tuple[str, ...] = (
    "I want to cancel my order and get a refund.",
    "What is the capital of France?",
    "def add(a, b):\n    return a + b",
    "Überweisung fehlgeschlagen: bitte prüfen!",
    "ok",
    "The meeting has moved to 3 pm on Tuesday.",
    "1234567890",
    "a b c d e f g",
)
"""Fixed texts whose vectors tell embedders apart. Changing them changes every behavioural digest."""


class Embedder(Protocol):
    """Anything that turns n texts into an (n, d) float32 matrix and says who it is."""

    @property
    def identity(self) -> EmbedderIdentity:
        """Name, dimension and digest; constant over the life of the embedder."""
        ...

    def embed(self, texts: Sequence[str]) -> Float32:
        """Vectors (n, d) of n texts, row i for text i."""
        ...


class CallableEmbedder:
    """An embedder made of any callable from a list of n strings to an array-like (n, d).

    The dimension is learned with one probe call at birth. Without a ``digest`` the embedder is identified
    by its behaviour (see `probe_digest`): give a version string as ``digest`` where you have one.
    """

    def __init__(
        self, function: Callable[[list[str]], object], name: str = "callable", digest: str | None = None
    ) -> None:
        self._function = function
        probes = PROBE_TEXTS[:1] if digest else PROBE_TEXTS
        vectors = as_vectors(_answer(function, name, probes), name, len(probes))
        self._identity = EmbedderIdentity(name, vectors.shape[1], digest or vectors_digest(vectors))

    @property
    def identity(self) -> EmbedderIdentity:
        """The name, the dimension found by the probe, and the digest."""
        return self._identity

    def embed(self, texts: Sequence[str]) -> Float32:
        """Vectors (n, d). Raises EmbedderError where the callable fails or answers another shape."""
        name, dimension = self._identity.name, self._identity.dimension
        raw = _answer(self._function, name, texts) if len(texts) else np.zeros((0, dimension), np.float32)
        return as_vectors(raw, name, len(texts), dimension)

    def __repr__(self) -> str:
        return f"CallableEmbedder({self._identity.name!r}, dimension={self._identity.dimension})"


def checked(embedder: Embedder, texts: Sequence[str]) -> Float32:
    """Vectors (n, d) of ``embedder``: float32, C-contiguous, finite, of the dimension that it declares.

    No texts give an empty (0, d) matrix without a call. Raises EmbedderError naming the embedder where it
    fails or its answer does not fit, and FeatureError where ``texts`` is one string.
    """
    if isinstance(texts, str):
        raise FeatureError("texts must be a sequence of strings, not one string")
    name = type(embedder).__name__
    try:
        identity = embedder.identity
        name = identity.name
        raw = embedder.embed(texts) if len(texts) else np.zeros((0, identity.dimension), np.float32)
    except TracerError:
        raise
    except Exception as error:
        raise failure(name, len(texts), error) from error
    return as_vectors(raw, name, len(texts), identity.dimension)


def as_vectors(raw: object, name: str, n: int, dimension: int | None = None) -> Float32:
    """``raw`` as a finite, C-contiguous float32 matrix (n, d); ``dimension`` None takes any d >= 1.

    Raises EmbedderError with both numbers where rows or columns do not fit.
    """
    try:
        array = np.asarray(raw)
    except Exception as error:
        raise EmbedderError(f"embedder {name!r} answered no array: {error}") from error
    if array.dtype.kind not in "fiu":
        raise EmbedderError(f"embedder {name!r} answered {array.dtype} values, not real numbers")
    if array.ndim != 2:
        raise EmbedderError(f"embedder {name!r} answered shape {array.shape}, not (n, d) with n = {n}")
    if array.shape[0] != n:
        raise EmbedderError(f"embedder {name!r} answered {array.shape[0]} vectors for {n} texts")
    if array.shape[1] != dimension and (dimension is not None or array.shape[1] == 0):
        declared = "at least 1" if dimension is None else dimension
        raise EmbedderError(f"embedder {name!r} answered {array.shape[1]} columns, expected {declared}")
    with np.errstate(over="ignore"):  # a float64 beyond float32 turns into infinity, refused just below
        vectors: Float32 = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = int(np.flatnonzero(~finite)[0])
        raise EmbedderError(f"embedder {name!r} answered NaN or infinity in row {row} of {n}")
    return vectors


def failure(name: str, n: int, error: Exception) -> EmbedderError:
    """The EmbedderError that wraps a foreign exception; raise it ``from error``."""
    return EmbedderError(f"embedder {name!r} failed on {n} texts: {type(error).__name__}: {error}")


def probe_digest(embed: Callable[[Sequence[str]], Float32]) -> str:
    """A behavioural digest (sha256, 64 hex digits): what ``embed`` answers to `PROBE_TEXTS`.

    It tells models apart, not every edit of one: two embedders that agree on the probes share a digest.
    Prefer a digest of the weights wherever the weights can be read.
    """
    return vectors_digest(as_vectors(embed(PROBE_TEXTS), "probe", len(PROBE_TEXTS)))


def vectors_digest(vectors: Float32) -> str:
    """The sha256 of a coarse fingerprint of probe vectors (n, d).

    Each row counts with its norm (3 digits) and with one weighted sum of its direction (2 decimals),
    not with all its coordinates: among thousands of rounded numbers some always lie on a rounding edge, and
    the float noise of another machine or batch size would change the digest of the same model.
    """
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1)
    weights = np.cos(np.arange(1, wide.shape[1] + 1, dtype=np.float64) ** 2)  # without any symmetry
    sums = (wide @ weights) / np.where(norms > 0, norms, 1.0)
    # adding 0.0 folds the two zeros, "-0.00" and "0.00", into one
    rows = [f"{norm:.2e} {np.round(total, 2) + 0.0:.2f}" for norm, total in zip(norms, sums, strict=True)]
    return hashlib.sha256("\n".join([f"{vectors.shape[1]}", *rows]).encode()).hexdigest()


def same_embedder(expected: EmbedderIdentity, actual: EmbedderIdentity) -> None:
    """Raise EmbedderError, showing both, unless the two are one embedder.

    Dimension and digest decide. Names do not: one model has a hub name, a package name and a path.
    """
    if (expected.dimension, expected.digest) != (actual.dimension, actual.digest):
        raise EmbedderError(f"expected embedder {_shown(expected)}, got {_shown(actual)}")


def _shown(identity: EmbedderIdentity) -> str:
    return f"{identity.name!r} (dimension {identity.dimension}, digest {identity.digest[:16]})"


def _answer(function: Callable[[list[str]], object], name: str, texts: Sequence[str]) -> object:
    try:
        return function(list(texts))
    except Exception as error:
        raise failure(name, len(texts), error) from error
