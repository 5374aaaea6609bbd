"""The policy in force as a candidate: tested again, on shadow traces that have never decided about it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tracer.certification.certificate import Certificate, Rung
from tracer.certification.proposals import Promise
from tracer.config import FitConfig
from tracer.errors import FeatureError
from tracer.pipeline.training import Workshop
from tracer.policies.policy import Inputs, Policy
from tracer.stats import binomial, testing
from tracer.traces.rooms import ids_digest
from tracer.types import Bool, Dataset, Float64

State = Literal["renewed", "not renewed", "refuted"]

SHARE = 0.1
"""Share of an attempt's level that the policy in force is tested at, where its fresh traces could pass at all."""
REFUTED_AT = 0.01
"""Over a policy line, the probability that a policy which keeps its promise is ever called refuted."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What fresh shadow traces say of the policy in force, at its threshold.

    ``renewed``: they certify it anew, at ``level``. ``refuted``: they show that it breaks its promise. ``not renewed``:
    they are too few, or lie in between, and say neither. ``n_fresh`` traces, ``n_handled`` of them handled,
    ``n_agreed`` of those agreed. On all ``n_shadow`` shadow traces of the attempt it handles ``coverage`` of them and
    agrees on ``agreement`` of those, for comparison with its challenger; None where it cannot read the traces.
    ``certificate`` is the new one of a renewed policy, ``fallback`` the old one of a refuted policy at the next safer
    threshold that the fresh traces do not speak against; None where there is none. ``weaker``: it promises less than
    this attempt asks for.
    """

    version: str
    state: State
    level: float
    n_fresh: int
    n_handled: int
    n_agreed: int
    n_shadow: int
    coverage: float | None
    agreement: float | None
    certificate: Certificate | None = None
    fallback: Certificate | None = None
    problem: str = ""
    weaker: bool = False

    def statement(self) -> str:
        """What became of the policy in force, in one sentence."""
        name = f"Policy {self.version}"
        if self.problem:
            return f"{name}, in force before, cannot read these traces: {self.problem}."
        counts = (
            f"of {self.n_fresh:,} fresh shadow traces it handles {self.n_handled:,}, of which {self.n_agreed:,} agree"
        )
        words = {
            "renewed": "is certified anew",
            "refuted": "breaks its promise on fresh traces",
            "not renewed": "is neither renewed nor refuted",
        }
        return f"{name}, in force before, {words[self.state]}: {counts}."


def stand(incumbent: Policy, shop: Workshop, config: FitConfig, level: float, attempt: int, decided: int) -> Standing:
    """Test the policy in force on the shadow traces after number ``decided``, at its share of this attempt's ``level``.

    One test of one threshold, fixed before these traces came; where it passes, the safer thresholds of its ladder are
    tested in turn, which a fixed order of tests allows at the same level. A policy that cannot read the traces (they
    have no embeddings, or others) stands as it is.
    """
    own = incumbent.certificate
    promise = Promise(own.target, own.contract, own.handled_floor or 0.0, config.coverage_floor)
    shadow = shop.dataset.take(shop.rooms.shadow)
    try:
        scored = incumbent.score(Inputs.of(shadow.texts, shadow.dense)).scored
    except FeatureError as error:
        return Standing(incumbent.version, "not renewed", 0.0, 0, 0, 0, len(shadow), None, None, problem=str(error))
    handled = scored.scores >= incumbent.threshold
    names = np.array(incumbent.space.names, dtype=object)
    agree: Bool = names[scored.predicted] == np.array(shadow.labels, dtype=object)
    fresh = _never_tested(shop.dataset, shadow, decided)
    n, n_fresh = int((handled & fresh).sum()), int(fresh.sum())
    n_agreed = int((handled & fresh & agree).sum())
    # Whether the test could pass is known from counts that hold no label: where it cannot, it is not made.
    share = SHARE * level if promise.allowed(n_fresh, SHARE * level)[n] >= 0 else 0.0
    p = float(promise.p_values(np.array([float(n - n_agreed)]), np.array([float(n)]), n_fresh)[0]) if n_fresh else 1.0
    state: State = "not renewed"
    certificate = fallback = None
    if share and p <= share and n >= config.coverage_floor * n_fresh:
        state = "renewed"
        ladder = _ladder(incumbent, scored.scores[fresh], agree[fresh], promise, share)
        certificate = replace(
            own, delta=config.delta, level=share, guarantee="certified", one_a_group=bool(len(shop.rooms.set_aside)),
            n_shadow=n_fresh, n_handled=n, n_agreed=n_agreed, rank=1, n_candidates=1, attempt=attempt, chain_start=0,
            n_tested=min(len(ladder) + 2, 1 + len(incumbent.certificate.ladder)),
            grid_size=1 + len(incumbent.certificate.ladder),
            split_digest=ids_digest(key for key, new in zip(shadow.ids, fresh.tolist(), strict=True) if new),
            split=f"{n_fresh} fresh shadow traces", assumption="", ladder=ladder, n_reused=0, ledger=config.ledger,
            evidence="exact",
        )  # fmt: skip
    elif n and _broken(promise, n - n_agreed, n, n_fresh, attempt):
        state = "refuted"
        fallback = _fallback(incumbent.certificate, scored.scores[fresh], agree[fresh], promise)
    return Standing(
        incumbent.version, state, share, n_fresh, n, n_agreed, len(shadow),
        float(handled.mean()), float(agree[handled].mean()) if handled.any() else None, certificate, fallback,
        weaker=own.target < config.target,
    )  # fmt: skip


def _ladder(incumbent: Policy, scores: Float64, agree: Bool, promise: Promise, level: float) -> tuple[Rung, ...]:
    rungs: list[Rung] = []
    for rung in incumbent.certificate.ladder:
        handled = scores >= rung.threshold
        n, n_agreed = int(handled.sum()), int((handled & agree).sum())
        if float(promise.p_values(np.array([float(n - n_agreed)]), np.array([float(n)]), len(scores))[0]) > level:
            break
        rungs.append(Rung(rung.threshold, n, n_agreed))
    return tuple(rungs)


def _never_tested(dataset: Dataset, shadow: Dataset, decided: int) -> Bool:
    """Shadow rows (n,) after ``decided``, less those whose group was there before: it may have trained the policy."""
    fresh: Bool = shadow.numbers > decided
    if any(group is not None for group in shadow.groups):
        before = {g for g, number in zip(dataset.groups, dataset.numbers.tolist(), strict=True) if number <= decided}
        before.discard(None)
        fresh &= np.fromiter((group not in before for group in shadow.groups), dtype=np.bool_, count=len(shadow))
    return fresh


def _fallback(certificate: Certificate, scores: Float64, agree: Bool, promise: Promise) -> Certificate | None:
    step = certificate.safer()
    while step is not None:
        handled = scores >= step.threshold
        of = int(handled.sum()) if promise.contract == "agreement" else len(scores)
        if (handled & ~agree).sum() <= (1.0 - promise.target) * of:
            return step
        step = step.safer()
    return None


def _broken(promise: Promise, n_disagreed: int, n_handled: int, n_fresh: int, attempt: int) -> bool:
    """The exact test of the other side, P(Binomial(n, 1 - target) >= n_disagreed), at its share of `REFUTED_AT`."""
    n = n_handled if promise.contract == "agreement" else n_fresh
    p = binomial.p_value(n - n_disagreed, n, 1.0 - promise.target)
    return float(p) <= testing.spending(REFUTED_AT, attempt)
