"""Coverage and agreement of one fit: on all traces, with lexical features alone, and on few traces over ten seeds.

python -m benchmarks.core --data FOLDER [--only SECTION]
"""

from __future__ import annotations

import argparse
import time
from statistics import mean
from typing import Any

import numpy as np

from benchmarks.common import (
    TITLES,
    Cells,
    Task,
    arguments,
    draw,
    footer,
    interval,
    load_task,
    on_test,
    share,
    table,
    write_result,
)
from tracer import pipeline
from tracer.config import FitConfig
from tracer.pipeline import Refused
from tracer.policies.policy import Policy
from tracer.types import Dataset

_SWEEP = (0.80, 0.85, 0.90, 0.95)
_SEEDS = tuple(range(10))


def one(task: Task, train: Dataset, config: FitConfig, *, names: bool = True) -> dict[str, Any]:
    """Fit on ``train``, and count on the test traces."""
    began = time.perf_counter()
    encodings = None
    if names and config.features != "lexical":
        encodings = task.encodings
    verdict = pipeline.fit(train, config, encodings=encodings)
    seconds = round(time.perf_counter() - began, 2)
    base: dict[str, Any] = {"target": config.target, "n_train": len(train), "fit_s": seconds}
    if isinstance(verdict, Refused):
        return base | {"verdict": "refused", "statement": verdict.refusal.statement()}
    certificate = verdict.certificate
    return base | {
        "verdict": certificate.guarantee,
        "family": verdict.policy.family,
        "surrogate": verdict.policy.candidate.name,
        "shadow": {"n": certificate.n_shadow, "n_handled": certificate.n_handled, "n_agreed": certificate.n_agreed},
        "test": on_test(verdict.policy, task.test),
        "rest": _on_rest(verdict.policy, task, train),
    }


def _on_rest(policy: Policy, task: Task, train: Dataset) -> dict[str, int] | None:
    """Counts on the traces of the training file that were not drawn; None where all were."""
    drawn = set(train.ids)
    rows = np.array([i for i, key in enumerate(task.train.ids) if key not in drawn], dtype=np.intp)
    return on_test(policy, task.train.take(rows)) if len(rows) else None


def show(label: str, row: dict[str, Any]) -> None:
    """One line a fit."""
    if row["verdict"] == "refused":
        print(f"{label}: refused in {row['fit_s']} s. {row['statement']}")
        return
    test = row["test"]
    agreement = test["n_agreed"] / max(test["n_handled"], 1)
    print(
        f"{label}: {row['verdict']}, {row['family']}, coverage {test['n_handled'] / test['n']:.4f}, "
        f"agreement {agreement:.4f}, {row['fit_s']} s"
    )


def premise(text: str) -> str:
    """What ties NLI rows together."""
    return text.split("\n", 1)[0]


def main() -> None:
    """Run the sections and write a results file for each."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", action="append", choices=["banking77", "clinc150"], help="a section")

    given = arguments(__doc__ or "", add)
    sizes = {"banking77": 2001, "clinc150": 3600}
    for name in given.only or (["banking77"] if given.quick else sizes):
        task = load_task(given.data, name)
        write_result(f"core_{name}", measure(task, sizes[name], quick=given.quick), quick=given.quick)


def measure(task: Task, few: int, *, quick: bool) -> dict[str, Any]:
    """All of one intent set; ``few`` is the size of the small draws."""
    cells = Cells(f"core-{task.name}", task.digest, quick=quick)
    targets, seeds = (_SWEEP[-1:], _SEEDS[:2]) if quick else (_SWEEP, _SEEDS)

    def get(label: str, n: int, seed: int, **settings: Any) -> dict[str, Any]:
        row: dict[str, Any] = cells.get(
            f"{label} {n} {seed}",
            lambda: (
                one(task, draw(task.train, n, seed), FitConfig.from_dict({"ledger": "promotion"} | settings))
                | {"seed": seed}
            ),
        )
        show(f"{task.name} {label}, {n} traces, seed {seed}", row)
        return row

    n = len(task.train)
    return {
        "data": task.name,
        "digest": task.digest,
        "sweep": [get(f"both {t}", n, 0, targets=[t]) for t in targets],
        "lexical": [get(f"lexical {t}", n, 0, targets=[t], features="lexical") for t in targets],
        "small": [get("certified", few, seed) for seed in seeds],
        "small_estimated": [get("estimated", few, seed, guarantee="estimated") for seed in seeds],
    }


# --- the page ------------------------------------------------------------------------------------------------


def render(result: dict[str, Any]) -> str:
    """One intent set: all traces, lexical alone, and few traces over ten seeds."""
    small = result["small"]
    return f"""## All at once, and few: {TITLES[result["data"]]}

{result["sweep"][0]["n_train"]:,} traces in random order (seed 0) in one fit, lexical and dense features, lean pool, a fifth of them
to certify:

{_sweep_table(result["sweep"])}

Lexical features alone, no embeddings:

{_sweep_table(result["lexical"])}

{small[0]["n_train"]:,} traces drawn at random, target {small[0]["target"]:g}, {len(small)} seeds:

- certified, on the test file: {_seeds(small, "test")};
- certified, on the rest of the training file: {_seeds(small, "rest")};
- estimated (no guarantee), on the test file: {_seeds(result["small_estimated"], "test")};
- estimated, on the rest of the training file: {_seeds(result["small_estimated"], "rest")}.

A certificate speaks of traffic like the traces it was made from, here the training file. Where a test file is harder than
its training file, as CLINC150's is, a certificate made on the latter says nothing about the former: that is what drift does,
and only labels from live traffic can tell.

{footer(result)}
"""


def _sweep_table(rows: list[dict[str, Any]]) -> str:
    head = ["target", "policy", "coverage, shadow", "coverage, test", "agreement, test (95% interval)",
            "accuracy, end to end"]  # fmt: skip
    return table(head, map(_line, rows))


def _line(row: dict[str, Any]) -> list[str]:
    target = f"{row['target']:g}"
    if row["verdict"] == "refused":
        return [target, "refused", "-", "-", "-", "-"]
    test, shadow = row["test"], row["shadow"]
    return [
        target,
        f"{row['family']}: {row['surrogate']}",
        share(shadow["n_handled"], shadow["n"]),
        share(test["n_handled"], test["n"]),
        interval(test["n_agreed"], test["n_handled"]),
        share(test["n_right"], test["n"]),
    ]


def _seeds(rows: list[dict[str, Any]], where: str) -> str:
    """Mean over seeds, refusals counting as coverage 0."""
    coverages, below, agreed, handled = [], 0, 0, 0
    for row in rows:
        if row["verdict"] == "refused":
            coverages.append(0.0)
            continue
        test = row[where]
        coverages.append(test["n_handled"] / test["n"])
        below += test["n_agreed"] < row["target"] * test["n_handled"]
        agreed, handled = agreed + test["n_agreed"], handled + test["n_handled"]
    return (
        f"mean coverage {mean(coverages):.3f} (from {min(coverages):.3f} to {max(coverages):.3f}), pooled agreement "
        f"{share(agreed, handled)}, below the target in {below} of {len(rows)} seeds"
    )


if __name__ == "__main__":
    main()
