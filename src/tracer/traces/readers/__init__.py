"""Reading logs of traces: ``read_traces`` is the face, one module a format lies behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tracer.errors import BadTraceError, ConfigError, TraceError
from tracer.traces.readers.delimited import delimited_rows
from tracer.traces.readers.fields import INPUT_NAMES, LABEL_NAMES, MISSING, lookup
from tracer.traces.readers.jsonl import json_lines
from tracer.traces.readers.litellm import litellm_shape
from tracer.traces.readers.openai_chat import chat_shape
from tracer.traces.readers.parquet import parquet_rows
from tracer.traces.readers.records import FieldNames, Record, Shape, Source, TraceBuilder, plain_shape
from tracer.types import Trace

FORMATS: Final[dict[str, tuple[Source, Shape]]] = {
    "jsonl": (json_lines, plain_shape),
    "csv": (delimited_rows, plain_shape),
    "parquet": (parquet_rows, plain_shape),
    "openai-chat": (json_lines, chat_shape),
    "litellm": (json_lines, litellm_shape),
}
_JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
_SUFFIXES = {".csv": "csv", ".tsv": "csv", ".parquet": "parquet", ".pq": "parquet"}
_LOOKED_AT = 100
"""Records that detection looks at, at most, for a first one that is a JSON object."""


@dataclass(frozen=True, slots=True, eq=False)
class TraceLog:
    """The traces of a file, and what became of its other records.

    ``rows`` (n,): zero-based record index in the file of each trace, to cut an embeddings file beside it.
    ``n_records``: records in the file, bad and repeated ones included. ``duplicates``: ids seen again, once
    for each record dropped.
    """

    traces: tuple[Trace, ...]
    rows: NDArray[np.intp]
    n_records: int
    skipped: tuple[BadTraceError, ...]
    duplicates: tuple[str, ...]
    sources: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.traces)


def read_traces(
    path: str | Path,
    *,
    format: str | None = None,  # noqa: A002 - the word that users know
    input_field: str | None = None,
    label_field: str | None = None,
    skip_bad: bool = False,
) -> TraceLog:
    """Read a log of traces.

    ``format`` is one of ``jsonl``, ``csv`` (``.tsv`` too), ``parquet``, ``openai-chat``, ``litellm``; without
    it the suffix decides, and for JSON lines the keys of the first record (see ``detect_format``).
    ``input_field`` and ``label_field`` are keys or dotted paths; without them the first accepted name that a
    record has is read: input, query, text, prompt, question; teacher, teacher_output, label, intent, output,
    answer. Optional fields: id, group, time (ISO 8601 or epoch seconds, UTC unless it has a zone),
    ground_truth, metadata, model or teacher_model, prompt_version, origin, usage. A file that ``transfer.export`` wrote
    gives back the very traces that were stored.

    A record whose id was seen before is dropped; equal texts under different ids are different traces.
    Raises ``BadTraceError`` at the first bad record, or collects them in ``skipped`` with ``skip_bad``;
    ``TraceError`` for a file that is missing, empty or without one usable trace; ``ConfigError`` for an
    unknown format.
    """
    source, file = str(path), Path(path)
    names = FieldNames(input_field, label_field)
    try:
        if file.is_dir():
            raise TraceError(f"{source}: is a directory; give one file of traces")
        if not file.is_file():
            raise TraceError(f"{source}: no such file")
        read, shape = _format(format or detect_format(file, input_field, label_field))
        return _gather(read(file, source), TraceBuilder(source, shape, names), skip_bad)
    except OSError as error:
        raise TraceError(f"{source}: cannot be read: {error.strerror or error}") from error


def detect_format(path: Path, input_field: str | None = None, label_field: str | None = None) -> str:
    """The format of a file by its suffix, and of JSON lines by the keys of the first object.

    An input and a label under their own names make ``jsonl``; else ``messages``, ``response`` and one of
    ``startTime``, ``call_type``, ``status`` make ``litellm``; else ``messages``, ``request`` or ``body``
    make ``openai-chat``; all else is ``jsonl``.
    """
    name = path.name.lower()
    if not name.endswith(_JSON_LINES):
        if path.suffix.lower() in _SUFFIXES:
            return _SUFFIXES[path.suffix.lower()]
        known = ", ".join((*_JSON_LINES, *_SUFFIXES))
        raise TraceError(f"{path}: the suffix tells no format; known: {known}; or pass one of {', '.join(FORMATS)}")
    first = islice(json_lines(path, str(path)), _LOOKED_AT)
    record = next((item.fields for item in first if isinstance(item, Record)), {})
    wanted_input, wanted_label = (
        (input_field,) if input_field else INPUT_NAMES,
        (label_field,) if label_field else LABEL_NAMES,
    )
    if all(any(lookup(record, n) is not MISSING for n in side) for side in (wanted_input, wanted_label)):
        return "jsonl"
    keys = record.keys()
    if {"messages", "response"} <= keys and keys & {"startTime", "call_type", "status"}:
        return "litellm"
    return "openai-chat" if keys & {"messages", "request", "body"} else "jsonl"


def _format(name: str) -> tuple[Source, Shape]:
    if name not in FORMATS:
        raise ConfigError(f"format = {name!r}: must be one of {', '.join(FORMATS)}")
    return FORMATS[name]


def _gather(records: Iterator[Record | BadTraceError], builder: TraceBuilder, skip_bad: bool) -> TraceLog:
    traces: dict[str, Trace] = {}
    rows: list[int] = []
    skipped: list[BadTraceError] = []
    duplicates: list[str] = []
    n_records = 0
    for index, record in enumerate(records):
        n_records = index + 1
        trace = builder.build(record) if isinstance(record, Record) else record
        if isinstance(trace, BadTraceError):
            if not skip_bad:
                raise trace
            skipped.append(trace)
        elif trace.id in traces:
            duplicates.append(trace.id)
        else:
            traces[trace.id] = trace
            rows.append(index)
    if not n_records:
        raise TraceError(f"{builder.source}: the file is empty: it holds no records")
    if not traces:
        raise TraceError(_none_usable(builder.source, skipped))
    return TraceLog(
        traces=tuple(traces.values()),
        rows=np.asarray(rows, dtype=np.intp),
        n_records=n_records,
        skipped=tuple(skipped),
        duplicates=tuple(duplicates),
        sources=(builder.source,),
    )


def _none_usable(source: str, skipped: list[BadTraceError]) -> str:
    keys = sorted({error.key for error in skipped})
    where = f"all fail at {keys[0]}" if len(keys) == 1 else f"they fail at {', '.join(keys[:6])}"
    return f"{source}: none of {len(skipped)} records is a usable trace; {where}; the first: {skipped[0]}"
