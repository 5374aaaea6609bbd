from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.gateway.serving import settings
from tracer.gateway.config import parse
from tracer.gateway.serving import Serving
from tracer.policies.serving_settings import ServingSettings


def test_a_mode_that_changes_nothing_is_told_with_the_command_that_would(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def config(mode: str) -> str:
        return settings("http://127.0.0.1:9", tmp_path, f"mode: {mode}")

    home = tmp_path / "tasks" / "desk"
    states = [Serving.make(parse(config("shadow"), {}))]

    def reload(mode: str) -> None:
        states.append(Serving.make(parse(config(mode), {}), states[-1]))

    try:
        assert not caplog.records
        reload("live")
        (told,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
        assert told.startswith("task desk: the mode in force is shadow, and live in the settings changes nothing")
        assert f"tracer mode live --home {home} " in told
        caplog.clear()
        ServingSettings("live").write(home)
        reload("live")
        reload("observe")
        assert not caplog.records
    finally:
        for line in {id(line): line for state in states for line in state.lines.values()}.values():
            line.close()
