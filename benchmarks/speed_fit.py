"""Fit time and memory beside ``tracer-llm`` on the same traces and embeddings, in one run.

python -m benchmarks.speed_fit --data FOLDER --peer PYTHON_OF_AN_ENVIRONMENT_WITH_TRACER_LLM
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import add_peer, arguments, draw, footer, load_task, share, write_result
from tracer.types import Dataset


def main() -> None:
    """Ours lean, ours full, the peer; each in a process of its own, one after another."""

    given = arguments(__doc__ or "", add_peer)
    task = load_task(given.data, "banking77")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        _write(draw(task.train, len(task.train), 0), folder, "traces")
        _write(task.test, folder, "test")
        runs: dict[str, Any] = {}
        pools = ("lean",) if given.quick else ("lean", "full")
        for pool in pools:
            runs[pool] = _run([sys.executable, "-m", "benchmarks.one_fit", str(folder), pool])
            print(pool, runs[pool], flush=True)
        if given.peer is None or given.quick:
            print("the peer was not measured: no --peer given, or --quick")
        else:
            # An environment of its own: ours must not be found there.
            clean = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
            script = Path(__file__).with_name("peer_fit.py")
            runs["tracer-llm"] = _run([str(given.peer), str(script), str(folder)], clean)
            print("tracer-llm", runs["tracer-llm"], flush=True)
            for pool in pools:
                print(f"{pool}: {runs['tracer-llm']['fit_s'] / runs[pool]['fit_s']:.1f} times faster to fit")
    content = {"data": task.name, "digest": task.digest, "n_traces": len(task.train), "runs": runs}
    write_result("speed_fit", content, quick=given.quick)


def _write(dataset: Dataset, folder: Path, name: str) -> None:
    lines = [
        json.dumps({"id": i, "input": t, "teacher": label}, ensure_ascii=False)
        for i, t, label in zip(dataset.ids, dataset.texts or (), dataset.labels, strict=True)
    ]
    (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    assert dataset.dense is not None
    np.save(folder / f"{name}.npy", dataset.dense)


def _run(command: list[str], env: dict[str, str] | None = None) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, timeout=7200)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def render(result: dict[str, Any]) -> str:
    """Time, memory and coverage of each system."""
    rows = []
    peer = result["runs"].get("tracer-llm")
    for name, run in result["runs"].items():
        label = name if name == "tracer-llm" else f"Tracer, {name} pool"
        ratio = f"{peer['fit_s'] / run['fit_s']:.1f}" if peer else "-"
        rows.append(
            f"| {label} | {run['fit_s']} | {ratio} | {run['peak_mib']:,} | {share(run['n_handled'], run['n'])} "
            f"| {share(run['n_agreed'], run['n_handled'])} | {run['decision_ms']} |"
        )
    body = "\n".join(rows)
    return f"""## Beside the peer

Banking77, {result["n_traces"]:,} traces with the same embeddings, target 0.95, each fit in a process of its own, one run.
`tracer-llm` is version 0.3.3 with its defaults but this one target (by default it fits three, and trains its pool
as many times more); it reads embeddings only. A decision of ours starts from the text and its
embedding, the peer's from the embedding.

| system | fit, s | times faster | peak memory, MiB | coverage, test | agreement, test | one decision, ms (median) |
|---|---|---|---|---|---|---|
{body}

{footer(result)}
"""


if __name__ == "__main__":
    main()
