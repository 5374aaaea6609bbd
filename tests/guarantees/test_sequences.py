"""Do sequential statements keep their promises? Seeded Monte-Carlo where the truth is known.

Every rate is judged by its exact one-sided Clopper-Pearson bound at 0.001, so that a true rate at its limit fails once
in a thousand seeds; the seeds are fixed. Whoever looks after every event is the worst that stopping can do.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from numpy.typing import NDArray

from tracer.monitoring.alarms import Monitor, MonitorConfig
from tracer.monitoring.classes import ClassCount, ClassWatch, class_table
from tracer.monitoring.drift import Drift, DriftConfig
from tracer.monitoring.observations import Observation
from tracer.monitoring.tallies import Tally
from tracer.stats import binomial
from tracer.stats.confidence import average_bounds, constant_rate
from tracer.stats.sequences import Detector, EProcess

Bits = NDArray[np.bool_]
World = Callable[[np.random.Generator, int, int, float], Bits]


def lowest(n_bad: int, n: int) -> float:
    """Rate that so many bad ones in n exceed with confidence 0.999."""
    return binomial.agreement_lower(n_bad, n, 0.001)


def ever(process: EProcess, x: Bits, level: float) -> int:
    """How many sequences (m, n) ever reach 1 / level. The e-value is monotone in the count: its edge is found once."""
    n = np.arange(1, x.shape[1] + 1)
    ones = np.cumsum(x, axis=1)
    low, high = np.full(len(n), -1), n + 1
    rare = process.side == "below"
    while np.any(high - low > 1):
        middle = (low + high) // 2
        inside = np.clip(middle, 0, n)
        enough = process.log_e(inside, n) >= -np.log(level)
        up = (enough == rare) & (high - low > 1)
        low, high = np.where(up, middle, low), np.where(~up & (high - low > 1), middle, high)
    reached = ones <= low if rare else ones >= high
    return int(reached.any(axis=1).sum())


# --- worlds: events whose conditional rate never leaves the null on one side ---------------------------------


def constant(rng: np.random.Generator, m: int, n: int, rate: float) -> Bits:
    return rng.random((m, n)) < rate


def waves_above(rng: np.random.Generator, m: int, n: int, rate: float) -> Bits:
    return rng.random((m, n)) < rate * (1.0 + 0.3 * (np.arange(n) % 500 < 100))


def waves_below(rng: np.random.Generator, m: int, n: int, rate: float) -> Bits:
    return rng.random((m, n)) < rate * (1.0 - 0.3 * (np.arange(n) % 500 < 100))


def clumped(rng: np.random.Generator, m: int, n: int, rate: float) -> Bits:
    """The rate depends on the past: the whole of it for ten draws after an event, later two draws in three."""
    draws, since = rng.random((m, n)), np.full(m, 100)
    out = np.empty((m, n), dtype=bool)
    for t in range(n):
        out[:, t] = draws[:, t] < np.where(since < 10, rate, rate / 2.0 + rate / 2.0 * (t % 3 > 0))
        since = np.where(out[:, t], 0, since + 1)
    return out


@pytest.mark.parametrize("level", [0.05, 0.2])
@pytest.mark.parametrize("world", [constant, waves_above])
def test_false_promotions(world: World, level: float) -> None:
    x = world(np.random.default_rng(1), 1500, 5000, 0.05)
    promoted = ever(EProcess(0.05, "below"), x, level)
    assert lowest(promoted, 1500) <= level
    # The bound is not empty: at the boundary itself a good part of it is used.
    assert world is not constant or promoted / 1500 > level / 4


@pytest.mark.parametrize("world", [constant, waves_below, clumped])
def test_false_rollbacks(world: World) -> None:
    x = world(np.random.default_rng(2), 1500, 3000, 0.05)
    assert lowest(ever(EProcess(0.05, "above"), x, 0.05), 1500) <= 0.05


def test_the_test_can_fail() -> None:
    # Looking at the exact fixed-sample test after every audit promotes wrongly far too often.
    x = constant(np.random.default_rng(3), 500, 3000, 0.05)
    n = np.arange(1, 3001)
    allowed = binomial.most_disagreements(n, 0.95, 0.05)
    assert lowest(int((np.cumsum(x, axis=1) <= allowed).any(axis=1).sum()), 500) > 0.1


@pytest.mark.parametrize("world", [constant, waves_below, clumped])
@pytest.mark.parametrize("limit", [400.0])
def test_false_alarms_of_the_detector(world: World, limit: float) -> None:
    m, n = 1000, int(8 * limit)
    values = Detector.above(0.05, limit).values(world(np.random.default_rng(4), m, n, 0.05))
    rang = np.maximum.accumulate(values, axis=1) >= limit
    for horizon in (20, 40, 100, 200):
        assert lowest(int(rang[:, horizon - 1].sum()), m) <= horizon / limit
    # Mean time to the first alarm, lives cut at the end of what was simulated.
    times = np.where(rang[:, -1], rang.argmax(axis=1) + 1, n)
    assert times.mean() + 4.0 * times.std() / np.sqrt(m) >= limit


def test_false_alarms_on_both_sides() -> None:
    m, limit = 1500, 300.0
    rng = np.random.default_rng(5)
    for rate in (0.7, 0.75, 0.8):
        values = Detector.outside(0.7, 0.8, limit).values(rng.random((m, 150)) < rate)
        assert lowest(int((values >= limit).any(axis=1).sum()), m) <= 150 / limit


def looks(n: int) -> NDArray[np.int64]:
    return np.unique(np.geomspace(1, n, 150).astype(np.int64))


@pytest.mark.parametrize("rate", [0.002, 0.05, 0.4])
def test_the_sequence_for_a_constant_rate_covers_at_all_times(rate: float) -> None:
    n = looks(4000)
    ones = np.cumsum(np.random.default_rng(6).random((600, 4000)) < rate, axis=1)[:, n - 1]
    lower, upper = constant_rate(ones, n, 0.1, (1.0, 19.0))
    missed = ((rate < lower) | (upper < rate)).any(axis=1)
    assert lowest(int(missed.sum()), 600) <= 0.1


@pytest.mark.parametrize("drift", ["none", "ramp", "steps", "past"])
def test_the_sequence_for_the_running_average_covers_under_drift(drift: str) -> None:
    m, n = 600, 3000
    rng = np.random.default_rng(7)
    t = np.arange(n)
    rates = {
        "none": np.full(n, 0.05),
        "ramp": np.linspace(0.0, 0.3, n),
        "steps": np.where(t % 400 < 200, 0.01, 0.5),
        "past": np.full(n, 0.1),
    }[drift]
    p = np.tile(rates, (m, 1))
    x = rng.random((m, n)) < p
    if drift == "past":
        # An event makes the next one rarer.
        for i in range(1, n):
            p[:, i] = np.where(x[:, i - 1], 0.02, 0.1)
            x[:, i] = rng.random(m) < p[:, i]
    ones = np.cumsum(x, axis=1)
    squares = np.cumsum((x - (0.5 + ones - x) / (t + 1)) ** 2, axis=1)
    at = looks(n) - 1
    truth = (np.cumsum(p, axis=1) / (t + 1))[:, at]
    lower, upper = average_bounds(ones[:, at], at + 1, squares[:, at], 0.1)
    missed = ((truth < lower) | (upper < truth)).any(axis=1)
    assert lowest(int(missed.sum()), m) <= 0.1


def false_drift(lives: int, days: float, hours: int, seed: int) -> tuple[int, int]:
    """Lives with a false warning by one kind of detector at least, and the number of kinds that rang."""
    rng = np.random.default_rng(seed)
    start = datetime(2026, 4, 14, tzinfo=UTC)
    labels = [f"label {i}" for i in range(12)]
    any_rang = kinds = 0
    for _ in range(lives):
        mix = rng.dirichlet(np.full(12, 2.0))
        reference = rng.multinomial(300, mix)
        drift = Drift(
            "v0001",
            300,
            int(rng.binomial(300, 0.8)),
            dict(zip(labels, map(int, reference), strict=True)),
            DriftConfig(days=days, odds=1.0, level=0.01),
        )
        rang: set[str] = set()
        state = drift.start()
        for hour in range(hours):
            counts = dict(zip(labels, map(int, rng.multinomial(50, mix)), strict=True))
            handled, novel = int(rng.binomial(50, 0.8)), int(rng.binomial(50, 0.03))
            at = start + timedelta(hours=hour)
            state = state.fold([Tally("v0001", at, 3600.0, 50, handled, novel, counts)])
            rang |= set(state.since)
        any_rang += bool(rang)
        kinds += len(rang)
    return any_rang, kinds


def test_false_warnings_of_drift() -> None:
    # Two days of the ten that pass on average: 0.2 a kind, and 0.01 of references that mislead.
    any_rang, _ = false_drift(25, days=10.0, hours=48, seed=9)
    assert lowest(any_rang, 25) <= 3 * (0.2 + 0.01)


@pytest.mark.slow
def test_false_warnings_of_drift_at_length() -> None:
    any_rang, kinds = false_drift(400, days=20.0, hours=120, seed=10)
    assert lowest(any_rang, 400) <= 3 * (0.25 + 0.01)
    assert lowest(kinds, 3 * 400) <= 0.25 + 0.01


def test_false_verdicts_on_classes() -> None:
    # Twenty classes exactly at the target: neither verdict is right, so any is an error.
    rng = np.random.default_rng(11)
    watch, wrong = ClassWatch(0.85, 20, 0.01), 0
    for _ in range(300):
        n = rng.integers(5, 400, 20)
        agreed = rng.binomial(n, 0.9)
        counts = {str(i): ClassCount(int(n[i]), int(agreed[i])) for i in range(20)}
        wrong += any(row.verdict != "unproven" for row in class_table(counts, 0.9, 0.1, watch))
    assert lowest(wrong, 300) <= 0.1


def test_false_alarms_of_classes() -> None:
    watch = ClassWatch(0.9, 10, 0.1)
    x = np.random.default_rng(12).random((400 * 10, 400)) < 0.1
    process = watch.process
    rang = (process.log_e_values(x) >= np.log(10 / 0.1)).any(axis=1).reshape(400, 10)
    assert lowest(int(rang.any(axis=1).sum()), 400) <= 0.1


@pytest.mark.slow
def test_false_promotions_at_length() -> None:
    for target in (0.8, 0.9, 0.98):
        rate = 1.0 - target
        for world in (constant, waves_above):
            x = world(np.random.default_rng([13, round(100 * target)]), 4000, 20_000, rate)
            assert lowest(ever(EProcess(rate, "below"), x, 0.05), 4000) <= 0.05


@pytest.mark.slow
def test_false_alarms_of_the_detector_at_length() -> None:
    m, n, limit = 400, 60_000, 20_000.0
    rng = np.random.default_rng(14)
    rang = np.zeros(m, dtype=bool)
    times = np.full(m, n)
    for i in range(0, m, 50):
        values = Detector.above(0.05, limit).values(rng.random((50, n)) < 0.05)
        reached = np.maximum.accumulate(values, axis=1) >= limit
        rang[i : i + 50] = reached[:, 9_999]
        times[i : i + 50] = np.where(reached[:, -1], reached.argmax(axis=1) + 1, n)
    assert lowest(int(rang.sum()), m) <= 0.5
    assert times.mean() + 4.0 * times.std() / np.sqrt(m) >= limit


@pytest.mark.slow
def test_lives_of_a_monitor() -> None:
    # The whole fold, at a rate inside the promise: what rings, by either clock, is false.
    monitor = Monitor(0.9, "v0001", 3, MonitorConfig(arl=5000, rollback_delta=0.02))
    rng = np.random.default_rng(15)
    rang = promoted = classes = 0
    for _ in range(300):
        agreed, labels = rng.random(1000) >= 0.1, rng.integers(0, 3, 1000)
        state = monitor.over(
            Observation(i + 1, "v0001", str(labels[i]), bool(agreed[i]), True) for i in range(len(agreed))
        )
        rang += state.rang is not None
        promoted += state.promoted is not None
        classes += any(row.rang is not None for row in state.class_table())
    assert lowest(rang, 300) <= 1000 / 5000 + 0.02
    assert lowest(promoted, 300) <= 0.05
    assert lowest(classes, 300) <= 0.02
