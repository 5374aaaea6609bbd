"""JSON lines (``.jsonl``, ``.ndjson``, either with ``.gz``): one object a line, UTF-8."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from tracer.errors import BadTraceError, TraceError
from tracer.traces.readers.fields import kind, parse_json
from tracer.traces.readers.records import Record

_BOM = b"\xef\xbb\xbf"


def json_lines(path: Path, source: str) -> Iterator[Record | BadTraceError]:
    """The records of a file; blank lines are no records."""
    try:
        with _open(path) as file:
            # Bytes split at newlines alone: a text may hold U+2028 and its kin, which str.splitlines cuts at.
            for line, raw in enumerate(file, start=1):
                content = raw.removeprefix(_BOM) if line == 1 else raw
                if content.strip():
                    yield _record(source, line, content)
    except (EOFError, zlib.error) as error:
        raise TraceError(f"{source}: damaged gzip file: {error}") from error


def _open(path: Path) -> BinaryIO:
    if path.suffix.lower() == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


def _record(source: str, line: int, raw: bytes) -> Record | BadTraceError:
    try:
        value = parse_json(raw.decode())
    except UnicodeDecodeError as error:
        return BadTraceError(source, line, "(line)", raw[:80], f"not valid UTF-8 at byte {error.start}")
    except ValueError as error:
        shown = raw[:80].decode(errors="replace").strip()
        return BadTraceError(source, line, "(line)", shown, f"invalid JSON: {error}")
    if not isinstance(value, dict):
        return BadTraceError(source, line, "(line)", value, f"must be a JSON object, not {kind(value)}")
    return Record(line, value)
