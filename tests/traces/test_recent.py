"""What a page reads of a store, on both databases: sums, verdicts and the newest, all within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tracer.traces.recent import Calls, Labels, Share, Verdict
from tracer.traces.store import TraceStore
from tracer.types import FAILED, Seen, Trace, Usage

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
HOUR = int(NOON.timestamp()) // 3600


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[TraceStore]:
    where = tmp_path if request.param == "sqlite" else request.getfixturevalue("postgres")
    with TraceStore.open(where) as opened:
        yield opened


def trace(i: int, origin: str, label: str, *, seen: str = "a", handled: bool = True, **more: object) -> Trace:
    given = {"teacher": "gpt", "time": NOON + timedelta(minutes=i), "seen": Seen("v0001", seen, handled, 0.5)} | more
    return Trace(f"id{i}", f"text {i}", label, origin=origin, **given)  # type: ignore[arg-type]


@pytest.fixture
def filled(store: TraceStore) -> TraceStore:
    store.append(
        [
            trace(1, "audit", "a", usage=Usage(10, 1)),
            trace(2, "audit", "b\0", seen="a", usage=Usage(20, 3)),
            trace(3, "deferred", "b\0", handled=False, teacher=None),
            trace(4, "deferred", "a", seen="b", handled=True, time=None),
            trace(70, "audit", FAILED, seen="\ud800"),
            trace(71, "bootstrap", "c", seen="a"),
        ]
    )
    return store


def test_calls_are_summed_by_span_and_teacher(filled: TraceStore) -> None:
    with filled.recent() as recent:
        assert (recent.through, recent.count(), recent.count(4)) == (6, 6, 2)
        found = sorted(recent.calls(3600, 0, 6), key=lambda row: (row.span, row.teacher or ""))
        assert found == [
            Calls(HOUR, None, 1, 0, 0, 0), Calls(HOUR, "gpt", 2, 2, 30, 4), Calls(HOUR + 1, "gpt", 2, 0, 0, 0),
        ]  # fmt: skip
        assert recent.calls(3600, 1, 2) == [Calls(HOUR, "gpt", 1, 1, 20, 3)]


def test_a_span_begins_with_its_first_second(store: TraceStore) -> None:
    store.tally("v1", NOON.timestamp() + 3599.9, 1.0, 1, {})
    store.append([trace(0, "audit", "a", time=NOON + timedelta(seconds=3599.9))])
    with store.recent() as recent:
        assert [row.span for row in recent.shares(3600, 0.0)] == [HOUR]
        assert [row.span for row in recent.calls(3600, 0, 1)] == [HOUR]


def test_tallies_are_summed_by_span_and_policy(store: TraceStore) -> None:
    at = NOON.timestamp()
    labels = {'\ud800\'"handled": 9': 4}
    counts = {"handled": 3, "novel": 1, "errors": 0, "audits": 1, "served": 2}
    facts: dict[str, int | Mapping[str, int]] = {"labels": labels, **counts}
    store.tally("v1", at, 30.0, 5, facts)
    store.tally("v1", at + 30, 30.0, 6, facts)
    store.tally("v1", at + 3600, 30.0, 7, {"handled": 1})
    store.tally(None, at + 3600, 30.0, 2, {"served": 0})
    with store.recent() as recent:
        assert recent.shares(3600, at, at + 3600) == [Share(HOUR, "v1", 11, 6, 2, 0, 2, 4)]
        later = {row.policy: row for row in recent.shares(3600, at + 1800)}
        assert later == {
            "v1": Share(HOUR + 1, "v1", 7, 1, 0, 0, 0, None), None: Share(HOUR + 1, None, 2, 0, 0, 0, 0, 0)
        }  # fmt: skip
        last, first = recent.tallies("v1", after=0, since=at, n=2)
        assert [row.n for row in first] == [5, 6]
        assert first[0].facts == facts
        again, rest = recent.tallies("v1", after=last, since=at, n=2)
        assert ([row.n for row in rest], recent.tallies("v1", after=again, since=at, n=2)) == ([7], (again, []))


def test_verdicts_and_labels_say_no_text(filled: TraceStore) -> None:
    with filled.recent() as recent:
        found = recent.verdicts(1, 6, {"audit", "deferred"})
        assert [row.number for row in found] == [2, 3, 4, 5]
        assert found[0] == Verdict(2, NOON + timedelta(minutes=2), "audit", "b\0", "v0001", "a", True)
        assert (found[1].handled, found[2].time, found[3].seen_label) == (False, None, "\ud800")
        rows = sorted(recent.labels(0, 6, {"audit", "deferred"}), key=lambda row: row.number)
        assert rows == [
            Labels("a", 2, 1, NOON + timedelta(minutes=1)),
            Labels("b\0", 2, 2, NOON + timedelta(minutes=2)),
            Labels(FAILED, 1, 5, NOON + timedelta(minutes=70)),
        ]


def test_the_newest_come_first_and_from_the_end_alone(filled: TraceStore) -> None:
    with filled.recent() as recent:

        def ids(n: int = 9, among: int = 9, **wanted: bool) -> list[str]:
            return [t.id for t in recent.newest(n, among=among, origins={"audit", "deferred"}, **wanted)]

        assert ids() == ["id70", "id4", "id3", "id2", "id1"]
        assert ids(2) == ["id70", "id4"]
        assert ids(among=2) == ["id70"]
        assert ids(handled=False) == ["id3"]
        assert ids(handled=True, disagreed=True) == ["id70", "id4", "id2"]


def test_what_is_forgotten_makes_copies_void(filled: TraceStore) -> None:
    with filled.recent() as recent:
        before = recent.generation
    filled.forget(ids=["id1"])
    with filled.recent() as recent:
        assert recent.generation > before
        assert recent.count() == 5
