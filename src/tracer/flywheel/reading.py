"""From whatever the caller has to a dataset with embeddings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer import pipeline
from tracer.config import FitConfig
from tracer.errors import EmbedderError, FeatureError, TraceError
from tracer.features.cache import CachedEmbedder, EmbeddingCache
from tracer.features.dense import PROBE_TEXTS, Embedder, checked
from tracer.features.sources import embedder_from_name
from tracer.learning.crossfit import Progress
from tracer.pipeline import Encodings
from tracer.traces.loading import load_dataset
from tracer.traces.readers import TraceLog
from tracer.types import Dataset, EmbedderIdentity, Float32, LabelSpace, Trace

Traces = str | Path | Dataset | Sequence[Trace]

_MATCH_TOLERANCE = 5e-3


def read(
    traces: Traces | None,
    *,
    texts: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    embeddings: str | Path | NDArray[np.floating] | None = None,
    label_set: Sequence[str] | None = None,
    reader: Mapping[str, Any] | None = None,
) -> tuple[Dataset, TraceLog | None]:
    """A dataset from whatever the caller has; the log where it was read from a file."""
    space = LabelSpace(tuple(label_set), declared=True) if label_set is not None else None
    if traces is None:
        if labels is None:
            raise TraceError("give traces, or texts and labels, or embeddings and labels")
        identity = None
        vectors = None
        if embeddings is not None:
            vectors = _vectors(embeddings)
            identity = EmbedderIdentity("precomputed", vectors.shape[1], "precomputed")
        return Dataset.from_columns(labels, texts=texts, dense=vectors, embedder=identity, space=space), None
    if texts is not None or labels is not None:
        raise TraceError("give either traces, or texts and labels, not both")
    if isinstance(traces, str | Path):
        path = embeddings if isinstance(embeddings, str | Path) else None
        dataset, log = load_dataset(traces, embeddings=path, labels=label_set, **dict(reader or {}))
        if embeddings is not None and path is None:
            vectors = _vectors(embeddings)
            if len(vectors) != log.n_records:
                raise FeatureError(f"{len(vectors)} embeddings, {log.n_records} records in {traces}")
            identity = EmbedderIdentity("precomputed", vectors.shape[1], "precomputed")
            dataset = dataset.with_dense(vectors[log.rows], identity)
        return dataset, log
    dataset = traces if isinstance(traces, Dataset) else Dataset.from_traces(list(traces))
    if space is not None:
        dataset = dataset.with_space(space)
    if embeddings is not None:
        vectors = _vectors(embeddings)
        dataset = dataset.with_dense(vectors, EmbedderIdentity("precomputed", vectors.shape[1], "precomputed"))
    return dataset, None


def embed_dataset(
    dataset: Dataset, encoder: Embedder | None, config: FitConfig, progress: Progress, *, wanted: bool = True
) -> tuple[Dataset, Encodings | None]:
    """The dataset with embeddings, and the encoder's vectors of probe texts and label names.

    Given embeddings together with an encoder are checked against it on a few texts.
    """
    if encoder is None or config.features == "lexical" or not wanted:
        return dataset, None
    progress(f"loading embedder {encoder.identity.name}", 0, 1)
    encodings = encode_names(dataset, encoder)
    if dataset.dense is not None:
        if dataset.texts is not None:
            _check_same_vectors(dataset, encoder)
        return dataset.with_dense(dataset.dense, encoder.identity), encodings
    if dataset.texts is None:
        raise FeatureError("an embedder needs texts, and these traces have none")
    size = 1024
    parts = []
    for i in range(0, len(dataset), size):
        progress("embedding", i, len(dataset))
        parts.append(checked(encoder, dataset.texts[i : i + size]))
    return dataset.with_dense(np.concatenate(parts), encoder.identity), encodings


def encode_names(dataset: Dataset, encoder: Embedder) -> Encodings:
    """The encoder's vectors of the fixed probe texts and of the label names."""
    names = dataset.space.names
    vectors = checked(encoder, [pipeline.label_text(name) for name in names])
    return Encodings(checked(encoder, PROBE_TEXTS), names, vectors)


def _check_same_vectors(dataset: Dataset, encoder: Embedder) -> None:
    rows = np.unique(np.linspace(0, len(dataset) - 1, 8).astype(np.intp))
    sample = dataset.take(rows)
    if sample.texts is None or sample.dense is None:
        return
    vectors = checked(encoder, sample.texts)
    if vectors.shape[1] != sample.dense.shape[1]:
        raise EmbedderError(
            f"embeddings have {sample.dense.shape[1]} columns, embedder {encoder.identity.name!r} "
            f"gives {vectors.shape[1]}"
        )
    worst = float(np.abs(vectors - sample.dense).max())
    if worst > _MATCH_TOLERANCE:
        raise EmbedderError(
            f"the given embeddings are not those of embedder {encoder.identity.name!r}: "
            f"on {len(rows)} texts they differ by up to {worst:.3g}"
        )


def encoder_of(embedder: Embedder | str | None, cache: Path | None) -> tuple[Embedder | None, str | None]:
    if embedder is None:
        return None, None
    if isinstance(embedder, str):
        return embedder_from_name(embedder, cache=cache), embedder
    return (CachedEmbedder(embedder, EmbeddingCache(cache)) if cache else embedder), None


def _vectors(embeddings: str | Path | NDArray[np.floating]) -> Float32:
    if isinstance(embeddings, str | Path):
        try:
            embeddings = np.load(embeddings, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise FeatureError(f"{embeddings}: not a readable .npy file: {error}") from error
    out: Float32 = np.ascontiguousarray(embeddings, dtype=np.float32)
    if out.ndim != 2:
        raise FeatureError(f"embeddings must be two-dimensional (n, d), not {out.shape}")
    return out
