"""An update against a fit from scratch: equal decisions, and what it costs at 100,000 traces.

Equality: two copies of one home are updated with the same new traces, one from what the last fit left, one without it
(everything is trained anew); their candidates decide on the official test rows. Cost: see ``speed_growth`` for how the
traces are drawn.

python -m benchmarks.flywheel_update --data FOLDER [--quick]
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from benchmarks.common import (
    QUICK_ROWS,
    Cells,
    arguments,
    draw,
    footer,
    load_part,
    load_task,
    share,
    table,
    write_result,
)
from benchmarks.speed_growth import UPDATED, World
from tracer import flywheel, pipeline
from tracer.config import FitConfig
from tracer.flywheel.homes import WARM
from tracer.pipeline import Certified
from tracer.policies.policy import Policy
from tracer.types import Dataset

_T = TypeVar("_T")
_REVISION = 1
TARGET = 0.95
ADDED = (0.01, 0.05, 0.10)
TITLES = {"banking77": "Banking77", "clinc150": "CLINC150"}
_SIZES = {"banking77": (2000, 5000), "clinc150": (5000,)}


def _candidate(verdict: pipeline.Verdict) -> Policy:
    """The new policy, also where the gate refused it or the old one stays."""
    policy = verdict.policy if isinstance(verdict, Certified) else verdict.best
    assert policy is not None
    return policy


def equality(train: Dataset, test: Dataset, n: int, seed: int) -> list[dict[str, Any]]:
    """Counts of equal labels and equal decisions on the test rows, after updates with 1%, 5% and 10% more."""
    rows = draw(train, len(train), seed)
    config = FitConfig(targets=(TARGET,), shadow_share=0.2)
    out = []
    with tempfile.TemporaryDirectory() as folder:
        first = Path(folder) / "first"
        flywheel.fit(rows.take(np.arange(n)), home=first, config=config)
        for added in ADDED:
            more = rows.take(np.arange(n, n + round(added * n)))
            verdicts = {}
            for kind in ("warm", "scratch"):
                home = Path(folder) / f"{kind} {added}"
                shutil.copytree(first, home)
                if kind == "scratch":
                    (home / WARM).unlink()
                verdicts[kind] = flywheel.update(more, home=home)
            warm, scratch = (_candidate(v).decide(test.texts, test.dense) for v in verdicts.values())
            same = np.array([a == b for a, b in zip(warm.labels, scratch.labels, strict=True)])
            out.append({
                "n": n, "added": added, "n_test": len(test), "n_same_label": int(same.sum()),
                "n_same": int(((warm.handled == scratch.handled) & (~warm.handled | same)).sum()),
                "n_trainings": {kind: v.report.n_trainings for kind, v in verdicts.items()},
                "seconds": {kind: round(sum(v.report.seconds.values()), 3) for kind, v in verdicts.items()},
                "coverage": {kind: round(v.certificate.coverage, 4) if isinstance(v, Certified) else None
                             for kind, v in verdicts.items()},
            })  # fmt: skip
    return out


def measure_update(world: World, n: int, added: int) -> dict[str, Any]:
    """A fit and a refit with a hundredth more; once in memory, once in a home folder, store included."""
    config = FitConfig(targets=(TARGET,), shadow_share=0.2)
    first, more = world.draw(n, 1, texts=True), world.draw(added, 2, texts=True, first=n)
    both = _together(first, more)
    before, fit_s = _timed(lambda: pipeline.refit(first, config))
    after, refit_s = _timed(lambda: pipeline.refit(both, config, warm=before.warm))
    with tempfile.TemporaryDirectory() as home:
        _, home_fit_s = _timed(lambda: flywheel.fit(first, home=home, config=config))
        _, home_update_s = _timed(lambda: flywheel.update(more, home=home))
    verdicts = {"fit": before.verdict, "update": after.verdict}
    return {
        "n": n, "added": added, "fit_s": round(fit_s, 2), "update_s": round(refit_s, 2),
        "home_fit_s": round(home_fit_s, 2), "home_update_s": round(home_update_s, 2),
        "seconds": {k: {s: round(t, 2) for s, t in v.report.seconds.items()} for k, v in verdicts.items()},
        "n_trainings": {k: v.report.n_trainings for k, v in verdicts.items()},
        "coverage": {k: round(v.certificate.coverage, 4) for k, v in verdicts.items() if isinstance(v, Certified)},
    }  # fmt: skip


def _together(first: Dataset, more: Dataset) -> Dataset:
    assert first.texts is not None
    assert more.texts is not None
    assert first.dense is not None
    assert more.dense is not None
    return Dataset.from_columns(
        first.labels + more.labels, texts=first.texts + more.texts, dense=np.concatenate([first.dense, more.dense]),
        embedder=first.embedder, ids=first.ids + more.ids,
    )  # fmt: skip


def _timed(call: Callable[[], _T]) -> tuple[_T, float]:
    began = time.perf_counter()
    return call(), time.perf_counter() - began


def _run(data: Path, path: Path, n: int) -> dict[str, Any]:
    """The timing, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.flywheel_update", "--data", str(data), "--one", str(path), str(n)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=7200)
    if done.returncode:
        raise RuntimeError(f"update of {n} failed:\n{done.stderr[-2000:]}")
    cell: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    print("update", n, cell, flush=True)
    return cell


