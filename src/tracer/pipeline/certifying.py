"""From contenders to a verdict: rank out of fold, shortlist, archive and reload, gate, choose."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from tracer.certification import proposals
from tracer.certification.advice import explain_refusal
from tracer.certification.certificate import Attempt, Certificate
from tracer.certification.gate import WEIGHTS, Entrant, GateRules, run_gate
from tracer.certification.proposals import Promise, Proposal
from tracer.certification.report import (
    FitReport,
    ProposalSummary,
    class_table,
    frontier_estimate,
    member_summaries,
)
from tracer.config import FitConfig
from tracer.learning import selection
from tracer.learning.threads import n_workers
from tracer.pipeline.training import SHORTLIST, Contender, Workshop, promise_of
from tracer.pipeline.verdicts import Certified, Refused, Verdict
from tracer.policies import archive
from tracer.policies.policy import Family, FirstStage, Inputs, Policy
from tracer.stats import testing
from tracer.traces.rooms import room_keys, traces_digest
from tracer.types import OUTSIDE, Int32

_AS_CHEAP = 0.04
"""Difference in predicted cost, as a share of requests, that is taken for noise."""
_SAME_COST = 0.005
"""Difference in certified cost, as a share of requests, that nobody would notice."""
_MARGIN = 0.5
"""Disagreement of a challenger, as a share of what the target allows: closer to it, audits would take too long."""
_SAME_AGREEMENT = 0.01
"""Difference in agreement on the shadow traces that is not worth an encoder call."""


def certify(
    shop: Workshop,
    config: FitConfig,
    target: float,
    level: float,
    attempt: int,
    stamp: str,
    parent: str | None,
    decided: int = 0,
) -> Verdict:
    """Gate the best contenders. Shadow rows up to number ``decided`` have taken part in earlier attempts."""
    promise = promise_of(config, target)
    began = time.perf_counter()
    ranked = rank_contenders(shop, config, promise, level)
    shortlist = ranked[:SHORTLIST]
    weights = WEIGHTS[len(shortlist)]
    shadow = shop.dataset.take(shop.rooms.shadow)

    def enter(contender: Contender, weight: float) -> tuple[Entrant, Policy, Int32]:
        # The chain is fixed at the share of delta that it will be tested with.
        plan = proposals.propose(
            *contender.evidence,
            shop.n_shadow,
            promise,
            weight * level,
            config.grid_size,
            one_scale=contender.first is None,
        )
        policy = reloaded(draft(shop, contender, stamp, parent))
        staged = policy.score(Inputs.of(shadow.texts, shadow.dense))
        agree = staged.scored.predicted == shadow.y
        entrant = Entrant(contender.name, contender.family, plan, staged.scored.scores, agree)
        return entrant, policy, staged.scored.predicted

    with ThreadPoolExecutor(n_workers(len(shortlist))) as workers:
        entered = list(workers.map(enter, [contender for contender, _ in shortlist], weights))
    entrants, policies = [entrant for entrant, _, _ in entered], [policy for _, policy, _ in entered]
    rules = GateRules(
        promise,
        config.delta,
        level,
        config.coverage_floor,
        attempt,
        shop.rooms.description,
        shop.rooms.digest,
        bool(len(shop.rooms.set_aside)),
        int((shadow.numbers <= decided).sum()),
        config.ledger,
    )
    passages = run_gate(entrants, rules)
    shop.seconds["gate"] = shop.seconds.get("gate", 0.0) + time.perf_counter() - began
    attempts = tuple(p.attempt for p in passages)
    chosen = choose([p.certificate for p in passages], [c for c, _ in shortlist], config) or 0
    certificate = passages[chosen].certificate
    threshold = certificate.threshold if certificate else attempts[chosen].threshold
    table = class_table(shadow, entrants[chosen].scores >= threshold, entrants[chosen].agree, shop.dataset.space)
    names = shop.dataset.space.names
    predicted = Counter(names[code] for code in entered[chosen][2].tolist())
    report = replace(_report(shop, config, ranked, attempts, table, level), predicted=dict(sorted(predicted.items())))
    if certificate is None:
        plans = [entrant.proposal for entrant in entrants]
        refusal = explain_refusal(
            attempts, plans, promise, weights[0] * level, shop.n_shadow, config, grouped=rules.one_a_group
        )
        best = stamped(policies[chosen], None, report, attempts[chosen], shop, config)
        challenger = challenger_of(best, shortlist[chosen][0], plans[chosen], rules)
        return Refused(refusal, report, best, challenger=challenger)
    return Certified(stamped(policies[chosen], certificate, report, attempts[chosen], shop, config), report)


def rank_contenders(
    shop: Workshop, config: FitConfig, promise: Promise, level: float
) -> list[tuple[Contender, ProposalSummary]]:
    """Contenders, the best first, on out-of-fold evidence at the winner's share of delta.

    The order is that of the predicted cost a request. Its noise between good contenders is larger than what
    separates them, so among those within ``_AS_CHEAP`` of the cheapest the one that ranks its inputs best
    comes first: the area under the generalised risk-coverage curve uses all rows, not those near one threshold.
    """
    ranked: list[tuple[float, float, Contender, ProposalSummary]] = []
    for contender in shop.contenders:
        plan = proposals.propose(
            *contender.evidence,
            shop.n_shadow,
            promise,
            WEIGHTS[SHORTLIST][0] * level,
            config.grid_size,
            one_scale=contender.first is None,
        )
        cost = 1.0 - plan.predicted_coverage + config.encoder_cost * contender.encoder_share
        # A cascade is judged by its main stage; its scale joins those of two stages.
        ranking = selection.augrc(*contender.main_evidence)
        summary = ProposalSummary(contender.name, contender.family, plan.predicted_coverage, cost)
        ranked.append((cost, ranking, contender, summary))
    ranked.sort(key=lambda item: (item[0], item[2].name))
    close = [item for item in ranked if item[0] <= ranked[0][0] + _AS_CHEAP]
    first = min(close, key=lambda item: (item[1], item[0], item[2].name))
    ordered = [first, *(item for item in ranked if item is not first)]
    return [(contender, summary) for _, _, contender, summary in ordered]


def choose(
    certificates: Sequence[Certificate | None], contenders: Sequence[Contender], config: FitConfig
) -> int | None:
    """Which of the candidates that passed is deployed; None where none did. All of them hold, so any choice does.

    The cheapest a request (teacher calls, and encoder calls at their relative price), unless one that costs next to
    nothing more agrees clearly more often.
    """
    costs, agreements = {}, {}
    for i, (certificate, contender) in enumerate(zip(certificates, contenders, strict=True)):
        if certificate is not None:
            costs[i] = 1.0 - certificate.coverage + config.encoder_cost * contender.encoder_share
            agreements[i] = certificate.agreement
    if not costs:
        return None
    as_cheap = [i for i in costs if costs[i] <= min(costs.values()) + _SAME_COST]
    best = max(agreements[i] for i in as_cheap)
    return min((i for i in as_cheap if agreements[i] >= best - _SAME_AGREEMENT), key=lambda i: costs[i])


def challenger_of(best: Policy, contender: Contender, plan: Proposal, rules: GateRules) -> Policy | None:
    """A refused policy at the largest coverage at which it errs half as often as it may, out of fold; None without one.

    Fixed by training traces alone, so audits that come later may certify it.
    """
    promise = rules.promise
    fine = np.flatnonzero(
        (plan.rates <= _MARGIN * (1.0 - promise.target)) & (plan.coverages >= max(promise.coverage_floor, _MARGIN / 10))
    )
    if not len(fine):
        return None
    scores, agree = contender.evidence
    threshold = float(plan.thresholds[fine[-1]])
    handled = scores >= threshold
    certificate = Certificate(
        target=promise.target, delta=rules.delta, level=rules.level, contract=promise.contract, guarantee="estimated",
        threshold=threshold, n_shadow=len(scores), n_handled=int(handled.sum()), n_agreed=int((handled & agree).sum()),
        rank=1, n_candidates=1, attempt=rules.attempt, chain_start=int(fine[-1]), n_tested=0, grid_size=len(plan.rates),
        grid_digest=plan.digest, split_digest=rules.split_digest, split="out of fold on training traces",
        handled_floor=promise.handled_floor if promise.contract == "overall" else None, ledger=rules.ledger,
    )  # fmt: skip
    return replace(best, certificate=certificate)


def draft(shop: Workshop, contender: Contender, stamp: str, parent: str | None) -> Policy:
    """The policy before the gate: its certificate is a blank that handles nothing."""
    first = FirstStage(contender.first.candidate, contender.cut) if contender.first else None
    used = contender.trained.candidate.surrogate.blocks | (first.candidate.surrogate.blocks if first else frozenset())
    return Policy(
        space=shop.dataset.space,
        family=contender.family,
        candidate=contender.trained.candidate,
        certificate=BLANK,
        lexical=shop.lexical if "lexical" in used else None,
        embedder=shop.dataset.embedder if "dense" in used else None,
        first_stage=first,
        probes=shop.encodings.probes if "dense" in used and shop.encodings else None,
        parent=parent,
        created=stamp,
    )


BLANK = Certificate(
    target=0.5, delta=0.5, level=0.5, contract="agreement", guarantee="certified", threshold=1e300,
    n_shadow=1, n_handled=0, n_agreed=0, rank=1, n_candidates=1, attempt=1, chain_start=0, n_tested=0,
    grid_size=1, grid_digest="", split_digest="", split="",
)  # fmt: skip


def reloaded(policy: Policy) -> Policy:
    """What is certified is the archive as it will be loaded."""
    return archive.load(archive.dump(policy))


def stamped(
    policy: Policy,
    certificate: Certificate | None,
    report: FitReport,
    attempt: Attempt,
    shop: Workshop,
    config: FitConfig,
) -> Policy:
    family: Family = policy.family
    if certificate is not None and certificate.threshold == proposals.ACCEPT_ALL and family == "l2d":
        family = "global"
    shown = certificate or replace(BLANK, target=attempt.target, threshold=1e300)
    task = {"teachers": sorted({teacher for teacher in shop.dataset.teachers if teacher is not None})}
    return replace(policy, certificate=shown, family=family, report=report.as_dict(), task=task)


def estimate(shop: Workshop, config: FitConfig, target: float, stamp: str, parent: str | None) -> Verdict:
    """Train on everything, choose the threshold out of fold at half of delta. Evidence, not a guarantee."""
    promise, level = promise_of(config, target), config.delta / 2 / len(config.targets)
    ranked = rank_contenders(shop, config, promise, level)
    contender = ranked[0][0]
    known = shop.rooms.train[shop.dataset.y[shop.rooms.train] != OUTSIDE]
    # Traces that are no plain sample of traffic train, and are no evidence.
    plain = np.array([shop.dataset.origins[i] in ("bootstrap", "audit") for i in known])
    scores, agree = contender.scored.scores[plain], contender.agree[plain]
    n = len(agree)
    one_scale = contender.first is None
    plan = proposals.propose(scores, agree, n, promise, level, config.grid_size, one_scale=one_scale)
    handled, wrong = proposals.counts_at(scores, agree, plan.thresholds)
    p = promise.p_values(wrong, handled, n)
    level = testing.multi_start_level(handled, plan.starts, target, level)
    reached = testing.multi_start(p, plan.starts, level)
    shown = reached if reached >= 0 else plan.starts[-1]
    passed = reached >= 0 and handled[reached] >= config.coverage_floor * n
    attempt = Attempt(
        contender.name, contender.family, target, level, bool(passed), float(plan.thresholds[shown]), n,
        int(handled[shown]), int(handled[shown] - wrong[shown]), float(p[shown]),
    )  # fmt: skip
    room = shop.dataset.take(known[plain])
    table = class_table(room, scores >= attempt.threshold, agree, shop.dataset.space)
    report = _report(shop, config, ranked, (attempt,), table, level)
    policy = reloaded(draft(shop, contender, stamp, parent))
    if not passed:
        refusal = explain_refusal((attempt,), [plan], promise, level, n, config)
        return Refused(refusal, report, stamped(policy, None, report, attempt, shop, config))
    certificate = Certificate(
        target=target, delta=config.delta, level=level, contract=config.contract, guarantee="estimated",
        threshold=attempt.threshold, n_shadow=n, n_handled=attempt.n_handled, n_agreed=attempt.n_agreed,
        rank=1, n_candidates=len(ranked), attempt=1, chain_start=min(plan.starts),
        n_tested=min(reached + 2, len(p)) - min(plan.starts), grid_size=len(p), grid_digest=plan.digest,
        split_digest=shop.rooms.digest, split="out of fold on all traces",
        handled_floor=promise.handled_floor if config.contract == "overall" else None, assumption=plan.assumption,
        ledger=config.ledger,
    )  # fmt: skip
    return Certified(stamped(policy, certificate, report, attempt, shop, config), report)


def _report(
    shop: Workshop,
    config: FitConfig,
    ranked: Sequence[tuple[Contender, ProposalSummary]],
    attempts: tuple[Attempt, ...],
    classes: tuple[dict[str, object], ...],
    level: float,
) -> FitReport:
    best = ranked[0][0]
    return FitReport(
        config=config.as_dict(),
        n_traces=len(shop.dataset),
        n_train=len(shop.y),
        n_shadow=shop.n_shadow,
        n_set_aside=len(shop.rooms.set_aside),
        n_outside=int((shop.dataset.y == OUTSIDE).sum()),
        n_most_repeated=max(Counter(room_keys(shop.dataset, shop.rooms.shadow)).values(), default=0),
        n_trainings=shop.cross.n_trainings,
        members=member_summaries(
            shop.cross.members, [c.trained for c in shop.contenders if c.first is None], config.target
        ),
        dropped=tuple((d.name, d.reason, d.failed) for d in shop.cross.dropped),
        proposals=tuple(summary for _, summary in ranked),
        attempts=attempts,
        frontier=frontier_estimate(*best.evidence, shop.n_shadow, level, config),
        classes=classes,
        seconds=dict(shop.seconds),
        traces_digest=traces_digest(shop.dataset),
        shadow_digest=shop.rooms.digest,
        released=shop.released,
    )
