"""What all verbs share: consoles, JSON output, progress, prices, and errors turned into exit codes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from tracer import cost
from tracer.errors import BusyError, ConfigError, TracerError
from tracer.flywheel.goals import Goals
from tracer.types import Usage

REFUSED = 3
"""Exit code where the gate refuses: for scripts and CI."""
BUSY = 4
"""Exit code where another process is at it."""
OBSERVED = "a gateway observes only: the teacher answers everything (mode: observe in its tracer.yaml)"

out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n")


@contextmanager
def errors_as_exits() -> Iterator[None]:
    """Errors raised on purpose, and those of files, become one line on standard error and exit code 1."""
    try:
        yield
    except TracerError as error:
        err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)
        raise typer.Exit(BUSY if isinstance(error, BusyError) else 1) from error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        err.print(f"[bold red]error:[/] {escape(where + (error.strerror or str(error)))}", soft_wrap=True)
        raise typer.Exit(1) from error


def observed(home: Path) -> bool:
    """Whether a gateway serves this home that lets the teacher answer everything. Raises ConfigError."""
    goals = Goals.read(home)
    return goals is not None and goals.observed


def escape(text: str) -> str:
    """The text for a terminal: no markup of ours in it, and controls as their pictures."""
    from rich import markup

    from tracer.reporting.texts import clean

    return markup.escape(clean(text))


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A callback for ``pipeline.fit`` that draws a bar with the time left on standard error."""
    if quiet or not err.is_terminal:
        yield lambda _what, _done, _total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        task = bar.add_task("starting", total=None)

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        yield show


def call_price(model: str | None, price: str | None, tokens: str) -> tuple[Decimal | None, str]:
    """Dollars of one teacher call and where the figure comes from; None where it is unknown."""
    usage = _usage(tokens)
    if price is not None:
        parsed = cost.parse_price(price)
        return cost.call_usd(parsed, usage), f"${price} a million tokens in/out, {tokens} tokens a call"
    if model is None:
        return None, "unknown: give --model or --price"
    found = cost.price_of(model)
    if found is None:
        return None, f"unknown: no price is listed for model {model!r}; give --price"
    return cost.call_usd(found, usage), f"{found.source}, {tokens} tokens a call"


def _usage(tokens: str) -> Usage:
    try:
        given, answered = (int(part) for part in tokens.split("/"))
    except ValueError:
        raise ConfigError(f"--tokens {tokens!r}: write input/output tokens of a call, such as 800/15") from None
    return Usage(given, answered)


def usd(amount: Decimal | None, digits: int = 2) -> str:
    """Dollars for people; unknown stays unknown."""
    return "unknown" if amount is None else f"${amount:,.{digits}f}"


def percent(value: float | None) -> str:
    """A rate for people."""
    return "-" if value is None else f"{value:.1%}"
