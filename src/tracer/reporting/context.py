"""The facts of a report: JSON-ready, no markup, fit to show. The page, the Markdown and the JSON say nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tracer import __version__
from tracer.certification.certificate import Attempt, Certificate, Refusal
from tracer.explanations.artefacts import Artefacts
from tracer.explanations.table import RoutingTable
from tracer.policies.policy import Policy
from tracer.reporting import figures, projection
from tracer.reporting.texts import presentable
from tracer.stats import binomial

Facts = dict[str, Any]

SCHEMA = "tracer-report/1"
_MOST_LABELS = 99
"""Labels that the map can tell apart; the others share a class."""


def facts(
    policy: Policy | None,
    report: Mapping[str, Any],
    *,
    refusal: Refusal | None = None,
    table: RoutingTable | None = None,
    artefacts: Artefacts | None = None,
    money: Mapping[str, Any] | None = None,
    quality: Mapping[str, Any] | None = None,
    missing: str | None = None,
) -> Facts:
    """All that a report says of a policy, or of a refusal and its best candidate.

    ``report`` is the FitReport as a dict. ``table`` decides on rows that the policy never trained on; without it, and
    without ``artefacts``, ``money`` or ``quality``, the parts that rest on them are None, and ``missing`` says why.
    """
    certificate = None if refusal is not None or policy is None else policy.certificate
    verdict = "refused" if certificate is None else certificate.guarantee
    found: Facts = {
        "schema": SCHEMA,
        "verdict": verdict,
        "headline": _headline(certificate, refusal),
        "certificate": None if certificate is None else _certificate(certificate),
        "refusal": None if refusal is None else _refusal(refusal, report),
        "missing": missing,
        "ownership": None,
        "frontier": _frontier(table, report, certificate, refusal),
        "classes": figures.classes(figures.counts(table)) if table else figures.classes(report.get("classes", ())),
        "map": None,
        "artefacts": None if artefacts is None else artefacts.as_dict(),
        "diagnosis": [] if artefacts is None else list(artefacts.disagreements.diagnosis.sentences()),
        "quality": None if quality is None else dict(quality),
        "money": None if money is None else dict(money),
        "made": _made(policy, report, table),
    }
    if table is not None:
        found["ownership"] = figures.ownership(table)
        found["map"] = _map(table, found["classes"])
    return dict(presentable(found))


def _headline(certificate: Certificate | None, refusal: Refusal | None) -> str:
    if refusal is not None:
        return _refused(refusal)
    if certificate is None:
        return "There is no policy: everything goes to the teacher."
    share = f"{certificate.coverage:.1%}"
    if certificate.guarantee == "estimated":
        return (
            f"The surrogate would answer about {share} of requests at a target of {_rate(certificate.target)}: "
            f"an estimate, not a guarantee."
        )
    sure = f"with {_rate(1 - certificate.delta)} confidence"
    if certificate.contract == "overall":
        wrong = f"the teacher would contradict at most {_rate(1 - certificate.target)} of all answers"
        return f"The surrogate answers {share} of requests, and {sure} {wrong}."
    return (
        f"The surrogate answers {share} of requests, and {sure} at least {_rate(certificate.target)} of its answers "
        f"are the teacher's."
    )


def _refused(refusal: Refusal) -> str:
    """One sentence with the nearest candidate's counts."""
    target = f"at target {_rate(refusal.target)}"
    if not refusal.attempts:
        return f"Nothing is promoted {target}."
    near = _nearest(refusal)
    sliver = any(a.p_value <= a.level for a in refusal.attempts)
    return (
        f"Nothing is promoted: {target} the nearest candidate agreed on {near.n_agreed:,} of {near.n_handled:,} "
        f"handled shadow traces of {near.n_shadow:,}, which {'is too small a share' if sliver else 'does not show it'}."
    )


def _nearest(refusal: Refusal) -> Attempt:
    return min(refusal.attempts, key=lambda a: (a.p_value, -a.n_handled))


def _rate(value: float) -> str:
    return f"{100 * value:.4g}%"


