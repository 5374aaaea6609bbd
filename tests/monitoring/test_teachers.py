"""Labels that the policy cannot answer are counted and named."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tracer.monitoring.teachers import MOST_UNKNOWN, TeacherLabels
from tracer.types import FAILED, Trace

NOON = datetime(2026, 4, 14, 12, tzinfo=UTC)
NAMES = ("card", "fees")


def traces(*labels: str, start: int = 1) -> list[tuple[int, Trace]]:
    return [
        (start + i, Trace(f"t{start + i}", "x", label, time=NOON + timedelta(minutes=start + i)))
        for i, label in enumerate(labels)
    ]


def test_unknown_labels_are_counted_with_their_first_place() -> None:
    counts = TeacherLabels().fold(traces("card", "crypto", "fees", "Crypto!", "crypto"), NAMES)
    assert (counts.n, counts.n_unknown, counts.n_failed) == (5, 3, 0)
    assert (counts.unknown["crypto"].n, counts.unknown["crypto"].number) == (2, 2)
    (warning,) = counts.warnings()
    assert (warning.kind, warning.value, warning.expected) == ("unknown_label", 0.6, 0.0)
    assert warning.since == NOON + timedelta(minutes=2)
    assert "3 times in 5: 'crypto' (2), 'Crypto!' (1); first in trace 2." in warning.message


def test_failed_calls_are_counted_apart() -> None:
    few = TeacherLabels().fold(traces(*["card"] * 500, FAILED), NAMES)
    assert (few.n_failed, few.n_unknown, dict(few.unknown)) == (1, 0, {})
    assert list(few.warnings()) == []
    many = few.fold(traces(*[FAILED] * 30, start=600), NAMES)
    (warning,) = many.warnings()
    assert (warning.kind, warning.since) == ("teacher_failed", NOON + timedelta(minutes=501))
    assert warning.message == "5.8% of 531 teacher calls failed."


def test_a_teacher_that_rambles_does_not_fill_the_memory() -> None:
    counts = TeacherLabels().fold(traces(*(f"made up {i}" for i in range(500))), NAMES)
    assert len(counts.unknown) == MOST_UNKNOWN
    assert counts.n_unknown == 500
    (warning,) = counts.warnings()
    assert "and 95 more" in warning.message


def test_in_pieces() -> None:
    rows = traces("crypto", FAILED, "card", "crypto", "nft")
    assert TeacherLabels().fold(rows[:2], NAMES).fold(rows[2:], NAMES) == TeacherLabels().fold(rows, NAMES)


def test_no_label_no_warning() -> None:
    assert list(TeacherLabels().warnings()) == []
    assert list(TeacherLabels().fold([(1, Trace("a", "x", "card"))], NAMES).warnings()) == []


def test_labels_that_were_counted_elsewhere_say_the_same() -> None:
    first, then = traces("card", "crypto", "x"), traces("crypto", FAILED, "fees", "crypto", "y", start=4)
    at = {number: trace.time for number, trace in then}
    rows = [("y", 1, 8, at[8]), (FAILED, 1, 5, at[5]), ("fees", 1, 6, at[6]), ("crypto", 2, 4, at[4])]
    before = TeacherLabels().fold(first, NAMES)
    assert before.plus(rows, NAMES) == before.fold(then, NAMES)
    names = [(f"made up {i}", 1, i, NOON) for i in range(MOST_UNKNOWN + 5)]
    assert len(TeacherLabels().plus(names, NAMES).unknown) == MOST_UNKNOWN
