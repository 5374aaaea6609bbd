"""The verb that serves from the command line: route."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from tracer.cli import options
from tracer.cli.common import errors_as_exits, escape, out
from tracer.errors import RouteError
from tracer.policies.serving_settings import ServingSettings
from tracer.serving.router import Router
from tracer.types import Answer

_BATCH = 512


def route(
    text: Annotated[
        str | None, typer.Argument(help="A text; without one, lines of --file or of standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="File with one text a line, or JSON lines with an input.")] = None,
    home: options.Home = Path(".tracer"),
    version: Annotated[str | None, typer.Option("--policy", help="Another version than the active one.")] = None,
    embedder: options.Embedder = None,
    json: options.Json = False,
) -> None:
    """Route texts: the surrogate's label where the policy handles them, else a deferral to your teacher."""
    with errors_as_exits():
        # A look at the decisions: no teacher answers here, and nothing would record an audit.
        looking = ServingSettings(audit_rate=0.0)
        router = Router.load(home, version=version, embedder=embedder, settings=looking, reload_s=None)
        if router.policy is not None and router.embedder is None and "dense" in router.policy.needs:
            raise RouteError(
                "this policy reads embeddings: name its embedder with --embedder, or fit --features lexical"
            )
        texts = iter([text]) if text is not None else _lines(file)
        table = Table("decision", "label", "score", "reason", "input")
        n = 0
        while batch := list(islice(texts, _BATCH)):
            for given, answer in zip(batch, router.route_many(batch), strict=True):
                n += 1
                if json:
                    sys.stdout.write(jsonlib.dumps(_facts(given, answer), ensure_ascii=False) + "\n")
                else:
                    word = "[green]handled[/]" if answer.handled else "[yellow]deferred[/]"
                    shown = given if len(given) <= 90 else given[:87] + "..."
                    label = answer.label or f"({answer.surrogate_label or '-'})"
                    table.add_row(word, escape(label), f"{answer.score:.3f}", answer.reason, escape(shown))
        if not n:
            raise RouteError("there is no text to route: give one, a --file, or lines on standard input")
        if not json:
            out.print(table)


def _lines(file: Path | None) -> Iterator[str]:
    try:
        stream = file.open(encoding="utf-8", errors="replace") if file is not None else sys.stdin
    except OSError as error:
        raise RouteError(f"{file}: cannot be read: {error.strerror}") from error
    with stream:
        for number, raw in enumerate(stream, 1):
            line = raw.rstrip("\n")
            if not line.strip():
                continue
            yield _input_of(line, f"{file or 'standard input'}:{number}")


def _input_of(line: str, where: str) -> str:
    """A JSON object's input, or the line itself."""
    if not line.lstrip().startswith("{"):
        return line
    try:
        record = jsonlib.loads(line)
    except jsonlib.JSONDecodeError:
        return line
    for key in ("input", "query", "text", "prompt", "question"):
        if isinstance(record.get(key), str):
            return str(record[key])
    raise RouteError(f"{where}: a JSON object without a text under input, query, text, prompt or question")


def _facts(text: str, answer: Answer) -> dict[str, Any]:
    finite = answer.score == answer.score and abs(answer.score) != float("inf")
    return {
        "input": text,
        "decision": "handled" if answer.handled else "deferred",
        "label": answer.label,
        "surrogate_label": answer.surrogate_label,
        "score": answer.score if finite else None,
        "threshold": answer.threshold if abs(answer.threshold) != float("inf") else None,
        "reason": answer.reason,
        "policy": answer.policy,
    }
