"""Dispose: the parity gate walks each proposed chain on shadow traces, with exact tests on integer counts.

Each shortlisted candidate has its fixed share of delta (weighted Bonferroni over chains, valid for any
dependence between candidates); inside a chain every step has the full share (fixed-sequence testing). So
P(a promoted policy breaks its promise) <= delta over candidates, families and thresholds together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tracer.certification.certificate import Attempt, Certificate, Rung
from tracer.certification.proposals import Promise, Proposal, counts_at
from tracer.config import Ledger
from tracer.stats import testing
from tracer.types import Bool, Float64

WEIGHTS: dict[int, tuple[float, ...]] = {1: (1.0,), 2: (0.9, 0.1), 3: (0.9, 0.05, 0.05)}
"""Shares of delta by length of the shortlist, the best predicted candidate first."""
_LADDER = (0.5, 0.25)
"""Disagreement of the safer thresholds, as shares of what the target allows."""


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
    n_reused: int = 0
    ledger: Ledger = "promotion"


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
    steps = testing.certified_steps(p, proposal.starts, level)
    reached = steps[-1] if steps else -1
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
        ladder=_ladder(proposal.thresholds, handled, wrong, steps[: steps.index(reached)], rules, n_shadow),
        n_reused=rules.n_reused,
        ledger=rules.ledger,
    )
    return Passage(attempt, certificate)


def _ladder(
    thresholds: Float64, handled: Float64, wrong: Float64, steps: Sequence[int], rules: GateRules, n_shadow: int
) -> tuple[Rung, ...]:
    """Safer steps that the chain certified on its way, nearest first: a half and a quarter of the disagreement allowed.

    All steps before the last were rejected at the same family-wise level, so any choice among them holds, and it may be
    made after looking.
    """
    promise, rungs = rules.promise, []
    of = handled if promise.contract == "agreement" else np.full_like(handled, n_shadow)
    for share in _LADDER:
        allowed = share * (1.0 - promise.target)
        fit = [
            g for g in steps if wrong[g] <= allowed * of[g] and handled[g] >= max(rules.coverage_floor * n_shadow, 1)
        ]
        if fit:
            g = fit[-1]
            rungs.append(Rung(float(thresholds[g]), int(handled[g]), int(handled[g] - wrong[g])))
    return tuple(dict.fromkeys(rungs))
