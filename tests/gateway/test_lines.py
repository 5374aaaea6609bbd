"""What a task keeps of its teachers: the tokens and the price of an average call."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.gateway.serving import settings
from tracer.cost import Price, call_usd, price_of
from tracer.gateway import lines
from tracer.gateway.config import parse
from tracer.gateway.lines import TaskLine
from tracer.types import Trace, Usage


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


def test_the_means_begin_with_the_newest_traces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_NEWEST", 3)
    config = parse(settings("http://127.0.0.1:1", tmp_path), {})
    first = TaskLine(config, config.tasks[0])
    given = [("gpt-4o", 9), ("gpt-4o-mini", 9_000), ("gpt-4o-mini", 800), (None, 5), ("gpt-4o-mini", 1_000)]
    first.store.append([Trace(str(n), "x", "sales", teacher=name, usage=Usage(n, n // 100)) for name, n in given])
    assert first.close()
    line = TaskLine(config, config.tasks[0])
    line._remembering.join(10)
    price = price_of("gpt-4o-mini")
    assert price is not None
    assert line.saved_usd("gpt-4o-mini") == call_usd(price, Usage(900, 9))
    assert line.saved_usd("gpt-4o") is None, "too old"
    assert line.close()
