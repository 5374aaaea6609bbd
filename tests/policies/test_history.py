"""The history: what happened, in order, and nothing that did not; whatever moment the process was killed at."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tracer.errors import PolicyError
from tracer.policies.history import UNRECORDED, Event
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


@pytest.fixture
def registry(tmp_path: Path, tiny_policy: Policy) -> PolicyRegistry:
    """Three versions, each the child of the one before; none is active."""
    registry = PolicyRegistry(tmp_path / "home")
    for parent in (None, "v0001", "v0002"):
        registry.save(replace(tiny_policy, parent=parent))
    return registry


def moves(registry: PolicyRegistry) -> list[tuple[str, str | None, str | None]]:
    return [(e.event, e.before, e.after) for e in registry.history() if e.moved]


def path(registry: PolicyRegistry) -> Path:
    return registry.home / "history.jsonl"


def test_each_activation_is_an_event(registry: PolicyRegistry) -> None:
    assert registry.history() == ()
    registry.activate("v0001", now=NOON, note="the first")
    registry.activate("v0002", event="demote", now=NOON + timedelta(hours=1))
    registry.activate(None, now=NOON + timedelta(hours=2))
    assert registry.history() == (
        Event(NOON, "promote", None, "v0001", True, "the first"),
        Event(NOON + timedelta(hours=1), "demote", "v0001", "v0002", True),
        Event(NOON + timedelta(hours=2), "teacher", "v0002", None, True),
    )
    assert all(json.loads(line) for line in path(registry).read_text().splitlines())


def test_other_events_move_nothing(registry: PolicyRegistry) -> None:
    registry.note("v0002", "looks good on Mondays: grün", now=NOON)
    registry.record("alarm", now=NOON, policy="v0001", statistic=12.5, per_class={"refund": 3})
    note, alarm = registry.history()
    assert note == Event(NOON, "note", note="looks good on Mondays: grün", facts={"version": "v0002"})
    assert alarm.facts == {"policy": "v0001", "statistic": 12.5, "per_class": {"refund": 3}}
    assert not alarm.moved
    with pytest.raises(PolicyError, match="no policy 'v0009' to note on"):
        registry.note("v0009", "x")
    for fact in (object(), float("nan")):
        with pytest.raises(PolicyError, match="'alarm' cannot be written"):
            registry.record("alarm", fact=fact)
    assert len(registry.history()) == 2


def test_rolling_back_walks_back(registry: PolicyRegistry) -> None:
    with pytest.raises(PolicyError, match="no other version was in force before the teacher"):
        registry.rollback()
    for version in ("v0001", "v0002", "v0003"):
        registry.activate(version)
    assert registry.rollback(note="worse") == "v0002" == registry.active_version()
    assert registry.rollback() == "v0001" == registry.active_version()
    with pytest.raises(PolicyError, match="no other version was in force before v0001"):
        registry.rollback()
    registry.activate("v0003")
    assert registry.rollback() == "v0001", "v0002 was rolled back before"
    assert moves(registry)[3] == ("rollback", "v0003", "v0002")
    assert registry.history()[3].note == "worse"


def test_rolling_back_from_the_teacher_brings_the_last_version_back(registry: PolicyRegistry) -> None:
    registry.activate("v0001")
    registry.activate("v0002")
    registry.activate(None)
    assert registry.rollback() == "v0002"
    assert registry.rollback() == "v0001"


def test_rolling_back_passes_over_what_was_removed(registry: PolicyRegistry) -> None:
    for version in ("v0001", "v0002", "v0003"):
        registry.activate(version)
    registry.remove("v0002")
    assert registry.rollback() == "v0001"


def test_a_line_of_parents(registry: PolicyRegistry) -> None:
    assert registry.lineage("v0003") == ("v0003", "v0002", "v0001")
    assert registry.lineage("v0001") == ("v0001",)
    registry.remove("v0001")
    assert registry.lineage("v0003") == ("v0003", "v0002", "v0001"), "the name of what was removed is known"
    with pytest.raises(PolicyError, match="no policy 'v0009'"):
        registry.lineage("v0009")


def test_a_home_from_before_the_history_has_one_unrecorded_change(registry: PolicyRegistry) -> None:
    registry.pointer.write_text("v0002\n", encoding="utf-8")
    assert registry.history() == (Event(None, UNRECORDED, None, "v0002", True),)
    registry.activate("v0003")
    assert moves(registry) == [(UNRECORDED, None, "v0002"), ("promote", "v0002", "v0003")]
    assert registry.rollback() == "v0002"


def test_a_change_by_hand_shows_in_its_place(registry: PolicyRegistry) -> None:
    registry.activate("v0001")
    registry.pointer.write_text("v0003\n", encoding="utf-8")
    assert moves(registry)[-1] == (UNRECORDED, "v0001", "v0003")
    registry.activate("v0002")
    registry.pointer.write_text("rubbish", encoding="utf-8")
    registry.activate("v0001")
    assert moves(registry) == [
        ("promote", None, "v0001"), (UNRECORDED, "v0001", "v0003"), ("promote", "v0003", "v0002"),
        (UNRECORDED, "v0002", None), ("promote", None, "v0001"),
    ]  # fmt: skip


def test_a_torn_last_line_is_no_event_and_is_healed(registry: PolicyRegistry) -> None:
    registry.activate("v0001", now=NOON)
    registry.activate("v0002", now=NOON)
    whole = path(registry).read_bytes()
    events = registry.history()
    last = whole.rfind(b"\n", 0, -1) + 1
    for cut in range(last, len(whole)):
        path(registry).write_bytes(whole[:cut])
        # Cut just before its end, the line is whole; else the pointer tells that v0002 is in force.
        told = registry.history()
        assert told == (
            events if cut == len(whole) - 1 else (events[0], Event(None, UNRECORDED, "v0001", "v0002", True))
        )
        registry.record("alarm", now=NOON)
        assert path(registry).read_bytes().startswith(whole[:last] if cut < len(whole) - 1 else whole)
        assert [e.event for e in registry.history()][-2 if cut < len(whole) - 1 else -1] == "alarm"


def test_damage_in_the_middle_is_told_by_line(registry: PolicyRegistry) -> None:
    registry.activate("v0001")
    for bad in (b"rubbish", b"[1]", b'{"time": "x", "event": "promote"}', b'{"event": "promote"}'):
        path(registry).write_bytes(bad + b"\n" + b'{"time": null, "event": "alarm"}\n')
        with pytest.raises(PolicyError, match=r"history\.jsonl:1: is no event"):
            registry.history()
    registry.activate("v0002")
    assert registry.active_version() == "v0002", "a damaged history stops no activation"


def test_two_threads_that_promote_leave_one_chain(registry: PolicyRegistry) -> None:
    def go(version: str) -> None:
        for _ in range(15):
            PolicyRegistry(registry.home).activate(version)

    threads = [threading.Thread(target=go, args=(v,)) for v in registry.versions()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(moves(registry)) == 45
    assert UNRECORDED not in {event for event, _, _ in moves(registry)}


def test_removing_leaves_nothing_and_no_number_is_given_twice(registry: PolicyRegistry, tiny_policy: Policy) -> None:
    registry.activate("v0002")
    with pytest.raises(PolicyError, match="'v0002' is active"):
        registry.remove("v0002")
    registry.remove("v0003", note="a person asked", now=NOON)
    assert [p.name for p in sorted(registry.folder.iterdir())] == ["v0001", "v0002"]
    assert registry.history()[-1] == Event(NOON, "remove", note="a person asked", facts={"version": "v0003"})
    for unknown in ("v0003", "v0009", "..", "../home/policies/v0001"):
        with pytest.raises(PolicyError, match="to remove"):
            registry.remove(unknown)
    assert registry.save(tiny_policy).version == "v0004"


# Killed between two steps.

CRASH = """
import os, sys
from tracer import storage
from tracer.policies.registry import PolicyRegistry

