"""The verbs on stored traces: import, export, forget."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tracer.cli.app import app
from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Dataset


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "220", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments])


def fails(*arguments: object) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    return str(result.stderr)


@pytest.fixture
def log(small_texts: Dataset, tmp_path: Path) -> Path:
    assert small_texts.texts is not None
    path = tmp_path / "log.jsonl"
    rows = zip(small_texts.ids, small_texts.texts, small_texts.labels, strict=True)
    lines = [
        json.dumps({"id": i, "input": t, "teacher": label, "usage": {"prompt_tokens": 7, "completion_tokens": 1}})
        for i, t, label in rows
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_import_fit_from_the_store_and_export(log: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "600 new traces, 0 known already" in run("import", log, "--home", home).stdout
    assert "0 new traces, 600 known already" in run("import", log, "--home", home).stdout
    fitted = run("fit", "--home", home, "--target", 0.8, "--features", "lexical")
    assert fitted.exit_code == 0, fitted.output
    out = tmp_path / "all.parquet"
    assert "600 traces written" in run("export", out, "--home", home).stdout
    again = tmp_path / "again"
    assert "600 new traces" in run("import", out, "--home", again).stdout
    with TraceStore.open(home) as one, TraceStore.open(again) as two:
        assert [t for _, t in one.traces()] == [t for _, t in two.traces()]
        assert next(t.usage for _, t in two.traces()) is not None
    assert "no traces are stored" in fails("export", out, "--home", tmp_path / "empty")
    assert "the suffix" in fails("export", tmp_path / "all.txt", "--home", home)


def test_forget_shows_first_and_then_does(log: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run("fit", log, "--home", home, "--target", 0.8, "--features", "lexical").exit_code == 0
    with TraceStore.open(home) as store:
        texts = [t.text for _, t in store.traces()]
    word = "invoice"
    n = sum(word in text.casefold() for text in texts)
    assert n > 3
    shown = run("forget", "--containing", word.upper(), "--home", home)
    assert f"{n} traces would go" in shown.stdout
    assert TraceStore.open(home).count() == 600, "nothing went yet"
    done = run("forget", "--containing", word.upper(), "--home", home, "--yes")
    assert done.exit_code == 0, done.output
    assert f"{n} traces" in done.stdout
    assert "v0001 is in force and learned from them" in done.stdout
    assert TraceStore.open(home).count() == 600 - n
    assert f"{n} were forgotten once and stay so" in run("import", log, "--home", home).stdout
    refitted = run("update", "--home", home)
    assert refitted.exit_code in (0, 3), refitted.output
    if PolicyRegistry(home).active_version() != "v0001":
        assert "v0001" not in PolicyRegistry(home).versions()


def test_forget_asks_what(log: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert run("fit", log, "--home", home, "--target", 0.8, "--features", "lexical").exit_code == 0
    assert "say what to forget" in fails("forget", "--home", home)
    assert "is no regular expression" in fails("forget", "--home", home, "--matching", "(")
    assert "write days or hours" in fails("forget", "--home", home, "--older-than", "soon")
    assert "nothing was fitted here yet" in fails("forget", "--home", tmp_path / "x", "--id", "a")
    gone = json.loads(run("forget", "--home", home, "--id", "no such id", "--yes", "--json").stdout)
    assert (gone["n_traces"], gone["removed"], gone["active"]) == (0, [], None)
