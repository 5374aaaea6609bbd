"""A process is killed at each of its steps: what it leaves is the old state or the new one, and can be gone on from.

Each operation runs undisturbed on a copy of a home first, which tells its steps and what it comes to. Then, for each
step, it is killed there on a fresh copy. What must hold at once: whatever is in force decides as the old policy or the
new one did, every version and every file loads, no trace is lost or there twice, no attempt is forgotten. Then the same
operation runs again, or, where it was decided already, whoever comes next finishes it: it comes to the same state.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.crash.conftest import PERSON, Bases, Driver, State, Where, check_sound, no_bytes_of, state_of, stored
from tracer import flywheel
from tracer.policies.registry import PolicyRegistry
from tracer.types import Dataset

ACTIVATED = [
    "activate.begun",
    "beside:ACTIVE",
    "activate.pointer-written",
    "history.line-written",
    "activate.recorded",
]
SWITCHED = ["beside:settings.json", "switch.decided", *ACTIVATED, "switch.activated"]
STORED = ["store.appending", "update.traces-stored", "beside:rows-N", "beside:settings.json", "attempt.begun"]
DECIDED = ["update.policies-saved", "update.decided", "update.activated", "beside:training.safetensors"]


@dataclass(frozen=True, slots=True)
class Operation:
    """``do`` with ``job`` on a base home, its steps, and the one after which whoever comes next finishes it."""

    base: str
    do: str
    job: dict[str, Any]
    steps: Sequence[str]
    decided: str | None = None
    log: str | None = None
    slow: bool = field(default=False, kw_only=True)

    def arguments(self, bases: Bases) -> dict[str, Any]:
        return self.job if self.log is None else self.job | {"log": bases.log(self.log)}


OPERATIONS = {
    "fit": Operation(
        "fresh", "fit", {},
        ["attempt.begun", "beside:vN", "fit.policies-saved", "store.replacing", "store.replaced", "fit.traces-stored",
         "beside:settings.json", "fit.decided", *ACTIVATED, "fit.activated", "beside:training.safetensors",
         "beside:copy.json", "beside:rows-N", "beside:vN.json"],
        "fit.decided", "past", slow=True,
    ),
    "update that promotes": Operation(
        "one", "update", {}, [*STORED, "beside:vN", *DECIDED, *ACTIVATED, "beside:vN.json"], "update.decided", "more"
    ),
    "update that keeps": Operation(
        "one", "update", {}, [*STORED, *DECIDED, "history.line-written", "beside:refused.json"],
        "update.decided", "few", slow=True,
    ),
    "update that demotes": Operation(
        "one", "update", {}, [*STORED, "beside:vN", *DECIDED, *ACTIVATED, "beside:refused.json"],
        "update.decided", "broken", slow=True,
    ),
    "update of another task": Operation(
        "one", "update", {},
        [*STORED, "update.line-decided", "update.line-begun", *DECIDED, *ACTIVATED, "beside:refused.json"],
        "update.decided", "other", slow=True,
    ),
    "alarm": Operation(
        "alarmed", "watch", {},
        ["beside:monitor.json", "beside:vN", "demote.saved", "beside:settings.json", "demote.decided", *ACTIVATED,
         "demote.activated"],
    ),
    "promotion of a challenger": Operation(
        "challenged", "watch", {},
        ["beside:rows-N", "beside:vN", "promotion.saved", "beside:settings.json", "promotion.decided", *ACTIVATED,
         "promotion.activated"],
    ),
    "forgetting": Operation(
        "two", "forget", {"containing": PERSON},
        ["forget.cache-cleared", "forget.derived-cleared", "history.line-written", "remove.recorded",
         "remove.renamed", "beside:settings.json", "forget.versions-removed", "store.rows-removing",
         "store.rows-removed", "store.copy-dropped"],
    ),
    "promoting by hand": Operation("two", "activate", {"version": "v0001"}, SWITCHED, "switch.decided"),
    "rolling back": Operation("two", "rollback", {}, SWITCHED, "switch.decided"),
    "removing": Operation(
        "two", "remove", {"version": "v0001"}, ["history.line-written", "remove.recorded", "remove.renamed"]
    ),
}  # fmt: skip

CASES = [
    pytest.param(name, backend, False, id=f"{name}, {backend}", marks=[pytest.mark.slow] if one.slow else [])
    for name, one in OPERATIONS.items()
    for backend in ("sqlite", "postgresql")
    if backend == "sqlite" or one.slow
] + [
    pytest.param("update that promotes", "postgresql", True, id="update that promotes, postgresql, in short"),
    *(
        pytest.param(name, "postgresql", False, id=f"{name}, postgresql", marks=pytest.mark.slow)
        for name, one in OPERATIONS.items()
        if not one.slow
    ),
]
IN_SHORT = ("store.appending", "attempt.begun", "update.policies-saved", "update.decided", "activate.pointer-written")
"""Where the database or the decision is half done; the full list is for the slow tests."""


@pytest.mark.parametrize(("name", "backend", "in_short"), CASES)
def test_killed_at_each_step(
    name: str,
    backend: str,
    in_short: bool,
    bases: Bases,
    driver: Driver,
    messages: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = OPERATIONS[name]
    job = one.arguments(bases)
    assert messages.texts is not None
    texts = messages.texts[2400:2500]
    with bases.copy(one.base, backend, tmp_path, "before") as where:
        before = Seen.of(where, texts, monkeypatch)
    with bases.copy(one.base, backend, tmp_path, "undisturbed") as where:
        done = driver.run(one.do, where, **job)
        assert "error" not in done, done
        after, wanted = Seen.of(where, texts, monkeypatch), state_of(where, monkeypatch)
        events = _events(where)
    names = [re.sub(r"\d+(-\d+)*", "N", step) for step in done["steps"]]
    assert set(names) == set(one.steps), "a step was added or went away"
    finished = names.index(one.decided) if one.decided else len(names)
    killing = IN_SHORT if in_short else one.steps
    for index in sorted({i for step in killing for i in (names.index(step), _last(names, step))}):
        with bases.copy(one.base, backend, tmp_path, f"killed-{index}") as where:
            killed = driver.run(one.do, where, kill_at=index, **job)
            assert killed == {"killed": 9}, (names[index], killed)
            left = Seen.of(where, texts, monkeypatch)
            told = f"killed at {names[index]} ({index})"
            assert left.decisions in (before.decisions, after.decisions), told
            assert left.traces in (before.traces, after.traces), told
            assert left.attempts.keys() <= after.attempts.keys(), told
            assert all(left.attempts[line] >= n for line, n in before.attempts.items()), told
            again = driver.run(one.do, where, **job) if index < finished else driver.run("nothing", where)
            assert "error" not in again, (told, again)
            if name == "alarm":
                assert again["value"] == ["alarm"], f"{told}: the operator must hear of it"
            cleared = driver.run("nothing", where)
            assert "error" not in cleared, (told, cleared)
            found = state_of(where, monkeypatch)
            if found.line[1] == wanted.line[1]:
                assert found == wanted, told
                assert Seen.of(where, texts, monkeypatch).decisions == after.decisions, told
            else:  # the attempt that the killed process began counts, so the next one is at a stricter level
                assert found.line[1] == wanted.line[1] + 1, told
                assert _matters(found) == _matters(wanted), told
            assert [p.name for p in where.home.rglob(".*-*")] == [], told
            # Of a forgetting the line comes last of all: a call that finds nothing left does not write it again.
            assert _events(where) >= events - {"forget"}, told
            if one.do == "forget":
                no_bytes_of(where, PERSON)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a home shows: decisions of the policy in force, traces in order, attempts by line."""

    decisions: tuple[str, ...] | None
    traces: tuple[tuple[int, str, str, str], ...]
    attempts: dict[int, int]

    @classmethod
    def of(cls, where: Where, texts: Sequence[str], patch: pytest.MonkeyPatch) -> Seen:
        settings = flywheel.Settings.read(where.home)
        traces = tuple((number, t.id, t.text, t.label) for number, t in stored(where, patch))
        assert len({trace[1] for trace in traces}) == len(traces)
        lines = settings.lines if settings is not None else ()
        return cls(check_sound(where, texts), traces, {line.number: line.attempts for line in lines})


def _events(where: Where) -> set[str]:
    return {event.event for event in PolicyRegistry(where.home).history()}


def _last(names: Sequence[str], name: str) -> int:
    return len(names) - 1 - names[::-1].index(name)


def _matters(state: State) -> State:
    """All but what depends on the level at which an attempt was made."""
    number, _, *line = state.line
    active, challenger = state.active, state.challenger
    if active is not None:
        active = {"arrays": active["arrays"], "n_shadow": active["counts"][0]}
    return replace(state, line=(number, *line), active=active, challenger=challenger and challenger[2:])
