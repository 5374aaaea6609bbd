"""The ``tracer`` command."""

from __future__ import annotations

import typer

from tracer import __version__
from tracer.cli import (
    asking,
    demo,
    explaining,
    exporting,
    keys,
    operating,
    reporting,
    routing,
    serving,
    showing,
    storing,
    training,
)
from tracer.cli.common import out

app = typer.Typer(
    name="tracer",
    help="Learn a cheap, certified router from the traces of an LLM classifier.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)


def _version(value: bool) -> None:
    if value:
        out.print(f"tracer {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Learn a cheap, certified router from the traces of an LLM classifier."""


app.command("demo")(demo.demo)
app.command("scan")(training.scan)
app.command("fit")(training.fit)
app.command("update")(training.update)
app.command("backtest")(training.backtest)
app.command("route")(routing.route)
app.command("serve")(serving.serve)
app.command("tasks")(serving.tasks)
app.command("key")(keys.key)
app.command("status")(operating.status)
app.command("history")(operating.history)
app.command("promote")(operating.promote)
app.command("rollback")(operating.rollback)
app.command("note")(operating.note)
app.command("mode")(operating.mode)
app.add_typer(operating.flywheel_app, name="flywheel")
app.command("import")(storing.import_log)
app.command("export")(storing.export)
app.command("forget")(storing.forget)
app.command("show")(showing.show)
app.command("report")(reporting.report)
app.command("explain")(explaining.explain_text)
app.command("compare")(explaining.compare)
app.command("ask-twice")(asking.ask_twice_command)
app.command("export-encoder")(exporting.export_encoder)


def main() -> None:
    """Entry point of the console script."""
    app()
