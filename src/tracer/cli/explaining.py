"""Verbs that explain decisions: explain and compare."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from tracer import flywheel
from tracer.cli import options
from tracer.cli.common import errors_as_exits, out, percent, print_json
from tracer.config import FitConfig
from tracer.errors import PolicyError, RouteError, TraceError
from tracer.explanations import deltas
from tracer.explanations.deltas import Delta, Deltas
from tracer.explanations.examples import clip
from tracer.explanations.plain import to_plain
from tracer.explanations.rows import table_of
from tracer.explanations.table import RoutingTable
from tracer.explanations.why import Explanation, Neighbour, explain
from tracer.features.dense import checked
from tracer.policies.policy import Embed, Policy
from tracer.policies.registry import OFF, PolicyRegistry
from tracer.reporting.texts import clean, presentable
from tracer.serving.router import Router, switched_off
from tracer.traces.rooms import normalised
from tracer.types import Dataset, Float32

_ROWS = 20
_WIDTH = 90


def stored(home: Path) -> tuple[Dataset, FitConfig]:
    """The stored traces and the settings of a home. Raises TraceError where nothing was fitted."""
    settings = flywheel.Settings.read(home)
    if settings is None:
        raise TraceError(f"{home}: nothing was fitted here yet; run `tracer fit` first")
    return flywheel.stored_traces(home, settings), settings.config


def explain_text(
    text: Annotated[str, typer.Argument(help="The text to explain.")],
    home: options.Home = Path(flywheel.HOME),
    version: Annotated[str | None, typer.Option("--policy", help="Another version than the active one.")] = None,
    embedder: options.Embedder = None,
    json: options.Json = False,
) -> None:
    """Why a text is handled or deferred: score and threshold, classes, nearest traces, and the words that moved it."""
    with errors_as_exits():
        router = Router.load(home, version=version, embedder=embedder, reload_s=None)
        policy = router.policy
        if policy is None:
            raise PolicyError(
                f"{home}: no policy is active: everything goes to the teacher, nothing is to be explained"
            )
        dataset, config = stored(home)
        given = router.embedder if "dense" in policy.needs else None
        embed = None if given is None else partial(checked, given)
        try:
            table = table_of(policy, dataset, config)
        except (PolicyError, TraceError) as error:
            # No row may be shown: the decision is explained without neighbours, and the reason is told.
            table = RoutingTable.of(policy, dataset.take(np.arange(0)), str(error))
        found = explain(policy, text, _vector(policy, text, dataset, embed), table, embed)
        off = switched_off() or (home / OFF).exists()
        if json:
            print_json(presentable(to_plain(found) | {"switched_off": off}))
        else:
            _show(found)
            if off:
                out.print("[yellow]switched off[/]: as things stand everything goes to the teacher, this text too")


def _vector(policy: Policy, text: str, dataset: Dataset, embed: Embed | None) -> Float32 | None:
    """The text's embedding: from the embedder, else that of a stored trace which reads the same."""
    if "dense" not in policy.needs:
        return None
    if embed is not None:
        return np.asarray(embed([text])[0])
    wanted = normalised(text)
    if dataset.dense is not None:
        for row, known in enumerate(dataset.texts or ()):
            if normalised(known) == wanted:
                return np.asarray(dataset.dense[row])
    raise RouteError(
        "this policy reads embeddings, and no stored trace has this text: name its embedder with --embedder"
    )


def _show(found: Explanation) -> None:
    word = "[green]handled[/]" if found.handled else "[yellow]deferred[/]"
    score = "barred" if found.score is None else f"score {found.score:.4f}"
    stage = ", answered by the lexical stage" if found.stage == 1 else ""
    out.print(f"{word} by policy {found.policy} ({found.reason}): {score}, threshold {found.threshold:.4g}{stage}")
    classes = Table("label", "probability", title="the surrogate's classes")
    for share in found.classes:
        classes.add_row(_cell(share.label), percent(share.probability))
    out.print(classes)
    if found.pieces and found.lead is not None:
        parts = ""
        if found.lead_of_words is not None:
            rest = found.lead - found.lead_of_words
            parts = f" ({found.lead_of_words:+.3f} by words, {rest:+.3f} by all else)"
        leads = f"{_cell(found.label)} leads {_cell(found.runner_up or '')} by {found.lead:+.3f}{parts}"
        out.print(f"{leads}; what moved it most:")
        pieces = Table("text", "kind", "adds")
        for piece in found.pieces:
            pieces.add_row(_cell(repr(piece.text)), piece.kind, f"{piece.contribution:+.3f}")
        out.print(pieces)
    if found.near_handled or found.near_deferred:
        near = Table("decision", "cosine", "surrogate", "teacher", "score", "trace", title="nearest traces")
        for neighbour in (*found.near_handled, *found.near_deferred):
            _add_neighbour(near, neighbour)
        out.print(near)
    for words in (*found.how, f"traces: {found.stands_on}"):
        out.print(f"[dim]{escape(words)}[/]")


