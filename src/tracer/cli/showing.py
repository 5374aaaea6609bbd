"""Verbs that show what is there: show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tracer.certification.report import FrontierPoint
from tracer.cli import options, views
from tracer.cli.common import errors_as_exits, escape, out, percent, print_json
from tracer.policies.registry import PolicyRegistry


def show(
    home: options.Home = Path(".tracer"),
    version: Annotated[str | None, typer.Option("--policy", help="Another version than the active one.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="All labels, not only the 20 most frequent.")] = False,
    json: options.Json = False,
) -> None:
    """A policy: certificate, coverage, how it was chosen, and the table by label."""
    with errors_as_exits():
        registry = PolicyRegistry(home)
        policy = registry.load(version)
        report = policy.report
        if json:
            print_json({
                "version": policy.version, "active": policy.version == registry.active_version(),
                "versions": list(registry.versions()), "parent": policy.parent, "created": policy.created,
                "family": policy.family, "surrogate": policy.candidate.name, "labels": list(policy.space.names),
                "embedder": policy.task.get("embedder"),
                "certificate": views.certificate_facts(policy.certificate), "report": dict(report),
            })  # fmt: skip
            return
        state = "active" if policy.version == registry.active_version() else "not active"
        parent = f", after {policy.parent}" if policy.parent else ""
        known = ", ".join(registry.versions())
        out.print(f"policy [bold]{policy.version}[/] ({state}) of {policy.created}{parent}; versions: {known}")
        if policy.embedder is not None:
            out.print(f"embeddings: {escape(policy.embedder.name)}, {policy.embedder.dimension} dimensions")
        views.show_certificate(policy.certificate, f"{policy.family}: {policy.candidate.name}")
        _show_members(report)
        views.show_frontier([FrontierPoint(**p) for p in report.get("frontier", ())], certified=policy.certificate)
        on = (
            "on shadow traces"
            if policy.certificate.split.startswith(("by hash", "newest", "the paper"))
            else "out of fold"
        )
        views.show_classes(report.get("classes", ()), f"by teacher label, {on}", None if everything else 20)


def _show_members(report: Any) -> None:
    table = Table(
        "surrogate",
        "agreement",
        "macro-F1",
        "AURC",
        "AUGRC",
        "coverage at target",
        "with the paper's acceptor",
        title="tried, out of fold on training traces",
    )
    for m in report.get("members", ()):
        paper = f"{percent(m['paper_coverage'])} (AUGRC {m['paper_augrc']:.4f})"
        table.add_row(
            escape(m["name"]), percent(m["agreement"]), f"{m['macro_f1']:.3f}", f"{m['aurc']:.4f}",
            f"{m['augrc']:.4f}", percent(m["coverage_at_target"]), paper,
        )  # fmt: skip
    out.print(table)
    for name, reason, failed in report.get("dropped", ()):
        style = "yellow" if failed else "dim"
        out.print(f"[{style}]dropped {escape(name)}: {escape(reason)}[/]")
