"""JSON lines, and what all formats share: names, values, ids, duplicates, skipping."""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tracer.errors import BadTraceError, ConfigError, TraceError
from tracer.traces.readers import read_traces
from tracer.types import Usage


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def bad(path: Path, **options: str) -> BadTraceError:
    with pytest.raises(BadTraceError) as caught:
        read_traces(path, **options)  # type: ignore[arg-type]
    return caught.value


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "traces.jsonl"


def test_every_field(log: Path) -> None:
    record = {
        "id": 7,
        "input": " Where is my card? ",
        "teacher": " card_arrival\n",
        "label": "another annotation",
        "teacher_model": "gpt-4o",
        "time": "2026-01-02T03:04:05",
        "group": "user-1",
        "origin": "audit",
        "ground_truth": "card",
        "metadata": {"channel": "web"},
        "usage": {"prompt_tokens": 800, "completion_tokens": 15.0},
    }
    (trace,) = read_traces(write(log, record)).traces
    assert (trace.id, trace.text, trace.label) == ("7", " Where is my card? ", "card_arrival")
    assert trace.teacher == "gpt-4o"
    assert trace.time == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert (trace.group, trace.origin, trace.truth) == ("user-1", "audit", "card")
    assert trace.metadata == {"channel": "web"}
    assert trace.usage == Usage(800, 15)


@pytest.mark.parametrize("name", ["input", "query", "text", "prompt", "question"])
@pytest.mark.parametrize("label", ["teacher", "teacher_output", "label", "intent", "output", "answer"])
def test_accepted_names(log: Path, name: str, label: str) -> None:
    (trace,) = read_traces(write(log, {name: "a", label: "b"})).traces
    assert (trace.text, trace.label) == ("a", "b")


def test_dotted_fields_win_over_accepted_names(log: Path) -> None:
    write(log, {"data": {"text": "deep"}, "a.b": "flat", "input": "top", "label": "top"})
    (trace,) = read_traces(log, input_field="data.text", label_field="a.b").traces
    assert (trace.text, trace.label) == ("deep", "flat")


@pytest.mark.parametrize(("value", "label"), [(1, "1"), (True, "true"), (0.5, "0.5"), (10**30, "1" + "0" * 30)])
def test_scalar_labels_become_json_text(log: Path, value: object, label: str) -> None:
    (trace,) = read_traces(write(log, {"input": "a", "label": value})).traces
    assert trace.label == label


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("  ", "the label is empty"),
        (None, "not null"),
        (["a"], "not a list"),
        ({"a": 1}, "not an object"),
        (float("nan"), "not NaN or infinity"),
        ("\ud800", "not valid Unicode: lone surrogate at character 0"),
    ],
)
def test_bad_labels(log: Path, value: object, problem: str) -> None:
    error = bad(write(log, {"input": "a", "label": "b"}, {"input": "a", "label": value}))
    assert str(error).startswith(f"{log}:2: label = ")
    assert str(error).endswith(problem)


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (" \n", "the input is empty"),
        (3, "must be a string or a list of messages, not a int"),
        ([], "must be a list of messages, not an empty list"),
        ("x\udfff", "not valid Unicode: lone surrogate at character 1"),
    ],
)
def test_bad_inputs(log: Path, value: object, problem: str) -> None:
    error = bad(write(log, {"query": value, "label": "b"}))
    assert (error.key, error.line, error.value) == ("query", 1, repr(value))
    assert problem in str(error)


def test_messages_as_input(log: Path) -> None:
    messages = [{"role": "user", "content": "first"}, {"role": "user", "content": "last"}]
    (trace,) = read_traces(write(log, {"input": messages, "label": "b"})).traces
    assert trace.text == "last"


def test_missing_names_list_what_is_accepted_and_found(log: Path) -> None:
    error = bad(write(log, {"utterance": "a", "label": "b"}))
    assert str(error) == (
        f"{log}:1: input = None: no input in this record: accepted names are input, query, text, prompt, "
        "question, or pass input_field; the record has utterance, label"
    )
    error = bad(log, input_field="utterance", label_field="klass")
    assert "klass = None: no such field; the record has utterance, label" in str(error)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1_767_322_800, datetime(2026, 1, 2, 3, tzinfo=UTC)),
        ("1767322800.0", datetime(2026, 1, 2, 3, tzinfo=UTC)),
        ("2026-01-02T03:00:00Z", datetime(2026, 1, 2, 3, tzinfo=UTC)),
        ("2026-01-02 05:00+02:00", datetime(2026, 1, 2, 5, tzinfo=timezone(timedelta(hours=2)))),
        ("20260102", datetime(2026, 1, 2, tzinfo=UTC)),
        ("", None),
    ],
)
def test_times(log: Path, value: object, expected: datetime | None) -> None:
    (trace,) = read_traces(write(log, {"input": "a", "label": "b", "time": value})).traces
    assert trace.time == expected


@pytest.mark.parametrize("value", ["yesterday", 1_767_322_800_000, True, [1], 1e300, float("nan")])
def test_bad_times(log: Path, value: object) -> None:
    error = bad(write(log, {"input": "a", "label": "b", "time": value}))
    assert error.key == "time"
    assert "ISO 8601, or seconds (not milliseconds)" in str(error)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("origin", "else", "must be one of bootstrap, audit, deferred"),
        ("metadata", [1], "must be an object, not a list"),
        ("metadata", {"a": "\ud800"}, "cannot be written as JSON"),
        ("prompt_tokens", -1, "must be a whole number of tokens"),
        ("group", {}, "not an object"),
    ],
)
def test_bad_optional_fields(log: Path, key: str, value: object, problem: str) -> None:
    error = bad(write(log, {"input": "a", "label": "b", key: value}))
    assert error.key == key
    assert problem in str(error)


