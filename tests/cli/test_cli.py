"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tracer import __version__, data
from tracer.cli.app import app
from tracer.flywheel.goals import Goals
from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Dataset

Run = Callable[..., Any]


def run(*arguments: object, stdin: str | None = None) -> Any:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments], input=stdin)


def document(*arguments: object, code: int = 0) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == code, result.output
    return json.loads(result.stdout)


def one_line(result: Any) -> str:
    """The only line of an error, which goes to standard error, with exit code 1."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    lines: list[str] = result.stderr.strip().splitlines()
    assert len(lines) == 1
    return lines[0]


def record(dataset: Dataset, i: int, **more: object) -> str:
    assert dataset.texts is not None
    fields = {"id": dataset.ids[i], "input": dataset.texts[i], "teacher": dataset.labels[i]}
    return json.dumps(fields | more, ensure_ascii=False)


def written(path: Path, lines: Sequence[str]) -> Path:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def cut() -> Dataset:
    """600 of the shipped messages."""
    everything = data.northlight()
    return everything.take(data.northlight_order(len(everything), 0)[:600])


@pytest.fixture
def log(cut: Dataset, tmp_path: Path) -> Path:
    return written(tmp_path / "log.jsonl", [record(cut, i) for i in range(500)])


@pytest.fixture
def noise(cut: Dataset, tmp_path: Path) -> Path:
    """A log whose labels mean nothing."""
    turned = np.random.default_rng(0).permutation(np.array(cut.labels, dtype=object))
    return written(tmp_path / "noise.jsonl", [record(cut, i, id=f"n{i}", teacher=turned[i]) for i in range(500)])


def test_the_demo_certifies_and_says_so_in_json(tmp_path: Path) -> None:
    facts = document("demo", "--home", tmp_path / "demo")
    assert facts["verdict"] == "certified"
    certificate, live = facts["certificate"], facts["live"]
    assert certificate["agreement_lower"] >= certificate["target"] == 0.9
    assert live["n"] == 650
    assert live["n_handled"] + live["teacher_calls"] == 650
    assert 0 < live["n_agreed"] <= live["n_handled"]
    assert live["router_counts"]["handled"] == live["n_handled"]
    assert PolicyRegistry(tmp_path / "demo").active_version() == facts["version"] == "v0001"


def test_the_demo_speaks_to_people() -> None:
    result = run("demo", "--lexical")
    assert result.exit_code == 0, result.output
    for words in ("2,650 support messages", "CERTIFIED at target 0.9", "650 live messages", "saved a year"):
        assert words in result.stdout


def test_a_demo_that_cannot_be_certified_exits_with_3() -> None:
    facts = document("demo", "--lexical", "--target", "0.9999", code=3)
    assert facts["verdict"] == "refused"
    assert facts["reason"]


def test_fit_show_and_route(log: Path, cut: Dataset, tmp_path: Path) -> None:
    home = tmp_path / "home"
    facts = document("fit", log, "--home", home, "--target", 0.7, "--features", "lexical")
    assert (facts["verdict"], facts["version"], facts["records"], facts["skipped"]) == ("certified", "v0001", 500, [])
    assert len(TraceStore.open(home).load()) == 500
    shown = document("show", "--home", home)
    assert (shown["version"], shown["active"], shown["versions"]) == ("v0001", True, ["v0001"])
    assert shown["certificate"] == facts["certificate"]
    assert shown["labels"] == sorted(set(cut.labels[:500]))
    text = run("show", "--home", home)
    assert text.exit_code == 0
    assert "policy v0001 (active)" in text.stdout
    assert "CERTIFIED at target 0.7" in text.stdout
    assert cut.texts is not None
    lines = ["", cut.texts[500].replace("\n", " "), json.dumps({"input": cut.texts[501]}), "[bold] is no markup"]
    result = run("route", "--home", home, "--json", stdin="\n".join(lines))
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [a["input"] for a in answers] == [lines[1], cut.texts[501], lines[3]]
    for answer in answers:
        assert answer["policy"] == "v0001"
        assert (answer["decision"] == "handled") == (answer["reason"] == "handled") == (answer["label"] is not None)
        assert (answer["score"] >= answer["threshold"]) == (answer["decision"] == "handled")
    table = run("route", "--home", home, stdin="\n".join(lines))
    assert table.exit_code == 0
    assert "[bold] is no markup" in table.stdout
    one = document("route", lines[1], "--home", home)
    assert one["score"] == pytest.approx(answers[0]["score"])
    file = written(tmp_path / "texts.txt", lines[1:])
    from_file = run("route", "--file", file, "--home", home, "--json")
    assert len(from_file.stdout.splitlines()) == 3


def test_fit_speaks_to_people(log: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    result = run("fit", log, "--home", home, "-t", 0.7, "-t", 0.6, "--features", "lexical")
    assert result.exit_code == 0, result.output
    assert "CERTIFIED at target 0.7" in result.stdout
    assert "also at target 0.6" in result.stdout
    assert "policy v" in result.stdout
    assert "500 traces" in result.stdout
    assert "observes only" not in result.stdout


def test_a_fit_behind_a_gateway_that_observes_says_who_answers(log: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    Goals(0.7, 0.05, observed=True).write(home)
    result = run("fit", log, "--home", home, "--features", "lexical")
    assert result.exit_code == 0, result.output
    assert "a gateway observes only: the teacher answers everything" in result.stdout


def test_update_merges_and_promotes_or_keeps(log: Path, noise: Path, cut: Dataset, tmp_path: Path) -> None:
    home = tmp_path / "home"
    document("fit", log, "--home", home, "--target", 0.7, "--features", "lexical")
    more = written(tmp_path / "more.jsonl", [record(cut, i) for i in range(450, 600)])
    facts = document("update", more, "--home", home)
    assert facts["version"] == "v0002"
    assert facts["report"]["n_traces"] == 600
    assert PolicyRegistry(home).active_version() == "v0002"
    some = tmp_path / "some.jsonl"
    some.write_text("".join(noise.read_text(encoding="utf-8").splitlines(keepends=True)[:1]), encoding="utf-8")
    kept = document("update", some, "--home", home)
    assert kept["update"]["active"] == PolicyRegistry(home).active_version() is not None
    again = run("update", some, "--home", home)
    assert again.exit_code == 0
    assert "are known here already" in again.output
    refused = document("update", noise, "--home", home, code=3)
    assert refused["verdict"] == "refused"
    assert PolicyRegistry(home).active_version() is None, "labels that mean nothing refute it"
    routed = document("route", "a text", "--home", home)
    assert (routed["decision"], routed["reason"]) == ("deferred", "no_policy")


def test_a_refusal_exits_with_3_and_promotes_nothing(noise: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    result = run("fit", noise, "--home", home, "--features", "lexical")
    assert result.exit_code == 3, result.output
    assert "REFUSED at target 0.95" in result.stdout
    assert "everything goes to the teacher" in result.stdout
    assert PolicyRegistry(home).versions() == ()


def test_a_bad_line_is_one_line_with_its_place(log: Path, tmp_path: Path) -> None:
    lines = log.read_text(encoding="utf-8").splitlines()
    bad = written(tmp_path / "bad.jsonl", [*lines[:2], '{"id": "x", "input": "hello"}', *lines[2:]])
    for verb in ("fit", "scan", "backtest"):
        home = ["--home", tmp_path / "home"] if verb == "fit" else []
        assert "bad.jsonl:3: " in one_line(run(verb, bad, *home))
    assert not (tmp_path / "home").exists()


def test_skip_bad_lists_what_was_left_out(log: Path, tmp_path: Path) -> None:
    lines = log.read_text(encoding="utf-8").splitlines()
    bad = written(tmp_path / "bad.jsonl", [lines[0], '{"id": "x", "input": "hello"}', "{", *lines[1:], lines[5]])
    arguments = ("fit", bad, "--home", tmp_path / "home", "-t", 0.7, "--features", "lexical", "--skip-bad")
    facts = document(*arguments)
    assert [(s["line"]) for s in facts["skipped"]] == [2, 3]
    assert all(s["problem"] for s in facts["skipped"])
    assert facts["duplicates"] == [json.loads(lines[5])["id"]]
    assert (facts["records"], facts["report"]["n_traces"]) == (503, 500)
    told = run(*arguments)
    assert told.exit_code == 0
    assert "left out 2 bad of 503 records" in told.stderr
    assert "bad.jsonl:2" in told.stderr.replace("\n", "")


def test_scan_shows_a_frontier_and_an_unknown_price_as_unknown(log: Path) -> None:
    facts = document("scan", log, "--model", "no-such-model-9000")
    assert facts["price"] == "unknown: no price is listed for model 'no-such-model-9000'; give --price"
    assert {p["saved_year_usd"] for p in facts["frontier"]} == {None}
    assert {p["guarantee"] for p in facts["frontier"]} == {"estimated"}
    assert facts["n_traces"] == 500
    told = run("scan", log)
    assert told.exit_code == 0
    assert "price of a teacher call: unknown (unknown: give --model or --price)" in told.stdout
    assert "$0" not in told.stdout


def test_a_known_price_becomes_a_saving(log: Path) -> None:
    facts = document("scan", log, "--price", "3/15", "--tokens", "1000/0", "--calls-per-day", 1000)
    for point in facts["frontier"]:
        assert float(point["saved_year_usd"]) == pytest.approx(0.003 * 1000 * 365 * point["coverage"], rel=0.01)
    assert facts["price"] == "$3/15 a million tokens in/out, 1000/0 tokens a call"


def test_backtest_replays_batches(log: Path) -> None:
    arguments = ("backtest", log, "-t", 0.7, "--batches", 2, "--features", "lexical")
    facts = document(*arguments, "--price", "3/15")
    assert [d["n"] for d in facts["days"]] == [250, 250]
    assert facts["days"][0]["n_handled"] == 0
    told = run(*arguments)
    assert told.exit_code == 0
    assert "batch 2" in told.stdout
    assert "unknown" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "none.jsonl"], "none.jsonl"),
        (["fit", "{log}", "-t", "1.5"], "target = 1.5"),
        (["fit", "{log}", "--pool", "fat"], "pool = 'fat': must be one of lean, full"),
        (["fit", "{log}", "--error-cost", "billing"], "write LABEL=DOLLARS"),
        (["fit", "{log}", "--error-cost", "billing=much", "--teacher-usd", "1"], "much"),
        (["fit", "{log}", "--teacher-usd", "cheap"], "cheap"),
        (["fit", "{log}", "--labels", "none.txt"], "none.txt"),
        (["fit", "{log}", "--embeddings", "none.npy"], "none.npy"),
        (["fit", "{log}", "--always-defer", "weather"], "no trace is labelled 'weather'"),
        (["fit", "{log}", "--format", "xml"], "xml"),
        (["scan", "{log}", "--price", "cheap"], "price = 'cheap'"),
        (["scan", "{log}", "--tokens", "many"], "--tokens 'many'"),
        (["scan", "{log}", "--tokens", "-5/3", "--price", "3/15"], "must not be negative"),
        (["backtest", "{log}", "--batches", "1"], "batches = 1"),
        (["update", "{log}"], "nothing was fitted here yet"),
        (["show"], "no policy is active"),
        (["route", "a text"], "no policy is active"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(
    arguments: list[str], message: str, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in one_line(run(*(a.format(log=log.name) for a in arguments)))


def test_nothing_to_route_is_an_error(fitted: tuple[Path, object]) -> None:
    assert "there is no text to route" in one_line(run("route", "--home", fitted[0], stdin="\n\n"))
    assert "1: a JSON object without a text" in one_line(run("route", "--home", fitted[0], stdin='{"x": 1}\n'))
    assert "none.txt" in one_line(run("route", "--home", fitted[0], "--file", "none.txt"))


def test_declared_labels_come_from_a_file(log: Path, cut: Dataset, tmp_path: Path) -> None:
    names = sorted(set(cut.labels[:500]))
    allowed = written(tmp_path / "labels.txt", [*names[1:], "", "  "])
    result = run(
        "fit", log, "--home", tmp_path / "home", "-t", 0.7, "--features", "lexical", "--labels", allowed, "--json"
    )
    facts = json.loads(result.stdout)
    assert facts["report"]["n_outside"] == cut.labels[:500].count(names[0])
    assert names[0] not in [c["label"] for c in facts["report"]["classes"]]


def test_an_encoder_that_cannot_be_exported_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "'some/model' is no local model" in one_line(run("export-encoder", "some/model", "new"))
    assert "exists already" in one_line(run("export-encoder", "some/model", tmp_path))
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert "pip install 'tracer-router[onnx-export]'" in one_line(run("export-encoder", tmp_path, "new"))


def test_version_and_help() -> None:
    assert run("--version").stdout.strip() == f"tracer {__version__}"
    for verb in ("demo", "scan", "fit", "update", "backtest", "route", "show", "export-encoder"):
        assert run(verb, "--help").exit_code == 0
    assert run("fly").exit_code == 2
