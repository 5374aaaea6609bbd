"""Embedders by name, for the command line and for settings files."""

from __future__ import annotations

from pathlib import Path

from tracer.errors import ConfigError
from tracer.features.cache import CachedEmbedder, EmbeddingCache
from tracer.features.dense import Embedder
from tracer.features.local import SentenceTransformerEmbedder
from tracer.features.onnx import OnnxEmbedder
from tracer.features.remote import OpenAIEmbedder

_KINDS = {"onnx": "FOLDER", "openai": "MODEL", "st": "MODEL"}


def embedder_from_name(
    spec: str, *, cache: Path | None = None, base_url: str | None = None, device: str | None = None
) -> Embedder:
    """The embedder that ``spec`` names, behind a cache in the folder ``cache`` where one is given.

    ``openai:MODEL`` is a model behind an OpenAI-compatible API (``base_url``); ``onnx:FOLDER`` an encoder that
    `tracer.features.onnx.export_encoder` wrote; ``st:NAME_OR_PATH`` and a bare name or path are
    sentence-transformers models (``device``). Raises ConfigError for another kind,
    MissingExtraError where the package of that kind is missing, EmbedderError where loading fails.
    """
    kind, model = _parsed(spec)
    embedder: Embedder
    if kind == "openai":
        embedder = OpenAIEmbedder(model, base_url=base_url)
    elif kind == "onnx":
        embedder = OnnxEmbedder(model)
    else:
        embedder = SentenceTransformerEmbedder(model, device=device)
    return embedder if cache is None else CachedEmbedder(embedder, EmbeddingCache(cache))


def _parsed(spec: str) -> tuple[str, str]:
    """(kind, model) of a spec. A colon after one letter is a Windows drive, not a kind."""
    kind, colon, model = spec.partition(":")
    if not colon or len(kind) == 1 or Path(spec).exists():
        kind, model = "st", spec
    if kind not in _KINDS:
        known = ", ".join(f"{known}:{what}" for known, what in _KINDS.items())
        raise ConfigError(f"embedder {spec!r}: unknown kind {kind!r}; known: {known}, or a bare name or path")
    if not model.strip():
        raise ConfigError(f"embedder {spec!r} names no model")
    return kind, model
