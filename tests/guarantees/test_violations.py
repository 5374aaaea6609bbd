"""Is the promise kept? Seeded Monte-Carlo in the worlds of ``benchmarks/worlds.py``.

A rate is judged by its exact one-sided Clopper-Pearson bound: with true rates at or below delta a cell fails
with probability at most 0.001 over seeds, and the seeds are fixed. The control tests show that the same
worlds do catch rules that break the promise. ``benchmarks/guarantee.py`` measures the same at length.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import special

from benchmarks.worlds import (
    BENIGN,
    COVERAGE_FLOOR,
    EASY,
    ERROR,
    HARD,
    Tally,
    World,
    agreement,
    boundary,
    draw,
    flat,
    holm,
    overall,
    overconfident,
    power,
    run_trials,
    wave,
)
from tracer.certification.gate import Entrant, GateRules, run_gate
from tracer.certification.proposals import SMALL_SAMPLE, propose
from tracer.learning import selection
from tracer.stats import binomial

# --- the promise is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "n_shadow", "target", "delta"),
    [
        (BENIGN, 1500, 0.95, 0.05),
        (HARD, 800, 0.90, 0.10),
        (boundary(0.90), 1000, 0.90, 0.05),
        (boundary(0.95), 2000, 0.95, 0.10),
        (power(0.004, 0.126, 5.78, levels=8), 1500, 0.95, 0.05),
        (flat(0.1002, levels=4), 1000, 0.90, 0.05),
        (wave(0.1002, 0.09, 6.0), 1000, 0.90, 0.05),
        (overconfident(0.2, 0.03, 0.4), 1500, 0.95, 0.10),
    ],
    ids=lambda value: value.name if isinstance(value, World) else None,
)
def test_single_start_chain(world: World, n_shadow: int, target: float, delta: float) -> None:
    assert n_shadow * (1 - target) >= SMALL_SAMPLE
    tally = run_trials([world], n_shadow, agreement(target), delta, seed=1)
    assert tally.assumptions == {""}
    assert tally.rate_lower <= delta


@pytest.mark.parametrize(
    ("world", "n_shadow", "target", "delta"),
    [
        (EASY, 150, 0.95, 0.05),
        (BENIGN, 300, 0.95, 0.05),
        (BENIGN, 1000, 0.95, 0.05),
        (HARD, 200, 0.90, 0.05),
        (HARD, 500, 0.90, 0.10),
        (boundary(0.90), 300, 0.90, 0.05),
        (boundary(0.95), 150, 0.95, 0.05),
        (power(0.004, 0.126, 5.78, levels=16), 300, 0.95, 0.05),
        (power(0.004, 0.126, 5.78, levels=8), 1000, 0.95, 0.05),
        # Breaks what several starts assume.
        (overconfident(0.2, 0.03, 0.4), 1000, 0.95, 0.10),
    ],
    ids=lambda value: value.name if isinstance(value, World) else None,
)
def test_small_rooms(world: World, n_shadow: int, target: float, delta: float) -> None:
    tally = run_trials([world], n_shadow, agreement(target), delta, seed=2, proposals=4)
    assert tally.rate_lower <= delta


@pytest.mark.parametrize(("n_shadow", "target", "delta"), [(300, 0.90, 0.05), (150, 0.95, 0.10), (190, 0.80, 0.05)])
def test_several_starts_at_their_common_level(n_shadow: int, target: float, delta: float) -> None:
    # The least favourable world for three starts: every step of the chain is a true null.
    rng = np.random.default_rng([20260414, n_shadow])
    promise = agreement(target)
    ((scores, agree),) = draw(rng, [boundary(target)], (3 * n_shadow,), 0.0)
    plan = propose(scores, agree, n_shadow, promise, delta)
    starts = (98, 119, 140)
    plan = replace(plan, starts=starts)
    rules = GateRules(promise, delta, delta, COVERAGE_FLOOR, 1, "simulated", "")
    ((scores, agree),) = draw(rng, [boundary(target)], (800, n_shadow), 0.0)
    rooms = zip(scores, agree, strict=True)
    passed = sum(run_gate([Entrant("", "l2d", plan, *room)], rules)[0].attempt.certified for room in rooms)
    assert binomial.agreement_lower(passed, 800, ERROR) <= delta
    # Far from idle: the common level gives away little of delta.
    assert passed > 800 * delta / 2


@pytest.mark.parametrize("likeness", [0.2, 0.95])
def test_three_candidates_share_delta(likeness: float) -> None:
    worlds = [boundary(0.9), flat(0.1002), flat(0.1003)]
    tally = run_trials(worlds, 500, agreement(0.9), 0.1, seed=4, likeness=likeness, trials=1200, proposals=12)
    assert tally.rate_lower <= 0.1


def test_a_good_candidate_among_bad_ones() -> None:
    worlds = [BENIGN, boundary(0.95), HARD]
    tally = run_trials(worlds, 1000, agreement(0.95), 0.05, seed=5, trials=1000, proposals=10)
    assert tally.rate_lower <= 0.05
    assert tally.mean_coverage > 0.7


@pytest.mark.parametrize(
    ("world", "target"),
    [
        (BENIGN, 0.95),
        # Broken only at accept-all, by a hair.
        (flat(0.0502), 0.95),
        # Each answer falls just short of the floor on handled agreement, 0.9, although few are handled.
        (flat(0.1002), 0.95),
        (wave(0.1002, 0.09, 6.0), 0.95),
    ],
    ids=lambda value: value.name if isinstance(value, World) else None,
)
def test_overall_contract(world: World, target: float) -> None:
    tally = run_trials([world], 1000, overall(target), 0.05, seed=6)
    assert tally.rate_lower <= 0.05


# --- controls: the same worlds catch rules that break the promise ------------------------------------------


def naive(world: World, n_shadow: int, target: float, *, trials: int = 400) -> Tally:
    """The largest coverage whose empirical agreement reaches the target: what a certificate must not be."""
    rng = np.random.default_rng(7)
    tally = Tally()
    promise = agreement(target)
    for _ in range(trials):
        ((scores, agree),) = draw(rng, [world], (n_shadow,), 0.0)
        covered = round(selection.coverage_at(scores, agree, target) * n_shadow)
        useful = covered >= COVERAGE_FLOOR * n_shadow
        threshold = float(np.sort(scores)[n_shadow - covered]) if useful else np.inf
        tally.broken += useful and not world.keeps(promise, threshold)
        tally.coverages.append(world.coverage(threshold))
    return tally


@pytest.mark.parametrize(
    ("world", "n_shadow", "target", "at_least"),
    [(BENIGN, 1000, 0.95, 0.3), (boundary(0.90), 1000, 0.90, 0.7), (boundary(0.95), 150, 0.95, 0.5)],
    ids=lambda value: value.name if isinstance(value, World) else None,
)
def test_the_naive_rule_breaks_it(world: World, n_shadow: int, target: float, at_least: float) -> None:
    assert naive(world, n_shadow, target).rate_lower > at_least


def test_three_candidates_at_full_delta_break_it() -> None:
    worlds = [boundary(0.9), flat(0.1002), flat(0.1003)]
    tally = run_trials(
        worlds, 500, agreement(0.9), 0.1, seed=4, likeness=0.2, trials=1200, proposals=12, split_delta=False
    )
    assert tally.rate_lower > 0.1


def test_several_starts_at_full_delta_break_it() -> None:
    # Three starts far apart, each at all of delta, where every step is a true null.
    rng = np.random.default_rng(8)
    counts = rng.multinomial(400, [0.1, 0.2, 0.6, 0.1], size=4000)[:, :3]
    wrong = rng.binomial(counts, 0.1).cumsum(axis=1)
    p = binomial.p_value(wrong, counts.cumsum(axis=1), 0.9)
    broken = int((p.min(axis=1) <= 0.05).sum())
    assert binomial.agreement_lower(broken, 4000, ERROR) > 0.05


# --- the promise is worth something ------------------------------------------------------------------------


def oracle(target: float, low: float, gain: float, exponent: float) -> float:
    """Largest coverage at which low + gain c**exponent is at most 1 - target."""
    return min(float(((1.0 - target - low) / gain) ** (1.0 / exponent)), 1.0)


@pytest.mark.parametrize(
    ("curve", "n_shadow", "target", "fraction"),
    [
        ((0.004, 0.126, 5.78), 1000, 0.95, 0.80),
        ((0.004, 0.126, 5.78), 2000, 0.95, 0.88),
        ((0.004, 0.126, 5.78), 2000, 0.98, 0.80),
        ((0.004, 0.126, 5.78), 300, 0.90, 0.80),
        ((0.003, 0.065, 5.0), 300, 0.95, 0.70),
        ((0.003, 0.065, 5.0), 1000, 0.95, 0.80),
    ],
)
def test_coverage_comes_near_the_oracle(
    curve: tuple[float, float, float], n_shadow: int, target: float, fraction: float
) -> None:
    best = oracle(target, *curve)
    tally = run_trials([power(*curve)], n_shadow, agreement(target), 0.05, seed=9, trials=240, proposals=3)
    assert fraction * best < tally.mean_coverage < best


def test_a_surrogate_as_good_as_the_teacher_is_certified_for_all() -> None:
    tally = run_trials([flat(0.005)], 1000, agreement(0.95), 0.05, seed=10, trials=100, proposals=2)
    assert tally.coverages == [1.0] * 100


# --- at length ---------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["benign", "boundary"])
def test_every_size_target_and_delta(kind: str) -> None:
    """No cell's rate of broken promises exceeds delta, with Holm's correction over the cells."""
    cells: list[tuple[float, Tally]] = []
    for delta in (0.05, 0.10):
        for target in (0.8, 0.9, 0.95, 0.98):
            for n_shadow in (250, 500, 1000, 2000, 5000):
                world = BENIGN if kind == "benign" else boundary(target)
                seed = len(cells) + 100
                tally = run_trials([world], n_shadow, agreement(target), delta, seed=seed, trials=2000, proposals=20)
                cells.append((delta, tally))
    # P(at least this many broken) if the true rate were delta.
    p = [special.bdtrc(tally.broken - 1, tally.n, delta) if tally.broken else 1.0 for delta, tally in cells]
    assert len(p) == 40
    assert holm(np.array(p)).min() > 0.01
    # The cells are no formality: some come near delta.
    assert max(tally.rate / delta for delta, tally in cells) > 0.5
