"""Reading bit by bit comes to the same as reading all at once, and never reads more than it may."""

from __future__ import annotations

import shutil
from collections import Counter
from datetime import timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.pages.conftest import NOW
from tests.gateway.pages.homes import TEACHER, at_noon
from tracer.flywheel.settings import Settings
from tracer.flywheel.watching import look
from tracer.gateway.pages import charts, ledgers, standing
from tracer.gateway.pages.ledgers import Ledger, Span, total
from tracer.gateway.pages.standing import Standing
from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Seen, Trace, Usage


@pytest.fixture
def home(lived: tuple[Path, int], tmp_path: Path) -> Path:
    return Path(shutil.copytree(lived[0], tmp_path / "home"))


def refreshed(one: Standing, home: Path, budget: float = 60.0) -> Any:
    policy = PolicyRegistry(home).load()
    with TraceStore.open(home) as store, store.recent() as recent:
        one.refresh(recent, policy, Settings.read(home), NOW, budget)
    return one.found()


def test_windows_come_to_the_same_as_one_look(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = refreshed(Standing(home), home)
    monkeypatch.setattr(standing, "_WINDOW", 97)
    bit = Standing(home)
    first = refreshed(bit, home, 0.0)
    assert first.behind > 0
    assert first.n_audits < whole.n_audits
    seen = 1
    while (found := refreshed(bit, home, 0.0)).behind:
        seen += 1
        assert seen < 100
    assert seen > 3
    assert (found.n_audits, found.n_agreed, found.low, found.high) == (
        whole.n_audits, whole.n_agreed, whole.low, whole.high
    )  # fmt: skip
    assert [p.n for p in found.points] == [p.n for p in whole.points]
    monitor = look(home).monitor
    assert monitor is not None
    assert (monitor.n_audits, monitor.interval, monitor.status) == (
        whole.n_audits,
        (whole.low, whole.high),
        whole.status,
    )
    assert whole.points[-1].n == monitor.n_handled
    assert (whole.points[-1].low, whole.points[-1].high) == pytest.approx(monitor.interval)


def test_an_audit_counts_once_and_at_the_next_look(home: Path) -> None:
    one = Standing(home)
    before = refreshed(one, home)
    with TraceStore.open(home) as store:
        store.append([Trace("z" * 32, "hi", "x", time=at_noon(), origin="audit", seen=Seen("v0001", "y", True, 0.9))])
    for _ in range(2):
        after = refreshed(one, home)
        assert (after.n_handled, after.n_agreed) == (before.n_handled + 1, before.n_agreed)
    assert after.low < before.low


def test_a_label_that_is_not_known_is_warned_of(home: Path) -> None:
    assert refreshed(Standing(home), home).warnings == ()
    with TraceStore.open(home) as store:
        store.append([Trace(f"new-{i}", f"hi {i}", "brand new", time=at_noon(), origin="deferred") for i in range(9)])
    ((kind, message),) = refreshed(Standing(home), home).warnings
    assert (kind, "'brand new' (9)" in message) == ("unknown_label", True)


def test_many_points_are_thinned_and_end_where_they_should(home: Path) -> None:
    course = standing._Course()
    for i in range(10_000):
        course.add(at_noon() + timedelta(seconds=i), i % 10 != 0)
    monitor = look(home).monitor
    assert monitor is not None
    points = course.points(monitor.monitor)
    assert 100 < len(points) <= 242
    assert (points[-1].n, points[-1].agreement) == (10_000, 0.9)
    assert all(a.n < b.n for a, b in pairwise(points))
    assert points[-1].low < 0.9 < points[-1].high


def test_older_traces_are_read_look_by_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledgers, "_WINDOW", 10)
    with TraceStore.open(tmp_path) as store:

        def add(first: int, n: int) -> None:
            rows = range(first, first + n)
            at = [at_noon() - timedelta(minutes=200 - i) for i in rows]
            usage = Usage(100, 1)
            texts = [(f"t{i}", f"text {i}") for i in rows]
            store.append(
                [Trace(*pair, "x", teacher=TEACHER, time=t, usage=usage) for pair, t in zip(texts, at, strict=True)]
            )

        ledger, calls = Ledger(TEACHER, lambda _: None), []
        add(0, 35)
        for _ in range(5):
            with store.recent() as recent:
                ledger.refresh(recent, NOW, [])
            calls.append(total(ledger.spans(NOW, 1, 24)).calls)
        assert calls == [10, 20, 30, 35, 35]
        assert (ledger.partial, ledger.n_traces) == (False, 35)
        add(35, 25)
        with store.recent() as recent:
            ledger.refresh(recent, NOW, [])
        assert (total(ledger.spans(NOW, 1, 24)).calls, ledger.n_traces) == (60, 60)
        store.forget(ids=["t1", "t2"])
        for _ in range(7):
            with store.recent() as recent:
                ledger.refresh(recent, NOW, [])
        assert (total(ledger.spans(NOW, 1, 24)).calls, ledger.n_traces) == (58, 58)


def test_what_is_older_than_a_month_counts_no_more(tmp_path: Path) -> None:
    with TraceStore.open(tmp_path) as store:
        store.append([Trace("old", "old", "x", teacher=TEACHER, time=at_noon() - timedelta(days=40))])
        store.append([Trace("new", "new", "x", teacher=TEACHER, time=at_noon() - timedelta(days=20))])
        ledger = Ledger(TEACHER, lambda _: None)
        with store.recent() as recent:
            ledger.refresh(recent, NOW, [])
        assert total(ledger.spans(NOW, 24, 30)).calls == 1
        with store.recent() as recent:
            ledger.refresh(recent, NOW + 15 * 86_400, [])
        assert ledger._calls == {}


def test_charts_say_in_words_what_they_show() -> None:
    spans = [Span(NOW + 3600.0 * i, 3600.0, n=n, handled=n // 2, calls=n, served=0) for i, n in enumerate([10, 0, 20])]
    drawn = str(charts.coverage_chart("desk", spans, 0.625, [(NOW + 1800.0, "v0007")]))
    assert "30 requests. 62.5% were handled when it was certified." in drawn
    assert "v0007" in drawn
    assert Counter(drawn.split("<"))["polyline"] == 0, "no line is drawn over a gap"
    assert charts.money_chart("desk", spans) is None


@pytest.mark.parametrize("most", [1e-7, 0.00031, 0.019, 0.5, 1.0, 7.3, 123.0, 1e6])
def test_ticks_of_dollars_are_short_and_true(most: float) -> None:
    span = Span(NOW, 3600.0, n=1, calls=1, spent=Decimal(str(most)), saved=Decimal(0))
    drawn = str(charts.money_chart("desk", [span]))
    ticks = [float(part.partition("<")[0].replace(",", "")) for part in drawn.split(">$")[1:]]
    assert len(ticks) == 5
    assert ticks[-1] >= most
    steps = [b - a for a, b in pairwise(ticks)]
    assert steps == pytest.approx([ticks[-1] / 4] * 4, rel=1e-6)
