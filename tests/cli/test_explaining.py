"""tracer explain, compare and ask-twice: what they print, and their exit codes."""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tracer import data, flywheel
from tracer.cli.app import app
from tracer.config import FitConfig
from tracer.explanations.asking import ASKED_TWICE
from tracer.features import sources
from tracer.features.dense import CallableEmbedder
from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Dataset

HOSTILE = ["", " ", "<script>alert(1)</script> [bold]no markup[/]", "🔥 خصم", "a\u202eb", "\x1b[31mred", "word " * 3000]


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments])


def document(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def one_line(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    (line,) = result.stderr.strip().splitlines()
    return str(line)


def python(code: str) -> str:
    return shlex.join([sys.executable, "-c", code])


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two versions, the second after 300 more traces."""
    folder = tmp_path_factory.mktemp("two") / "home"
    everything = data.northlight()
    everything = everything.take(data.northlight_order(len(everything), 0))
    texts = replace(everything, dense=None, embedder=None)
    flywheel.fit(texts.take(np.arange(600)), home=folder, config=FitConfig(targets=(0.8,), features="lexical"))
    flywheel.update(texts.take(np.arange(600, 900)), home=folder)
    return folder


def test_explain_in_json(fitted: tuple[Path, object], messages: Dataset) -> None:
    assert messages.texts is not None
    text = messages.texts[700]
    facts, routed = document("explain", text, "--home", fitted[0]), document_of_route(text, fitted[0])
    assert facts["score"] == pytest.approx(routed["score"], abs=1e-9)
    assert (facts["handled"], facts["label"]) == (routed["decision"] == "handled", routed["surrogate_label"])
    assert (facts["threshold"], facts["reason"]) == (routed["threshold"], routed["reason"])
    assert facts["policy"] == "v0001"
    assert facts["pieces"]
    assert len(facts["near_handled"]) == len(facts["near_deferred"]) == 3
    assert facts["near_handled"][0]["trace"]["handled"]
    assert "policy v0001 trained on none of them" in facts["stands_on"]


def document_of_route(text: str, home: Path) -> Any:
    result = run("route", text, "--home", home, "--json")
    return json.loads(result.stdout)


def test_explain_speaks_to_people(fitted: tuple[Path, object], messages: Dataset) -> None:
    assert messages.texts is not None
    result = run("explain", messages.texts[700], "--home", fitted[0])
    assert result.exit_code == 0, result.output
    for words in ("by policy v0001", "threshold", "the surrogate's classes", "what moved it most", "nearest traces"):
        assert words in result.stdout


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_explained(fitted: tuple[Path, object], text: str) -> None:
    facts = document("explain", text, "--home", fitted[0])
    assert isinstance(facts["handled"], bool)
    result = run("explain", text, "--home", fitted[0])
    assert result.exit_code == 0, result.output
    assert "\x1b" not in result.stdout


def test_a_policy_on_embeddings_explains_a_stored_text_by_its_vector(tmp_path: Path, small: Dataset) -> None:
    home = tmp_path / "home"
    flywheel.fit(small, home=home, config=FitConfig(targets=(0.7,), features="dense"))
    assert small.texts is not None
    facts = document("explain", f"  {small.texts[5].upper()} ", "--home", home)
    assert facts["pieces"] == []
    assert "attach its embedder" in facts["how"][0]
    assert facts["how"][1] == "neighbours by their embeddings"
    told = one_line("explain", "a text that nobody wrote", "--home", home)
    assert "no stored trace has this text: name its embedder with --embedder" in told


def test_with_its_embedder_a_policy_on_embeddings_tells_what_each_word_does(
    tmp_path: Path, small_texts: Dataset, embedder: CallableEmbedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, text = tmp_path / "home", "my lamp is broken"
    config = FitConfig(targets=(0.7,), features="dense")
    flywheel.fit(small_texts, home=home, config=config, embedder=embedder)
    monkeypatch.setattr(sources, "embedder_from_name", lambda _name: embedder)
    facts = document("explain", text, "--home", home, "--embedder", "table")
    assert {piece["text"] for piece in facts["pieces"]} <= set(text.split())
    assert {piece["kind"] for piece in facts["pieces"]} == {"left out"}
    assert "without each word in turn" in facts["how"][0]
    assert facts["lead_of_words"] is None
    result = run("explain", text, "--home", home, "--embedder", "table")
    assert "what moved it most" in result.stdout


def test_where_no_trace_may_be_shown_the_decision_is_explained_all_the_same(
    tmp_path: Path, small_texts: Dataset
) -> None:
    home = tmp_path / "home"
    config = FitConfig(targets=(0.7,), features="lexical", guarantee="estimated")
    flywheel.fit(small_texts, home=home, config=config)
    facts = document("explain", "my lamp is broken", "--home", home)
    assert facts["pieces"]
    assert facts["near_handled"] == facts["near_deferred"] == []
    assert facts["stands_on"] == "policy v0001 trained on all 600 stored traces: none is left to judge by"
    assert run("explain", "my lamp is broken", "--home", home).exit_code == 0


def test_compare_counts_the_same_rows(two_versions: Path) -> None:
    facts = document("compare", "v0001", "v0002", "--home", two_versions)
    assert (facts["before"], facts["after"]) == ("v0001", "v0002")
    overall, labels = facts["overall"], facts["labels"]
    certificate = PolicyRegistry(two_versions).load("v0002").certificate
    assert (overall["n"], overall["n_handled_after"]) == (certificate.n_shadow, certificate.n_handled)
    assert overall["n_agreed_after"] == certificate.n_agreed
    for count in ("n", "n_gained", "n_lost", "n_handled_before"):
        assert sum(label[count] for label in labels) == overall[count]
    assert len(facts["moved"]) == facts["n_moved"] == overall["n_gained"] + overall["n_lost"]
    back = document("compare", "v0002", "v0001", "--home", two_versions)
    assert back["overall"]["n_gained"] == overall["n_lost"]
    assert "policy v0001 and policy v0002 trained on none" in back["stands_on"].replace(
        "policy v0002 and policy v0001", "policy v0001 and policy v0002"
    )
    result = run("compare", "v0001", "v0002", "--home", two_versions)
    assert result.exit_code == 0, result.output
    for words in ("(all)", "handled v0001", "inputs that changed hands", "shadow traces"):
        assert words in result.stdout
    assert len(run("compare", "v0001", "v0002", "--home", two_versions, "--all").stdout) >= len(result.stdout)


def test_a_policy_compared_with_itself(two_versions: Path) -> None:
    result = run("compare", "v0002", "v0002", "--home", two_versions)
    assert result.exit_code == 0, result.output
    assert "no input changed hands" in result.stdout


def test_versions_of_two_logs_are_not_compared(home: Path, messages: Dataset) -> None:
    other = replace(messages.take(np.arange(1000, 1600)), dense=None, embedder=None)
    flywheel.fit(other, home=home, config=FitConfig(targets=(0.6,), features="lexical"))
    told = one_line("compare", "v0001", "v0002", "--home", home)
    assert "policy v0001 was fitted on other traces than those stored now" in told


def test_ask_twice_asks_keeps_and_goes_on(home: Path) -> None:
    dataset = TraceStore.open(home).load()
    # This teacher answers one label whatever it reads: it agrees with the log as often as that label is there.
    command = python("import sys; sys.stdin.read(); print('billing')")
    facts = document("ask-twice", "-n", 4, "--teacher-command", command, "--home", home)
    assert (facts["n_new"], facts["failures"], facts["target"], facts["n_outside"]) == (4, [], 0.8, 0)
    lines = [json.loads(line) for line in (home / ASKED_TWICE).read_text(encoding="utf-8").splitlines()]
    labels = dict(zip(dataset.ids, dataset.labels, strict=True))
    assert [labels[line["id"]] for line in lines] == [line["label"] for line in lines]
    again = facts["asked_again"]
    assert (again["n_pairs"], again["n_agreed"]) == (4, sum(line["label"] == "billing" for line in lines))
    assert again["statement"].startswith("Your teacher agrees with itself ")
    assert "in_the_log" in facts
    more = document("ask-twice", "-n", 6, "--teacher-command", command, "--home", home)
    assert (more["n_new"], more["asked_again"]["n_pairs"]) == (2, 6)
    shown = document("ask-twice", "--home", home)
    assert (shown["n_new"], shown["asked_again"]) == (0, more["asked_again"])
    result = run("ask-twice", "--home", home)
    assert result.exit_code == 0
    assert "Your teacher agrees with itself" in result.stdout


def test_ask_twice_tells_of_labels_that_nobody_knows_and_of_failures(home: Path) -> None:
    command = python("import sys; print('[bold]zebra' if len(sys.stdin.read()) % 2 else '')")
    result = run("ask-twice", "-n", 2, "--teacher-command", command, "--home", home)
    assert result.exit_code in (0, 1), result.output
    assert "Traceback" not in result.stderr
    zebra = python("print('[bold]zebra')")
    facts = document("ask-twice", "-n", 5, "--teacher-command", zebra, "--home", home)
    assert facts["n_outside"] >= 1
    told = run("ask-twice", "--home", home)
    assert "are labels that the log does not have" in told.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "a text", "--policy", "v0009"], "there is no policy 'v0009'"),
        (["compare", "v0001", "v0009"], "there is no policy 'v0009'"),
        (["ask-twice", "--teacher-command", "/no/such/teacher"], "cannot be started"),
        (["ask-twice", "--teacher-command", "'open"], "No closing quotation"),
        (["ask-twice", "--teacher-command", "a", "-n", "0"], "n = 0"),
        (["ask-twice", "--teacher-command", "a", "--timeout", "0"], "timeout = 0.0"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, home: Path) -> None:
    assert message in one_line(*arguments, "--home", home)


def test_a_damaged_file_of_answers_is_named(home: Path) -> None:
    (home / ASKED_TWICE).write_text("{\n", encoding="utf-8")
    assert f"{ASKED_TWICE}:1: " in one_line("ask-twice", "--home", home)


def test_a_home_without_a_policy(tmp_path: Path, home: Path) -> None:
    assert "no policy is active" in one_line("explain", "a text", "--home", tmp_path / "none")
    assert "nothing was fitted here yet" in one_line("compare", "v0001", "v0002", "--home", tmp_path / "none")
    assert "nothing was fitted here yet" in one_line("ask-twice", "--home", tmp_path / "none")
    PolicyRegistry(home).activate(None)
    assert "no policy is active" in one_line("explain", "a text", "--home", home)


@pytest.mark.parametrize("verb", ["explain", "compare", "ask-twice"])
def test_help(verb: str) -> None:
    assert run(verb, "--help").exit_code == 0
    assert run(verb, "--no-such-option").exit_code == 2
