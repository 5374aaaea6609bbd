"""Whole lives of a policy line, with many gates on fresh audits at the boundary: is the promise kept over all of them?

Each life fits, then refits at fresh audits again and again. Scores and agreement are drawn from a known law, so what
was promoted, renewed, or kept as a rung of the ladder is known to hold or not. Levels, gate and the test of the policy
in force are the product's.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from benchmarks.worlds import BENIGN, COVERAGE_FLOOR, ERROR, World, agreement, boundary, draw, flat
from tracer.certification.certificate import Certificate
from tracer.certification.gate import Entrant, GateRules, run_gate
from tracer.certification.proposals import Proposal, propose
from tracer.pipeline.standing import REFUTED_AT, SHARE, _broken, _ladder
from tracer.stats import binomial, testing

DELTA = 0.1


@dataclass(frozen=True, slots=True)
class Lives:
    """Of ``n`` lives: in how many something that did not hold was put in force, and a good policy was refuted."""

    n: int
    broken: int
    refuted: int
    promoted: int


def live(world: World, target: float, n_lives: int, n_gates: int, n_fresh: int, *, ledger: bool, seed: int) -> Lives:
    rng = np.random.default_rng([seed, n_fresh, n_gates])
    promise = agreement(target)
    ((scores, agree),) = draw(rng, [world], (3 * n_fresh,), 0.0)
    plans: dict[float, Proposal] = {}
    levels = [testing.spending(DELTA, j) if ledger else DELTA for j in range(1, n_gates + 1)]
    for level in levels:
        plans.setdefault(level, propose(scores, agree, n_fresh, promise, level))
    broken = refuted = promoted = 0
    for _ in range(n_lives):
        ((life, agrees),) = draw(rng, [world], (n_gates, n_fresh), 0.0)
        certificate: Certificate | None = None
        wrong = wronged = ever = False
        for j, (fresh, right) in enumerate(zip(life, agrees, strict=True), start=1):
            level, stood = levels[j - 1], 0.0
            if certificate is not None:
                handled = fresh >= certificate.threshold
                n, n_disagreed = int(handled.sum()), int((handled & ~right).sum())
                stood = SHARE * level
                good = world.keeps(promise, certificate.threshold)
                if n and float(binomial.p_value(n_disagreed, n, target)) <= stood:
                    rungs = _ladder_of(certificate, fresh, right, stood, target)
                    wrong |= not good or not all(world.keeps(promise, t) for t in rungs)
                elif n and _broken(promise, n_disagreed, n, n_fresh, j):
                    wronged |= good
                    certificate = None
            rules = GateRules(promise, DELTA, level - stood, COVERAGE_FLOOR, j, "simulated", "")
            passage = run_gate([Entrant("", "l2d", plans[level], fresh, right)], rules)[0]
            if passage.certificate is not None:
                ever = True
                steps = [passage.certificate.threshold, *(rung.threshold for rung in passage.certificate.ladder)]
                wrong |= not all(world.keeps(promise, step) for step in steps)
                certificate = passage.certificate
        broken, refuted, promoted = broken + wrong, refuted + wronged, promoted + ever
    return Lives(n_lives, broken, refuted, promoted)


def _ladder_of(certificate: Certificate, scores, agree, level: float, target: float) -> list[float]:  # type: ignore[no-untyped-def]
    @dataclass(frozen=True)
    class _Held:
        certificate: Certificate

    rungs = _ladder(_Held(certificate), scores, agree, agreement(target), level)  # type: ignore[arg-type]
    return [rung.threshold for rung in rungs]


WORLDS = [(boundary(0.9), 0.9), (flat(0.1002), 0.9), (BENIGN, 0.95)]


def named(value: object) -> str | None:
    return value.name if isinstance(value, World) else None


@pytest.mark.parametrize(("world", "target"), WORLDS, ids=named)
def test_the_ledger_holds_over_whole_lives(world: World, target: float) -> None:
    lives = live(world, target, 300, 8, 1000, ledger=True, seed=1)
    assert binomial.agreement_lower(lives.broken, lives.n, ERROR) <= DELTA
    assert binomial.agreement_lower(lives.refuted, lives.n, ERROR) <= REFUTED_AT


def test_without_the_ledger_many_gates_break_it() -> None:
    """The control: at delta for each gate, lives at the boundary go wrong far more often."""
    lives = live(flat(0.1002), 0.9, 300, 12, 1000, ledger=False, seed=2)
    assert binomial.agreement_lower(lives.broken, lives.n, ERROR) > DELTA


def test_a_life_in_a_good_world_gets_somewhere() -> None:
    lives = live(BENIGN, 0.95, 50, 4, 2000, ledger=True, seed=3)
    assert lives.promoted == 50


@pytest.mark.slow
@pytest.mark.parametrize(("world", "target"), WORLDS, ids=named)
@pytest.mark.parametrize("n_gates", [4, 30])
def test_the_ledger_at_length(world: World, target: float, n_gates: int) -> None:
    lives = live(world, target, 3000, n_gates, 1000, ledger=True, seed=4)
    assert binomial.agreement_lower(lives.broken, lives.n, ERROR) <= DELTA
    assert binomial.agreement_lower(lives.refuted, lives.n, ERROR) <= REFUTED_AT
