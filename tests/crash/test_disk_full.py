"""The disk is full, or the home cannot be written: a clear error, and the last good state."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.crash.conftest import Bases, Driver, check_sound, state_of
from tracer.types import Dataset

LIMITED = {
    "fit": ("fresh", {"log": "past"}, ("fit.policies-saved", "fit.traces-stored", "fit.decided")),
    "update": (
        "one",
        {"log": "more"},
        ("update.traces-stored", "attempt.begun", "update.policies-saved", "update.decided"),
    ),
    "watch": ("alarmed", {}, ("demote.saved", "demote.decided")),
    "forget": ("two", {"containing": "zebra"}, ("forget.derived-cleared", "forget.versions-removed")),
}


@pytest.mark.parametrize(("do", "step"), [(do, step) for do, (_, _, steps) in LIMITED.items() for step in steps])
def test_no_byte_more_from_a_step_on(
    do: str,
    step: str,
    bases: Bases,
    driver: Driver,
    messages: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base, job, _ = LIMITED[do]
    given = job | {"log": bases.log(job["log"])} if "log" in job else job
    assert messages.texts is not None
    texts = messages.texts[2400:2500]
    decisions = set()
    for name in ("before", "after"):
        with bases.copy(base, "sqlite", tmp_path, name) as where:
            if name == "after":
                assert "error" not in driver.run(do, where, **given)
                wanted = state_of(where, monkeypatch)
            decisions.add(check_sound(where, texts))
    with bases.copy(base, "sqlite", tmp_path) as where:
        done = driver.run(do, where, limit_at=step, limit=0, **given)
        assert done["error"] in ("ConfigError", "StoreError", "OSError"), done
        assert "too large" in done["told"] or "full" in done["told"] or "disk" in done["told"], done["told"]
        assert check_sound(where, texts) in decisions
        again = driver.run(do, where, **given)
        assert again.get("error") in (None, "NothingNewError"), again
        found = state_of(where, monkeypatch)
        assert found.traces == wanted.traces
        assert (found.active is None) == (wanted.active is None)
        assert [p.name for p in where.home.rglob(".*-*")] == []


@pytest.mark.skipif(sys.platform != "linux", reason="gives up root's privileges as Linux has them")
@pytest.mark.parametrize("do", ["update", "watch", "forget"])
def test_a_home_that_cannot_be_written(
    do: str, bases: Bases, driver: Driver, messages: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert messages.texts is not None
    texts = messages.texts[2400:2500]
    base, job, _ = LIMITED[do]
    with bases.copy(base, "sqlite", tmp_path) as where:
        before = state_of(where, monkeypatch), check_sound(where, texts)
        where.home.chmod(0o500)
        try:
            done = driver.run(
                do, where, unprivileged=True, **(job | {"log": bases.log("more")} if "log" in job else job)
            )
            assert done["error"] in ("ConfigError", "StoreError"), done
            assert "cannot be written" in done["told"] or "readonly" in done["told"]
            assert check_sound(where, texts) == before[1]
        finally:
            where.home.chmod(0o700)
        assert (state_of(where, monkeypatch), check_sound(where, texts)) == before
