"""The evidence of a fit as plain facts: what was trained, proposed, tried, and what it looks like by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from tracer.certification import proposals
from tracer.certification.certificate import Attempt
from tracer.certification.proposals import Promise
from tracer.config import FitConfig
from tracer.learning import selection
from tracer.learning.crossfit import Member
from tracer.learning.fitting import Trained
from tracer.types import OUTSIDE, Bool, Dataset, Float64, LabelSpace

FRONTIER_TARGETS = (0.80, 0.85, 0.90, 0.95, 0.98, 0.99)


@dataclass(frozen=True, slots=True)
class MemberSummary:
    """Out-of-fold figures of one surrogate and its acceptor, and the seconds its training took.

    ``paper_augrc`` and ``paper_coverage`` are those of an acceptor on the paper's four features alone.
    """

    name: str
    agreement: float
    macro_f1: float
    log_loss: float
    aurc: float
    augrc: float
    coverage_at_target: float
    paper_augrc: float
    paper_coverage: float
    seconds: float | None


@dataclass(frozen=True, slots=True)
class ProposalSummary:
    """What a contender's chain was expected to certify, and the expected cost a request that ranked it."""

    name: str
    family: str
    predicted_coverage: float
    predicted_cost: float


@dataclass(frozen=True, slots=True)
class FrontierPoint:
    """Estimated out of fold: the coverage that a gate at this target should certify. No guarantee."""

    target: float
    coverage: float
    agreement: float


@dataclass(frozen=True, slots=True)
class FitReport:
    """All that a reader needs to judge a fit. Counts are integers, rates lie in [0, 1].

    ``n_outside`` traces carry a label that is not learned; ``n_most_repeated`` shadow traces share one text.
    ``traces_digest`` says which traces these were, in which order, ``shadow_digest`` which of them were kept from
    training; rows up to number ``released`` trained although they had certified before. ``predicted``: how often the
    policy predicts each label on the shadow traces.
    """

    config: dict[str, Any]
    n_traces: int
    n_train: int
    n_shadow: int
    n_set_aside: int
    n_outside: int
    n_most_repeated: int
    n_trainings: int
    members: tuple[MemberSummary, ...]
    dropped: tuple[tuple[str, str, bool], ...]
    proposals: tuple[ProposalSummary, ...]
    attempts: tuple[Attempt, ...]
    frontier: tuple[FrontierPoint, ...]
    classes: tuple[dict[str, Any], ...]
    seconds: dict[str, float]
    traces_digest: str = ""
    shadow_digest: str = ""
    released: int = 0
    predicted: dict[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready, without the timings: the same traces and settings give the same bytes."""
        out = asdict(self)
        del out["seconds"]
        for member in out["members"]:
            del member["seconds"]
        return out


def member_summaries(members: Sequence[Member], trained: Sequence[Trained], target: float) -> tuple[MemberSummary, ...]:
    """One summary for each surrogate built, in the order built."""
    seconds = {m.learner.block + " " + m.learner.family: m.seconds for m in members}
    return tuple(
        MemberSummary(
            name=t.name,
            agreement=float(t.agree.mean()),
            macro_f1=t.macro_f1,
            log_loss=t.log_loss,
            aurc=selection.aurc(t.scored.scores, t.agree),
            augrc=selection.augrc(t.scored.scores, t.agree),
            coverage_at_target=selection.coverage_at(t.scored.scores, t.agree, target),
            paper_augrc=selection.augrc(t.paper_scores, t.agree),
            paper_coverage=selection.coverage_at(t.paper_scores, t.agree, target),
            seconds=seconds.get(t.name),
        )
        for t in trained
    )


def frontier_estimate(
    scores: Float64, agree: Bool, n_shadow: int, level: float, config: FitConfig
) -> tuple[FrontierPoint, ...]:
    """Coverage that the gate should certify at each target, from training rows alone."""
    points = []
    evidence = proposals.Evidence.of(scores, agree, n_shadow, config.grid_size, config.coverage_floor)
    for target in sorted({*FRONTIER_TARGETS, *config.targets}):
        promise = Promise(target, config.contract, config.handled_floor_for(target), config.coverage_floor)
        plan = evidence.propose(promise, level)
        step = int(np.argmin(np.abs(plan.coverages - plan.predicted_coverage)))
        points.append(FrontierPoint(target, plan.predicted_coverage, 1.0 - float(plan.rates[step])))
    return tuple(points)


def class_table(shadow: Dataset, handled: Bool, agree: Bool, space: LabelSpace) -> tuple[dict[str, Any], ...]:
    """Counts by teacher label on the shadow rows: traces, handled, agreed; most frequent first."""
    k = len(space)
    code = np.where(shadow.y == OUTSIDE, k, shadow.y)
    total = np.bincount(code, minlength=k + 1)
    took = np.bincount(code[handled], minlength=k + 1)
    good = np.bincount(code[handled & agree], minlength=k + 1)
    names = (*space.names, "(labels that are not learned)")
    order = [i for i in np.lexsort((np.arange(k + 1), -total)) if total[i]]
    return tuple(
        {"label": names[i], "n": int(total[i]), "n_handled": int(took[i]), "n_agreed": int(good[i])} for i in order
    )
