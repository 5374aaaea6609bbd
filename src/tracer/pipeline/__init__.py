"""fit(dataset, config) -> Certified | Refused. Pure: no disk, no printing; time and progress are arguments.

Train room: features, pool, cross-fitting, acceptors, novelty, proposals. Shadow room: the gate, once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime

from tracer.certification.report import FrontierPoint, MemberSummary, frontier_estimate, member_summaries
from tracer.config import FitConfig
from tracer.learning.crossfit import Progress
from tracer.learning.threads import one_thread_each
from tracer.learning.warmstart import WarmStart
from tracer.pipeline.certifying import certify, estimate, rank_contenders
from tracer.pipeline.paper import fit_paper
from tracer.pipeline.standing import Standing, stand
from tracer.pipeline.training import Encodings, check_config, label_text, promise_of, silent, train
from tracer.pipeline.verdicts import Certified, Refused, Verdict
from tracer.policies.policy import Policy
from tracer.stats import testing
from tracer.types import Dataset

__all__ = [
    "Certified",
    "Encodings",
    "Outcome",
    "Refused",
    "Scan",
    "Standing",
    "Verdict",
    "WarmStart",
    "fit",
    "label_text",
    "refit",
    "scan",
]


def fit(
    dataset: Dataset,
    config: FitConfig | None = None,
    *,
    progress: Progress = silent,
    now: datetime | None = None,
    attempt: int = 1,
    parent: str | None = None,
    encodings: Encodings | None = None,
) -> Verdict:
    """Fit and certify a policy.

    ``attempt`` counts certification attempts of this policy line (for the ledger), ``parent`` is the version
    in force, ``now`` stamps the policy, ``encodings`` are the embedder's vectors of probe texts and labels.
    Raises TraceError, FeatureError or TrainingError where the data cannot be used.
    """
    return refit(
        dataset, config, progress=progress, now=now, attempt=attempt, parent=parent, encodings=encodings
    ).verdict


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """A verdict, what the next fit may start from (none in the paper's mode), what became of the policy in force."""

    verdict: Verdict
    warm: WarmStart | None
    standing: Standing | None = None


def refit(
    dataset: Dataset,
    config: FitConfig | None = None,
    *,
    warm: WarmStart | None = None,
    progress: Progress = silent,
    now: datetime | None = None,
    attempt: int = 1,
    parent: str | None = None,
    encodings: Encodings | None = None,
    released: int = 0,
    decided: int = 0,
    incumbent: Policy | None = None,
) -> Outcome:
    """`fit`, from what an earlier fit left, where every trace that trained then trains now in the same fold.

    After few more traces only the final heads are trained, after more of them the folds too, each from its own head
    and up to the tolerance at which a fit stops; recipes that lost before are tried again after a quarter more.

    Traces up to number ``decided`` have taken part in earlier attempts, and those up to ``released`` all train. The
    ``incumbent`` is the policy in force: it is tested again, on the shadow traces after ``decided`` alone.
    """
    config = config or FitConfig()
    check_config(dataset, config)
    if config.mode == "paper":
        verdict = fit_paper(dataset, config, progress=progress, now=now, parent=parent, encodings=encodings)
        return Outcome(verdict, None)
    shop = train(dataset, config, progress=progress, encodings=encodings, warm=warm, released=released)
    stamp = (now or datetime.now(UTC)).isoformat(timespec="seconds")
    standing = None
    # What is left are many small products, which more threads only slow down.
    with one_thread_each():
        if config.guarantee == "estimated":
            verdicts = [estimate(shop, config, target, stamp, parent) for target in config.targets]
        else:
            spent = testing.spending(config.delta, attempt) if config.ledger == "lifetime" else config.delta
            level = spent / len(config.targets)
            levels = [level] * len(config.targets)
            if incumbent is not None:
                standing = stand(incumbent, shop, config, level, attempt, decided)
                levels[0] -= standing.level
            verdicts = [
                certify(shop, config, target, share, attempt, stamp, parent, decided)
                for target, share in zip(config.targets, levels, strict=True)
            ]
    progress("done", 1, 1)
    return Outcome(replace(verdicts[0], frontier=tuple(verdicts[1:])), shop.warm, standing)


@dataclass(frozen=True, slots=True)
class Scan:
    """A first look, from training rows alone: what could be handled at which target. No guarantee."""

    n_traces: int
    n_labels: int
    n_train: int
    frontier: tuple[FrontierPoint, ...]
    members: tuple[MemberSummary, ...]
    best: str


def scan(
    dataset: Dataset,
    config: FitConfig | None = None,
    *,
    progress: Progress = silent,
    encodings: Encodings | None = None,
) -> Scan:
    """Estimate the frontier without spending a shadow label: a later fit stays as certain as before."""
    config = config or FitConfig()
    check_config(dataset, config)
    shop = train(dataset, config, progress=progress, encodings=encodings)
    level = config.delta
    best = rank_contenders(shop, config, promise_of(config, config.target), level)[0][0]
    singles = [c.trained for c in shop.contenders if c.first is None]
    return Scan(
        n_traces=len(dataset),
        n_labels=len(dataset.space),
        n_train=len(shop.y),
        frontier=frontier_estimate(best.scored.scores, best.agree, shop.n_shadow, level, config),
        members=member_summaries(shop.cross.members, singles, config.target),
        best=best.name,
    )
