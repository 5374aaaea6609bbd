"""CSV and TSV with a header: every value is text, and an empty cell is an absent value."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from tracer.errors import BadTraceError, TraceError
from tracer.traces.readers.records import Record


def delimited_rows(path: Path, source: str) -> Iterator[Record | BadTraceError]:
    """The rows of a file; lines are physical ones (the last of a row that spans several).

    A cell longer than the ``csv`` module's limit (131072 characters) makes a bad record: raising the limit
    would change it for the whole process.
    """
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    # Undecodable bytes become lone surrogates, so that they spoil their own row and not the rest of the file.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # Not strict, an unclosed quote would swallow all rows after it without a word.
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield BadTraceError(source, reader.line_num, "(line)", None, f"invalid CSV: {error}")
                continue
            if not cells:
                continue
            if header is None:
                header = _header(source, reader.line_num, cells)
            else:
                yield _record(source, reader.line_num, header, cells)


def _header(source: str, line: int, cells: list[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    if not _decoded(names):
        raise BadTraceError(source, line, "(header)", names, "not valid UTF-8")
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise TraceError(f"{source}:{line}: the header repeats {', '.join(map(repr, repeated))}")
    return names


def _record(source: str, line: int, header: list[str], cells: list[str]) -> Record | BadTraceError:
    if not _decoded(cells):
        return BadTraceError(source, line, "(line)", cells, "not valid UTF-8")
    if len(cells) != len(header):
        problem = f"the row has {len(cells)} cells, the header names {len(header)}"
        return BadTraceError(source, line, "(line)", cells, problem)
    return Record(line, dict(zip(header, cells, strict=True)))


def _decoded(cells: list[str]) -> bool:
    return not any("\udc80" <= character <= "\udcff" for cell in cells if not cell.isascii() for character in cell)
