"""Whose labels: another teacher or prompt starts a line, and comes back to its own."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tracer import flywheel
from tracer.config import FitConfig
from tracer.flywheel.lines import line_for_fit, line_for_update
from tracer.flywheel.settings import Line, Settings
from tracer.policies.fingerprints import Fingerprint
from tracer.policies.registry import PolicyRegistry
from tracer.types import Dataset, Trace

OLD, NEW = Fingerprint("one", "p1"), Fingerprint("two", "p1")
NONE = Fingerprint(None, None)


def settings(*lines: Line) -> Settings:
    return Settings(FitConfig(), None, lines)


def by(dataset: Dataset, teacher: str, rows: Sequence[int]) -> Dataset:
    some = replace(dataset.take(np.asarray(rows)), dense=None, embedder=None)
    return replace(some, teachers=(teacher,) * len(some))


def read(home: Path) -> Settings:
    found = Settings.read(home)
    assert found is not None
    return found


def test_most_of_the_new_traces_decide() -> None:
    known = settings(Line(1, (OLD,), attempts=3))
    few, most = Counter({OLD: 60, NEW: 40}), Counter({OLD: 40, NEW: 60})
    assert line_for_update(known, few, None, accept=False) == known.line, "they trail behind"
    assert line_for_update(known, most, None, accept=False) == Line(2, (NEW,))
    assert line_for_update(known, most, None, accept=True) == replace(known.line, fingerprints=(OLD, NEW))


def test_an_old_line_is_taken_up_again_with_its_attempts() -> None:
    known = settings(Line(1, (OLD,), attempts=3, decided=50), Line(2, (NEW,), attempts=1))
    assert line_for_update(known, Counter({OLD: 5}), None, accept=False) == known.lines[0]
    third = Fingerprint("three", None)
    assert line_for_update(known, Counter({third: 5}), None, accept=False) == Line(3, (third,))


def test_other_declared_labels_are_another_line() -> None:
    known = settings(Line(1, (OLD,), ("a", "b"), attempts=3))
    assert line_for_update(known, Counter({OLD: 5}), ["a", "b"], accept=False) == known.line
    assert line_for_update(known, Counter({OLD: 5}), ["a", "c"], accept=False) == Line(2, (OLD,), ("a", "c"))
    assert line_for_fit(known, [OLD], ["a", "b"]) == known.line
    assert line_for_fit(known, [OLD], None) == Line(2, (OLD,))


@pytest.fixture(scope="module")
def two_teachers(messages: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("lines") / "home"
    config = FitConfig(targets=(0.7,), features="lexical")
    flywheel.fit(by(messages, "one", range(500)), home=home, config=config)
    flywheel.update(by(messages, "two", range(500, 1000)), home=home)
    return home


def test_a_new_teacher_starts_a_line_that_its_own_traces_train(two_teachers: Path, messages: Dataset) -> None:
    known = read(two_teachers)
    assert [line.number for line in known.lines] == [1, 2]
    assert (known.line.fingerprints, known.line.attempts) == ((Fingerprint("two", None),), 1)
    registry = PolicyRegistry(two_teachers)
    events = [event.event for event in registry.history()]
    assert events == ["fit", "new line", "promote"], "the teacher answered in between"
    policy = registry.load()
    assert policy.report["n_traces"] == 500
    assert policy.task["teachers"] == ["two"]


def test_stragglers_are_left_out_and_the_old_line_comes_back(
    two_teachers: Path, messages: Dataset, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(two_teachers, tmp_path / "home"))
    late, new = by(messages, "one", range(1000, 1020)), by(messages, "two", range(1020, 1100))
    flywheel.update([*_traces(late), *_traces(new)], home=home)
    assert read(home).line.number == 2
    assert PolicyRegistry(home).load(PolicyRegistry(home).versions()[-1]).report["n_traces"] == 580
    again = flywheel.update(by(messages, "one", range(1100, 1200)), home=home)
    assert (read(home).line.number, read(home).line.attempts) == (1, 2)
    assert again.report.n_traces == 500 + 20 + 100


def test_fingerprints_are_accepted_on_purpose(two_teachers: Path, messages: Dataset, tmp_path: Path) -> None:
    home = Path(shutil.copytree(two_teachers, tmp_path / "home"))
    verdict = flywheel.update(by(messages, "one", range(1100, 1200)), home=home, accept_fingerprint=True)
    line = read(home).line
    assert (line.number, line.attempts) == (2, 3), "what both lines spent, and this one"
    assert {f.teacher for f in line.fingerprints} == {"one", "two"}
    assert verdict.report.n_traces == 1100


def _traces(dataset: Dataset) -> list[Trace]:
    assert dataset.texts is not None
    columns = zip(dataset.ids, dataset.texts, dataset.labels, dataset.teachers, strict=True)
    return [Trace(i, t, label, teacher) for i, t, label, teacher in columns]
