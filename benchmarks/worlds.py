"""Worlds whose true agreement is known in closed form, and the gate put into them as the pipeline does it.

An input is named by c in (0, 1), the share of traffic that is more confident; its acceptor score is 1 - c.
Surrogate and teacher disagree there with probability ``disagreement(c)``, so a threshold that handles a share
c of the traffic has joint risk ``joint(c)``, the integral of ``disagreement`` from 0 to c, and selective risk
``joint(c) / c``. Each trial is a new shadow room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy import special

from tracer.certification.gate import WEIGHTS, Entrant, GateRules, run_gate
from tracer.certification.proposals import Promise, Proposal, propose
from tracer.learning import selection
from tracer.pipeline.certifying import _AS_CHEAP
from tracer.pipeline.training import SHORTLIST
from tracer.stats import binomial
from tracer.types import Bool, Float64

Curve = Callable[[Float64], Float64]
Room = tuple[Float64, Bool]
"""Scores (n,) and agreement (n,) of one candidate on a shadow room."""
COVERAGE_FLOOR = 0.05
ERROR = 0.001
"""Chance that a cell whose true rate equals delta is called a violation."""
EVIDENCE = 3
"""Out-of-fold rows for each shadow row."""
_FINE = 4096


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
        return bool(self._good(promise, np.array([self.coverage(threshold)]))[0])

    def best_coverage(self, promise: Promise) -> float:
        """The largest coverage at which the promise is true, to 1 / 4096; 0 where none above the floor is."""
        steps = self.levels or _FINE
        c = np.arange(1, steps + 1) / steps
        true = self._good(promise, c) & (c >= promise.coverage_floor)
        return float(c[true].max()) if true.any() else 0.0

    def _good(self, promise: Promise, c: Float64) -> Bool:
        joint = self.joint(c)
        tolerated = 1.0 - promise.target
        if promise.contract == "agreement":
            return np.asarray(joint <= tolerated * c)
        return np.asarray((joint <= tolerated) & (joint <= (1.0 - promise.handled_floor) * c))


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


def pieces(ends: Sequence[float], rates: Sequence[float]) -> World:
    """Disagreement is ``rates[i]`` up to coverage ``ends[i]``; the last end is 1."""
    edges = np.concatenate([[0.0], ends])
    heights = np.asarray(rates, dtype=np.float64)
    totals = np.concatenate([[0.0], np.cumsum(np.diff(edges) * heights)])
    return World(
        f"pieces({', '.join(f'{r:g} to {e:g}' for e, r in zip(ends, rates, strict=True))})",
        lambda c: heights[np.minimum(np.searchsorted(edges[1:], c, side="right"), len(heights) - 1)],
        lambda c: np.interp(c, edges, totals),
    )


def overconfident(top: float, middle: float, last: float) -> World:
    """The 5% with the highest scores disagree at rate ``top``, up to coverage 0.8 ``middle``, then ``last``."""
    return World(
        f"overconfident({top}, {middle}, {last})",
        lambda c: np.select([c < 0.05, c < 0.8], [top, middle], last),
        lambda c: top * np.minimum(c, 0.05) + middle * (np.clip(c, 0.05, 0.8) - 0.05) + last * np.maximum(c - 0.8, 0),
    )


def traps(rate: float, starts: Sequence[float]) -> World:
    """Selective risk is ``rate`` from each start (a coverage) over two fifths of the way to the next, then dips.

    It is back at ``rate`` at the next start, and stays there from the last one on: each start meets a null of its own.
    """
    ends, rates = [], []
    for here, following in pairwise(starts):
        dip = here + 0.4 * (following - here)
        ends += [dip, following - rate * (following - dip), following]
        rates += [rate, 0.0, 1.0]
    return pieces([*ends, 1.0], [*rates, rate])


BENIGN = power(0.004, 0.126, 5.78)
EASY = power(0.003, 0.065, 5.0)
HARD = power(0.01, 0.41, 1.0)


def boundary(target: float, *, hair: float = 2e-4) -> World:
    """The hardest null: everywhere a hair below the target, so that nothing may be certified."""
    return flat(1.0 - target + hair)


def agreement(target: float) -> Promise:
    """The default contract."""
    return Promise(target, coverage_floor=COVERAGE_FLOOR)


def overall(target: float) -> Promise:
    """The overall contract with its default floor on handled agreement."""
    return Promise(target, "overall", target - 0.05, COVERAGE_FLOOR)


def draw(rng: np.random.Generator, worlds: Sequence[World], shape: tuple[int, ...], likeness: float) -> list[Room]:
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


@dataclass(frozen=True, slots=True)
class Listed:
    """A candidate on the shortlist: which one it is, and its chain."""

    candidate: int
    proposal: Proposal


def shortlist(
    evidence: Sequence[Room], n_shadow: int, promise: Promise, delta: float, weights: Sequence[float]
) -> list[Listed]:
    """Rank by drafts on out-of-fold evidence, then fix each chain at its share of delta, as the pipeline does."""
    out = []
    for i, weight in zip(ranked(evidence, n_shadow, promise, delta), weights, strict=False):
        out.append(Listed(i, propose(*evidence[i], n_shadow, promise, weight * delta)))
    return out


def ranked(evidence: Sequence[Room], n_shadow: int, promise: Promise, delta: float) -> list[int]:
    """Candidates, the best first: by predicted coverage, led by the best ranking score among the good ones."""
    if len(evidence) == 1:
        return [0]
    level = WEIGHTS[SHORTLIST][0] * delta
    costs = [1.0 - propose(*room, n_shadow, promise, level).predicted_coverage for room in evidence]
    order = sorted(range(len(evidence)), key=lambda i: (costs[i], i))
    close = [i for i in order if costs[i] <= costs[order[0]] + _AS_CHEAP]
    first = min(close, key=lambda i: (selection.augrc(*evidence[i]), costs[i], i))
    return [first, *(i for i in order if i != first)]


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


def blocks(
    rng: np.random.Generator,
    worlds: Sequence[World],
    n_shadow: int,
    promise: Promise,
    delta: float,
    *,
    trials: int,
    proposals: int,
    likeness: float,
    weights: Sequence[float],
    evidence: Sequence[World] | None = None,
) -> Iterator[tuple[list[Room], list[Listed], list[list[Room]]]]:
    """For each proposal its evidence, its chains, and its trials: one room of every candidate each.

    The shadow rooms of one proposal are independent of it and of each other. The chains are proposed on
    out-of-fold evidence from the same worlds, or from ``evidence`` where it misleads.
    """
    for _ in range(proposals):
        seen = draw(rng, evidence or worlds, (EVIDENCE * n_shadow,), likeness)
        listed = shortlist(seen, n_shadow, promise, delta, weights)
        rooms = draw(rng, worlds, (trials // proposals, n_shadow), likeness)
        yield seen, listed, [[(scores[t], agree[t]) for scores, agree in rooms] for t in range(trials // proposals)]


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
    """Trials of the gate.

    A trial is broken where any candidate that passed breaks the promise: more than the pipeline, which
    deploys only one of them, has to answer for. ``split_delta=False`` tests each candidate at all of delta.
    """
    rng = np.random.default_rng([20260414, seed])
    weights = WEIGHTS[len(worlds)] if split_delta else (1.0,) * len(worlds)
    rules = GateRules(promise, delta, delta, COVERAGE_FLOOR, 1, "simulated", "")
    tally = Tally()
    for _, listed, rooms in blocks(
        rng,
        worlds,
        n_shadow,
        promise,
        delta,
        trials=trials,
        proposals=proposals,
        likeness=likeness,
        weights=weights,
    ):
        tally.assumptions |= {each.proposal.assumption for each in listed}
        for room in rooms:
            entrants = [Entrant(worlds[e.candidate].name, "l2d", e.proposal, *room[e.candidate]) for e in listed]
            batches = [entrants] if split_delta else [[entrant] for entrant in entrants]
            passages = [passage for batch in batches for passage in run_gate(batch, rules)]
            won = [
                (worlds[each.candidate], passage.certificate.threshold)
                for each, passage in zip(listed, passages, strict=True)
                if passage.certificate is not None
            ]
            tally.broken += any(not world.keeps(promise, threshold) for world, threshold in won)
            tally.coverages.append(max((world.coverage(threshold) for world, threshold in won), default=0.0))
    return tally


def holm(p_values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Holm-adjusted p-values."""
    order = np.argsort(p_values)
    scaled = p_values[order] * np.arange(len(p_values), 0, -1)
    out = np.empty_like(p_values)
    out[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return out
