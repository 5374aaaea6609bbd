"""What the verbs show: verdicts, certificates, frontiers, class tables. Facts as dicts, then as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from decimal import Decimal
from typing import Any

from rich.panel import Panel
from rich.table import Table

from tracer.certification.certificate import Attempt, Certificate
from tracer.certification.report import FrontierPoint
from tracer.cli.common import escape, out, percent, usd
from tracer.pipeline import Certified, Refused, Verdict
from tracer.stats import binomial

_ATOM, _ATOM_ROWS = 0.02, 5
"""Share and number of one text among the shadow traces above which a reader is told."""
_LIKELY = 0.05
"""Mean coverage below which a gate refuses more often than not."""


def certificate_facts(certificate: Certificate) -> dict[str, Any]:
    """The certificate's fields with its derived rates."""
    facts = certificate.as_dict()
    facts |= {
        "coverage": certificate.coverage,
        "agreement": certificate.agreement,
        "agreement_lower": certificate.agreement_lower,
        "p_value": certificate.p_value,
        "statement": certificate.statement(),
    }
    return facts


def verdict_facts(verdict: Verdict) -> dict[str, Any]:
    """A verdict as JSON-ready facts."""
    report = verdict.report.as_dict()
    if isinstance(verdict, Certified):
        policy = verdict.policy
        return {
            "verdict": "certified" if policy.certificate.guarantee == "certified" else "estimated",
            "version": policy.version or None,
            "family": policy.family,
            "surrogate": policy.candidate.name,
            "certificate": certificate_facts(policy.certificate),
            "report": report,
            "frontier": [verdict_facts(v) for v in verdict.frontier],
            **_update_facts(verdict),
        }
    return {
        "verdict": "refused",
        "target": verdict.refusal.target,
        "reason": verdict.refusal.reason,
        "advice": list(verdict.refusal.advice),
        "report": report,
        "frontier": [verdict_facts(v) for v in verdict.frontier],
        **_update_facts(verdict),
    }


def _update_facts(verdict: Verdict) -> dict[str, Any]:
    """What an update made of the verdict; empty for a fit."""
    done = verdict.update
    if done is None:
        return {}
    standing = done.standing
    return {
        "update": {
            "action": done.action, "reason": done.reason, "active": done.active, "n_added": done.n_added,
            "n_known": done.n_known, "released": done.released,
            "incumbent": None if standing is None else {
                "version": standing.version, "state": standing.state, "n_fresh": standing.n_fresh,
                "n_handled": standing.n_handled, "n_agreed": standing.n_agreed, "coverage": standing.coverage,
            },
        }
    }  # fmt: skip


def show_verdict(verdict: Verdict) -> None:
    """A verdict for people."""
    report = verdict.report
    certifying = f", {report.n_shadow:,} to certify" if report.config["guarantee"] == "certified" else ", all of them"
    out.print(
        f"{report.n_traces:,} traces: {report.n_train:,} to train{certifying}"
        + (f", {report.n_set_aside:,} set aside (one row a group certifies)" if report.n_set_aside else "")
    )
    if report.n_outside:
        out.print(
            f"{report.n_outside:,} carry a label that is not learned: they count as disagreements when certifying"
        )
    if isinstance(verdict, Certified) and report.n_most_repeated > max(_ATOM * report.n_shadow, _ATOM_ROWS):
        out.print(
            f"[yellow]one text makes up {report.n_most_repeated / report.n_shadow:.0%} of the traces that certify: "
            f"the certificate leans on it (docs/guarantee.md, Atoms)[/]"
        )
    for name, reason, failed in report.dropped:
        if failed:
            out.print(f"[yellow]could not train {escape(name)}:[/] {escape(reason)}")
    if isinstance(verdict, Certified):
        show_certificate(verdict.certificate, f"{verdict.policy.family}: {verdict.policy.candidate.name}")
    else:
        show_refusal(verdict)
    show_frontier(report.frontier, certified=verdict.certificate if isinstance(verdict, Certified) else None)
    for further in verdict.frontier:
        if isinstance(further, Refused):
            out.print(f"[bold]also at target {further.refusal.target:g}[/]: {escape(further.refusal.statement())}")
        else:
            name = f"policy {further.policy.version}, not active" if further.policy.version else "not saved"
            statement = escape(further.certificate.statement())
            out.print(f"[bold]also at target {further.certificate.target:g}[/] ({name}): {statement}")