def _certificate(certificate: Certificate) -> Facts:
    low, high = binomial.agreement_interval(certificate.n_agreed, certificate.n_handled)
    return certificate.as_dict() | {
        "coverage": certificate.coverage,
        "agreement": certificate.agreement if certificate.n_handled else None,
        "agreement_lower": certificate.agreement_lower,
        "interval": [low, high],
        "p_value": certificate.p_value,
        "statement": certificate.statement(),
    }


def _refusal(refusal: Refusal, report: Mapping[str, Any]) -> Facts:
    """The refusal with its nearest candidate; ``config`` says at which delta."""
    attempts = [
        {
            "candidate": a.candidate, "family": a.family, "threshold": a.threshold, "n_shadow": a.n_shadow,
            "n_handled": a.n_handled, "n_agreed": a.n_agreed, "coverage": a.coverage, "agreement": a.agreement,
            "p_value": a.p_value, "level": a.level, "certified": a.certified,
        }
        for a in sorted(refusal.attempts, key=lambda a: (a.p_value, -a.n_handled))
    ]  # fmt: skip
    return {
        "target": refusal.target,
        "reason": refusal.reason,
        "advice": list(refusal.advice),
        "attempts": attempts,
        "delta": report.get("config", {}).get("delta"),
    }


def _frontier(
    table: RoutingTable | None, report: Mapping[str, Any], certificate: Certificate | None, refusal: Refusal | None
) -> Facts:
    """The curve, the estimates, and the point that the gate counted; a certified one down to its exact lower bound."""
    point, target = None, refusal.target if refusal is not None else 0.0
    if certificate is not None:
        target = certificate.target
        counts = certificate.n_agreed, certificate.n_handled, certificate.n_shadow
    elif refusal is not None and refusal.attempts:
        nearest = _nearest(refusal)
        counts = nearest.n_agreed, nearest.n_handled, nearest.n_shadow
    else:
        counts = 0, 0, 0
    n_agreed, n_handled, n = counts
    if n_handled:
        low, high = binomial.agreement_interval(n_agreed, n_handled)
        if certificate is not None and certificate.guarantee == "certified":
            low = certificate.agreement_lower
        point = {
            "n": n, "n_handled": n_handled, "n_agreed": n_agreed, "coverage": n_handled / n,
            "agreement": n_agreed / n_handled, "low": low, "high": high,
        }  # fmt: skip
    return {
        "target": target,
        "curve": [] if table is None else figures.curve(table),
        "rows": figures.frontier(table, report),
        "point": point,
        "level": 0.05,
    }


def _map(table: RoutingTable, classes: list[Facts]) -> Facts:
    atlas = projection.traces_map(table)
    kept = {point["label"] for point in atlas["points"]}
    names = [row["label"] for row in classes if row["label"] in kept]
    return atlas | {"labels": names[:_MOST_LABELS]}


def _made(policy: Policy | None, report: Mapping[str, Any], table: RoutingTable | None) -> Facts:
    """Where all this comes from: versions, settings, what was tried, on which rows the report stands."""
    return {
        "tracer": __version__,
        "version": policy.version or None if policy else None,
        "parent": policy.parent if policy else None,
        "created": policy.created if policy else None,
        "family": policy.family if policy else None,
        "surrogate": policy.candidate.name if policy else None,
        "embedder": policy.embedder.name if policy and policy.embedder else None,
        "teachers": list(policy.task.get("teachers", ())) if policy else [],
        "n_labels": len(policy.space) if policy else None,
        "stands_on": table.stands_on if table is not None else None,
        "threshold": table.threshold if table is not None else None,
        "config": dict(report.get("config", {})),
        **{
            key: report.get(key)
            for key in ("n_traces", "n_train", "n_shadow", "n_set_aside", "n_outside", "n_trainings")
        },
        "members": list(report.get("members", ())),
        "proposals": list(report.get("proposals", ())),
        "attempts": list(report.get("attempts", ())),
        "dropped": [list(item) for item in report.get("dropped", ())],
    }
