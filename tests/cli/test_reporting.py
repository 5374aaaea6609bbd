"""The verb that writes reports."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tracer import flywheel
from tracer.cli.app import app
from tracer.config import FitConfig
from tracer.pipeline import Refused
from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Dataset, Origin

DEFERRED: tuple[Origin, ...] = ("deferred",)


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1"}).invoke(app, ["report", *map(str, arguments)])


@pytest.fixture
def refused(small_texts: Dataset, tmp_path: Path) -> Path:
    """A home whose first fit the gate refused."""
    home = tmp_path / "refused"
    verdict = flywheel.fit(small_texts, home=home, config=FitConfig(targets=(0.99,), features="lexical"))
    assert isinstance(verdict, Refused)
    return home


def test_a_report_is_written_and_the_home_stays_as_it_was(
    home: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    before, file = contents(home), tmp_path / "out" / "page.html"
    result = run("--home", home, "--out", file, "--price", "3/15", "--volume", 1000)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("certified: The surrogate answers")
    assert f"wrote {file}" in result.stdout
    page = file.read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert "1,000 calls a day" in page
    assert contents(home) == before
    assert [p.name for p in file.parent.iterdir()] == ["page.html"]


def test_the_three_formats_carry_the_same_certificate(home: Path, tmp_path: Path) -> None:
    texts = {}
    for name in ("r.html", "r.json", "r.md"):
        assert run("--home", home, "--out", tmp_path / name).exit_code == 0
        texts[name] = (tmp_path / name).read_text(encoding="utf-8")
    certificate = json.loads(texts["r.json"])["certificate"]
    counts = f"Of {certificate['n_shadow']:,} shadow traces {certificate['n_handled']:,} are handled"
    assert counts in texts["r.html"]
    assert counts in texts["r.md"]


def test_the_format_names_the_file(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run("--home", home, "--format", "markdown").exit_code == 0
    assert (tmp_path / "report.md").read_text(encoding="utf-8").startswith("# Certified: ")


def test_an_older_version_can_be_reported(home: Path, small_texts: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    assert run("--home", home, "--policy", "v0001", "--out", file).exit_code == 0
    assert json.loads(file.read_text(encoding="utf-8"))["made"]["version"] == "v0001"


def test_a_refusal_has_a_report_too(
    refused: Path, tmp_path: Path, contents: Callable[[Path], dict[str, bytes]]
) -> None:
    before, file = contents(refused), tmp_path / "refusal.json"
    result = run("--home", refused, "--out", file)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("refused: Nothing is promoted: at target 99%")
    facts = json.loads(file.read_text(encoding="utf-8"))
    config = FitConfig(targets=(0.99,), features="lexical")
    verdict = flywheel.fit(TraceStore.open(refused).load(), home=None, config=config)
    assert isinstance(verdict, Refused)
    assert facts["refusal"]["reason"] == verdict.refusal.reason
    assert contents(refused) == before
    assert PolicyRegistry(refused).versions() == ()


def test_the_last_gate_is_reported_though_a_policy_is_in_force(
    home: Path, small_texts: Dataset, tmp_path: Path
) -> None:
    labels = list(np.random.default_rng(0).permutation(np.array(small_texts.labels, dtype=object)))
    noise = Dataset.from_columns(labels, texts=small_texts.texts, ids=[f"bad-{i}" for i in small_texts.ids])
    # They only train, so nothing speaks against the policy in force.
    biased = replace(noise, origins=DEFERRED * len(noise))
    assert isinstance(flywheel.update(biased, home=home), Refused)
    for options, verdict in (((), "certified"), (("--again",), "refused")):
        file = tmp_path / f"{verdict}.json"
        assert run("--home", home, "--out", file, *options).exit_code == 0
        assert json.loads(file.read_text(encoding="utf-8"))["verdict"] == verdict


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (("--format", "pdf"), "--format 'pdf': must be html, json or markdown"),
        (("--policy", "v0009"), "there is no policy 'v0009'"),
        (("--price", "cheap"), "write dollars per million"),
    ],
)
def test_bad_input_is_one_line(home: Path, tmp_path: Path, options: tuple[str, ...], problem: str) -> None:
    result = run("--home", home, "--out", tmp_path / "x.html", *options)
    assert result.exit_code == 1
    assert problem in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "x.html").exists()


def test_an_empty_home_has_nothing_to_report(tmp_path: Path) -> None:
    result = run("--home", tmp_path / "none")
    assert result.exit_code == 1
    assert "nothing was fitted here yet" in result.stderr
