"""Verbs on stored traces: import, export, forget."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

from tracer.cli import options
from tracer.cli.common import errors_as_exits, escape, out, print_json
from tracer.cli.training import reader_options
from tracer.errors import ConfigError
from tracer.flywheel import forgetting, homes
from tracer.flywheel.reading import read
from tracer.flywheel.settings import Settings
from tracer.traces import transfer
from tracer.traces.store import check_fits

_AGE = re.compile(r"(\d+)([dh])")


def import_log(
    log: options.Log,
    home: options.Home = Path(homes.HOME),
    task: options.Task = "default",
    embeddings: options.Embeddings = None,
    input_field: options.InputField = None,
    label_field: options.LabelField = None,
    format: options.Format = None,  # noqa: A002 - the option's name
    skip_bad: options.SkipBad = False,
) -> None:
    """Store the traces of a log without fitting. Ids that are known stay as they are.

    A log without origins counts as complete (bootstrap): name `imported` in its origin field where it is a selection.
    """
    with errors_as_exits():
        dataset, trace_log = read(
            log, embeddings=embeddings, reader=reader_options(input_field, label_field, format, skip_bad)
        )
        with homes.store_of(home, Settings.read(home), task) as store:
            check_fits(store.facts(), dataset)
            done = store.append(dataset, records=trace_log.traces if trace_log is not None else None)
            out.print(f"{done.n_added:,} new traces, {done.n_known:,} known already, in {store.url}", highlight=False)
            if done.n_forgotten:
                out.print(f"{done.n_forgotten:,} were forgotten once and stay so")


def export(
    path: Annotated[Path, typer.Argument(help="File to write: .jsonl, .jsonl.gz or .parquet.")],
    home: options.Home = Path(homes.HOME),
    task: options.Task = "default",
) -> None:
    """Write all stored traces to a file that `tracer import` and `tracer fit` read back."""
    with errors_as_exits(), homes.store_of(home, Settings.read(home), task) as store:
        n = transfer.export(store, path)
        out.print(f"{n:,} traces written to {path}", highlight=False)


def forget(
    home: options.Home = Path(homes.HOME),
    ids: Annotated[list[str] | None, typer.Option("--id", help="Id of a trace; repeat.")] = None,
    ids_file: Annotated[Path | None, typer.Option("--ids", help="File with one id a line.")] = None,
    containing: Annotated[str | None, typer.Option(help="Traces whose text contains this, in any case.")] = None,
    matching: Annotated[str | None, typer.Option(help="Traces whose text matches this regular expression.")] = None,
    older_than: Annotated[str | None, typer.Option(help="Traces older than so much, such as 90d or 12h.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do it; without it, only what would go is shown.")] = False,
    json: options.Json = False,
) -> None:
    """Remove a person's traces for good, with cached vectors, artefacts and policies that learned from them.

    Shows what would go; `--yes` does it. A policy in force that learned from them goes after the next promotion:
    `tracer update` makes one.
    """
    with errors_as_exits():
        names = [*(ids or []), *_lines(ids_file)]
        pattern = _pattern(matching)
        before = datetime.now(UTC) - _age(older_than) if older_than is not None else None
        if not names and not containing and pattern is None and before is None:
            raise ConfigError("say what to forget: --id, --ids, --containing, --matching or --older-than")
        done = forgetting.forget(
            home, ids=names, containing=containing or None, matching=pattern, before=before, dry_run=not yes
        )
        if json:
            print_json({
                "done": yes, "n_traces": len(done.traces), "ids": list(done.traces.ids), "n_vectors": done.n_vectors,
                "removed": list(done.removed), "active": done.active,
            })  # fmt: skip
            return
        if not yes:
            out.print(f"{len(done.traces):,} traces would go; --yes removes them for good")
            for key in done.traces.ids[:20]:
                out.print(f"  {escape(key)}", highlight=False)
        else:
            out.print(f"{len(done.traces):,} traces and {done.n_vectors:,} cached vectors are gone")
        verb = "went" if yes else "would go"
        if done.removed:
            out.print(f"policies that learned from them and {verb} too: {', '.join(done.removed)}")
        if done.active:
            out.print(
                f"policy {done.active} is in force and learned from them: it goes once `tracer update` replaces it"
            )


def _lines(path: Path | None) -> list[str]:
    if path is None:
        return []
    try:
        return [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--ids {path}: cannot be read: {error}") from error


def _pattern(matching: str | None) -> re.Pattern[str] | None:
    if not matching:
        return None
    try:
        return re.compile(matching)
    except re.error as error:
        raise ConfigError(f"--matching {matching!r}: is no regular expression: {error}") from error


def _age(text: str) -> timedelta:
    found = _AGE.fullmatch(text)
    if found is None:
        raise ConfigError(f"--older-than {text!r}: write days or hours, such as 90d or 12h")
    n = int(found[1])
    return timedelta(days=n) if found[2] == "d" else timedelta(hours=n)
