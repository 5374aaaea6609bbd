"""What each part brings, on the training file alone: fit on some rows of it, measure on the others.

The official test sets play no part here. Coverage is the largest share that reaches an agreement with hindsight (an
oracle threshold), so parts are compared before any gate.

python -m benchmarks.ablations --data FOLDER
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.common import Task, arguments, footer, load_task, silent, write_result
from tracer.features.lexical import LexicalFeatures
from tracer.learning import fitting, pool, selection
from tracer.learning.candidates import Rules
from tracer.learning.crossfit import Anchors, CrossFit, Member, cross_fit
from tracer.learning.fitting import OutOfFoldNeighbours, RuleSettings
from tracer.pipeline.training import anchors_of
from tracer.traces.rooms import fold_ids
from tracer.types import Bool, Float32, Float64, Int32

_TARGETS = (0.95, 0.97, 0.98)
_SETTINGS = RuleSettings("off", Rules())
_Cells = dict[str, list[dict[str, float]]]


def measure(scores: Float64, agree: Bool) -> dict[str, float]:
    """Agreement, AUGRC and oracle coverages on the held-out rows."""
    out = {"agreement": float(agree.mean()), "augrc": selection.augrc(scores, agree)}
    return out | {f"coverage_{t:g}": selection.coverage_at(scores, agree, t) for t in _TARGETS}


def run(task: Task, n: int, seed: int, cells: _Cells) -> None:
    """One split: ``n`` rows to fit, the rest of the training file to measure."""
    rows = np.random.default_rng(seed).permutation(len(task.train))
    room, rest = task.train.take(rows[:n]), task.train.take(rows[n:])
    folds = fold_ids(task.train, rows[:n], 5)
    lexical = LexicalFeatures.fit(room.texts or ())
    assert room.dense is not None
    assert rest.dense is not None
    blocks = {"lexical": lexical.transform(room.texts or ()), "dense": room.dense}
    held = {"lexical": lexical.transform(rest.texts or ()), "dense": rest.dense}
    recipes = pool.learners("lean", frozenset({"lexical", "dense"}))
    for names in (True, False):
        anchors: Anchors | None = anchors_of(room.space, lexical, task.encodings) if names else None
        cross = cross_fit(recipes, blocks, room.y, folds, len(room.space), 0, silent, anchors)  # type: ignore[arg-type]
        for label, members in _combinations(cross):
            suffix = "" if names else ", without label names"
            built = fitting.build(members, room.y, folds, len(room.space), _SETTINGS)
            scored = built.candidate.score(held)  # type: ignore[arg-type]
            agree = scored.predicted == rest.y
            cells[label + suffix].append(measure(scored.scores, agree))
            if not names or "+" not in label:
                continue
            views = built.candidate.surrogate.views(held)  # type: ignore[arg-type]
            own = tuple(
                m.logits * np.float32(p.weight) for m, p in zip(members, built.candidate.surrogate.parts, strict=True)
            )
            paper = fitting.fit_acceptor(own, *_predictions(own, room.y), folds, len(room.space), paper=True)
            cells[label + ", the paper's acceptor"].append(measure(paper.probability(paper.features(views)[1]), agree))
            if "kernel" in label:
                continue
            near = OutOfFoldNeighbours.of(room.dense, room.y, folds, len(room.space), 0)
            with_near = fitting.build(members, room.y, folds, len(room.space), _SETTINGS, near)
            scored = with_near.candidate.score(held)  # type: ignore[arg-type]
            cells[label + ", with neighbours"].append(measure(scored.scores, scored.predicted == rest.y))


def _combinations(cross: CrossFit) -> Iterable[tuple[str, tuple[Member, ...]]]:
    by_name = {f"{m.learner.block} {m.learner.family}": m for m in cross.members}
    linear, kernel, text = (by_name.get(k) for k in ("dense logistic", "dense kernel", "lexical logistic"))
    assert linear is not None
    assert text is not None
    yield "lexical", (text,)
    yield "dense", (linear,)
    yield "dense + lexical", (linear, text)
    if kernel is not None:
        yield "kernel", (kernel,)
        yield "kernel + lexical", (kernel, text)
        yield "dense + kernel + lexical", (linear, kernel, text)


def _predictions(views: tuple[Float32, ...], y: Int32) -> tuple[Int32, Bool]:
    predicted = np.sum(views, axis=0).argmax(axis=1).astype(np.int32)
    return predicted, predicted == y


def main() -> None:
    """Run the splits and write the results."""
    given = arguments(__doc__ or "")
    task = load_task(given.data, "banking77")
    sizes: dict[str, Any] = {}
    for n, seeds in ((1600, range(1)),) if given.quick else ((1600, range(5)), (8000, range(2))):
        cells: _Cells = defaultdict(list)
        for seed in seeds:
            run(task, n, seed, cells)
        table = {name: {k: round(mean(r[k] for r in rows), 5) for k in rows[0]} for name, rows in cells.items()}
        sizes[str(n)] = {"seeds": list(seeds), "cells": table}
        print(f"{n} rows to fit, {len(list(seeds))} seeds")
        for name, row in table.items():
            shown = "  ".join(f"{k} {v:.4f}" for k, v in row.items())
            print(f"  {name:52s} {shown}")
    write_result("ablations", {"data": task.name, "digest": task.digest, "sizes": sizes}, quick=given.quick)


def render(result: dict[str, Any]) -> str:
    """A table a size."""
    parts = ["## What each part brings\n"]
    parts.append(
        "Banking77's training file alone: fitted on some rows, measured on the others, mean over seeds. Coverage is the\n"
        "largest that reaches the agreement with hindsight, so parts are compared before any gate.\n"
    )
    for n, size in result["sizes"].items():
        parts.append(f"{int(n):,} rows to fit, {len(size['seeds'])} seeds:\n")
        parts.append(
            "| parts | agreement | AUGRC x 1000 | coverage at 0.95 | at 0.97 | at 0.98 |\n|---|---|---|---|---|---|"
        )
        for name, cell in size["cells"].items():
            parts.append(
                f"| {name} | {cell['agreement']:.3f} | {cell['augrc'] * 1000:.2f} | {cell['coverage_0.95']:.3f} "
                f"| {cell['coverage_0.97']:.3f} | {cell['coverage_0.98']:.3f} |"
            )
        parts.append("")
    parts.append(footer(result) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    main()
