"""The gate: exact tests on integer counts along a chain that is fixed in advance."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tracer.certification.certificate import Certificate
from tracer.certification.gate import WEIGHTS, Entrant, GateRules, Passage, run_gate
from tracer.certification.proposals import ACCEPT_ALL, Promise, Proposal
from tracer.config import Contract
from tracer.stats import testing

THRESHOLDS = np.array([0.8, 0.6, 0.4, 0.2, ACCEPT_ALL])


def chain(*starts: int, assumption: str = "") -> Proposal:
    """Five steps of one fifth each."""
    steps = np.arange(1, 6) / 5
    return Proposal(THRESHOLDS, steps, np.full(5, 0.05), starts, 0.6, assumption)


def entrant(wrong: tuple[int, ...], plan: Proposal, *, per_step: int = 100, name: str = "one") -> Entrant:
    """A shadow room with ``per_step`` traces in each band of the chain, so many of them wrong."""
    scores = np.repeat([0.9, 0.7, 0.5, 0.3, 0.1], per_step)
    agree = np.concatenate([np.arange(per_step) >= k for k in wrong])
    order = np.random.default_rng(0).permutation(len(scores))
    return Entrant(name, "l2d", plan, scores[order], agree[order])


def rules(
    target: float = 0.9, *, level: float = 0.05, contract: Contract = "agreement", floor: float = 0.05
) -> GateRules:
    """Delta 0.05 unless a test is about delta."""
    promise = Promise(target, contract, target - 0.05 if contract == "overall" else 0.0)
    return GateRules(promise, 0.05, level, floor, 3, "by hash", "d1gest")


def certified(passage: Passage) -> Certificate:
    """The certificate that a test takes for granted."""
    assert passage.certificate is not None
    return passage.certificate


def test_deploys_the_largest_certified_coverage() -> None:
    # After each step 1, 3, 8, 40, 100 of 100, 200, ... are wrong.
    (passage,) = run_gate([entrant((1, 2, 5, 32, 60), chain(0))], rules())
    certificate = certified(passage)
    assert (certificate.n_shadow, certificate.n_handled, certificate.n_agreed) == (500, 300, 292)
    assert certificate.threshold == 0.4
    assert certificate.p_value == pytest.approx(stats.binom.cdf(8, 300, 1 - 0.9))
    assert certificate.p_value <= certificate.level == 0.05
    assert certificate.agreement_lower >= 0.9
    assert (certificate.chain_start, certificate.n_tested, certificate.grid_size) == (0, 4, 5)
    assert (certificate.attempt, certificate.split, certificate.split_digest) == (3, "by hash", "d1gest")
    assert (certificate.rank, certificate.n_candidates, certificate.guarantee) == (1, 1, "certified")
    assert certificate.grid_digest == chain(0).digest
    assert passage.attempt.certified
    assert passage.attempt.coverage == 0.6


def test_stops_at_the_first_failure_for_good() -> None:
    # Step 1 fails although steps 2 to 4 would pass.
    wrong = (0, 20, 0, 0, 0)
    assert stats.binom.cdf(20, 500, 1 - 0.9) < 0.05 < stats.binom.cdf(20, 200, 1 - 0.9)
    (passage,) = run_gate([entrant(wrong, chain(0))], rules())
    assert certified(passage).n_handled == 100
    (later,) = run_gate([entrant(wrong, chain(2))], rules())
    assert certified(later).n_handled == 500
    assert certified(later).threshold == ACCEPT_ALL
    assert certified(later).n_tested == 3


def test_a_refused_chain_shows_where_it_failed() -> None:
    (passage,) = run_gate([entrant((20, 0, 0, 0, 0), chain(1))], rules())
    assert passage.certificate is None
    attempt = passage.attempt
    assert not attempt.certified
    assert (attempt.n_handled, attempt.n_agreed, attempt.threshold) == (200, 180, 0.6)
    assert attempt.p_value == pytest.approx(stats.binom.cdf(20, 200, 1 - 0.9))
    assert attempt.p_value > attempt.level


def test_tied_scores_go_together() -> None:
    # 59 traces in agreement would certify 0.95; the wrong one has the same score and cannot be left out.
    scores = np.array([0.9] * 59 + [0.9] + [0.1] * 40)
    agree = np.array([True] * 59 + [False] + [False] * 40)
    (passage,) = run_gate([Entrant("one", "l2d", chain(0), scores, agree)], rules(0.95))
    assert passage.certificate is None
    assert (passage.attempt.n_handled, passage.attempt.n_agreed) == (60, 59)
    alone = np.where(agree, scores, 0.85)
    (apart,) = run_gate([Entrant("one", "l2d", chain(0), alone, agree)], rules(0.95))
    assert apart.certificate is None, "0.85 lies above the first threshold as well"
    below = np.where(agree, scores, 0.5)
    (clear,) = run_gate([Entrant("one", "l2d", chain(0), below, agree)], rules(0.95))
    assert certified(clear).n_handled == 59


def test_a_score_equal_to_the_threshold_is_handled() -> None:
    scores = np.array([0.8] * 100 + [0.1] * 100)
    agree = np.arange(200) < 100
    (passage,) = run_gate([Entrant("one", "l2d", chain(0), scores, agree)], rules())
    assert certified(passage).n_handled == 100


def test_barred_traces_are_not_handled_at_accept_all() -> None:
    scores = np.array([0.9] * 200 + [-np.inf] * 50)
    (passage,) = run_gate([Entrant("one", "l2d", chain(4), scores, scores > 0)], rules())
    certificate = certified(passage)
    assert certificate.threshold == ACCEPT_ALL
    assert (certificate.n_shadow, certificate.n_handled, certificate.n_agreed) == (250, 200, 200)


def test_coverage_floor() -> None:
    one = entrant((0, 50, 50, 50, 50), chain(0))
    (at_floor,) = run_gate([one], rules(floor=0.2))
    assert certified(at_floor).coverage == 0.2
    (under,) = run_gate([one], rules(floor=0.21))
    assert under.certificate is None
    assert under.attempt.p_value <= under.attempt.level, "a sliver cleared the test, and is reported as such"
    assert not under.attempt.certified


def test_shares_of_delta() -> None:
    assert {n: sum(shares) for n, shares in WEIGHTS.items()} == {n: pytest.approx(1.0) for n in (1, 2, 3)}
    for n, shares in WEIGHTS.items():
        assert len(shares) == n
        assert list(shares) == sorted(shares, reverse=True)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_each_candidate_is_tested_at_its_share(n: int) -> None:
    entrants = [entrant((1, 2, 3, 40, 60), chain(0), name=str(i)) for i in range(n)]
    passages = run_gate(entrants, rules(level=0.04))
    assert [p.attempt.candidate for p in passages] == [str(i) for i in range(n)]
    assert [p.attempt.level for p in passages] == pytest.approx([w * 0.04 for w in WEIGHTS[n]])
    assert [certified(p).rank for p in passages] == list(range(1, n + 1))
    assert {certified(p).n_candidates for p in passages} == {n}
    assert {certified(p).delta for p in passages} == {0.05}


def test_a_small_share_asks_for_more() -> None:
    # 0 of 30 wrong: p = 0.9**30 = 0.042.
    one, two = (entrant((0, 30, 30, 30, 30), chain(0), per_step=30) for _ in range(2))
    first, second = run_gate([one, two], rules(level=0.05))
    assert first.attempt.level == pytest.approx(0.045)
    assert certified(first).p_value == pytest.approx(0.9**30)
    assert second.certificate is None


def test_several_starts_share_a_lower_level_and_name_their_assumption() -> None:
    assumption = "disagreement does not rise with the score"
    plan = chain(0, 2, assumption=assumption)
    # The chain from 0 fails at once, the one from 2 runs on.
    (passage,) = run_gate([entrant((15, 0, 0, 0, 60), plan)], rules())
    certificate = certified(passage)
    assert certificate.level == testing.multi_start_level([100, 200, 300, 400, 500], (0, 2), 0.9, 0.05)
    assert 0.025 <= certificate.level < 0.05
    assert certificate.n_handled == 400
    assert certificate.assumption == assumption
    assert certificate.chain_start == 0


def test_contracts_differ() -> None:
    # 30 of 400 wrong: of the handled 92.5% agree, and 3% of 1,000 answers are contradicted.
    one = Entrant("one", "l2d", chain(4), np.repeat([0.9, -np.inf], [400, 600]), np.arange(1000) >= 30)
    (refused,) = run_gate([one], rules(0.95, level=0.06))
    assert refused.certificate is None
    (passed,) = run_gate([one], rules(0.95, level=0.06, contract="overall"))
    certificate = certified(passed)
    assert certificate.handled_floor == pytest.approx(0.9)
    joint, floor = stats.binom.cdf(30, 1000, 1 - 0.95), stats.binom.cdf(30, 400, 1 - 0.9)
    assert joint < floor
    assert certificate.p_value == pytest.approx(floor)
    (strict,) = run_gate([one], rules(0.95, level=floor * 0.99, contract="overall"))
    assert strict.certificate is None, "the joint bound alone is not enough"


def test_the_joint_bound_can_bind_too() -> None:
    scores = np.full(1000, 0.9)
    one = Entrant("one", "l2d", chain(4), scores, np.arange(1000) >= 45)
    (passage,) = run_gate([one], rules(0.95, contract="overall"))
    assert passage.certificate is None
    assert passage.attempt.p_value == pytest.approx(stats.binom.cdf(45, 1000, 1 - 0.95))
    assert stats.binom.cdf(45, 1000, 1 - 0.9) < 0.05 < passage.attempt.p_value


def test_nothing_handled_is_refused() -> None:
    (passage,) = run_gate([Entrant("one", "l2d", chain(4), np.full(50, -np.inf), np.ones(50, bool))], rules())
    assert passage.certificate is None
    assert (passage.attempt.n_handled, passage.attempt.p_value, passage.attempt.agreement) == (0, 1.0, 0.0)
