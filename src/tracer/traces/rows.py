"""Between traces and the rows of a store's tables: checked and escaped when written, made whole when read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer.errors import FeatureError, TraceError
from tracer.traces.escaping import escaped, unescaped
from tracer.types import ORIGINS, Dataset, EmbedderIdentity, Float32, Seen, Trace, Usage

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows to write, one a trace, without their places; and their vectors (n, d)."""

    rows: list[Row]
    dense: Float32 | None
    embedder: EmbedderIdentity | None

    def take(self, chosen: Sequence[int]) -> Batch:
        """The rows with these indices."""
        dense = None if self.dense is None else self.dense[list(chosen)]
        return Batch([self.rows[i] for i in chosen], dense, self.embedder)


def batch_of(
    traces: Dataset | Sequence[Trace],
    records: Sequence[Trace] | None = None,
    dense: NDArray[np.floating] | None = None,
    embedder: EmbedderIdentity | None = None,
    recorded_at: datetime | None = None,
) -> Batch:
    """The rows of a dataset, or of traces. ``records`` (n,) bring what a dataset has no column for.

    Raises TraceError for an empty id, text or label and for an origin that there is not; FeatureError for vectors that
    are not (n, d).
    """
    when = None if recorded_at is None else recorded_at.timestamp()
    if isinstance(traces, Dataset):
        if records is not None and [r.id for r in records] != list(traces.ids):
            raise TraceError(f"records: {len(records)} traces that are not the {len(traces)} rows of the dataset")
        rows = _of_dataset(traces)
        extras = records or ()
        dense, embedder = (traces.dense, traces.embedder) if dense is None else (dense, embedder)
    else:
        rows, extras = [_of_trace(trace) for trace in traces], traces
    for row, trace in zip(rows, extras, strict=False):
        row.update(_extra(trace))
    for row in rows:
        row["recorded_at"] = when
        _check(row)
    if dense is None:
        return Batch(rows, None, None)
    matrix = np.ascontiguousarray(dense, dtype="<f4")
    if matrix.ndim != 2 or len(matrix) != len(rows):
        raise FeatureError(f"embeddings have shape {matrix.shape}, there are {len(rows)} traces")
    if not np.isfinite(matrix).all():
        raise FeatureError("embeddings hold NaN or infinity")
    embedder = embedder or EmbedderIdentity("precomputed", matrix.shape[1], "precomputed")
    if embedder.dimension != matrix.shape[1]:
        raise FeatureError(
            f"embeddings have {matrix.shape[1]} columns, embedder {embedder.name!r} gives {embedder.dimension}"
        )
    return Batch(rows, matrix, embedder)


def key_of(store: str, escaped_id: str) -> bytes:
    """The digest (16 bytes) of an id, keyed by the store: it says nothing without it."""
    return blake2b(escaped_id.encode(), key=store.encode(), digest_size=16).digest()


def trace_of(row: Mapping[str, Any]) -> Trace:
    """The trace of a row that has a text."""
    usage = None if row["input_tokens"] is None else Usage(row["input_tokens"], row["output_tokens"])
    seen = None
    if row["policy"] is not None:
        score = float("nan") if row["seen_score"] is None else row["seen_score"]
        seen = Seen(unescaped(row["policy"]), unescaped(row["seen_label"]), bool(row["seen_handled"]), score)
    return Trace(
        id=unescaped(row["id"]),
        text=unescaped(row["text"]),
        label=unescaped(row["label"]),
        teacher=_plain(row["teacher"]),
        time=None if row["time"] is None else datetime.fromtimestamp(row["time"], tz=UTC),
        origin=row["origin"],
        group=_plain(row["group"]),
        truth=_plain(row["truth"]),
        usage=usage,
        metadata={} if row["metadata"] is None else json.loads(row["metadata"]),
        prompt=_plain(row["prompt"]),
        seen=seen,
    )


def _of_dataset(dataset: Dataset) -> list[Row]:
    empty = _extra(None)
    times = [None if math.isnan(time) else time for time in dataset.times.tolist()]
    columns = zip(
        dataset.ids,
        dataset.texts if dataset.texts is not None else (None,) * len(dataset),
        dataset.labels,
        dataset.teachers,
        dataset.prompts,
        times,
        dataset.origins,
        dataset.groups,
        dataset.truth,
        strict=True,
    )
    return [_row(*values) | empty for values in columns]


def _of_trace(trace: Trace) -> Row:
    time = None if trace.time is None else trace.time.timestamp()
    return _row(
        trace.id,
        trace.text,
        trace.label,
        trace.teacher,
        trace.prompt,
        time,
        trace.origin,
        trace.group,
        trace.truth,
    )


def _row(
    name: str,
    text: str | None,
    label: str,
    teacher: str | None,
    prompt: str | None,
    time: float | None,
    origin: str,
    group: str | None,
    truth: str | None,
) -> Row:
    if not isinstance(name, str):
        raise TraceError(f"id {name!r}: must be a string")
    return {
        "id": escaped(name),
        "text": _safe(text),
        "label": escaped(label),
        "teacher": _safe(teacher),
        "prompt": _safe(prompt),
        "time": time,
        "origin": origin,
        "group": _safe(group),
        "truth": _safe(truth),
    }


def _extra(trace: Trace | None) -> Row:
    """What only a trace has."""
    usage, seen = (None, None) if trace is None else (trace.usage, trace.seen)
    known = seen is not None and not math.isnan(seen.score)  # SQLite has no NaN
    return {
        "input_tokens": usage and usage.input_tokens,
        "output_tokens": usage and usage.output_tokens,
        # ASCII alone: whatever the metadata hold is escaped as JSON does.
        "metadata": json.dumps(dict(trace.metadata), default=str) if trace is not None and trace.metadata else None,
        "policy": seen and escaped(seen.policy),
        "seen_label": seen and escaped(seen.label),
        "seen_handled": seen and bool(seen.handled),
        "seen_score": float(seen.score) if seen is not None and known else None,
    }


def _check(row: Row) -> None:
    if not row["id"]:
        raise TraceError("a trace needs an id")
    if row["text"] is not None and not row["text"].strip():
        raise TraceError(f"trace {unescaped(row['id'])!r}: the input text is empty")
    if not row["label"]:
        raise TraceError(f"trace {unescaped(row['id'])!r}: the teacher's label is empty")
    if row["origin"] not in ORIGINS:
        raise TraceError(f"trace {unescaped(row['id'])!r}: origin {row['origin']!r} is not one of {', '.join(ORIGINS)}")


def _safe(text: str | None) -> str | None:
    return None if text is None else escaped(text)


def _plain(text: str | None) -> str | None:
    return None if text is None else unescaped(text)
