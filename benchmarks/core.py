"""Coverage and agreement on test traces never used before: Banking77, CLINC150, NLI.

python -m benchmarks.core --data FOLDER [--only SECTION]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.common import Task, arguments, draw, load_task, on_test, write_result
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


def sweep(task: Task, **settings: Any) -> list[dict[str, Any]]:
    """All training traces in a random order, at each target."""
    rows = []
    for target in _SWEEP:
        row = one(task, draw(task.train, len(task.train), 0), FitConfig(targets=(target,), **settings))
        show(f"{task.name} all, target {target}", row)
        rows.append(row)
    return rows


def draws(task: Task, n: int, **settings: Any) -> list[dict[str, Any]]:
    """``n`` traces at random, ten seeds, target 0.95."""
    rows = []
    for seed in _SEEDS:
        row = one(task, draw(task.train, n, seed), FitConfig(targets=(0.95,), **settings)) | {"seed": seed}
        show(f"{task.name} {n}, seed {seed}", row)
        rows.append(row)
    return rows


def premise(text: str) -> str:
    """What ties NLI rows together."""
    return text.split("\n", 1)[0]


def main() -> None:
    """Run the sections and write a results file for each."""

    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--only", action="append", help="a section: banking77, clinc150, nli")

    given = arguments(__doc__ or "", add)
    sections: dict[str, Callable[[], dict[str, Any]]] = {
        "banking77": lambda: _intents(load_task(given.data, "banking77"), 2001),
        "clinc150": lambda: _intents(load_task(given.data, "clinc150"), 3600),
        "nli": lambda: _nli(load_task(given.data, "nli", group_by=premise)),
    }
    for name in given.only or sections:
        write_result(f"core_{name}", sections[name]())


def _intents(task: Task, small: int) -> dict[str, Any]:
    return {
        "data": task.name,
        "digest": task.digest,
        "sweep": sweep(task),
        "lexical": sweep(task, features="lexical"),
        "small": draws(task, small),
        "small_estimated": draws(task, small, guarantee="estimated"),
    }


def _nli(task: Task) -> dict[str, Any]:
    rows = []
    for target in (0.85, 0.90, 0.95):
        row = one(task, draw(task.train, len(task.train), 0), FitConfig(targets=(target,)))
        show(f"nli all, target {target}", row)
        rows.append(row)
    return {"data": task.name, "digest": task.digest, "sweep": rows}


if __name__ == "__main__":
    main()
