"""NLI, the negative control: three sizes, three targets, two teachers, two modes.

Each configuration draws its traces at random from the training file, rows grouped by premise. The paper's control used
gold labels of another NLI set in place of a teacher; here both the LLM's labels and gold labels are tried.

python -m benchmarks.refusals --data FOLDER [--quick]
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

from benchmarks.common import (
    QUICK_ROWS,
    Cells,
    Task,
    arguments,
    draw,
    footer,
    interval,
    load_task,
    on_test,
    table,
    write_result,
)
from benchmarks.core import premise
from tracer import pipeline
from tracer.config import FitConfig
from tracer.pipeline import Refused
from tracer.types import Dataset, LabelSpace

SIZES = (2000, 5000, 9838)
TARGETS = (0.85, 0.90, 0.95)
TEACHERS = {"llm": "the LLM (PaLM-540B)", "gold": "gold labels"}
MODES = ("certified", "paper")
SEED = 0


def taught_by(task: Task, teacher: str) -> Task:
    """The task with the LLM's labels, or with the gold labels in their place."""
    return task if teacher == "llm" else replace(task, train=_gold(task.train), test=_gold(task.test))


def _gold(dataset: Dataset) -> Dataset:
    labels = tuple(str(truth) for truth in dataset.truth)
    space = LabelSpace.observed(labels)
    return replace(dataset, labels=labels, space=space, y=space.encode(labels))


def one(task: Task, n: int, target: float, mode: str) -> dict[str, Any]:
    """One configuration: the verdict, and counts on the test traces where a policy was promoted."""
    config = FitConfig.from_dict({"targets": [target], "mode": mode, "ledger": "promotion"})
    verdict = pipeline.fit(draw(task.train, n, SEED), config, encodings=task.encodings)
    if isinstance(verdict, Refused):
        return {"promoted": False, "statement": verdict.refusal.statement(), "test": None}
    certificate = verdict.certificate
    gate = {"n": certificate.n_shadow, "n_handled": certificate.n_handled, "n_agreed": certificate.n_agreed}
    return {"promoted": True, "statement": "", "gate": gate, "test": on_test(verdict.policy, task.test)}


def main() -> None:
    """All configurations."""
    given = arguments(__doc__ or "")
    task = load_task(given.data, "nli", group_by=premise, limit=QUICK_ROWS if given.quick else None)
    cells = Cells("refusals", task.digest, quick=given.quick)
    rows = []
    for teacher in TEACHERS:
        taught = taught_by(task, teacher)
        for mode in MODES:
            for n in SIZES[:1] if given.quick else SIZES:
                for target in TARGETS:
                    settings = {"teacher": teacher, "mode": mode, "n_traces": n, "target": target}
                    cell = cells.get(str(settings), partial(one, taught, n, target, mode))
                    rows.append(settings | cell)
                    print(*settings.values(), "promoted" if cell["promoted"] else "refused", cell["test"], flush=True)
    content = {"data": "nli", "digest": task.digest, "seed": SEED, "rows": rows}
    write_result("refusals", content, quick=given.quick)


def render(result: dict[str, Any]) -> str:
    """One row a teacher, mode and size; the statement of one refusal."""
    rows = result["rows"]
    targets = sorted({r["target"] for r in rows})
    lines = []
    for teacher, mode, n in dict.fromkeys((r["teacher"], r["mode"], r["n_traces"]) for r in rows):
        same = {r["target"]: r for r in rows if (r["teacher"], r["mode"], r["n_traces"]) == (teacher, mode, n)}
        lines.append([TEACHERS[teacher], mode, f"{n:,}", *(_verdict(same[t]) for t in targets)])
    counts = ", ".join(
        f"{mode}: {sum(not r['promoted'] for r in rows if r['mode'] == mode)} of {sum(r['mode'] == mode for r in rows)}"
        for mode in MODES
    )
    refused = [r for r in rows if not r["promoted"] and r["mode"] == "certified"]
    said = max(refused, key=lambda r: (r["n_traces"], r["teacher"] == "llm"), default=None)
    return f"""## NLI, the negative control

Premise and hypothesis in one text, rows grouped by premise, drawn with seed {result["seed"]}. Frozen sentence embeddings do not
hold the relation of two sentences, so a gate should refuse. Refused: {counts}. (The paper: 9 of 9, on MNLI with gold labels.)

{table(["teacher", "mode", "traces", *(f"{t:g}" for t in targets)], lines)}

{_said(said)}{footer(result)}
"""


def _said(refusal: dict[str, Any] | None) -> str:
    if refusal is None:
        return ""
    where = f"At {refusal['n_traces']:,} traces and target {refusal['target']:g}"
    return f"A refusal says why. {where}:\n\n> {refusal['statement']}\n\n"


def _verdict(row: dict[str, Any]) -> str:
    if not row["promoted"]:
        return "refused"
    test = row["test"]
    return f"promoted: handles {test['n_handled']} of {test['n']:,}, agreement {interval(test['n_agreed'], test['n_handled'])}"


if __name__ == "__main__":
    main()
