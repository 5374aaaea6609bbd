"""CSV, TSV and Parquet."""

from __future__ import annotations

import builtins
import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from tracer.errors import BadTraceError, MissingExtraError, TraceError
from tracer.traces.readers import read_traces
from tracer.types import Usage


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return tmp_path / "traces.csv"


def test_csv_fields(table: Path) -> None:
    table.write_bytes(
        b"\xef\xbb\xbf id ,text,label,time,metadata,prompt_tokens,completion_tokens,group\r\n"
        b'1,"two\r\nlines", x ,1767322800,"{""a"": 1}",8,2,\r\n'
        b"\r\n"
        b"2,b,y,,,,,g\r\n"
    )
    first, second = read_traces(table).traces
    assert (first.id, first.text, first.label, first.group) == ("1", "two\r\nlines", "x", None)
    assert first.time == datetime(2026, 1, 2, 3, tzinfo=UTC)
    assert (first.metadata, first.usage) == ({"a": 1}, Usage(8, 2))
    assert (second.time, second.metadata, second.usage, second.group) == (None, {}, None, "g")


def test_tsv(tmp_path: Path) -> None:
    path = tmp_path / "traces.tsv"
    path.write_text("text\tlabel\na, b\tx\n", encoding="utf-8")
    assert read_traces(path).traces[0].text == "a, b"


def test_bad_rows_name_physical_lines(table: Path) -> None:
    table.write_bytes(b'text,label\n"two\nlines",x\nb,\nc,x,y\n\xff,x\nlast,x\n')
    found = read_traces(table, skip_bad=True)
    assert [trace.text for trace in found.traces] == ["two\nlines", "last"]
    assert (found.n_records, found.rows.tolist()) == (5, [0, 4])
    assert [(error.line, error.key, error.problem) for error in found.skipped] == [
        (4, "label", "the label is empty"),
        (5, "(line)", "the row has 3 cells, the header names 2"),
        (6, "(line)", "not valid UTF-8"),
    ]
    with pytest.raises(BadTraceError, match=r"traces\.csv:4: label = '': the label is empty"):
        read_traces(table)


def test_an_open_quote_is_an_error_not_a_silent_loss(table: Path) -> None:
    table.write_text('text,label\na,x\n"b,x\nc,x\n', encoding="utf-8")
    with pytest.raises(BadTraceError, match="invalid CSV: unexpected end of data"):
        read_traces(table)


def test_bad_headers(table: Path) -> None:
    table.write_text("text,label,text\na,x,b\n", encoding="utf-8")
    with pytest.raises(TraceError, match="csv:1: the header repeats 'text'"):
        read_traces(table)
    table.write_bytes(b"text\xff,label\na,x\n")
    with pytest.raises(BadTraceError, match=r"csv:1: \(header\) = .*not valid UTF-8"):
        read_traces(table, skip_bad=True)
    table.write_text("text,label\n", encoding="utf-8")
    with pytest.raises(TraceError, match="the file is empty"):
        read_traces(table)


def test_a_cell_over_the_limit_is_one_bad_record(table: Path) -> None:
    table.write_text(f"text,label\n{'a' * 140_000},x\nb,x\n", encoding="utf-8")
    found = read_traces(table, skip_bad=True)
    assert [trace.text for trace in found.traces] == ["b"]
    assert "field larger than field limit" in str(found.skipped[0])
    assert csv.field_size_limit() == 131_072


CELLS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.tuples(CELLS, CELLS), min_size=1, max_size=6))
def test_csv_round_trip(table: Path, pairs: list[tuple[str, str]]) -> None:
    with table.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *pairs])
    assert [(t.text, t.label) for t in read_traces(table).traces] == [(a, b.strip()) for a, b in pairs]


def test_parquet_fields(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    columns: dict[str, Any] = {
        "query": ["a", "b", None],
        "intent": pa.array([1, 2, 3]),
        "time": pa.array([1_767_322_800_000_000_001, None, None], pa.timestamp("ns")),
        "metadata": [{"k": 1}, None, None],
        "vector": pa.array([[0.5], [0.5], [0.5]]),
    }
    parquet.write_table(pa.table(columns), path)
    found = read_traces(path, skip_bad=True)
    first, second = found.traces
    assert (first.text, first.label, first.metadata) == ("a", "1", {"k": 1})
    assert (first.time, second.time) == (datetime(2026, 1, 2, 3, tzinfo=UTC), None)
    assert [(error.line, error.key, error.value) for error in found.skipped] == [(3, "query", "None")]


def test_parquet_finds_the_row_it_cannot_decode(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    texts = pa.array([b"a", b"\xff", b"c"], pa.binary())
    raw = pa.StringArray.from_buffers(3, texts.buffers()[1], texts.buffers()[2])
    parquet.write_table(pa.table({"text": raw, "label": ["x", "x", "x"]}), path)
    found = read_traces(path, skip_bad=True)
    assert found.rows.tolist() == [0, 2]
    assert "traces.parquet:2: (line) = b'\\xff': not valid UTF-8" in str(found.skipped[0])


def test_parquet_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "traces.parquet"
    path.write_bytes(b"no parquet at all, but long enough")
    with pytest.raises(TraceError, match=r"traces\.parquet: no readable Parquet file"):
        read_traces(path)
    parquet.write_table(pa.table({"text": pa.array([], pa.string())}), path)
    with pytest.raises(TraceError, match="the file is empty"):
        read_traces(path)


def test_parquet_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "traces.parquet"
    path.write_bytes(b"")
    real = builtins.__import__

    def without(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"pip install 'tracer-router\[parquet\]'"):
        read_traces(path)
