"""The ``tracer`` command. A verb loads its own module only: ``tracer serve`` starts without the training side."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

import typer

from tracer import __version__
from tracer.cli.common import out

app: typer.Typer
"""The command with all verbs, made when it is first asked for."""

VERBS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "demo"),
    "scan": ("training", "scan"),
    "fit": ("training", "fit"),
    "update": ("training", "update"),
    "backtest": ("training", "backtest"),
    "route": ("routing", "route"),
    "serve": ("serving", "serve"),
    "tasks": ("serving", "tasks"),
    "key": ("keys", "key"),
    "status": ("operating", "status"),
    "history": ("operating", "history"),
    "promote": ("operating", "promote"),
    "rollback": ("operating", "rollback"),
    "note": ("operating", "note"),
    "mode": ("operating", "mode"),
    "flywheel": ("operating", "flywheel_app"),
    "import": ("storing", "import_log"),
    "export": ("storing", "export"),
    "forget": ("storing", "forget"),
    "show": ("showing", "show"),
    "report": ("reporting", "report"),
    "explain": ("explaining", "explain_text"),
    "compare": ("explaining", "compare"),
    "ask-twice": ("asking", "ask_twice_command"),
    "export-encoder": ("exporting", "export_encoder"),
}
"""Each verb, in the order of the help: its module in `tracer.cli`, and the function or group of verbs there."""


def application(only: str | None = None) -> typer.Typer:
    """The command with one verb, or with all of them."""
    made = typer.Typer(
        name="tracer",
        help="Learn a cheap, certified router from the traces of an LLM classifier.",
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode="rich",
        pretty_exceptions_show_locals=False,
    )
    made.callback()(_root)
    for verb, (module, name) in VERBS.items():
        if only in (None, verb):
            work: Any = getattr(import_module(f"tracer.cli.{module}"), name)
            if isinstance(work, typer.Typer):
                made.add_typer(work, name=verb)
            else:
                made.command(verb)(work)
    return made


def main() -> None:
    """Entry point of the console script."""
    verb = sys.argv[1] if len(sys.argv) > 1 else None
    application(verb if verb in VERBS else None)()


def _version(value: bool) -> None:
    if value:
        out.print(f"tracer {__version__}")
        raise typer.Exit


def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """Learn a cheap, certified router from the traces of an LLM classifier."""


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = made = application()
    return made