def show_certificate(certificate: Certificate, title: str) -> None:
    """The certificate as a panel."""
    colour = "green" if certificate.guarantee == "certified" else "yellow"
    lower = f"\nthreshold {certificate.threshold:.4g}"
    if certificate.guarantee == "certified":
        lower += f"; exact lower bound of agreement {certificate.agreement_lower:.4f} at level {certificate.level:.3g}"
    word = "CERTIFIED" if certificate.guarantee == "certified" else "ESTIMATED, not certified"
    out.print(
        Panel(
            escape(certificate.statement()) + lower,
            title=f"[bold {colour}]{word}[/] at target {certificate.target:g} · {escape(title)}",
            border_style=colour,
            expand=False,
        )
    )


def show_refusal(verdict: Refused) -> None:
    """A refusal as a panel, and what was tried."""
    refusal = verdict.refusal
    out.print(
        Panel(
            escape("\n".join([refusal.reason, *refusal.advice])),
            title=f"[bold red]REFUSED[/] at target {refusal.target:g} · nothing is promoted",
            border_style="red",
            expand=False,
        )
    )
    show_attempts(refusal.attempts)


def show_attempts(attempts: Sequence[Attempt]) -> None:
    """What the gate tried."""
    table = Table("candidate", "handled", "agreed", "agreement", "p-value", "level", title="what the gate tried")
    for a in attempts:
        table.add_row(
            escape(a.candidate), f"{a.n_handled:,} of {a.n_shadow:,}", f"{a.n_agreed:,}", percent(a.agreement),
            f"{a.p_value:.3g}", f"{a.level:.3g}",
        )  # fmt: skip
    out.print(table)


def show_frontier(
    frontier: Sequence[FrontierPoint],
    *,
    certified: Certificate | None = None,
    saving: Mapping[float, Decimal | None] | None = None,
) -> None:
    """The frontier, each point said to be an estimate; the certified one stands out."""
    out.print("[italic]frontier, estimated out of fold on training traces; only a marked row is certified[/]")
    table = Table()
    table.add_column("target", justify="right")
    table.add_column("coverage", justify="right")
    if saving is not None:
        table.add_column("saved a year", justify="right")
    table.add_column("")
    for point in frontier:
        mark = ""
        coverage = f"about {point.coverage:.1%}" if point.coverage >= _LIKELY else "refusal likely"
        if certified is not None and certified.target == point.target:
            coverage, mark = percent(certified.coverage), f"{certified.guarantee}"
        row = [f"{point.target:g}", coverage]
        if saving is not None:
            row.append(usd(saving[point.target], 0) if point.coverage >= _LIKELY else "-")
        table.add_row(*row, mark)
    out.print(table)


def show_classes(classes: Sequence[Mapping[str, Any]], title: str, limit: int | None = None) -> None:
    """Counts by teacher label with exact intervals."""
    table = Table("label", "traces", "handled", "agreement", "95% interval", title=title)
    for row in classes[:limit]:
        n, handled, agreed = row["n"], row["n_handled"], row["n_agreed"]
        low, high = binomial.agreement_interval(agreed, handled)
        interval = f"{low:.1%} to {high:.1%}" if handled else "-"
        table.add_row(
            escape(str(row["label"])),
            f"{n:,}",
            percent(handled / n),
            percent(agreed / handled if handled else None),
            interval,
        )
    if limit is not None and len(classes) > limit:
        table.caption = f"{len(classes) - limit} more labels: use --all"
    out.print(table)


def frontier_facts(points: Sequence[FrontierPoint]) -> list[dict[str, Any]]:
    """JSON-ready frontier."""
    return [asdict(p) | {"guarantee": "estimated"} for p in points]