def kill(name):
    if name == sys.argv[3]:
        os.kill(os.getpid(), 9)

storage.on_step = kill
registry = PolicyRegistry(sys.argv[1])
getattr(registry, sys.argv[2])(*sys.argv[4:])
"""


def killed(registry: PolicyRegistry, what: str, step: str, *given: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CRASH, str(registry.home), what, step, *given], check=False, env=dict(os.environ)
    )
    assert done.returncode == -9, "it never came to this step"


@pytest.mark.parametrize(
    ("step", "active", "told"),
    [
        ("activate.begun", "v0001", None),
        ("activate.pointer-written", "v0002", UNRECORDED),
        ("history.line-written", "v0002", "promote"),
        ("activate.recorded", "v0002", "promote"),
    ],
)
def test_killed_while_promoting(step: str, active: str, told: str | None, registry: PolicyRegistry) -> None:
    registry.activate("v0001")
    killed(registry, "activate", step, "v0002")
    assert registry.active_version() == active
    assert registry.load().version == active
    change = [] if told is None else [(told, "v0001", "v0002")]
    assert moves(registry) == [("promote", None, "v0001"), *change]
    registry.activate("v0003")
    assert moves(registry)[-1] == ("promote", active, "v0003"), "the lock went with the process"
    assert registry.rollback() == active


@pytest.mark.parametrize("step", ["remove.recorded", "remove.renamed"])
def test_killed_while_removing(step: str, registry: PolicyRegistry, tiny_policy: Policy) -> None:
    registry.activate("v0001")
    killed(registry, "remove", step, "v0003")
    assert registry.versions() == (("v0001", "v0002", "v0003") if step == "remove.recorded" else ("v0001", "v0002"))
    assert registry.save(tiny_policy).version == "v0004"
    registry.remove("v0003")
    assert sorted(p.name for p in registry.folder.iterdir()) == ["v0001", "v0002", "v0004"]
