"""The verbs of whoever operates a policy: status, history, promote, rollback, note, mode, flywheel run."""

from __future__ import annotations

import json
import logging
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tracer import flywheel
from tracer.cli.app import app
from tracer.config import FitConfig
from tracer.flywheel.goals import Goals
from tracer.pipeline import Certified
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.serving.router import Router
from tracer.traces.store import TraceStore
from tracer.types import Dataset, Trace


def run(*arguments: object) -> Any:
    return CliRunner(env={"COLUMNS": "220", "NO_COLOR": "1"}).invoke(app, [str(a) for a in arguments])


def document(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def fails(*arguments: object) -> str:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (1, ""), result.output
    assert "Traceback" not in result.stderr
    return str(result.stderr)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, messages: Dataset) -> Path:
    """A home with two certified versions; the second is in force."""
    texts = replace(messages, dense=None, embedder=None, teachers=("mine",) * len(messages))
    folder = tmp_path_factory.mktemp("two") / "home"
    config = FitConfig(targets=(0.8,), features="lexical", ledger="promotion")
    assert isinstance(flywheel.fit(texts.take(np.arange(600)), home=folder, config=config), Certified)
    assert isinstance(flywheel.update(texts.take(np.arange(600, 1200)), home=folder), Certified)
    assert PolicyRegistry(folder).active_version() == "v0002"
    return folder


@pytest.fixture
def here(two: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "home"))


def routed(home: Path, messages: Dataset, rows: Sequence[int], *, wrong: bool = False) -> None:
    """Store what a router with an audit rate of 1 records; ``wrong``: the teacher says something else each time."""
    assert messages.texts is not None
    truth = dict(zip(messages.texts, messages.labels, strict=True))
    labels = sorted(set(messages.labels))

    def teacher(text: str) -> str:
        right = truth[text]
        return labels[(labels.index(right) + 1) % len(labels)] if wrong else right

    found: list[Trace] = []
    settings = ServingSettings(audit_rate=1.0)
    router = Router.load(home, teacher=teacher, record=found.append, settings=settings, rng=random.Random(1))
    for i in rows:
        router.route(messages.texts[i])
    with TraceStore.open(home) as store:
        assert store.append(found).n_added == len(rows)


def test_history_rollback_promote_and_note(here: Path) -> None:
    assert [e["event"] for e in document("history", "--home", here)["events"]] == ["fit", "promote"]
    back = run("rollback", "--home", here, "--note", "looks [b]odd[/b]")
    assert back.exit_code == 0, back.output
    assert PolicyRegistry(here).active_version() == "v0001"
    assert run("promote", "v0002", "--home", here).exit_code == 0
    assert run("promote", "teacher", "--home", here).exit_code == 0
    assert PolicyRegistry(here).active_version() is None
    assert document("status", "--home", here)["held"], "until a version is promoted by hand"
    assert run("note", "v0002", "seen by the risk team", "--home", here).exit_code == 0
    told = document("history", "--home", here)
    assert [e["event"] for e in told["events"]] == ["fit", "promote", "rollback", "promote", "teacher", "note"]
    assert [(e["from"], e["to"]) for e in told["events"] if e["moved"]] == [
        (None, "v0001"), ("v0001", "v0002"), ("v0002", "v0001"), ("v0001", "v0002"), ("v0002", None),
    ]  # fmt: skip
    assert told["events"][-1]["note"] == "seen by the risk team"
    assert (told["active"], told["versions"]) == (None, ["v0001", "v0002"])
    shown = run("history", "--home", here).stdout
    assert "looks [b]odd[/b]" in shown, "a note is no markup"
    assert "in force: the teacher" in shown


def test_what_cannot_be_promoted_is_said_and_changes_nothing(here: Path) -> None:
    assert "there is no policy 'v0009'; versions: v0001, v0002" in fails("promote", "v0009", "--home", here)
    (here / "policies" / "v0001" / "arrays.safetensors").write_bytes(b"cut short")
    assert "v0001" in fails("promote", "v0001", "--home", here)
    assert PolicyRegistry(here).active_version() == "v0002"
    assert "no policy 'v0009'" in fails("note", "v0009", "x", "--home", here)


def test_modes_are_kept_and_checked(here: Path) -> None:
    assert "needs --share" in fails("mode", "canary", "--home", here)
    assert "mode = 'fast'" in fails("mode", "fast", "--home", here)
    assert "audit_rate = 1.5" in fails("mode", "live", "--audit-rate", 1.5, "--home", here)
    assert run("mode", "canary", "--share", 0.25, "--home", here).exit_code == 0
    assert ServingSettings.read(here) == ServingSettings("canary", 0.25, 0.02)
    assert run("mode", "--audit-rate", 0.1, "--home", here).exit_code == 0
    assert ServingSettings.read(here) == ServingSettings("canary", 0.25, 0.1)
    assert run("mode", "live", "--home", here).exit_code == 0
    assert ServingSettings.read(here) == ServingSettings("live", 1.0, 0.1)
    assert "mode live, share 1, audit rate 0.1" in run("mode", "--home", here).stdout


