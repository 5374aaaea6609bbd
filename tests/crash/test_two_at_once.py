"""Two processes at once: one fits, and an alarm, an operator and writers do not wait for it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.crash.conftest import BACKENDS, Bases, Driver, Where, state_of, stored
from tracer import flywheel
from tracer.flywheel.homes import DATABASE_URL, locked, store_of
from tracer.flywheel.reading import read
from tracer.flywheel.running import run
from tracer.flywheel.watching import watch
from tracer.policies.registry import PolicyRegistry


@contextmanager
def paused(driver: Driver, where: Where, step: str, **job: Any) -> Iterator[dict[str, Any]]:
    """An update that waits at a step while the block runs; afterwards the dictionary holds its answer."""
    at, go = where.home.parent / "paused", where.home.parent / "go"
    answer = driver.start("update", where, pause_at=step, paused=str(at), go=str(go), **job)
    done: dict[str, Any] = {}
    try:
        wait_for(at)
        yield done
    finally:
        go.touch()
        done |= driver.wait(answer)


def settings_of(where: Where) -> flywheel.Settings:
    settings = flywheel.Settings.read(where.home)
    assert settings is not None
    return settings


def wait_for(path: Path) -> None:
    until = time.monotonic() + 60.0
    while not path.exists():
        assert time.monotonic() < until, path
        time.sleep(0.005)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_of_two_updates_wins(
    backend: str, bases: Bases, driver: Driver, second: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bases.copy("one", backend, tmp_path) as where:
        with paused(driver, where, "attempt.begun", log=bases.log("more")) as first:
            before = state_of(where, monkeypatch)
            other = second.wait(second.start("update", where, log=bases.log("few")))
            assert other["error"] == "BusyError"
            assert "another process is fitting here" in other["told"]
            assert state_of(where, monkeypatch) == before
        assert first["value"] == {"action": "promote", "added": 403, "known": 0}
        assert state_of(where, monkeypatch).line[:2] == (1, 2)


def test_two_homes_on_one_task(
    bases: Bases, driver: Driver, second: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bases.copy("one", "postgresql", tmp_path / "a") as mine, bases.copy("one", "sqlite", tmp_path / "b") as other:
        theirs = Where(other.home, mine.url)
        (other.home / "settings.json").write_bytes((mine.home / "settings.json").read_bytes())
        with paused(driver, mine, "attempt.begun", log=bases.log("more")) as first:
            refused = second.wait(second.start("update", theirs, log=bases.log("few")))
            assert refused["error"] == "BusyError", refused
            assert "another process" in refused["told"]
        assert first["value"]["action"] == "promote"
        n = len(stored(mine, monkeypatch))
        assert second.run("update", theirs)["value"]["added"] == 0, "the other home learns from the same traces"
        assert len(stored(mine, monkeypatch)) == n
        assert settings_of(theirs).line.decided == settings_of(mine).line.decided


def test_the_loop_twice_refits_once(bases: Bases, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(DATABASE_URL, raising=False)
    with bases.copy("one", "sqlite", tmp_path) as where:
        dataset, _ = read(bases.log("more"), texts=None, labels=None, embeddings=None)
        with store_of(where.home, flywheel.Settings.read(where.home)) as store:
            assert store.append(dataset).n_added == 403
        assert [run(where.home, once=True), run(where.home, once=True)] == [0, 0]
        settings = settings_of(where)
        assert settings.attempts == 2
        assert PolicyRegistry(where.home).active_version() == "v0002"


@pytest.mark.parametrize("log", ["more", "few"])
def test_an_alarm_in_the_middle_of_an_update(
    log: str, bases: Bases, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATABASE_URL, raising=False)
    with bases.copy("alarmed", "sqlite", tmp_path) as where:
        with paused(driver, where, "attempt.begun", log=bases.log(log)) as done:
            _, notices = watch(where.home)
            assert [notice.kind for notice in notices] == ["alarm"]
            demoted = PolicyRegistry(where.home).active_version()
            assert demoted != "v0001"
        registry = PolicyRegistry(where.home)
        assert settings_of(where).pending is None
        action = done["value"]["action"]
        told = [event for event in registry.history() if event.event == action][-1].note
        assert told == "another policy came into force meanwhile (demote)"
        assert (action, registry.active_version()) == ("keep", demoted), "its traces came before the alarm"
        assert settings_of(where).refit.startswith("an alarm"), "the refit that the alarm asked for decides"


def test_an_operator_in_the_middle_of_an_update(
    bases: Bases, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(DATABASE_URL, raising=False)
    with bases.copy("one", "sqlite", tmp_path) as where:
        with paused(driver, where, "attempt.begun", log=bases.log("more")) as done, locked(where.home):
            PolicyRegistry(where.home).activate(None, note="by hand")
        assert done["value"]["action"] == "keep"
        registry = PolicyRegistry(where.home)
        assert registry.active_version() is None, "the operator's choice stays"
        assert registry.versions() == ("v0001", "v0002"), "what was certified can be promoted by hand"
        assert registry.history()[-1].note == "another policy came into force meanwhile (teacher)"


@pytest.mark.parametrize("backend", BACKENDS)
def test_writers_go_on_in_an_update(
    backend: str, bases: Bases, driver: Driver, second: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = tmp_path / "stop"
    with bases.copy("one", backend, tmp_path) as where:
        with paused(driver, where, "attempt.begun", log=bases.log("more")) as done:
            writer = second.start("append", where, stop=str(stop))
            wait_for(tmp_path / "appending")
        stop.touch()
        n = second.wait(writer)["value"]
        assert done["value"]["action"] == "promote"
        rows = stored(where, monkeypatch)
        assert [t.id for _, t in rows if t.id.startswith("live-")] == [f"live-{i}" for i in range(n)]
        assert len({number for number, _ in rows}) == len(rows) == 503 + 403 + n
        settings = settings_of(where)
        decided = {t.id for number, t in rows if number <= settings.line.decided}
        assert not any(name.startswith("live-") for name in decided), "its rows are those up to its number"
        report = PolicyRegistry(where.home).load("v0002").report
        assert report["n_traces"] == len(decided) == 503 + 403
