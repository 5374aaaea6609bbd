"""Agreement by predicted class: exact intervals, Holm, and the watch."""

from __future__ import annotations

import json
import math

import pytest

from tracer.monitoring.classes import ClassCount, ClassWatch, class_table
from tracer.stats import binomial
from tracer.stats.testing import holm

WATCH = ClassWatch(floor=0.85, n_classes=10, delta=0.01)


def counted(agreed: int, wrong: int, watch: ClassWatch = WATCH) -> ClassCount:
    count = ClassCount()
    for i in range(agreed + wrong):
        count = watch.after(count, i < agreed, 100 + i)
    return count


def test_verdicts() -> None:
    counts = {"good": counted(200, 2), "few": counted(9, 0), "bad": counted(20, 25), "middling": counted(90, 10)}
    table = {row.label: row for row in class_table(counts, 0.9, 0.05, WATCH)}
    assert [row.label for row in class_table(counts, 0.9, 0.05, WATCH)] == ["good", "middling", "bad", "few"]
    verdicts = {label: row.verdict for label, row in table.items()}
    assert verdicts == {"good": "certified", "few": "unproven", "bad": "violating", "middling": "unproven"}
    assert table["bad"].rang is not None
    assert table["good"].rang is None
    assert json.loads(json.dumps(table["bad"].as_dict()))["n_agreed"] == 20


def test_p_values_are_holms_over_both_sides_of_all_classes() -> None:
    counts = {"a": counted(200, 2), "b": counted(20, 15)}
    rows = class_table(counts, 0.9, 0.05, WATCH)
    below = [float(binomial.p_value(2, 202, 0.9)), float(binomial.p_value(15, 35, 0.9))]
    above = [1.0 - float(binomial.p_value(1, 202, 0.9)), 1.0 - float(binomial.p_value(14, 35, 0.9))]
    adjusted = holm([*below, *above, *[1.0] * 16])
    assert [r.p_certified for r in rows] == pytest.approx(adjusted[:2])
    assert [r.p_violating for r in rows] == pytest.approx(adjusted[2:4], rel=1e-6)


def test_intervals_hold_together() -> None:
    (row,) = class_table({"a": counted(50, 3)}, 0.9, 0.05, WATCH)
    assert (row.lower, row.upper) == binomial.agreement_interval(50, 53, 0.005)


def test_the_watch_rings_where_its_evidence_suffices_first() -> None:
    count, rang = ClassCount(), None
    for number in range(1, 60):
        count = WATCH.after(count, number % 2 == 0, number)
        enough = WATCH.process.log_e(count.n_disagreed, count.n) >= math.log(10 / 0.01)
        rang = rang or (number if enough else None)
        assert count.rang == rang
    assert rang is not None


def test_no_class_no_row() -> None:
    assert class_table({}, 0.9, 0.05, WATCH) == ()
