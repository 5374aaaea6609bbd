"""What a task keeps of its teachers: the tokens and the price of an average call."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.serving import settings
from tracer.cost import Price, price_of
from tracer.gateway import lines
from tracer.gateway.config import parse
from tracer.gateway.lines import TaskLine
from tracer.types import Usage


def test_a_name_that_no_price_list_has_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def price(model: str) -> Price | None:
        asked.append(model)
        return price_of(model)

    monkeypatch.setattr(lines, "price_of", price)
    config = parse(settings("http://127.0.0.1:1", tmp_path), {})
    line = TaskLine(config, config.tasks[0])
    for name in ("gpt-4o-mini", "x" * 400_000, "no-such-model"):
        line.learn(name, Usage(800, 15))
        line.learn(name, Usage(800, 15))
    assert asked == ["gpt-4o-mini", "no-such-model"], "once each, and never a name that takes long to look for"
    assert line.saved_usd("gpt-4o-mini") is not None
    assert line.saved_usd("x" * 400_000) is None
    assert line.saved_usd("no-such-model") is None
    assert line.close()
