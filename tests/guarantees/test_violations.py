"""Is the promise kept? Seeded Monte-Carlo in worlds where the true agreement is known in closed form.

An input is named by c in (0, 1), the share of traffic that is more confident; its acceptor score is 1 - c.
Surrogate and teacher disagree there with probability ``disagreement(c)``, so a threshold that handles a share
c of the traffic has joint risk ``joint(c)``, the integral of ``disagreement`` from 0 to c, and selective risk
``joint(c) / c``. Each trial is a new shadow room, put before the gate as the pipeline does it.

A rate is judged by its exact one-sided Clopper-Pearson bound: with true rates at or below delta a cell fails
with probability at most 0.001 over seeds, and the seeds are fixed. The control tests show that the same
worlds do catch rules that break the promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import special

from tracer.certification.gate import WEIGHTS, Entrant, GateRules, run_gate
from tracer.certification.proposals import Promise, Proposal, propose
from tracer.learning import selection
from tracer.stats import binomial
from tracer.types import Bool, Float64

Curve = Callable[[Float64], Float64]
COVERAGE_FLOOR = 0.05
ERROR = 0.001
"""Chance that a cell whose true rate equals delta is called a violation."""


@dataclass(frozen=True, slots=True)
class World:
    """``joint`` is the integral of ``disagreement``; with ``levels`` the score takes that many values.

    ``levels`` is a power of two, so that rounding is exact.
    """

    name: str
    disagreement: Curve
    joint: Curve
    levels: int | None = None

    def scores(self, c: Float64) -> Float64:
        """Acceptor scores of inputs."""
        u = 1.0 - c
        return u if self.levels is None else np.floor(u * self.levels) / self.levels

    def coverage(self, threshold: float) -> float:
        """True share of traffic with a score at or above the threshold."""
        t = threshold if self.levels is None else float(np.ceil(threshold * self.levels)) / self.levels
        return 1.0 - min(max(t, 0.0), 1.0)

    def keeps(self, promise: Promise, threshold: float) -> bool:
        """Whether the policy with this threshold is as good as promised."""
        c = self.coverage(threshold)
        joint = float(self.joint(np.array([c]))[0])
        tolerated = 1.0 - promise.target
        if promise.contract == "agreement":
            return joint <= tolerated * c
        return joint <= tolerated and joint <= (1.0 - promise.handled_floor) * c


@dataclass(slots=True)
class Tally:
    """What became of the trials: promises broken, and the true coverage certified (0 where refused)."""

    broken: int = 0
    coverages: list[float] = field(default_factory=list)
    assumptions: set[str] = field(default_factory=set)

    @property
    def n(self) -> int:
        """Number of trials."""
        return len(self.coverages)

    @property
    def rate(self) -> float:
        """Share of the trials with a broken promise."""
        return self.broken / self.n

    @property
    def rate_lower(self) -> float:
        """Exact lower bound on the true rate of broken promises, wrong with probability ``ERROR``."""
        return binomial.agreement_lower(self.broken, self.n, ERROR)

    @property
    def mean_coverage(self) -> float:
        """Mean certified coverage."""
        return float(np.mean(self.coverages))


def power(low: float, gain: float, exponent: float, *, levels: int | None = None) -> World:
    """Selective risk low + gain c**exponent: confident inputs are good, the last ones are bad."""
    return World(
        f"power({low}, {gain}, {exponent})" + (f", {levels} levels" if levels else ""),
        lambda c: low + gain * (exponent + 1.0) * c**exponent,
        lambda c: low * c + gain * c ** (exponent + 1.0),
        levels,
    )


def flat(rate: float, *, levels: int | None = None) -> World:
    """The score says nothing: disagreement is the same everywhere."""
    return World(f"flat({rate:.4f})", lambda c: np.full_like(c, rate), lambda c: rate * c, levels)


def wave(rate: float, swing: float, waves: float) -> World:
    """Selective risk rate + swing sin(w c) / (w c): it crosses ``rate`` many times along the chain."""
    w = 2.0 * np.pi * waves
    return World(
        f"wave({rate:.3f}, {swing:.3f}, {waves})",
        lambda c: rate + swing * np.cos(w * c),
        lambda c: rate * c + swing * np.sin(w * c) / w,
    )


def overconfident(top: float, middle: float, last: float) -> World:
    """The 5% with the highest scores disagree at rate ``top``, up to coverage 0.8 ``middle``, then ``last``."""
    return World(
        f"overconfident({top}, {middle}, {last})",
        lambda c: np.select([c < 0.05, c < 0.8], [top, middle], last),
        lambda c: top * np.minimum(c, 0.05) + middle * (np.clip(c, 0.05, 0.8) - 0.05) + last * np.maximum(c - 0.8, 0),
    )


BENIGN = power(0.004, 0.126, 5.78)
EASY = power(0.003, 0.065, 5.0)
HARD = power(0.01, 0.41, 1.0)


def boundary(target: float) -> World:
    """The hardest null: everywhere a hair below the target, so that nothing may be certified."""
    return flat(1.0 - target + 2e-4)


def draw(
    rng: np.random.Generator, worlds: Sequence[World], shape: tuple[int, ...], likeness: float
) -> list[tuple[Float64, Bool]]:
    """Scores and agreement of each candidate on the same inputs; their scores and errors go together."""
    shared = rng.standard_normal(shape) if len(worlds) > 1 else None
    luck = rng.uniform(size=shape)
    out = []
    for world in worlds:
        if shared is None:
            c = rng.uniform(size=shape)
        else:
            own = rng.standard_normal(shape)
            c = special.ndtr(likeness * shared + np.sqrt(1.0 - likeness**2) * own)
        out.append((world.scores(c), luck >= world.disagreement(c)))
    return out


def shortlist(
    rng: np.random.Generator,
    worlds: Sequence[World],
    n_shadow: int,
    promise: Promise,
    delta: float,
    likeness: float,
    weights: Sequence[float],
) -> list[tuple[World, Proposal, int]]:
    """Rank by drafts on out-of-fold evidence, then fix each chain at its share of delta, as the pipeline does."""
    evidence = draw(rng, worlds, (3 * n_shadow,), likeness)
    drafts = [
        propose(scores, agree, n_shadow, promise, WEIGHTS[3][0] * delta).predicted_coverage
        for scores, agree in (evidence if len(worlds) > 1 else [])
    ]
    order = np.argsort([-d for d in drafts], kind="stable") if drafts else np.array([0])
    out = []
    for rank, i in enumerate(order.tolist()):
        scores, agree = evidence[i]
        plan = propose(scores, agree, n_shadow, promise, weights[rank] * delta)
        out.append((worlds[i], plan, i))
    return out


def run_trials(
    worlds: Sequence[World],
    n_shadow: int,
    promise: Promise,
    delta: float,
    *,
    seed: int,
    trials: int = 1500,
    proposals: int = 25,
    likeness: float = 0.7,
    split_delta: bool = True,
) -> Tally:
    """Trials of the gate. The shadow rooms of one proposal are independent of it and of each other.

    A trial is broken where any candidate that passed breaks the promise: more than the pipeline, which
    deploys only one of them, has to answer for. ``split_delta=False`` tests each candidate at all of delta.
    """
    rng = np.random.default_rng([20260414, seed])
    weights = WEIGHTS[len(worlds)] if split_delta else (1.0,) * len(worlds)
    rules = GateRules(promise, delta, delta, COVERAGE_FLOOR, 1, "simulated", "")
    tally = Tally()
    for _ in range(proposals):
        listed = shortlist(rng, worlds, n_shadow, promise, delta, likeness, weights)
        tally.assumptions |= {plan.assumption for _, plan, _ in listed}
        rooms = draw(rng, worlds, (trials // proposals, n_shadow), likeness)
        for trial in range(trials // proposals):
            entrants = [
                Entrant(world.name, "l2d", plan, rooms[i][0][trial], rooms[i][1][trial]) for world, plan, i in listed
            ]
            batches = [entrants] if split_delta else [[entrant] for entrant in entrants]
            passages = [passage for batch in batches for passage in run_gate(batch, rules)]
            won = [
                (world, passage.certificate.threshold)
                for (world, _, _), passage in zip(listed, passages, strict=True)
                if passage.certificate is not None
            ]
            tally.broken += any(not world.keeps(promise, threshold) for world, threshold in won)
            tally.coverages.append(max((world.coverage(threshold) for world, threshold in won), default=0.0))
    return tally


def agreement(target: float) -> Promise:
    """The default contract."""
    return Promise(target, coverage_floor=COVERAGE_FLOOR)


def overall(target: float) -> Promise:
    """The overall contract with its default floor on handled agreement."""
    return Promise(target, "overall", target - 0.05, COVERAGE_FLOOR)


# --- the promise is kept ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("world", "n_shadow", "target", "delta"),
    [
        (BENIGN, 1000, 0.95, 0.05),
        (HARD, 500, 0.90, 0.10),
        (boundary(0.90), 1000, 0.90, 0.05),
        (boundary(0.95), 2000, 0.95, 0.10),
        (power(0.004, 0.126, 5.78, levels=8), 1000, 0.95, 0.05),
        (flat(0.1002, levels=4), 1000, 0.90, 0.05),
        (wave(0.1002, 0.09, 6.0), 1000, 0.90, 0.05),
        (overconfident(0.2, 0.03, 0.4), 1000, 0.95, 0.10),
    ],
    ids=lambda value: value.name if isinstance(value, World) else None,
)
def test_single_start_chain(world: World, n_shadow: int, target: float, delta: float) -> None:
    assert n_shadow * (1 - target) >= 40 - 1e-9
    tally = run_trials([world], n_shadow, agreement(target), delta, seed=1)
    assert tally.assumptions == {""}
    assert tally.rate_lower <= delta


@pytest.mark.parametrize(
    ("world", "n_shadow", "target"),
    [
        (EASY, 150, 0.95),
        (BENIGN, 300, 0.95),
        (HARD, 200, 0.90),
        (boundary(0.90), 300, 0.90),
        (boundary(0.95), 150, 0.95),
        (power(0.004, 0.126, 5.78, levels=16), 300, 0.95),
    ],
    ids=lambda value: value.name if isinstance(value, World) else None,
)
def test_small_rooms(world: World, n_shadow: int, target: float) -> None:
    tally = run_trials([world], n_shadow, agreement(target), 0.05, seed=2, proposals=4)
    assert tally.rate_lower <= 0.05


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


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm-adjusted p-values."""
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    out = np.empty_like(p_values)
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return out


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
