"""The verb that measures the teacher: ask-twice."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from tracer import flywheel
from tracer.cli import options
from tracer.cli.common import err, errors_as_exits, out, print_json, progress_bar
from tracer.cli.explaining import stored
from tracer.explanations.asking import ASKED_TWICE, Asked, CommandTeacher, about, ask_twice, read_asked
from tracer.explanations.consistency import asked_again, asked_twice_in
from tracer.explanations.plain import to_plain
from tracer.reporting.texts import presentable, shown

_TOLD = 10


def ask_twice_command(
    n: Annotated[int, typer.Option("--number", "-n", help="Traces to ask about, those asked before included.")] = 100,
    command: Annotated[
        str | None,
        typer.Option("--teacher-command", help="Command that reads a text on standard input and prints the label."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Seconds that one call may take.")] = 60.0,
    home: options.Home = Path(flywheel.HOME),
    seed: Annotated[int, typer.Option(help="Which traces are drawn.")] = 0,
    json: options.Json = False,
) -> None:
    """How often your teacher agrees with itself, which bounds what any surrogate can reach.

    With --teacher-command it is asked again about traces drawn at random; each call costs what your teacher costs.
    Without, what is known already is shown. An interrupted run goes on where it stopped.
    """
    with errors_as_exits():
        dataset, config = stored(home)
        path = home / ASKED_TWICE
        if command is None:
            asked = Asked(about(dataset, read_asked(path)), 0, ())
        else:
            teacher = CommandTeacher(command, timeout=timeout)
            with progress_bar(quiet=json) as progress:
                asked = ask_twice(dataset, teacher, n, path, seed=seed, progress=progress)
        measured = {"asked_again": asked_again(asked.answers), "in_the_log": asked_twice_in(dataset)}
        labels = set(dataset.labels)
        n_outside = sum(answer.again not in labels for answer in asked.answers)
        if json:
            facts = {name: to_plain(m) | {"statement": m.statement(config.target)} for name, m in measured.items()}
            failures = [{"id": key, "problem": problem} for key, problem in asked.failures]
            print_json(presentable({
                "target": config.target, "n_new": asked.n_new, "n_outside": n_outside, "failures": failures, **facts,
            }))  # fmt: skip
            return
        if command is not None:
            out.print(f"{asked.n_new:,} new answers, {len(asked.answers):,} in {escape(str(path))}")
        for key, problem in asked.failures[:_TOLD]:
            err.print(f"left out {escape(shown(key))}: {escape(shown(problem))}", soft_wrap=True)
        if len(asked.failures) > _TOLD:
            err.print(f"and {len(asked.failures) - _TOLD:,} more")
        if n_outside:
            out.print(
                f"[yellow]{n_outside:,} second answers are labels that the log does not have[/]: check the command, "
                f"and delete {escape(str(path))} to ask anew"
            )
        known = [measure for measure in measured.values() if measure.n_pairs]
        for measure in known or measured.values():
            out.print(escape(measure.statement(config.target)))
