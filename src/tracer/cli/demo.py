"""tracer demo: the main job on real messages labelled by a language model, with no network and no encoder."""

from __future__ import annotations

import tempfile
import time
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.table import Table

from tracer import cost, flywheel
from tracer.cli import views
from tracer.cli.common import REFUSED, errors_as_exits, escape, out, percent, print_json, progress_bar, usd
from tracer.config import FitConfig
from tracer.data import northlight, northlight_order
from tracer.pipeline import Refused
from tracer.policies.registry import PolicyRegistry
from tracer.serving.router import Router
from tracer.serving.teachers import ReplayTeacher
from tracer.stats import binomial
from tracer.types import Answer, Dataset, Usage

_FIRST, _TARGET = 2000, 0.90
_USAGE, _PRICE, _CALLS_A_DAY = Usage(800, 15), "3/15", 10_000


def demo(
    target: Annotated[float, typer.Option("--target", "-t", help="Agreement to hold on handled traffic.")] = _TARGET,
    lexical: Annotated[bool, typer.Option("--lexical", help="Without the embeddings: text alone.")] = False,
    home: Annotated[Path | None, typer.Option(help="Keep the result in this folder.")] = None,
    seed: Annotated[int, typer.Option(help="Order in which the messages arrive.")] = 0,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Fit on 2,000 support messages, certify, then replay 650 more as live traffic."""
    with errors_as_exits(), tempfile.TemporaryDirectory() as scratch:
        folder = home or Path(scratch)
        began = time.perf_counter()
        everything = northlight()
        order = northlight_order(len(everything), seed)
        past, live = everything.take(order[:_FIRST]), everything.take(order[_FIRST:])
        config = FitConfig(targets=(target,), features="lexical" if lexical else "auto")
        if not json:
            out.print(
                f"[bold]Northlight[/]: {len(everything):,} support messages, {len(everything.space)} desks, "
                f"labelled by a language model (the teacher).\n"
                f"The first {len(past):,} are the log, the other {len(live):,} arrive live.\n"
            )
        with progress_bar(quiet=json) as progress:
            verdict = flywheel.fit(past, config=config, home=folder, progress=progress)
        seconds = time.perf_counter() - began
        if isinstance(verdict, Refused):
            if json:
                print_json(views.verdict_facts(verdict))
            else:
                views.show_verdict(verdict)
            raise typer.Exit(REFUSED)
        replayed = _replay(live, folder)
        if json:
            print_json(views.verdict_facts(verdict) | {"fit_s": round(seconds, 2), "live": replayed})
            return
        views.show_verdict(verdict)
        for member in verdict.report.members:
            if member.name in ("lexical logistic", verdict.policy.candidate.name):
                share = f"about {member.coverage_at_target:.0%} with hindsight, out of fold"
                out.print(f"{escape(member.name)}: {share}")
        out.print(f"fitted and certified in {seconds:.1f} s\n")
        _show_replay(replayed)


def _replay(live: Dataset, home: Path) -> dict[str, Any]:
    texts = live.texts or ()
    teacher = ReplayTeacher(dict(zip(texts, live.labels, strict=True)))
    router = Router(PolicyRegistry(home).load(), teacher=teacher)
    answers = router.route_many(texts, embeddings=live.dense)
    handled = np.array([a.handled for a in answers])
    agreed = np.array([a.label == label for a, label in zip(answers, live.labels, strict=True)])
    policy = router.policy
    certificate = policy.certificate if policy else None
    n_handled, n_agreed = int(handled.sum()), int((handled & agreed).sum())
    call = cost.call_usd(cost.parse_price(_PRICE), _USAGE)
    projection = cost.project(call, _CALLS_A_DAY, n_handled / len(live))
    return {
        "n": len(live),
        "n_handled": n_handled,
        "n_agreed": n_agreed,
        "agreement_interval": list(binomial.agreement_interval(n_agreed, n_handled)),
        "teacher_calls": teacher.n_calls,
        "router_counts": router.counts,
        "certified_coverage": certificate.coverage if certificate else None,
        "certified_agreement_lower": certificate.agreement_lower if certificate else None,
        "target": certificate.target if certificate else None,
        "before_day_usd": str(projection.before_day),
        "after_day_usd": str(projection.after_day),
        "saved_year_usd": str(projection.saved_year),
        "examples": _examples(live, answers),
    }


def _examples(live: Dataset, answers: list[Answer]) -> list[dict[str, Any]]:
    """Three handled and three deferred inputs: the middle of each kind's score order, short enough to read."""
    texts = live.texts or ()
    out: list[dict[str, Any]] = []
    for handled in (True, False):
        kind = [i for i, a in enumerate(answers) if a.handled == handled and len(texts[i]) <= 110]
        kind.sort(key=lambda i: answers[i].score)
        chosen = [kind[round(q * (len(kind) - 1))] for q in (0.9, 0.5, 0.1)] if kind else []
        for i in dict.fromkeys(chosen):
            answer = answers[i]
            out.append(
                {
                    "decision": "handled" if handled else "deferred",
                    "input": texts[i],
                    "surrogate": answer.surrogate_label,
                    "teacher": live.labels[i],
                    "score": answer.score,
                    "threshold": answer.threshold,
                }
            )
    return out


def _show_replay(live: dict[str, Any]) -> None:
    n, handled, agreed = live["n"], live["n_handled"], live["n_agreed"]
    low, high = live["agreement_interval"]
    table = Table("", "certified on shadow traces", "observed live", title=f"{n} live messages")
    table.add_row(
        "handled by the surrogate",
        percent(live["certified_coverage"]),
        f"{percent(handled / n)} ({handled} of {n})",
    )
    observed = f"{percent(agreed / handled)} ({agreed} of {handled}), 95% interval {low:.1%} to {high:.1%}"
    table.add_row("agreement on handled", f"at least {live['target']:.0%}", observed if handled else "-")
    table.add_row("teacher calls", "", f"{live['teacher_calls']} instead of {n}")
    out.print(table)
    if handled and agreed < live["target"] * handled <= high * handled:
        out.print(
            "the observed share is below the target, and its interval holds the target: so few live messages vary"
        )
    out.print(
        f"at 800/15 tokens a call, $3/$15 a million tokens and 10,000 calls a day: "
        f"{usd(Decimal(live['before_day_usd']))} a day before, {usd(Decimal(live['after_day_usd']))} after, "
        f"[bold]{usd(Decimal(live['saved_year_usd']), 0)} saved a year[/]\n"
    )
    examples = Table("decision", "surrogate", "teacher", "score", "input", title="examples", show_lines=True)
    for e in live["examples"]:
        colour = "green" if e["decision"] == "handled" else "yellow"
        examples.add_row(
            f"[{colour}]{e['decision']}[/]",
            escape(e["surrogate"]),
            escape(e["teacher"]),
            f"{e['score']:.2f}",
            escape(e["input"]),
        )
    out.print(examples)