def test_made_up_ids_survive_growth_and_keep_repeats_apart(log: Path) -> None:
    same, other = {"input": "a", "label": "b"}, {"input": "c", "label": "b"}
    before = read_traces(write(log, same, other, same)).traces
    after = read_traces(write(log, same, other, same, other, same)).traces
    assert after[:3] == before
    assert len({trace.id for trace in after}) == 5
    stem = before[0].id.removesuffix("-0")
    assert stem.startswith("auto-")
    assert [trace.id for trace in after if trace.text == "a"] == [f"{stem}-{k}" for k in range(3)]


def test_time_tells_made_up_ids_apart_whatever_its_zone(log: Path) -> None:
    times = ["2026-01-02T03:00:00Z", "2026-01-02T04:00:00+01:00", "2026-01-03T00:00:00Z"]
    traces = read_traces(write(log, *({"input": "a", "label": "b", "time": t} for t in times))).traces
    stems = [trace.id[:-2] for trace in traces]
    assert stems[0] == stems[1] != stems[2]


def test_repeated_ids_keep_the_first(log: Path) -> None:
    records = [{"id": i, "input": text, "label": "b"} for i, text in (("x", "1"), ("y", "1"), ("x", "2"))]
    found = read_traces(write(log, *records))
    assert [trace.text for trace in found.traces] == ["1", "1"]
    assert found.duplicates == ("x",)
    assert (found.n_records, found.rows.tolist(), len(found)) == (3, [0, 1], 2)
    assert found.sources == (str(log),)


def test_skip_bad_collects_errors_and_keeps_rows(log: Path) -> None:
    log.write_bytes(b'\xef\xbb\xbf{"input":"a","label":"x"}\r\n\n{nope}\n\xff\xfe\n[1]\n{"input":"b","label":"x"}')
    found = read_traces(log, skip_bad=True)
    assert [trace.text for trace in found.traces] == ["a", "b"]
    assert (found.n_records, found.rows.tolist()) == (5, [0, 4])
    assert [(error.line, error.key) for error in found.skipped] == [
        (3, "(line)"),
        (4, "(line)"),
        (5, "(line)"),
    ]
    assert "(line) = '{nope}': invalid JSON" in str(found.skipped[0])
    assert "not valid UTF-8 at byte 0" in str(found.skipped[1])
    assert "must be a JSON object, not a list" in str(found.skipped[2])
    with pytest.raises(BadTraceError, match=":3: "):
        read_traces(log)


def test_nothing_left_after_skipping(log: Path) -> None:
    write(log, {"input": "a"}, {"input": "b"})
    with pytest.raises(TraceError) as caught:
        read_traces(log, skip_bad=True)
    assert str(caught.value).startswith(
        f"{log}: none of 2 records is a usable trace; all fail at label; the first: {log}:1: label = None: "
    )


def test_gzip(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "a", "intent": "b"}\n'))
    assert read_traces(path).traces[0].label == "b"
    path.write_bytes(gzip.compress(b'{"text": "a", "intent": "b"}\n' * 100)[:-12])
    with pytest.raises(TraceError, match="damaged gzip file"):
        read_traces(path)
    path.write_bytes(b"plain")
    with pytest.raises(TraceError, match="cannot be read"):
        read_traces(path)


def test_files_that_are_no_logs(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"nowhere\.jsonl: no such file"):
        read_traces(tmp_path / "nowhere.jsonl")
    with pytest.raises(TraceError, match="is a directory"):
        read_traces(tmp_path)
    for name in ("empty.jsonl", "empty.csv"):
        (tmp_path / name).write_text("\n", encoding="utf-8")
        with pytest.raises(TraceError, match=rf"{name}: the file is empty"):
            read_traces(tmp_path / name)
    (tmp_path / "log.txt").write_text("{}", encoding="utf-8")
    with pytest.raises(TraceError, match="the suffix tells no format"):
        read_traces(tmp_path / "log.txt")
    with pytest.raises(ConfigError, match="format = 'xml': must be one of jsonl, csv"):
        read_traces(tmp_path / "log.txt", format="xml")


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000, '{"a":' * 990 + "1" + "}" * 990, "NaN", "1e999"])
def test_hostile_json_is_a_bad_record(log: Path, value: str) -> None:
    log.write_text(f'{{"input": "a", "label": {value}}}\n', encoding="utf-8")
    assert bad(log).line == 1


def test_nul_is_a_character(log: Path) -> None:
    (trace,) = read_traces(write(log, {"input": "a\0b", "label": "x\0"})).traces
    assert (trace.text, trace.label) == ("a\0b", "x\0")


TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
def test_round_trip(log: Path, pairs: list[tuple[str, str]]) -> None:
    lines = (json.dumps({"input": text, "label": label}, ensure_ascii=False) for text, label in pairs)
    log.write_bytes("\n".join(lines).encode())
    assert [(t.text, t.label) for t in read_traces(log).traces] == [(a, b.strip()) for a, b in pairs]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100, deadline=None)
@given(st.binary(max_size=60))
def test_no_bytes_crash(log: Path, junk: bytes) -> None:
    log.write_bytes(b'{"input":"a","label":"b"}\n' + junk)
    found = read_traces(log, skip_bad=True)
    assert len(found) + len(found.skipped) + len(found.duplicates) == found.n_records
