"""A store's traces as a file that ``read_traces`` reads back without a loss; a store takes it in with ``append``."""

from __future__ import annotations

import gzip
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Literal, get_args

from tracer import storage
from tracer.errors import ConfigError, MissingExtraError, TraceError
from tracer.traces.readers.exported import COLUMNS, record_of
from tracer.traces.store import TraceStore

Format = Literal["jsonl", "jsonl.gz", "parquet"]
FORMATS: tuple[Format, ...] = get_args(Format)
_BATCH = 10_000

Records = Iterator[dict[str, object]]


def export(
    store: TraceStore,
    path: str | Path,
    *,
    format: Format | None = None,  # noqa: A002 - the word that users know
) -> int:
    """Write all traces of a store's task, in their order; how many. The suffix tells the format where none is named.

    The file is written beside and renamed; the traces stream through. Embeddings, and when a trace was recorded, are
    not part of it. Raises TraceError where there is nothing to write, or where it cannot be written; ConfigError for an
    unknown format; MissingExtraError for Parquet without pyarrow.
    """
    file = Path(path)
    write = _WRITERS[format or _format(file)] if format is None or format in FORMATS else _unknown(format)
    records = (record_of(trace) for _, trace in store.traces(through=store.through()))
    first = list(islice(records, 1))
    if not first:
        raise TraceError(f"{store.url}: no traces are stored here")
    beside = file.with_name(f".{file.name}-{secrets.token_hex(4)}")
    try:
        n = write(beside, _chained(first, records))
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(file)
        storage.sync_folder(file.parent)
    except OSError as error:
        raise TraceError(f"{file}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
    return n


def _format(path: Path) -> Format:
    name = path.name.lower()
    for known in FORMATS:
        if name.endswith(f".{known}"):
            return known
    raise ConfigError(f"{path}: the suffix tells no format; known: {', '.join(f'.{known}' for known in FORMATS)}")


def _unknown(name: str) -> Callable[[Path, Records], int]:
    raise ConfigError(f"format = {name!r}: must be one of {', '.join(FORMATS)}")


def _chained(first: list[dict[str, object]], rest: Records) -> Records:
    yield from first
    yield from rest


def _json_lines(path: Path, records: Records) -> int:
    n = 0
    with path.open("xb") as file:
        for record in records:
            file.write(_line(record))
            n += 1
    return n


def _zipped(path: Path, records: Records) -> int:
    n = 0
    # No name and no time within: the same traces give the same bytes.
    with path.open("xb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        for record in records:
            file.write(_line(record))
            n += 1
    return n


def _line(record: dict[str, object]) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def _parquet(path: Path, records: Records) -> int:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", f"writing {path.name}") from error
    schema = pa.schema([(name, pa.type_for_alias(kind)) for name, kind in COLUMNS.items()])
    n = 0
    with parquet.ParquetWriter(path, schema) as writer:
        while batch := list(islice(records, _BATCH)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            n += len(batch)
    return n


_WRITERS: dict[Format, Callable[[Path, Records], int]] = {
    "jsonl": _json_lines,
    "jsonl.gz": _zipped,
    "parquet": _parquet,
}
