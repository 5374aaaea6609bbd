"""Deciding: one input, a million, on several processes; and what a router costs to start and to keep.

Times are medians of many laps in one process on one machine, beside the bare product of an embedding and a matrix of
the head's shape, measured in the same laps.

python -m benchmarks.speed_serving --data FOLDER
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import QUICK_ROWS, TITLES, Task, arguments, draw, footer, load_task, silent, table, write_result
from tracer import flywheel, pipeline
from tracer.config import FitConfig
from tracer.features.lexical import LexicalFeatures
from tracer.learning import fitting, pool
from tracer.learning.candidates import Rules
from tracer.learning.crossfit import cross_fit
from tracer.learning.fitting import RuleSettings
from tracer.pipeline import Refused
from tracer.pipeline.certifying import BLANK, reloaded
from tracer.policies.policy import Policy
from tracer.serving.router import Router
from tracer.traces.rooms import fold_ids
from tracer.types import Dataset, Float32

TARGET = 0.95
WORDS = 12
FAMILY_ROWS = 2000
FAMILIES = ("kernel", "mlp", "tree", "forest", "extra-trees")
MANY, TEXTS_MANY = 1_000_000, 50_000
_LAPS, _WARM = 3000, 200
_STARTS = 15
_CHILD = (str(Path(__file__).with_name("one_start.py")),)


def fitted(task: Task, **settings: Any) -> Policy:
    """A policy fitted on all training traces with these settings and all else by default."""
    verdict = pipeline.fit(
        draw(task.train, len(task.train), 0), FitConfig(targets=(TARGET,), ledger="promotion", **settings)
    )
    if isinstance(verdict, Refused):
        raise RuntimeError(f"refused: {verdict.refusal.statement()}")
    return verdict.policy


def of_family(task: Task, family: str) -> Policy:
    """A policy with one head of this family on embeddings, and no certificate; for its speed alone."""
    room = draw(task.train, FAMILY_ROWS, 0)
    assert room.dense is not None
    recipe = next(r for r in pool.learners("full", frozenset({"dense"})) if r.family == family)
    folds = fold_ids(room, np.arange(len(room)), 5)
    cross = cross_fit([recipe], {"dense": room.dense}, room.y, folds, len(room.space), 0, silent)
    built = fitting.build(cross.members, room.y, folds, len(room.space), RuleSettings("rank", Rules()))
    certificate = replace(BLANK, threshold=0.5)
    return reloaded(Policy(room.space, "l2d", built.candidate, certificate, embedder=room.embedder))


def laps(calls: Sequence[Callable[[], object]], n: int) -> list[dict[str, float]]:
    """Median and 99th percentile in microseconds of each call, the calls in turn."""
    times = np.empty((n + _WARM, len(calls)))
    for lap in range(n + _WARM):
        for i, call in enumerate(calls):
            began = time.perf_counter()
            call()
            times[lap, i] = time.perf_counter() - began
    kept = times[_WARM:] * 1e6
    return [{"p50_us": round(float(np.median(t)), 1), "p99_us": round(float(np.quantile(t, 0.99)), 1)} for t in kept.T]


def one_decision(policy: Policy, task: Task, n: int) -> dict[str, Any]:
    """A decision on one input of the test file, in turn with the bare product."""
    reads_text, reads_dense = "lexical" in policy.needs, "dense" in policy.needs
    assert task.test.texts is not None
    assert task.test.dense is not None
    rows = [i for i, text in enumerate(task.test.texts) if len(text.split()) == WORDS][:100]
    texts, vectors = [task.test.texts[i] for i in rows], task.test.dense[rows]
    weights = np.random.default_rng(0).normal(size=(vectors.shape[1], len(policy.space))).astype(np.float32)
    turn = iter(range(10**9))

    def decide() -> object:
        i = next(turn) % len(rows)
        return policy.decide([texts[i]] if reads_text else None, vectors[i : i + 1] if reads_dense else None)

    vector = vectors[0]
    ours, bare = laps([decide, lambda: vector @ weights], n)
    return {
        "surrogate": policy.candidate.name,
        "family": policy.family,
        "labels": len(policy.space),
        "neighbours": policy.candidate.acceptor.prototypes is not None,
        "reads": " and ".join(["text"] * reads_text + ["embedding"] * reads_dense),
        **ours,
        "product_p50_us": bare["p50_us"],
    }


def many(policy: Policy, vectors: Float32, n: int) -> dict[str, Any]:
    """Rows a second on ``n`` embeddings, in turn with the bare product. Best of three each."""
    rng = np.random.default_rng(0)
    block: Float32 = vectors[rng.integers(0, len(vectors), n)]
    weights = rng.normal(size=(vectors.shape[1], len(policy.space))).astype(np.float32)
    ours, bare = [], []
    for _ in range(3):
        began = time.perf_counter()
        np.matmul(block, weights)
        bare.append(time.perf_counter() - began)
        began = time.perf_counter()
        policy.decide(None, block)
        ours.append(time.perf_counter() - began)
    return {
        "surrogate": policy.candidate.name,
        "labels": len(policy.space),
        "neighbours": policy.candidate.acceptor.prototypes is not None,
        "n": n,
        "rows_per_s": round(n / min(ours)),
        "product_rows_per_s": round(n / min(bare)),
    }


def hashing(texts: Sequence[str]) -> dict[str, Any]:
    """Seconds to fit the lexical features and to transform all texts, best of three, on one core."""
    fits, transforms = [], []
    for _ in range(3):
        began = time.perf_counter()
        features = LexicalFeatures.fit(texts)
        fits.append(time.perf_counter() - began)
        began = time.perf_counter()
        features.transform(texts)
        transforms.append(time.perf_counter() - began)
    return {
        "n": len(texts),
        "words": round(sum(len(text.split()) for text in texts) / len(texts), 1),
        "features": features.dimension,
        "fit_s": round(min(fits), 3),
        "transform_s": round(min(transforms), 3),
    }


def routed(policy: Policy, task: Task, n: int) -> dict[str, float]:
    """``Router.route`` on one embedding of the test file."""
    assert task.test.dense is not None
    vectors, turn, router = task.test.dense[:100], iter(range(10**9)), Router(policy)
    return laps([lambda: router.route(embedding=vectors[next(turn) % 100])], n)[0]


def start(home: Path, n: int) -> dict[str, Any]:
    """Medians over processes: import, load, first decision, memory; and the import of numpy alone."""
    code = "import time; b = time.perf_counter(); import numpy; print((time.perf_counter() - b) * 1e3)"
    runs, bare = [], []
    for _ in range(n + 1):
        bare.append(float(_python(["-c", code])))
        runs.append(json.loads(_python([*_CHILD, "start", str(home)])))
    middle = {key: round(float(np.median([run[key] for run in runs[1:]])), 1) for key in runs[0] if key != "heavy"}
    archive = sum(p.stat().st_size for p in (home / "policies").rglob("*") if p.is_file())
    return {
        **middle,
        "numpy_ms": round(float(np.median(bare[1:])), 1),
        "heavy": sorted({name for run in runs for name in run["heavy"]}),
        "archive_mib": round(archive / 2**20, 1),
        "runs": n,
    }


def _python(arguments: Sequence[str]) -> str:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=600)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stdout.strip().splitlines()[-1]


def processes(home: Path, texts: Sequence[str], counts: Sequence[int]) -> list[dict[str, Any]]:
    """Texts a second on 1, 2, ... processes, each deciding on all the texts."""
    (home / "texts.json").write_text(json.dumps(list(texts)), encoding="utf-8")
    out = []
    for n in counts:
        # One thread each: processes are what is counted here.
        env = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, *_CHILD, "texts", str(home)]
        running = [
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
            for _ in range(n)
        ]
        for process in running:
            assert process.stdout is not None
            process.stdout.readline()
        seconds = []
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in running:
            assert process.stdout is not None
            seconds.append(float(process.stdout.readline()))
            process.wait()
        out.append({"processes": n, "n": len(texts), "texts_per_s": round(sum(len(texts) / s for s in seconds))})
    return out


def main() -> None:
    """All parts, one after another."""
    given = arguments(__doc__ or "")
    n_laps = 500 if given.quick else _LAPS
    limit = QUICK_ROWS if given.quick else None
    banking = load_task(given.data, "banking77", limit=limit)
    clinc = load_task(given.data, "clinc150", limit=limit)
    policies: list[tuple[str, Task, Policy]] = []
    for task in (banking, clinc):
        policies.append((task.name, task, fitted(task, features="dense", neighbours=False)))
        policies.append((task.name, task, fitted(task, features="dense")))
        policies.append((task.name, task, fitted(task, features="lexical")))
        policies.append((task.name, task, fitted(task)))
    singles = [
        {"data": name, "rows": len(task.train), **one_decision(policy, task, n_laps)} for name, task, policy in policies
    ]
    for family in FAMILIES[:2] if given.quick else FAMILIES:
        cell = one_decision(of_family(banking, family), banking, n_laps)
        singles.append({"data": banking.name, "rows": FAMILY_ROWS, **cell})
    for cell in singles:
        print(cell, flush=True)
    assert clinc.test.dense is not None
    n = MANY // 10 if given.quick else MANY
    batches = [
        {"data": name, **many(policy, task.test.dense, n)}
        for name, task, policy in policies
        if policy.needs == {"dense"} and task.test.dense is not None
    ]
    for cell in batches:
        print(cell, flush=True)
    hashed = hashing(banking.train.texts or ())
    through = routed(next(p for name, _, p in policies if name == "clinc150" and p.needs == {"dense"}), clinc, n_laps)
    print(hashed, through, flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        flywheel.fit(
            _texts_only(draw(banking.train, len(banking.train), 0)), target=TARGET, home=home, ledger="promotion"
        )
        began = start(home, 3 if given.quick else _STARTS)
        print(began, flush=True)
        messages = list(banking.test.texts or ())
        messages = (messages * (TEXTS_MANY // len(messages) + 1))[: TEXTS_MANY // 10 if given.quick else TEXTS_MANY]
        scaling = processes(home, messages, range(1, (os.cpu_count() or 1) + 1))
        print(scaling, flush=True)
    content = {
        "digest": f"{banking.digest} {clinc.digest}",
        "target": TARGET,
        "laps": n_laps,
        "one": singles,
        "many": batches,
        "start": began,
        "hashing": hashed,
        "router": {"data": clinc.name, **through},
        "processes": scaling,
    }
    write_result("speed_serving", content, quick=given.quick)


def _texts_only(dataset: Dataset) -> Dataset:
    return replace(dataset, dense=None, embedder=None)


def render(result: dict[str, Any]) -> str:
    """One decision, many, processes, start."""
    one = table(
        ("data", "surrogate", "labels", "reads", "median, us", "99%, us", "bare product, us", "times the product"),
        (
            (
                TITLES[cell["data"]],
                _shown(cell),
                cell["labels"],
                cell["reads"],
                cell["p50_us"],
                cell["p99_us"],
                cell["product_p50_us"],
                f"{cell['p50_us'] / cell['product_p50_us']:.1f}",
            )
            for cell in result["one"]
        ),
    )
    batches = table(
        ("data", "surrogate", "labels", "embeddings", "rows/s", "bare product, rows/s", "share of it"),
        (
            (
                TITLES[cell["data"]],
                _shown(cell),
                cell["labels"],
                f"{cell['n']:,}",
                f"{cell['rows_per_s']:,}",
                f"{cell['product_rows_per_s']:,}",
                f"{cell['rows_per_s'] / cell['product_rows_per_s']:.2f}",
            )
            for cell in result["many"]
        ),
    )
    scaling = table(
        ("processes", "texts each", "texts/s in all"),
        ((cell["processes"], f"{cell['n']:,}", f"{cell['texts_per_s']:,}") for cell in result["processes"]),
    )
    begun, hashed = result["start"], result["hashing"]
    heavy = ", ".join(begun["heavy"]) or "none of scipy, scikit-learn, ONNX Runtime and asyncio"
    return f"""## Deciding