def test_status_tells_what_audits_say(here: Path, messages: Dataset) -> None:
    before = document("status", "--home", here)
    assert (before["status"], before["policy"], before["monitor"]["n_handled"]) == ("quiet", "v0002", 0)
    assert before["refit_due"] is False
    routed(here, messages, range(1200, 1300))
    after = document("status", "--home", here)
    monitor = after["monitor"]
    assert 0 < monitor["n_agreed"] <= monitor["n_handled"] <= monitor["n_audits"] == 100
    low, high = monitor["interval"]
    assert low < monitor["agreement"] < high
    assert after["n_fresh"] == 100
    text = run("status", "--home", here).stdout
    assert f"{monitor['n_agreed']} of {monitor['n_handled']} audits of what it handles agree" in text
    plan = document("status", "--home", here, "--days", 14, "--calls-per-day", 5000)["plan"]
    assert plan["reachable"]
    assert 0.0 < plan["rate"] < 1.0
    assert "--days needs --calls-per-day" in fails("status", "--home", here, "--days", 14)


def test_status_tells_who_answers_instead(here: Path, messages: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    some = replace(messages.take(np.arange(1200, 1210)), dense=None, embedder=None)
    with TraceStore.open(here) as store:
        store.append(replace(some, origins=("deferred",) * len(some)))  # type: ignore[arg-type]
    told = run("status", "--home", here).stdout
    assert "10 of 240 new traces" in told
    assert "mode live" in told
    Goals(0.8, 0.05, observed=True).write(here)
    told = run("status", "--home", here).stdout
    assert "a gateway observes only: the teacher answers everything" in told
    assert "mode live" not in told
    assert document("status", "--home", here)["observed"] is True
    monkeypatch.setenv("TRACER_OFF", "1")
    assert "switched off by TRACER_OFF" in run("status", "--home", here).stdout


def test_the_loop_demotes_on_an_alarm_and_tells(here: Path, messages: Dataset) -> None:
    """A teacher that changed its mind on everything: the alarm rings, and no safer threshold helps."""
    routed(here, messages, range(1300, 1500), wrong=True)
    shown = run("flywheel", "run", "--once", "--home", here)
    assert shown.exit_code in (0, 3), shown.output
    assert all(re.match(r"\d{4}-\d\d-\d\d .* (INFO|WARNING) ", line) for line in shown.stderr.splitlines())
    assert "WARNING alarm: " in shown.stderr
    assert shown.stdout == "", "a line an event, and no tables"
    told = document("history", "--home", here)["events"]
    demotion = next(e for e in told if e["event"] == "demote")
    assert demotion["from"] == "v0002"
    assert "breaks its promise" in demotion["note"]
    assert demotion["to"] is None
    metrics = dict(
        line.split() for line in (here / "metrics.prom").read_text().splitlines() if not line.startswith("#")
    )
    assert metrics["tracer_target_agreement"] == "0.8"


@pytest.mark.parametrize("verb", [("status",), ("flywheel", "run", "--once")])
def test_a_home_without_a_fit_is_said(verb: tuple[str, ...], tmp_path: Path) -> None:
    assert "nothing was fitted here yet" in fails(*verb, "--home", tmp_path / "none")


def test_an_update_without_news_is_no_failure(here: Path) -> None:
    done = run("update", "--home", here)
    assert done.exit_code == 0, done.output
    assert "nothing to learn" in done.stdout
    assert "nothing_new" in document("update", "--home", here)


def test_another_teacher_starts_a_line_and_may_be_accepted(here: Path, messages: Dataset, tmp_path: Path) -> None:
    assert messages.texts is not None
    lines = [
        json.dumps({"id": f"x{i}", "input": messages.texts[i], "teacher": messages.labels[i], "model": "other"})
        for i in range(1500, 1600)
    ]
    log = tmp_path / "other.jsonl"
    log.write_text("\n".join(lines) + "\n", encoding="utf-8")
    started = run("update", log, "--home", here)
    assert started.exit_code == 3, started.output
    known = document("status", "--home", here)
    assert (known["line"], known["policy"], known["status"]) == (2, None, "teacher")
    merged = run("update", "--accept-fingerprint", "--home", here)
    assert merged.exit_code == 0, merged.output
    known = document("status", "--home", here)
    assert sorted(map(tuple, known["fingerprints"])) == [("mine", None), ("other", None)]
    assert known["policy"] is not None


def test_the_loop_ends_on_sigterm(here: Path) -> None:
    """As in a container or a service; a signal that is not handled would give -15."""
    command = [sys.executable, "-m", "tracer.cli", "flywheel", "run", "--wait", "--home", str(here / "none")]
    loop = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert loop.stderr is not None
    assert "waiting" in loop.stderr.readline()
    loop.terminate()
    assert loop.wait(20) == 0
    loop.stderr.close()


def test_the_loop_leaves_no_listener_behind(tmp_path: Path) -> None:
    logger = logging.getLogger("tracer")
    before = logger.handlers[:], logger.level
    assert run("flywheel", "run", "--once", "--home", tmp_path).exit_code == 1, "nothing was fitted here"
    assert (logger.handlers, logger.level) == before
