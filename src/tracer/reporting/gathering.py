"""From a policy and the stored traces to the facts of its report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any

from tracer import cost
from tracer.certification.certificate import Refusal
from tracer.config import FitConfig
from tracer.errors import PolicyError, TraceError
from tracer.explanations import artefacts, consistency, quality
from tracer.explanations.consistency import SelfAgreement
from tracer.explanations.plain import to_plain
from tracer.explanations.rows import Stored
from tracer.explanations.table import RoutingTable
from tracer.policies.policy import Policy
from tracer.reporting.context import Facts, facts
from tracer.types import Dataset

_LIKELY = 0.05
"""Coverage below which a gate refuses more often than not: no saving is stated there."""


@dataclass(frozen=True, slots=True)
class Pricing:
    """What a teacher call costs (None: unknown), where that figure is from, and how many calls come a day.

    ``audit_rate`` of all calls go to the teacher whatever the router thinks; one call of a paid encoder costs
    ``encoder_usd``.
    """

    call_usd: Decimal | None
    source: str
    calls_per_day: int
    audit_rate: float = 0.0
    encoder_usd: Decimal = Decimal(0)


def gather(
    policy: Policy | None,
    report: Mapping[str, Any],
    dataset: Dataset,
    config: FitConfig,
    *,
    refusal: Refusal | None = None,
    previous: Policy | None = None,
    pricing: Pricing | None = None,
    self_agreement: SelfAgreement | None = None,
) -> Facts:
    """The facts of a policy, or of a refusal and its best candidate, on stored traces that it never trained on.

    ``dataset`` holds all stored traces and ``config`` the home's settings; ``previous`` is the policy that was in force
    before. ``self_agreement`` is the teacher's, by default as the log shows it. Where no stored trace is left to judge
    by, the facts say why, and what rests on such traces is missing.
    """
    table, missing, stored = None, None, Stored(dataset, config)
    if policy is not None:
        try:
            table = stored.table_of(policy)
        except (PolicyError, TraceError) as error:
            missing = str(error)
    found = None
    if policy is not None and table is not None:
        found = artefacts.build(table)
        if previous is not None:
            try:
                found = replace(found, deltas=stored.changes(policy, previous))
            except (PolicyError, TraceError) as error:
                missing = f"no comparison with {previous.version}: {error}"
    return facts(
        policy,
        report,
        refusal=refusal,
        table=table,
        artefacts=found,
        money=None if pricing is None else _money(pricing, policy, report, refusal, _encoder_share(policy, table)),
        quality=None if table is None else _quality(table, dataset, config, self_agreement),
        missing=missing,
    )


def _quality(
    table: RoutingTable, dataset: Dataset, config: FitConfig, self_agreement: SelfAgreement | None
) -> dict[str, Any]:
    known = self_agreement or consistency.asked_twice_in(dataset)
    return {
        "self_agreement": to_plain(known) | {"statement": known.statement(config.target)},
        "accuracy": to_plain(quality.accuracy(table)),
        "conflicts": to_plain(quality.conflicts(table)),
        "likely_errors": to_plain(quality.likely_errors(table)),
    }


def _encoder_share(policy: Policy | None, table: RoutingTable | None) -> float:
    """Share of the requests that need an embedding: all of a policy that reads them, less a first stage's."""
    if policy is None or "dense" not in policy.needs:
        return 0.0
    return float((table.stage == 2).mean()) if table is not None and len(table) else 1.0


def _money(
    pricing: Pricing, policy: Policy | None, report: Mapping[str, Any], refusal: Refusal | None, encoder_share: float
) -> dict[str, Any]:
    n = int(report["n_shadow"])
    counts = {float(p["target"]): (round(p["coverage"] * n), n) for p in report["frontier"] if p["coverage"] >= _LIKELY}
    certified = None if policy is None or refusal is not None else policy.certificate
    if certified is not None:
        counts[certified.target] = (certified.n_handled, certified.n_shadow)
    encoder_usd = pricing.encoder_usd * Decimal(str(encoder_share))
    savings = (
        cost.savings(
            pricing.call_usd, pricing.calls_per_day, counts, audit_rate=pricing.audit_rate, encoder_usd=encoder_usd
        )
        if n
        else ()
    )
    gated = certified.target if certified is not None else None
    rows = [
        {
            "target": s.target, "n_handled": s.n_handled, "n": s.n,
            "certified": certified is not None and certified.guarantee == "certified" and s.target == certified.target,
            "before_day": _text(s.expected.before_day), "after_day": _text(s.expected.after_day),
            "saved_year": _text(s.expected.saved_year),
            # A range where a gate has counted; elsewhere the gate may refuse, and no interval says that.
            "saved_year_least": _text(s.least.saved_year) if s.target == gated else None,
            "saved_year_most": _text(s.most.saved_year) if s.target == gated else None,
        }
        for s in savings
    ]  # fmt: skip
    target = certified.target if certified is not None else None
    return {
        "call_usd": _text(pricing.call_usd),
        "source": pricing.source,
        "calls_per_day": pricing.calls_per_day,
        "audit_rate": pricing.audit_rate,
        "encoder_usd": _text(pricing.encoder_usd),
        "encoder_share": encoder_share,
        "savings": rows,
        "saved_year_usd": next((row["saved_year"] for row in rows if row["target"] == target), None),
    }


def _text(amount: Decimal | None) -> str | None:
    """Dollars as JSON has them: exact, as text."""
    return None if amount is None else str(amount)
