"""Verbs that train: scan, fit, update, backtest."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from tracer import backtesting, cost, flywheel, pipeline
from tracer.cli import options, views
from tracer.cli.common import (
    OBSERVED,
    REFUSED,
    call_price,
    err,
    errors_as_exits,
    escape,
    observed,
    out,
    percent,
    print_json,
    progress_bar,
    usd,
)
from tracer.config import FitConfig
from tracer.errors import ConfigError, NothingNewError
from tracer.features.sources import embedder_from_name
from tracer.flywheel.goals import Goals
from tracer.pipeline import Refused, Verdict
from tracer.policies.registry import PolicyRegistry
from tracer.traces.readers import TraceLog

_DEFAULTS = FitConfig()


def scan(
    log: options.Log,
    embeddings: options.Embeddings = None,
    embedder: options.Embedder = None,
    input_field: options.InputField = None,
    label_field: options.LabelField = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    skip_bad: options.SkipBad = False,
    labels: options.Labels = None,
    model: options.Model = None,
    price: options.Price = None,
    tokens: options.Tokens = "800/15",
    calls_per_day: options.Volume = 10_000,
    delta: options.Delta = _DEFAULTS.delta,
    json: options.Json = False,
) -> None:
    """A first look in seconds: how much could be handled at which target, and what it would save.

    Reads training traces only, so that a later fit stays as certain as before.
    """
    with errors_as_exits():
        call_usd, source = call_price(model, price, tokens)
        reader = reader_options(input_field, label_field, format, skip_bad)
        dataset, trace_log = flywheel.read(log, embeddings=embeddings, label_set=_labels(labels), reader=reader)
        config = FitConfig(delta=delta)
        with progress_bar(quiet=json) as progress:
            encoder = embedder_from_name(embedder, cache=Path(flywheel.HOME) / "cache") if embedder else None
            dataset, encodings = flywheel.embed_dataset(dataset, encoder, config, progress)
            found = pipeline.scan(dataset, config, progress=progress, encodings=encodings)
        saving = {p.target: cost.project(call_usd, calls_per_day, p.coverage).saved_year for p in found.frontier}
        if json:
            frontier = [
                f | {"saved_year_usd": None if saving[f["target"]] is None else str(saving[f["target"]])}
                for f in views.frontier_facts(found.frontier)
            ]
            print_json({
                "n_traces": found.n_traces, "n_labels": found.n_labels, "n_train": found.n_train,
                "best": found.best, "frontier": frontier, "price": source, **_log_facts(trace_log),
            })  # fmt: skip
            return
        _show_log(trace_log)
        out.print(f"{found.n_traces:,} traces, {found.n_labels} labels; best surrogate: {escape(found.best)}")
        views.show_frontier(found.frontier, saving=saving)
        out.print(f"price of a teacher call: {usd(call_usd, 6)} ({escape(source)}); {calls_per_day:,} calls a day")


def fit(
    log: options.OptionalLog = None,
    target: options.Target = None,
    delta: options.OptionalDelta = None,
    home: options.Home = Path(flywheel.HOME),
    embeddings: options.Embeddings = None,
    embedder: options.Embedder = None,
    input_field: options.InputField = None,
    label_field: options.LabelField = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    skip_bad: options.SkipBad = False,
    labels: options.Labels = None,
    pool: options.Pool = _DEFAULTS.pool,
    features: options.Features = _DEFAULTS.features,
    mode: Annotated[str, typer.Option(help="certified, or paper (point estimates, no guarantee).")] = "certified",
    contract: Annotated[str, typer.Option(help="agreement (on handled traffic) or overall.")] = "agreement",
    guarantee: Annotated[
        str, typer.Option(help="certified, or estimated (out of fold, trained on all).")
    ] = "certified",
    split: Annotated[str, typer.Option(help="hash, or recent (certify on the newest traces).")] = "hash",
    novelty: Annotated[str, typer.Option(help="Unfamiliar inputs: rank (last), defer (never), off.")] = "rank",
    neighbours: Annotated[
        bool, typer.Option(help="Let the acceptor read the nearest traces; off, a decision costs the head alone.")
    ] = True,
    per_class: Annotated[bool, typer.Option("--per-class", help="A floor for each predicted class.")] = False,
    always_defer: Annotated[
        list[str] | None, typer.Option(help="Label that always goes to the teacher; repeat.")
    ] = None,
    error_cost: Annotated[
        list[str] | None,
        typer.Option(help="LABEL=DOLLARS that a wrong answer costs; repeat. Needs --teacher-usd."),
    ] = None,
    teacher_usd: Annotated[str | None, typer.Option(help="Dollars of one teacher call.")] = None,
    shadow_share: Annotated[
        float | None, typer.Option(help="Share of traces kept to certify; chosen by size where not given.")
    ] = None,
    ledger: Annotated[
        str, typer.Option(help="lifetime (delta holds over all attempts together), or promotion (for each of them).")
    ] = _DEFAULTS.ledger,
    task: options.Task = "default",
    discard: Annotated[
        bool, typer.Option("--discard", help="Drop stored traces that were recorded while routing.")
    ] = False,
    seed: options.Seed = _DEFAULTS.seed,
    json: options.Json = False,
) -> None:
    """Fit a router on a log of LLM calls; promote it if it clears the parity gate.

    Without a log: on the traces that the home's store holds.

    Exit code 0: certified. 3: the gate refused. 1: bad input.
    """
    with errors_as_exits():
        goals = Goals.read(home)
        asked = (list(_DEFAULTS.targets), _DEFAULTS.delta) if goals is None else ([goals.target], goals.delta)
        config = FitConfig.from_dict({
            "targets": target or asked[0], "delta": asked[1] if delta is None else delta,
            "pool": pool, "features": features, "mode": mode, "contract": contract, "guarantee": guarantee,
            "split": split, "novelty": novelty, "neighbours": neighbours, "per_class": per_class,
            "always_defer": tuple(always_defer or ()), "error_costs": _costs(error_cost),
            "teacher_usd": teacher_usd, "shadow_share": shadow_share, "ledger": ledger, "seed": seed,
        })  # fmt: skip
        reader = reader_options(input_field, label_field, format, skip_bad)
        dataset = trace_log = None
        if log is not None:  # read here rather than in fit, so that what was left out can be shown
            dataset, trace_log = flywheel.read(log, embeddings=embeddings, label_set=_labels(labels), reader=reader)
        records = trace_log.traces if trace_log is not None else None
        with progress_bar(quiet=json) as progress:
            verdict = flywheel.fit(
                dataset, embedder=embedder, home=home, config=config, label_set=_labels(labels), records=records,
                task=task, discard=discard, progress=progress,
            )  # fmt: skip
        _finish(verdict, trace_log, home, json=json)


def update(
    log: options.OptionalLog = None,
    home: options.Home = Path(flywheel.HOME),
    embeddings: options.Embeddings = None,
    embedder: options.Embedder = None,
    input_field: options.InputField = None,
    label_field: options.LabelField = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    skip_bad: options.SkipBad = False,
    labels: options.Labels = None,
    on_refusal: Annotated[str, typer.Option(help="keep the policy in force, or fall back to the teacher.")] = "keep",
    accept_fingerprint: Annotated[
        bool, typer.Option("--accept-fingerprint", help="Learn from another teacher or prompt together with the old.")
    ] = False,
    json: options.Json = False,
) -> None:
    """Store new traces by id, refit with the settings of the first fit, and gate again.

    Without a log: learn from what routing recorded since. Exit code 0: certified, or nothing new. 3: refused.
    """
    with errors_as_exits():
        reader = reader_options(input_field, label_field, format, skip_bad)
        dataset = trace_log = None
        if log is not None:
            dataset, trace_log = flywheel.read(log, embeddings=embeddings, reader=reader)
        try:
            with progress_bar(quiet=json) as progress:
                verdict = flywheel.update(
                    dataset, home=home, embedder=embedder, label_set=_labels(labels),
                    on_refusal=cast("flywheel.OnRefusal", on_refusal), accept_fingerprint=accept_fingerprint,
                    records=trace_log.traces if trace_log is not None else None, progress=progress,
                )  # fmt: skip
        except NothingNewError as nothing:
            if json:
                print_json({"nothing_new": str(nothing)})
            else:
                out.print(str(nothing))
            return
        if not json and verdict.update is not None:
            out.print(f"{verdict.update.n_added:,} new traces, {verdict.update.n_known:,} known already")
        _finish(verdict, trace_log, home, json=json)


def backtest(
    log: options.Log,
    target: Annotated[float, typer.Option("--target", "-t", help="Agreement to hold on handled traffic.")] = 0.95,
    delta: options.Delta = _DEFAULTS.delta,
    batches: Annotated[int, typer.Option(help="Equal parts, where traces carry no times.")] = 5,
    embeddings: options.Embeddings = None,
    embedder: options.Embedder = None,
    input_field: options.InputField = None,
    label_field: options.LabelField = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    skip_bad: options.SkipBad = False,
    pool: options.Pool = _DEFAULTS.pool,
    features: options.Features = _DEFAULTS.features,
    model: options.Model = None,
    price: options.Price = None,
    tokens: options.Tokens = "800/15",
    json: options.Json = False,
) -> None:
    """Replay my log day by day: what would have been handled, at what agreement and saving.

    Each day is routed by the policy in force before it, then joins the traces with its logged labels.
    """
    with errors_as_exits():
        call_usd, source = call_price(model, price, tokens)
        reader = reader_options(input_field, label_field, format, skip_bad)
        dataset, trace_log = flywheel.read(log, embeddings=embeddings, reader=reader)
        config = FitConfig.from_dict({"targets": [target], "delta": delta, "pool": pool, "features": features})
        with progress_bar(quiet=json) as progress:
            encoder = embedder_from_name(embedder, cache=Path(flywheel.HOME) / "cache") if embedder else None
            dataset, encodings = flywheel.embed_dataset(dataset, encoder, config, progress)
            done: list[backtesting.Day] = []

            def on_day(day: backtesting.Day) -> None:
                done.append(day)
                progress(f"replayed {day.name}", sum(d.n for d in done), len(dataset))

            days = backtesting.backtest(dataset, config, batches=batches, on_day=on_day, encodings=encodings)
        if json:
            print_json(
                {
                    "target": target,
                    "days": [_day_facts(d) for d in days],
                    "price": source,
                    **_log_facts(trace_log),
                }
            )
            return
        _show_log(trace_log)
        _show_days(days, call_usd, source)


def _show_days(days: Sequence[backtesting.Day], call_usd: Decimal | None, source: str) -> None:
    table = Table("batch", "traces", "handled", "agreement", "95% interval", "saved", "refit", title="backtest")
    for day in days:
        low, high = day.interval()
        interval = f"{low:.1%} to {high:.1%}" if day.n_handled else "-"
        saved = usd(None if call_usd is None else call_usd * day.n_handled, 4) if day.n_handled else "-"
        refit = "promoted" if day.promoted else "-"
        table.add_row(day.name, f"{day.n:,}", percent(day.coverage), percent(day.agreement), interval, saved, refit)
    handled, agreed, n = (sum(getattr(d, k) for d in days) for k in ("n_handled", "n_agreed", "n"))
    table.add_section()
    saved = usd(None if call_usd is None else call_usd * handled, 4)
    table.add_row("all", f"{n:,}", percent(handled / n), percent(agreed / handled if handled else None), "", saved, "")
    out.print(table)
    out.print(f"price of a teacher call: {usd(call_usd, 6)} ({escape(source)})")


def _day_facts(day: backtesting.Day) -> dict[str, Any]:
    return {
        "name": day.name, "n": day.n, "n_handled": day.n_handled, "n_agreed": day.n_agreed,
        "coverage": day.coverage, "agreement": day.agreement, "promoted": day.promoted,
        "certified_coverage": day.certified_coverage,
    }  # fmt: skip


def _finish(verdict: Verdict, log: TraceLog | None, home: Path, *, json: bool) -> None:
    if json:
        print_json(views.verdict_facts(verdict) | _log_facts(log))
    else:
        _show_log(log)
        views.show_verdict(verdict)
        active = PolicyRegistry(home).active_version()
        force = f"policy {active} is in force" if active else "everything goes to the teacher"
        if verdict.update is not None:
            out.print(f"{escape(verdict.update.action)}: {escape(verdict.update.reason)}")
        out.print(
            f"{force} in {home}"
            + (f": try `tracer show --home {home}`, `tracer route --home {home}`" if active else "")
        )
        if active and observed(home):
            out.print(OBSERVED)
    if isinstance(verdict, Refused):
        raise typer.Exit(REFUSED)


def _show_log(log: TraceLog | None) -> None:
    if log is None:
        return
    if log.skipped:
        err.print(f"left out {len(log.skipped):,} bad of {log.n_records:,} records:")
        for problem in log.skipped[:10]:
            err.print(f"  {escape(str(problem))}", soft_wrap=True)
        if len(log.skipped) > 10:
            err.print(f"  and {len(log.skipped) - 10:,} more")
    if log.duplicates:
        err.print(
            f"left out {len(log.duplicates):,} records whose id was seen before, the first is {log.duplicates[0]!r}"
        )


def _log_facts(log: TraceLog | None) -> dict[str, Any]:
    if log is None:
        return {}
    skipped = [{"line": s.line, "key": s.key, "value": s.value, "problem": s.problem} for s in log.skipped]
    return {"records": log.n_records, "skipped": skipped, "duplicates": list(log.duplicates)}


def reader_options(
    input_field: str | None,
    label_field: str | None,
    format: str | None,  # noqa: A002 - the option's name
    skip_bad: bool,
) -> dict[str, Any]:
    """Options of the trace reader from those of the command line."""
    return {"input_field": input_field, "label_field": label_field, "format": format, "skip_bad": skip_bad}


def _labels(path: Path | None) -> list[str] | None:
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--labels {path}: cannot be read: {error}") from error
    return [name for name in names if name]


def _costs(given: list[str] | None) -> dict[str, str]:
    out: dict[str, str] = {}
    for item in given or []:
        label, equals, dollars = item.rpartition("=")
        if not equals or not label:
            raise ConfigError(f"--error-cost {item!r}: write LABEL=DOLLARS")
        out[label] = dollars
    return out
