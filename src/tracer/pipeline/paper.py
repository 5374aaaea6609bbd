"""``mode="paper"``: the protocol of arXiv 2604.14531, sections 3.2 and 3.3, as published.

Four rooms: train, validation, calibration, shadow. Each candidate of the pool is trained once on ``train``;
macro-F1 on ``validation`` chooses the surrogate; the acceptor is a logistic regression on the four features;
the threshold is the acceptor score that gives the largest coverage with empirical agreement >= target on
``calibration``; ``global`` is eligible only where overall agreement there reaches the target; the family of
larger coverage must then reach the target on ``shadow``, as a point estimate, with a coverage floor of 5%.

Open in the paper, chosen here: the rooms hold 59.5, 12.75, 12.75 and 15% of the traces, by hash as in the
certified mode; the acceptor trains on the validation rows, which the surrogate has not seen. There is no
finite-sample guarantee, and the certificate says so.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
from numpy.typing import NDArray

from tracer.certification.certificate import Attempt, Certificate, Refusal
from tracer.certification.proposals import ACCEPT_ALL
from tracer.certification.report import FitReport, MemberSummary, class_table
from tracer.config import FitConfig
from tracer.errors import TraceError, TracerError, TrainingError
from tracer.features.lexical import LexicalFeatures
from tracer.learning import blending, fitting, pool, selection
from tracer.learning.candidates import Candidate, NoveltyGuard, Rules
from tracer.learning.crossfit import Progress
from tracer.learning.heads import Block
from tracer.learning.pool import Learner
from tracer.learning.surrogates import BlockName, Part, Surrogate
from tracer.pipeline.certifying import reloaded
from tracer.pipeline.training import Encodings, block_names
from tracer.pipeline.verdicts import Certified, Refused, Verdict
from tracer.policies.policy import Inputs, Policy
from tracer.traces.rooms import assign_rooms, fold_ids, traces_digest
from tracer.types import OUTSIDE, Bool, Dataset, Float64

_SHADOW_SHARE = 0.15
_TWENTIETHS = {"train": range(14), "validation": range(14, 17), "calibration": range(17, 20)}
"""Of what is not shadow, 14, 3 and 3 twentieths: 59.5, 12.75 and 12.75% of all traces."""


def fit_paper(
    dataset: Dataset,
    config: FitConfig,
    *,
    progress: Progress,
    now: datetime | None,
    parent: str | None,
    encodings: Encodings | None,
) -> Verdict:
    """Fit by the paper's protocol. The certificate's ``guarantee`` is ``estimated``."""
    rooms = assign_rooms(dataset, shadow_share=_SHADOW_SHARE, split=config.split)
    parts = fold_ids(dataset, rooms.train, 20, salt="tracer-paper-1")
    rows = {name: rooms.train[np.isin(parts, list(which))] for name, which in _TWENTIETHS.items()}
    train, validation, calibration, shadow = (dataset.take(r) for r in (*rows.values(), rooms.shadow))
    if min(len(validation), len(calibration)) == 0:
        raise TraceError(f"{len(dataset)} traces are too few for the paper's four rooms")
    names = block_names(dataset, config)
    # The paper's surrogates read embeddings; without any, the lexical block stands in.
    block: BlockName = "dense" if "dense" in names else "lexical"
    lexical = LexicalFeatures.fit(train.texts or ()) if block == "lexical" else None

    def features(room: Dataset) -> Block:
        if lexical is not None:
            return lexical.transform(room.texts or ())
        assert room.dense is not None  # noqa: S101 - block_names has seen to it
        return room.dense

    policy, members, failed = _choose(
        dataset, config, (train, validation), (features(train), features(validation)), block, progress
    )
    policy = replace(
        policy,
        lexical=lexical,
        embedder=dataset.embedder if block == "dense" else None,
        probes=encodings.probes if encodings and block == "dense" else None,
        parent=parent,
        created=(now or datetime.now(UTC)).isoformat(timespec="seconds"),
    )
    policy = reloaded(policy)
    verdicts = [
        _gate(policy, dataset, (train, calibration, shadow), config, target, members, failed, rooms.digest)
        for target in config.targets
    ]
    progress("done", 1, 1)
    return replace(verdicts[0], frontier=tuple(verdicts[1:]))


def _choose(
    dataset: Dataset,
    config: FitConfig,
    rooms: tuple[Dataset, Dataset],
    blocks: tuple[Block, Block],
    block: BlockName,
    progress: Progress,
) -> tuple[Policy, tuple[MemberSummary, ...], tuple[tuple[str, str, bool], ...]]:
    """Train the pool on ``train``; macro-F1 on ``validation`` chooses; the acceptor trains there too."""
    train, validation = rooms
    k = len(dataset.space)
    known = np.flatnonzero(train.y != OUTSIDE)
    summaries, failed = [], []
    best: tuple[float, Candidate] | None = None
    recipes = [
        r for r in pool.learners(config.pool, frozenset([block])) if r.max_rows is None or len(known) <= r.max_rows
    ]
    for i, recipe in enumerate(recipes):
        progress(f"training {recipe.name}", i, len(recipes))
        try:
            head = recipe.train(blocks[0][known], train.y[known], k, None, config.seed)
        except (TracerError, ValueError, ArithmeticError, MemoryError, np.linalg.LinAlgError) as error:
            failed.append((recipe.name, f"{type(error).__name__}: {error}", True))
            continue
        part = Part(recipe.family, block, head, 1.0)
        candidate, summary = _with_acceptor(recipe, head.logits(blocks[1]), part, validation, k, config)
        summaries.append(summary)
        if best is None or summary.macro_f1 > best[0]:
            best = (summary.macro_f1, candidate)
    if best is None:
        raise TrainingError("no candidate could be trained. " + "; ".join(f"{n}: {r}" for n, r, _ in failed))
    blank = Certificate(
        config.target,
        config.delta,
        config.delta,
        "agreement",
        "estimated",
        1e300,
        1,
        0,
        0,
        1,
        1,
        1,
        0,
        0,
        1,
        "",
        "",
        "",
    )
    policy = Policy(dataset.space, "l2d", best[1], blank)
    return policy, tuple(summaries), tuple(failed)


def _with_acceptor(
    recipe: Learner, logits: NDArray[np.float32], part: Part, validation: Dataset, k: int, config: FitConfig
) -> tuple[Candidate, MemberSummary]:
    inside = validation.y != OUTSIDE
    weights, loss = blending.fit_weights((logits[inside],), validation.y[inside])
    weight = max(float(weights[0]), 1e-6)
    views = (logits * np.float32(weight),)
    predicted = logits.argmax(axis=1).astype(np.int32)
    agree = predicted == validation.y
    folds = np.zeros(len(agree), dtype=np.int8)
    acceptor = fitting.fit_acceptor(views, predicted, agree, folds, k, paper=True)
    surrogate = Surrogate((replace(part, weight=weight),))
    candidate = Candidate(surrogate, acceptor, NoveltyGuard(), Rules())
    scores = candidate.score_views(views).scores
    summary = MemberSummary(
        name=recipe.name,
        agreement=float(agree.mean()),
        macro_f1=selection.macro_f1(predicted, validation.y, k),
        log_loss=loss,
        aurc=selection.aurc(scores, agree),
        augrc=selection.augrc(scores, agree),
        coverage_at_target=selection.coverage_at(scores, agree, config.target),
        paper_augrc=selection.augrc(scores, agree),
        paper_coverage=selection.coverage_at(scores, agree, config.target),
        seconds=None,
    )
    return candidate, summary


def _gate(
    policy: Policy,
    dataset: Dataset,
    rooms: tuple[Dataset, Dataset, Dataset],
    config: FitConfig,
    target: float,
    members: tuple[MemberSummary, ...],
    failed: tuple[tuple[str, str, bool], ...],
    split_digest: str,
) -> Verdict:
    train, calibration, shadow = rooms
    scores, agree = _scores(policy, calibration)
    threshold = _sweep(scores, agree, target)
    shadow_scores, shadow_agree = _scores(policy, shadow)
    handled = shadow_scores >= (np.inf if threshold is None else threshold)
    n_handled, n_agreed = int(handled.sum()), int((handled & shadow_agree).sum())
    family = "global" if threshold == ACCEPT_ALL else "l2d"
    shown = 1e300 if threshold is None else float(threshold)
    attempt = Attempt(
        policy.candidate.name, family, target, config.delta, False, shown, len(shadow), n_handled, n_agreed, 1.0
    )
    passed = n_handled >= max(config.coverage_floor * len(shadow), 1) and n_agreed >= target * n_handled
    report = FitReport(
        config=config.as_dict(), n_traces=len(dataset), n_train=len(train), n_shadow=len(shadow), n_set_aside=0,
        n_outside=int((dataset.y == OUTSIDE).sum()), n_most_repeated=0,
        n_trainings=len(members), members=members, dropped=failed,
        proposals=(), attempts=(replace(attempt, certified=passed),), frontier=(),
        classes=class_table(shadow, handled, shadow_agree, dataset.space), seconds={},
        traces_digest=traces_digest(dataset), shadow_digest=split_digest,
    )  # fmt: skip
    if not passed:
        reason = (
            f"No threshold reaches an agreement of {target:g} on {len(calibration):,} calibration traces."
            if threshold is None
            else f"On {len(shadow):,} shadow traces {n_handled:,} are handled and {n_agreed:,} agree: "
            f"below the target {target:g}, or below the coverage floor of {config.coverage_floor:.0%}."
        )
        return Refused(Refusal(target, reason, report.attempts, ()), report)
    certificate = Certificate(
        target=target, delta=config.delta, level=config.delta, contract="agreement", guarantee="estimated",
        threshold=shown, n_shadow=len(shadow), n_handled=n_handled, n_agreed=n_agreed, rank=1,
        n_candidates=len(members), attempt=1, chain_start=0, n_tested=len(np.unique(scores)),
        grid_size=len(np.unique(scores)), grid_digest="", split_digest=split_digest,
        split="the paper's rooms: 59.5% train, 12.75% validation, 12.75% calibration, 15% shadow",
    )  # fmt: skip
    promoted = replace(
        policy, certificate=certificate, family="global" if family == "global" else "l2d", report=report.as_dict()
    )
    return Certified(promoted, report)


def _scores(policy: Policy, room: Dataset) -> tuple[Float64, Bool]:
    scored = policy.score(Inputs.of(room.texts, room.dense)).scored
    return scored.scores, scored.predicted == room.y


def _sweep(scores: Float64, agree: Bool, target: float) -> float | None:
    """The unique score with the largest coverage at agreement >= target; accept-all (``global``) where all qualify."""
    if agree.mean() >= target:
        return ACCEPT_ALL
    order = np.argsort(-scores, kind="stable")
    good, n = np.cumsum(agree[order]), np.arange(1, len(order) + 1)
    last_of_tie = np.append(scores[order][1:] != scores[order][:-1], True)
    reached = np.flatnonzero((good >= target * n) & last_of_tie)
    return float(scores[order][reached[-1]]) if len(reached) else None
