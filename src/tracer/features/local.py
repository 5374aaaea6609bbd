"""Sentence encoders that run in this process, through sentence-transformers."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from tracer.errors import ConfigError, EmbedderError, MissingExtraError, TracerError
from tracer.features.dense import PROBE_TEXTS, as_vectors, failure, vectors_digest
from tracer.types import EmbedderIdentity, Float32

_WEIGHTS_AND_CONFIG = {".safetensors", ".bin", ".json", ".txt"}
_CHATTY = ("sentence_transformers", "transformers", "huggingface_hub", "torch.onnx")


class SentenceTransformerEmbedder:
    """A sentence-transformers model: a local folder, an installed package that carries one, or a hub name.

    ``model`` is looked up in this order (see `model_folder`). ``normalize`` scales vectors to norm 1.
    ``device`` None lets sentence-transformers choose. The digest is that of the weight and config files
    where they lie in a folder; a model by hub name gets a behavioural digest. Raises MissingExtraError
    without sentence-transformers, and EmbedderError where the model cannot be loaded.
    """

    def __init__(self, model: str, *, batch_size: int = 64, normalize: bool = True, device: str | None = None) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size} must be positive")
        self._name, self._batch_size, self._normalize = model, batch_size, normalize
        folder = model_folder(model)
        self._model = _load(model if folder is None else str(folder), device, model)
        probes = PROBE_TEXTS[:1] if folder else PROBE_TEXTS
        vectors = self._encode(probes)
        digest = folder_digest(folder, normalize) if folder else vectors_digest(vectors)
        self._identity = EmbedderIdentity(model, vectors.shape[1], digest)

    @property
    def identity(self) -> EmbedderIdentity:
        """The model as it was named, its dimension, and its digest."""
        return self._identity

    @property
    def model(self) -> Any:
        """The sentence-transformers model itself."""
        return self._model

    def embed(self, texts: Sequence[str]) -> Float32:
        """Vectors (n, d), of norm 1 where ``normalize`` is on. Raises EmbedderError."""
        if not len(texts):  # the model answers a flat array to an empty batch
            return np.zeros((0, self._identity.dimension), np.float32)
        return as_vectors(self._encode(texts), self._name, len(texts), self._identity.dimension)

    def _encode(self, texts: Sequence[str]) -> Float32:
        try:
            raw = self._model.encode(
                list(texts),
                batch_size=self._batch_size,
                show_progress_bar=False,
                convert_to_numpy=True,
                normalize_embeddings=self._normalize,
            )
        except Exception as error:
            raise failure(self._name, len(texts), error) from error
        return as_vectors(raw, self._name, len(texts))

    def __repr__(self) -> str:
        return f"SentenceTransformerEmbedder({self._name!r}, dimension={self._identity.dimension})"


def model_folder(model: str) -> Path | None:
    """The local folder of a model, or None where ``model`` must be a hub name.

    An existing folder comes first, then an installed package of that name (dashes or underscores) with a
    ``model/config.json``; the package is found, not imported. Raises EmbedderError for a missing path.
    """
    path = Path(model).expanduser()
    if model and path.is_dir():
        return path.resolve()
    package = model.replace("-", "_")
    if package.isidentifier():
        spec = find_spec(package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            if (Path(root) / "model" / "config.json").is_file():
                return Path(root) / "model"
    if not model or model.startswith((".", "/", "~")) or "\\" in model:
        # asking the hub for what is plainly a path would end in a minute of retries
        raise EmbedderError(f"embedder {model!r}: there is no such folder")
    return None


def folder_digest(folder: Path, normalize: bool) -> str:
    """The sha256 (64 hex digits) of a model folder's weight and config files, and of ``normalize``.

    Sorted by path within the folder; hidden files do not count. Where the folder lies makes no difference.
    """
    digest = hashlib.sha256(f"normalize={normalize}\n".encode())
    files = {
        path.relative_to(folder).as_posix(): path
        for path in folder.rglob("*")
        if path.suffix in _WEIGHTS_AND_CONFIG and path.is_file()
    }
    for name, path in sorted(files.items()):
        if any(part.startswith(".") for part in name.split("/")):
            continue
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{name}\n{content}\n".encode())
    return digest.hexdigest()


def _load(source: str, device: str | None, name: str) -> Any:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise MissingExtraError("sentence-transformers", "encoder", f"the local sentence encoder {name!r}") from error
    try:
        with quiet():
            return SentenceTransformer(source, device=device)
    except TracerError:
        raise
    except Exception as error:
        raise EmbedderError(f"embedder {name!r} cannot be loaded: {type(error).__name__}: {error}") from error


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars nor log lines while a model loads or is exported; what was switched off comes back."""
    # by name: transformers comes with sentence-transformers, and a type checker need not have it
    bars = import_module("transformers.utils.logging")
    shown = bars.is_progress_bar_enabled()
    levels = {name: logging.getLogger(name).level for name in _CHATTY}
    try:
        if shown:
            bars.disable_progress_bar()
        for name in levels:
            logging.getLogger(name).setLevel(logging.ERROR)
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if shown:
            bars.enable_progress_bar()
