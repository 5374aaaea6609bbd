"""Parquet through pyarrow, an optional extra; the line of a record is its number from 1."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tracer.errors import BadTraceError, MissingExtraError, TraceError
from tracer.traces.readers.records import Record


def parquet_rows(path: Path, source: str) -> Iterator[Record | BadTraceError]:
    """The rows of a file, batch by batch; columns that hold vectors are not read."""
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet", f"reading {source}") from error
    done = 0
    try:
        with parquet.ParquetFile(path) as file:
            columns = [f.name for f in file.schema_arrow if not _is_vector(pa, f.type)]
            for batch in file.iter_batches(columns=columns):
                readable = _plain_times(pa, batch)
                yield from _records(source, readable, done)
                done += readable.num_rows
    except pa.ArrowException as error:
        raise TraceError(f"{source}: no readable Parquet file: {error}") from error


def _records(source: str, batch: Any, done: int) -> Iterator[Record | BadTraceError]:
    try:
        rows = batch.to_pylist()
    except (ValueError, OverflowError):
        # One value that Python cannot hold (bad UTF-8, a time out of range) fails the batch: look row by row.
        for i in range(batch.num_rows):
            yield _record(source, batch.slice(i, 1), done + i + 1)
        return
    for i, row in enumerate(rows):
        yield Record(done + i + 1, row)


def _record(source: str, row: Any, line: int) -> Record | BadTraceError:
    try:
        return Record(line, row.to_pylist()[0])
    except UnicodeDecodeError as error:
        problem = f"not valid UTF-8 at byte {error.start}"
        return BadTraceError(source, line, "(line)", error.object[:80], problem)
    except (ValueError, OverflowError) as error:
        return BadTraceError(source, line, "(line)", None, f"a value that cannot be read: {error}")


def _is_vector(pa: Any, kind: Any) -> bool:
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    return bool(is_list and pa.types.is_floating(kind.value_type))


def _plain_times(pa: Any, batch: Any) -> Any:
    """The batch with its timestamps in microseconds: Python's datetime holds no nanoseconds."""
    fields = [
        f.with_type(pa.timestamp("us", tz=f.type.tz)) if pa.types.is_timestamp(f.type) else f for f in batch.schema
    ]
    columns = [
        c.cast(f.type, safe=False) if c.type != f.type else c for c, f in zip(batch.columns, fields, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=pa.schema(fields))
