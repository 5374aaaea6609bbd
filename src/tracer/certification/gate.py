"""Dispose: the parity gate walks each proposed chain on shadow traces, with exact tests on integer counts.

Each shortlisted candidate has its fixed share of delta (weighted Bonferroni over chains, valid for any
dependence between candidates); inside a chain every step has the full share (fixed-sequence testing). So
P(a promoted policy breaks its promise) <= delta over candidates, families and thresholds together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tracer.certification.certificate import Attempt, Certificate
from tracer.certification.proposals import Promise, Proposal, counts_at
from tracer.stats import testing
from tracer.types import Bool, Float64

WEIGHTS: dict[int, tuple[float, ...]] = {1: (1.0,), 2: (0.9, 0.1), 3: (0.9, 0.05, 0.05)}
"""Shares of delta by length of the shortlist, the best predicted candidate first."""


@dataclass(frozen=True, slots=True, eq=False)
class Entrant:
    """A shortlisted candidate before the gate: its fixed chain, and what it does on the shadow traces.

    ``scores`` (n,) and ``agree`` (n,) are taken from the archived and reloaded policy.
    """

    name: str
    family: str
    proposal: Proposal
    scores: Float64
    agree: Bool


@dataclass(frozen=True, slots=True)
class GateRules:
    """What the gate is asked: the promise, delta, the attempt's level, the coverage floor, and the split."""

    promise: Promise
    delta: float
    level: float
    coverage_floor: float
    attempt: int
    split: str
    split_digest: str
    one_a_group: bool = False


@dataclass(frozen=True, slots=True)
class Passage:
    """One candidate's result: its attempt, and a certificate where it passed."""

    attempt: Attempt
    certificate: Certificate | None


def run_gate(entrants: Sequence[Entrant], rules: GateRules) -> tuple[Passage, ...]:
    """Walk the chain of each entrant, in the order of the shortlist, at its share of the level."""
    weights = WEIGHTS[len(entrants)]
    return tuple(
        _walk(entrant, rules, weights[rank] * rules.level, rank + 1, len(entrants))
        for rank, entrant in enumerate(entrants)
    )


def _walk(entrant: Entrant, rules: GateRules, level: float, rank: int, n_candidates: int) -> Passage:
    proposal, promise, n_shadow = entrant.proposal, rules.promise, len(entrant.scores)
    handled, wrong = counts_at(entrant.scores, entrant.agree, proposal.thresholds)
    p = promise.p_values(wrong, handled, n_shadow)
    if len(proposal.starts) > 1:
        level = testing.multi_start_level(handled, proposal.starts, promise.target, level)
    reached = testing.multi_start(p, proposal.starts, level)
    certified = reached >= 0 and handled[reached] >= rules.coverage_floor * n_shadow
    # A refused chain is shown at the first step that failed: where it began to be wrong.
    shown = reached if reached >= 0 else proposal.starts[-1]
    attempt = Attempt(
        candidate=entrant.name,
        family=entrant.family,
        target=promise.target,
        level=level,
        certified=bool(certified),
        threshold=float(proposal.thresholds[shown]),
        n_shadow=n_shadow,
        n_handled=int(handled[shown]),
        n_agreed=int(handled[shown] - wrong[shown]),
        p_value=float(p[shown]),
    )
    if not certified:
        return Passage(attempt, None)
    certificate = Certificate(
        target=promise.target,
        delta=rules.delta,
        level=level,
        contract=promise.contract,
        guarantee="certified",
        threshold=attempt.threshold,
        n_shadow=n_shadow,
        n_handled=attempt.n_handled,
        n_agreed=attempt.n_agreed,
        rank=rank,
        n_candidates=n_candidates,
        attempt=rules.attempt,
        chain_start=min(proposal.starts),
        n_tested=min(reached + 2, len(p)) - min(proposal.starts),
        grid_size=len(proposal.thresholds),
        grid_digest=proposal.digest,
        split_digest=rules.split_digest,
        split=rules.split,
        assumption=proposal.assumption,
        one_a_group=rules.one_a_group,
        handled_floor=promise.handled_floor if promise.contract == "overall" else None,
    )
    return Passage(attempt, certificate)
