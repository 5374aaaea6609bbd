"""A process that records is killed: what was flushed is there, once, and nothing is half there."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.crash.conftest import BACKENDS, Bases, Driver, stored


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_was_flushed_is_there(
    backend: str, bases: Bases, driver: Driver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    acknowledged = tmp_path / "acknowledged"
    with bases.copy("one", backend, tmp_path) as where:
        n_before = len(stored(where, monkeypatch))
        answer = driver.start("record", where, acknowledged=str(acknowledged))
        until = time.monotonic() + 60.0
        while not acknowledged.exists() or acknowledged.read_text().count("\n") < 5:
            assert time.monotonic() < until
            time.sleep(0.01)
        os.kill(int((tmp_path / f"{answer.name}.pid").read_text()), signal.SIGKILL)
        assert driver.wait(answer) == {"killed": 9}
        flushed = int(acknowledged.read_text().rpartition("\n")[0].rpartition("\n")[2])
        rows = [t for _, t in stored(where, monkeypatch)][n_before:]
        assert flushed >= 99
        assert [t.id for t in rows] == [f"live-{i}" for i in range(len(rows))], "in order, once, without a gap"
        assert len(rows) > flushed
        assert all((t.text, t.label) == (f"live text {i}", "late") for i, t in enumerate(rows))
        assert driver.run("update", where, log=bases.log("more"))["value"]["added"] == 403, "the store can be used"