def _add_neighbour(table: Table, neighbour: Neighbour) -> None:
    trace = neighbour.trace
    word = "[green]handled[/]" if trace.handled else "[yellow]deferred[/]"
    score = "barred" if trace.score is None else f"{trace.score:.3f}"
    cells = (_cell(trace.predicted), _cell(trace.label), score, _cell(trace.text or trace.id))
    table.add_row(word, f"{neighbour.similarity:.3f}", *cells)


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A policy version, such as v0001.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another version.")],
    home: options.Home = Path(flywheel.HOME),
    everything: Annotated[bool, typer.Option("--all", help="All labels and inputs, not only the first 20.")] = False,
    json: options.Json = False,
) -> None:
    """Two policies on traces that neither trained on: what changed by label, and which inputs changed hands."""
    with errors_as_exits():
        registry = PolicyRegistry(home)
        dataset, config = stored(home)
        old, new = registry.load(before), registry.load(after)
        table = table_of(new, dataset, config, old)
        earlier = table_of(old, dataset, config, new)
        found = deltas.compare(earlier, table)
        if json:
            facts = to_plain(found)
            facts["moved"] = to_plain(deltas.changed_hands(earlier, table))
            print_json(presentable({"before": before, "after": after, "stands_on": table.stands_on, **facts}))
            return
        out.print(f"{before} and {after} on {escape(table.stands_on)}")
        _show_deltas(found, before, after, None if everything else _ROWS)
        moved = deltas.changed_hands(earlier, table)
        hands = Table("now", "surrogate before", "surrogate now", "teacher", "trace", title="inputs that changed hands")
        for change in moved if everything else moved[:_ROWS]:
            word = "[green]handled[/]" if change.gained else "[yellow]deferred[/]"
            row = change.row
            cells = (_cell(change.predicted_before), _cell(row.predicted), _cell(row.label), _cell(row.text or row.id))
            hands.add_row(word, *cells)
        if moved:
            _more(hands, len(moved), everything)
            out.print(hands)
        else:
            out.print("no input changed hands")


def _show_deltas(found: Deltas, before: str, after: str, limit: int | None) -> None:
    table = Table(
        "label",
        "traces",
        f"handled {before}",
        f"handled {after}",
        f"agreement {before}",
        f"agreement {after}",
        "noise?",
    )
    changed = [d for d in found.labels if d.n_gained or d.n_lost or d.n_better or d.n_worse]
    for delta in (found.overall, *changed[:limit]):
        table.add_row(*_cells(delta))
    _more(table, len(changed), limit is None)
    out.print(table)
    same = len(found.labels) - len(changed)
    out.print(
        f"{same:,} labels did not change; marked: beyond noise, of all marks {found.level:.0%} at most expected false"
    )


def _cells(delta: Delta) -> tuple[str, ...]:
    marks = [
        word
        for word, beyond in (("handled", delta.handled_beyond_noise), ("agreement", delta.agreement_beyond_noise))
        if beyond
    ]
    return (
        _cell(delta.label),
        f"{delta.n:,}",
        percent(delta.n_handled_before / delta.n),
        percent(delta.n_handled_after / delta.n),
        percent(delta.n_agreed_before / delta.n_handled_before if delta.n_handled_before else None),
        percent(delta.n_agreed_after / delta.n_handled_after if delta.n_handled_after else None),
        " and ".join(marks) + " beyond" if marks else "within",
    )


def _more(table: Table, n: int, everything: bool) -> None:
    if not everything and n > _ROWS:
        table.caption = f"{n - _ROWS:,} more: use --all"


def _cell(text: str) -> str:
    """A stranger's text for a terminal: cut, on one line, no control characters, no markup."""
    return escape(clean(clip(" ".join(text.split()), _WIDTH)))