`Policy.decide` on one input (a message of {WORDS} words, an embedding of 384 dimensions, or both), median of {result["laps"]:,} laps in
turn with the bare product of one embedding and a matrix of the head's shape. Policies of all training traces are
fitted with defaults at target {result["target"]}, but for what the row says; those of one family on {FAMILY_ROWS:,} traces are there for their speed.
The peer's decision is in the section above.

{one}

Many embeddings at once, in turn with the bare product of all of them (best of three each, all cores):

{batches}

`Router.route` on an embedding, kill switch, counts and answer included, with the first policy of {TITLES[result["router"]["data"]]}: median
{result["router"]["p50_us"]} us.

The lexical features of {hashed["n"]:,} messages of {hashed["words"]} words: {hashed["transform_s"]} s, and {hashed["fit_s"]} s to fit them, on one core. Messages of
Banking77 through its lexical policy, one thread a process:

{scaling}

A router on the lexical policy of Banking77 ({begun["archive_mib"]} MiB on disk), medians of {begun["runs"]} processes: import of the serving path {begun["import_ms"]} ms
(numpy alone: {begun["numpy_ms"]} ms; loaded with it: {heavy}), `Router.load` {begun["load_ms"]} ms, first decision {begun["first_ms"]} ms, resident
memory {begun["rss_mib"]} MiB. Its weights, {begun["mapped_mib"]} MiB of it, are mapped read-only from the file: no page is copied
({begun["mapped_private_mib"]} MiB written), so processes that serve the policy share them.

{footer(result)}
"""


def _shown(cell: dict[str, Any]) -> str:
    kind = "cascade: " if cell.get("family") == "cascade" else ""
    return f"{kind}{cell['surrogate']}{', with neighbours' if cell['neighbours'] else ''}"


if __name__ == "__main__":
    main()
