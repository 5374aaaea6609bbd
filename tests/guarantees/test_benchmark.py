"""The benchmark of the promise asks the gate itself, and its worlds are what they claim to be."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.guarantee import cells, measure, one_a_group, passed
from benchmarks.worlds import (
    BENIGN,
    COVERAGE_FLOOR,
    EASY,
    HARD,
    Listed,
    World,
    agreement,
    boundary,
    draw,
    flat,
    holm,
    overall,
    overconfident,
    pieces,
    power,
    traps,
    wave,
)
from tracer.certification.gate import Entrant, GateRules, run_gate
from tracer.certification.proposals import propose

WORLDS = [
    BENIGN,
    power(0.004, 0.126, 5.78, levels=8),
    flat(0.1),
    wave(0.1, 0.09, 6.0),
    overconfident(0.2, 0.03, 0.4),
    pieces((0.3, 0.5, 1.0), (0.1, 0.0, 0.2)),
    traps(0.1, [0.5, 0.6, 0.7]),
]


@pytest.mark.parametrize("world", WORLDS, ids=lambda world: world.name)
def test_the_joint_risk_is_the_integral_of_the_disagreement(world: World) -> None:
    edges = np.linspace(0.0, 1.0, 200_001)
    middles = (edges[1:] + edges[:-1]) / 2
    rates = world.disagreement(middles)
    assert rates.min() >= 0.0
    assert rates.max() <= 1.0
    assert np.abs(world.joint(edges[1:]) - np.cumsum(rates) / 200_000).max() < 1e-4


def test_a_trap_is_a_null_at_each_start_and_none_between() -> None:
    starts = [0.5, 0.6, 0.7]
    world = traps(0.1 + 1e-6, starts)
    assert not any(world.keeps(agreement(0.9), 1.0 - c) for c in [*starts, 0.53, 1.0])
    assert all(world.keeps(agreement(0.9), 1.0 - c) for c in (0.55, 0.65))


def test_the_best_coverage_keeps_the_promise() -> None:
    assert BENIGN.best_coverage(agreement(0.95)) == pytest.approx((0.046 / 0.126) ** (1 / 5.78), abs=1e-3)
    assert boundary(0.9).best_coverage(agreement(0.9)) == 0.0
    assert flat(0.05).best_coverage(overall(0.9)) == 1.0


@pytest.mark.parametrize("level", [0.05, 0.1])
@pytest.mark.parametrize("world", [EASY, HARD, boundary(0.9)], ids=lambda world: world.name)
def test_sparing_the_search_changes_nothing(world: World, level: float) -> None:
    rng = np.random.default_rng(3)
    promise = agreement(0.9)
    plan = propose(*draw(rng, [world], (450,), 0.0)[0], 150, promise, level)
    plan = replace(plan, starts=(70, 85, 100))
    rules = GateRules(promise, level, level, COVERAGE_FLOOR, 1, "simulated", "")
    for _ in range(8):
        (room,) = draw(rng, [world], (150,), 0.0)
        certificate = run_gate([Entrant("", "l2d", plan, *room)], rules)[0].certificate
        one = passed(Listed(0, plan), room, promise, level)
        found = (one.threshold, one.n_handled) if one else None
        assert found == ((certificate.threshold, certificate.n_handled) if certificate else None)


def test_one_row_of_each_group_certifies() -> None:
    kept = one_a_group(30, 4, "test")
    assert sorted(kept // 4) == list(range(30))


def test_holm_steps_down() -> None:
    assert holm(np.array([0.01, 0.04, 0.03, 0.5])) == pytest.approx([0.04, 0.09, 0.09, 0.5])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]


def test_every_cell_has_a_name_of_its_own_and_is_seeded_by_it() -> None:
    keys = [cell.key for cell in cells()]
    assert len(set(keys)) == len(keys)
    first = cells()[0]
    assert measure(first, 100) == measure(first, 100)
