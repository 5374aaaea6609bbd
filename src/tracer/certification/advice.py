"""A refusal that helps: what was tried, the best counts, and roughly what would clear the gate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tracer.certification.certificate import Attempt, Refusal
from tracer.certification.proposals import Promise, Proposal
from tracer.config import FitConfig
from tracer.stats import binomial

_TARGETS = (
    0.99,
    0.98,
    0.97,
    0.96,
    0.95,
    0.94,
    0.93,
    0.92,
    0.91,
    0.90,
    0.875,
    0.85,
    0.825,
    0.80,
    0.75,
    0.70,
    0.60,
    0.50,
)
_NINE_IN_TEN = 1.2816
"""Standard deviations that a normal variable exceeds once in ten times."""
_GROWTH = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)


def explain_refusal(
    attempts: tuple[Attempt, ...],
    plans: Sequence[Proposal],
    promise: Promise,
    level: float,
    n_shadow: int,
    config: FitConfig,
    *,
    grouped: bool = False,
) -> Refusal:
    """Words for a refusal. What would clear the gate is estimated from out-of-fold rates alone, never from
    the shadow labels just used."""
    best = min(attempts, key=lambda a: (a.p_value, -a.n_handled))
    reason = (
        f"No candidate cleared the gate at target {promise.target:g}: the nearest, {best.candidate}, agreed on "
        f"{best.n_agreed:,} of {best.n_handled:,} handled shadow traces ({best.agreement:.1%}) of {n_shadow:,}."
    )
    unit = "groups" if grouped else "traces"
    if any(a.p_value <= a.level for a in attempts):
        reason = (
            f"Only a sliver cleared the gate at target {promise.target:g}: less than the coverage floor of "
            f"{config.coverage_floor:.0%} of the shadow traces."
        )
    advice = []
    needed = binomial.n_min(promise.target, level)
    if n_shadow < needed:
        kind = "handled shadow traces" if promise.contract == "agreement" else "shadow traces"
        advice.append(
            f"{promise.target:g} at this share of delta needs at least {needed:,} {kind} without "
            f"one disagreement; there are {n_shadow:,} in all."
        )
    elif best.n_agreed == best.n_handled < needed:
        advice.append(
            f"{promise.target:g} at this share of delta needs at least {needed:,} handled traces without one "
            f"disagreement: {best.n_handled:,} are too few to show it."
        )
    more = _traces_needed(plans, promise, level, n_shadow, config)
    if more is not None:
        advice.append(f"Out-of-fold rates suggest that about {more:,} {unit} would clear it.")
    elif n_shadow >= needed:
        ceiling = max(_ceiling(plan, config.coverage_floor) for plan in plans)
        advice.append(
            f"More {unit} of this kind would hardly help: out of fold, even the most confident "
            f"{config.coverage_floor:.0%} agree on {ceiling:.1%} only. Better features or a fine-tuned encoder might."
        )
    lower = _lower_target(plans, promise, level, n_shadow, config)
    if lower is not None:
        advice.append(f"At these traces a target of about {lower[0]:g} should certify {lower[1]:.0%} coverage.")
    return Refusal(promise.target, reason, attempts, tuple(advice))


def _ceiling(plan: Proposal, floor: float) -> float:
    """Highest out-of-fold agreement at a coverage of at least ``floor``."""
    useful = plan.coverages >= floor
    return float(1.0 - plan.rates[useful].min()) if useful.any() else 0.0


def _predicted(plan: Proposal, promise: Promise, level: float, n_shadow: int, floor: float) -> float:
    """Largest coverage that should clear the level with this many shadow traces, nine times in ten; 0 if none."""
    n = np.maximum(np.round(plan.coverages * n_shadow), 1.0)
    unlucky = plan.rates * n + _NINE_IN_TEN * np.sqrt(n * plan.rates * (1.0 - plan.rates))
    wrong = np.minimum(np.round(unlucky), n)
    clears = (promise.p_values(wrong, n, n_shadow) <= level) & (plan.coverages >= floor)
    return float(plan.coverages[clears].max()) if clears.any() else 0.0


def _traces_needed(
    plans: Sequence[Proposal], promise: Promise, level: float, n_shadow: int, config: FitConfig
) -> int | None:
    for factor in _GROWTH:
        size = round(n_shadow * factor)
        if any(_predicted(plan, promise, level, size, config.coverage_floor) > 0 for plan in plans):
            total = size / config.shadow_share_for(round(size / 0.2))
            digits = -max(len(str(round(total))) - 2, 0)
            return int(round(total, digits))
    return None


def _lower_target(
    plans: Sequence[Proposal], promise: Promise, level: float, n_shadow: int, config: FitConfig
) -> tuple[float, float] | None:
    for target in _TARGETS:
        if target >= promise.target:
            continue
        eased = Promise(target, promise.contract, max(promise.handled_floor - (promise.target - target), 0.0))
        coverage = max(_predicted(plan, eased, level, n_shadow, config.coverage_floor) for plan in plans)
        if coverage > 0:
            return target, coverage
    return None
