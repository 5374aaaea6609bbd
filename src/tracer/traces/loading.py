"""From a file of traces, and the embeddings beside it, to a dataset."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tracer.errors import FeatureError, TraceError
from tracer.traces.readers import TraceLog, read_traces
from tracer.types import Dataset, EmbedderIdentity, Float32, LabelSpace


def load_dataset(
    path: str | Path,
    *,
    embeddings: str | Path | None = None,
    embedder: EmbedderIdentity | None = None,
    labels: Sequence[str] | None = None,
    format: str | None = None,  # noqa: A002 - the word that users know
    input_field: str | None = None,
    label_field: str | None = None,
    skip_bad: bool = False,
) -> tuple[Dataset, TraceLog]:
    """Read traces and, where there are any, their embeddings.

    ``embeddings`` is a ``.npy`` file (n_records, d), one row a record of the log, bad and repeated records
    included; without it a file of the same stem is taken (``traces.npy`` beside ``traces.jsonl``).
    ``embedder`` says what made them. ``labels`` declares the label space; else it is the labels seen.
    Reader options and their errors are those of ``read_traces``; ``FeatureError`` for embeddings that do
    not fit the log.
    """
    if isinstance(labels, str):
        raise TraceError(f"labels = {labels!r}: give a list of labels, not one string")
    log = read_traces(path, format=format, input_field=input_field, label_field=label_field, skip_bad=skip_bad)
    file = Path(embeddings) if embeddings is not None else _beside(Path(path))
    if file is None and embedder is not None:
        raise FeatureError(f"{path}: embedder {embedder.name!r} is named, but there are no embeddings")
    dense = None if file is None else _load(file, log)
    if dense is not None and embedder is None:
        embedder = EmbedderIdentity("precomputed", dense.shape[1], "precomputed")
    space = None if labels is None else LabelSpace(tuple(labels), declared=True)
    return Dataset.from_traces(log.traces, dense=dense, embedder=embedder, space=space), log


def _beside(path: Path) -> Path | None:
    plain = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    found = plain.with_suffix(".npy")
    return found if found.is_file() else None


def _load(file: Path, log: TraceLog) -> Float32:
    """The rows (n, d) of the kept traces, in float32."""
    try:
        stored = np.load(file, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise FeatureError(f"{file}: no readable .npy file: {error}") from error
    if not isinstance(stored, np.ndarray) or stored.ndim != 2 or stored.dtype.kind not in "fiu":
        shape = f"{stored.dtype}{stored.shape}" if isinstance(stored, np.ndarray) else type(stored).__name__
        raise FeatureError(f"{file}: embeddings must be a numeric array (n, d), not {shape}")
    if len(stored) != log.n_records:
        raise FeatureError(
            f"{file} has {len(stored)} rows, {', '.join(log.sources)} has {log.n_records} records: "
            "they must be the same, in the same order"
        )
    if stored.shape[1] == 0:
        raise FeatureError(f"{file}: the embeddings have no columns")
    with np.errstate(over="ignore"):  # What overflows becomes infinite, and the dataset names its row.
        return np.ascontiguousarray(stored[log.rows], dtype=np.float32)
