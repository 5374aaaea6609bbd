"""A person's traces go, with all that quotes them."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tracer import flywheel
from tracer.errors import TraceError
from tracer.explanations.asking import ASKED_TWICE
from tracer.flywheel.forgetting import forget
from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Dataset, Trace

SECRET = "zyxwv-4711 is my customer number"


@pytest.fixture
def told(small_texts: Dataset, tmp_path: Path) -> Path:
    """A home in which somebody said SECRET in three of 600 traces, asked twice, with artefacts."""
    texts = list(small_texts.texts or ())
    for i in (7, 80, 299):
        texts[i] = f"{texts[i]} {SECRET}"
    dataset = Dataset.from_columns(small_texts.labels, texts=texts, ids=[f"id-{i:04d}" for i in range(600)])
    flywheel.fit(dataset, home=tmp_path, target=0.6, features="lexical")
    (tmp_path / ASKED_TWICE).write_text('{"id": "id-0007", "label": "x"}\n{"id": "id-0008", "label": "y"}\n')
    return tmp_path


def holding(home: Path, what: bytes) -> list[str]:
    return [str(p.relative_to(home)) for p in home.rglob("*") if p.is_file() and what in p.read_bytes()]


def test_no_byte_of_them_is_left(told: Path) -> None:
    assert holding(told, b"zyxwv-4711"), "the control"
    plan = forget(told, containing="zyxwv-4711", dry_run=True)
    assert (len(plan.traces), plan.active) == (3, "v0001")
    assert holding(told, b"zyxwv-4711"), "a dry run changes nothing"
    done = forget(told, containing="zyxwv-4711")
    assert done.traces.ids == ("id-0007", "id-0080", "id-0299")
    with TraceStore.open(told) as store:
        assert store.count() == 597
    for path in told.glob("traces.sqlite"):
        with sqlite3.connect(path) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
    assert holding(told, b"zyxwv-4711") == []
    assert json.loads((told / ASKED_TWICE).read_text())["id"] == "id-0008"
    assert not (told / flywheel.WARM).exists()


def test_the_policy_in_force_is_marked_and_goes_with_the_next_promotion(told: Path, messages: Dataset) -> None:
    forget(told, containing=SECRET)
    settings = flywheel.Settings.read(told)
    assert settings is not None
    assert (settings.tainted, settings.refit) == (("v0001",), "3 traces were forgotten")
    assert PolicyRegistry(told).active_version() == "v0001"
    new = replace(messages.take(np.arange(600, 1000)), dense=None, embedder=None)
    verdict = flywheel.update(replace(new, origins=("audit",) * 400), home=told)
    assert verdict.update is not None
    assert verdict.update.action == "promote"
    assert PolicyRegistry(told).versions() == ("v0002",)
    after = flywheel.Settings.read(told)
    assert after is not None
    assert (after.tainted, after.refit) == ((), "")


def test_what_was_forgotten_does_not_come_back(told: Path) -> None:
    forget(told, ids=["id-0007"])
    with TraceStore.open(told) as store:
        done = store.append([Trace("id-0007", "again", "x"), Trace("id-9999", "new", "x")])
        assert (done.n_added, done.n_forgotten, store.count()) == (1, 1, 600)


def test_traces_that_no_version_saw_leave_the_policy_alone(told: Path) -> None:
    with TraceStore.open(told) as store:
        store.append([Trace("late", "a late message", "x", origin="deferred")])
    done = forget(told, ids=["late"])
    assert (len(done.traces), done.removed, done.active) == (1, (), None)
    settings = flywheel.Settings.read(told)
    assert settings is not None
    assert (settings.tainted, settings.refit) == ((), "")


def test_retention_by_age(told: Path) -> None:
    old, new = datetime(2020, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    with TraceStore.open(told) as store:
        store.append([Trace("old", "an old message", "x", time=old), Trace("new", "a new message", "x", time=new)])
    assert "old" in forget(told, before=datetime(2021, 1, 1, tzinfo=UTC)).traces.ids
    with TraceStore.open(told) as store:
        assert "new" in store.load().ids


def test_a_folder_without_a_fit(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="nothing was fitted here yet"):
        forget(tmp_path, ids=["x"])
