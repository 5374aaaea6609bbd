"""A store as a file, and back: nothing is lost on the way."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.traces.test_store import ALL, NASTY, rows, trace
from tracer.errors import BadTraceError, ConfigError, MissingExtraError, TraceError
from tracer.traces.readers import read_traces
from tracer.traces.store import TraceStore
from tracer.traces.transfer import export
from tracer.types import FAILED, Seen, Trace, Usage

TRACES = [
    ALL,
    trace("plain"),
    trace("failed", label=FAILED, origin="audit"),
    trace(" spaced id ", text="  spaced\n", label=" label ", teacher="", prompt=" ", group="", truth=" t "),
    trace(
        "lone", seen=Seen("v1", "x", handled=False, score=float("-inf")), usage=Usage(0, 0), metadata={"k": "\0\ud83d"}
    ),
    *(trace(nasty, text=nasty, label=nasty, group=nasty, truth=nasty, teacher=nasty, prompt=nasty) for nasty in NASTY),
    *(
        trace(origin, origin=origin)
        for origin in ("bootstrap", "audit", "deferred", "requested", "fallback", "imported")
    ),
]


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.gz", "out.parquet"])
def test_an_export_reads_back_without_a_loss(store: TraceStore, tmp_path: Path, name: str) -> None:
    store.append(TRACES)
    assert export(store, tmp_path / name) == len(TRACES)
    log = read_traces(tmp_path / name)
    assert list(log.traces) == TRACES
    assert store.append(log.traces).n_known == len(TRACES)
    with TraceStore.open(tmp_path / "other") as other:
        other.append(log.traces)
        assert [found for _, found in other.traces()] == TRACES
        export(other, tmp_path / f"again-{name}")
    assert (tmp_path / f"again-{name}").read_bytes() == (tmp_path / name).read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_other_programs_can_read_it(store: TraceStore, tmp_path: Path) -> None:
    store.append([ALL, trace("b")])
    export(store, tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(lines[1]) == {
        "tracer_export": 1,
        "id": "b",
        "input": "text b",
        "label": "x",
        "origin": "bootstrap",
    }
    first = json.loads(lines[0])
    assert (first["time"], first["input_tokens"]) == ("2026-01-02T03:04:05.678901+00:00", 800)
    assert json.loads(first["metadata"]) == ALL.metadata


def test_the_format_is_the_suffix_s_or_named(store: TraceStore, tmp_path: Path) -> None:
    store.append([trace("a")])
    with pytest.raises(ConfigError, match=r"the suffix tells no format; known: \.jsonl, \.jsonl\.gz, \.parquet"):
        export(store, tmp_path / "out.csv")
    with pytest.raises(ConfigError, match="format = 'csv': must be one of jsonl"):
        export(store, tmp_path / "out", format="csv")  # type: ignore[arg-type]
    export(store, tmp_path / "out", format="jsonl.gz")
    assert b'"text a"' in gzip.decompress((tmp_path / "out").read_bytes())


def test_an_old_file_stands_until_the_new_one_is_whole(
    store: TraceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(TraceError, match="no traces are stored here"):
        export(store, path)
    store.append([trace("a"), trace("b")])
    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        with pytest.raises(TraceError, match=r"out\.jsonl: cannot be written: No space left on device"):
            export(store, path)
    assert path.read_text(encoding="utf-8") == "old"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["out.jsonl"]
    with pytest.raises(TraceError, match="cannot be written: No such file"):
        export(store, tmp_path / "nowhere" / "out.jsonl")


def test_embeddings_alone_are_no_log(store: TraceStore, tmp_path: Path) -> None:
    store.append(replace(rows("a", dense=True), texts=None))
    with pytest.raises(TraceError, match="holds embeddings alone"):
        export(store, tmp_path / "out.jsonl")


def test_without_pyarrow_the_extra_is_named(store: TraceStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append([trace("a")])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tracer-router\[parquet\]'"):
        export(store, tmp_path / "out.parquet")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"input": " "}, "the input is empty"),
        ({"input": 7}, "must be a string, not a int"),
        ({"label": ""}, "is missing"),
        ({"id": None}, "is missing"),
        ({"origin": "rumour"}, "must be one of bootstrap"),
        ({"time": "noon"}, "must be a time"),
        ({"metadata": "[1"}, "invalid JSON"),
        ({"metadata": [1]}, "must be an object, not a list"),
        ({"seen_policy": "v1"}, "is missing"),
        ({"seen_policy": "v1", "seen_label": "x", "seen_score": "high"}, "must be a number"),
        ({"input_tokens": -1, "output_tokens": 1}, "whole number of tokens"),
    ],
)
def test_an_export_that_was_edited_is_checked(tmp_path: Path, change: dict[str, object], problem: str) -> None:
    record = {"tracer_export": 1, "id": "a", "input": "text", "label": "x"} | change
    (tmp_path / "log.jsonl").write_text(json.dumps(record), encoding="utf-8")
    with pytest.raises(BadTraceError, match=problem):
        read_traces(tmp_path / "log.jsonl")


def test_a_log_may_say_which_prompt(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text(
        json.dumps({"input": "text", "label": "x", "prompt_version": "v3"}), encoding="utf-8"
    )
    (found,) = read_traces(tmp_path / "log.jsonl").traces
    assert isinstance(found, Trace)
    assert found.prompt == "v3"