def render(result: Mapping[str, Any]) -> str:
    """The section of docs/benchmarks.md."""
    rows = []
    for name, cells in result["equality"].items():
        for cell in cells:
            coverage = [cell["coverage"][kind] for kind in ("warm", "scratch")]
            rows.append([
                TITLES[name], f"{cell['n']:,}", f"{cell['added']:.0%}", f"{cell['n_same']:,} of {cell['n_test']:,}",
                share(cell["n_same"], cell["n_test"]), share(cell["n_same_label"], cell["n_test"]),
                " / ".join(str(cell["n_trainings"][kind]) for kind in ("warm", "scratch")),
                " / ".join("refused" if c is None else f"{c:.3f}" for c in coverage),
            ])  # fmt: skip
    head = ["data", "traces", "more", "equal decisions on test rows", "share", "equal labels, handled or not",
            "trainings: update / scratch", "coverage: update / scratch"]  # fmt: skip
    update = result["update"]
    return f"""## An update against a fit from scratch

Two copies of one home get the same new traces; one update starts from what the last fit left, the other trains everything
anew. A decision is equal where both defer, or both answer with the same label. Candidates are compared, whether or not they
took over; target {TARGET:g}, embeddings and texts.

{table(head, rows)}

Time: {update["n"]:,} drawn traces (see *Growth*) with {update["added"]:,} more, embeddings and texts. Trained and certified in
memory, the update took {update["update_s"] / update["fit_s"]:.3f} of the time of the fit before it ({update["update_s"]} s and
{update["fit_s"]} s); in a home folder, with the store on disk, policies and artefacts,
{update["home_update_s"] / update["home_fit_s"]:.3f} ({update["home_update_s"]} s and {update["home_fit_s"]} s).

{footer(dict(result))}
"""


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--one", nargs=2, metavar=("WORLD", "N"), help=argparse.SUPPRESS)


def main() -> None:
    """Equality first, the timing last and alone."""
    given = arguments(__doc__ or "", _add)
    if given.one:
        n = int(given.one[1])
        json.dump(measure_update(World.load(Path(given.one[0])), n, n // 100), sys.stdout)
        return
    cells = Cells("flywheel_update", "stamps in keys", revision=_REVISION, quick=given.quick)
    found: dict[str, list[dict[str, Any]]] = {}
    for name, sizes in _SIZES.items():
        task = load_task(given.data, name, limit=QUICK_ROWS if given.quick else None)
        for n in (1000,) if given.quick else sizes:
            measured = cells.get(f"{task.digest} {n}", lambda: equality(task.train, task.test, n, 0))  # noqa: B023
            found.setdefault(name, []).extend(measured)
            print(name, n, measured, flush=True)
    part = load_part(given.data / "clinc150" / "train.jsonl", limit=QUICK_ROWS if given.quick else None)
    n = QUICK_ROWS if given.quick else UPDATED
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "world.npz"
        World(part.dataset).save(path)
        update = cells.get(f"{part.digest} update {n}", lambda: _run(given.data, path, n))
    write_result(
        "flywheel_update", {"digest": part.digest[:16], "equality": found, "update": update}, quick=given.quick
    )


if __name__ == "__main__":
    main()
