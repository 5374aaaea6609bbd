"""How time and memory grow with the traces. The traces are drawn, and look like CLINC150.

Embeddings: each class a normal law around the mean of its CLINC150 embeddings, with the covariance that all classes
share at twice the spread, scaled to unit length. Texts: words of the class's CLINC150 messages, drawn one by one. Each size runs in a
process of its own, so that its peak memory is its own.

python -m benchmarks.speed_growth --data FOLDER
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import QUICK_ROWS, Cells, arguments, footer, load_part, share, table, write_result
from benchmarks.peer_fit import peak
from tracer import pipeline
from tracer.config import FitConfig
from tracer.pipeline import Refused
from tracer.types import Dataset, EmbedderIdentity, Float32

SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 4_000)
TEXT_SIZES = (1_000, 10_000, 100_000)
UPDATED = 100_000
"""Traces that `flywheel_update` adds a hundredth to."""
TARGET = 0.95
_EMBEDDER = EmbedderIdentity("drawn", 384, "drawn")
_CHUNK = 50_000


class World:
    """A law that traces are drawn from, learned from real ones."""

    def __init__(self, part: Dataset) -> None:
        assert part.dense is not None
        assert part.texts is not None
        self.names = part.space.names
        self.means = np.stack([part.dense[part.y == code].mean(axis=0) for code in range(len(self.names))])
        centred = part.dense - self.means[part.y]
        spread = np.cov(centred.T) + 1e-6 * np.eye(centred.shape[1])
        # In so many dimensions such classes lie apart; twice the spread makes them overlap as the real ones do.
        self.factor = (2.0 * np.linalg.cholesky(spread)).astype(np.float32)
        self.words: list[list[str]] = [[] for _ in self.names]
        for text, code in zip(part.texts, part.y, strict=True):
            self.words[code] += text.split()
        self.lengths = np.array([len(text.split()) for text in part.texts])

    def save(self, path: Path) -> None:
        """For the process that measures one size."""
        words = json.dumps({"names": self.names, "words": self.words})
        np.savez(path, means=self.means, factor=self.factor, lengths=self.lengths, words=np.array(words))

    @classmethod
    def load(cls, path: Path) -> World:
        """What ``save`` wrote."""
        world = cls.__new__(cls)
        with np.load(path, allow_pickle=False) as stored:
            world.means, world.factor, world.lengths = stored["means"], stored["factor"], stored["lengths"]
            content = json.loads(str(stored["words"]))
        world.names, world.words = tuple(content["names"]), content["words"]
        return world

    def draw(self, n: int, seed: int, *, texts: bool, first: int = 0) -> Dataset:
        """``n`` traces with embeddings; with ``texts`` too where wanted. Ids count from ``first``."""
        rng = np.random.default_rng(seed)
        y = rng.integers(0, len(self.names), n)
        dense: Float32 = np.empty((n, self.means.shape[1]), dtype=np.float32)
        for i in range(0, n, _CHUNK):
            rows = slice(i, min(i + _CHUNK, n))
            noise = rng.standard_normal((rows.stop - rows.start, dense.shape[1]), dtype=np.float32)
            dense[rows] = self.means[y[rows]] + noise @ self.factor.T
            dense[rows] /= np.linalg.norm(dense[rows], axis=1, keepdims=True)
        lengths = rng.choice(self.lengths, n)
        messages = None
        if texts:
            messages = [
                " ".join(self.words[code][j] for j in rng.integers(0, len(self.words[code]), length))
                for code, length in zip(y, lengths, strict=True)
            ]
        ids = [f"drawn-{first + i}" for i in range(n)]
        labels = [self.names[code] for code in y]
        return Dataset.from_columns(labels, texts=messages, dense=dense, embedder=_EMBEDDER, ids=ids)


def measure_fit(world: World, n: int, *, texts: bool) -> dict[str, Any]:
    """One fit, in this process."""
    dataset = world.draw(n, 1, texts=texts)
    before_mib = peak()
    began = time.perf_counter()
    verdict = pipeline.fit(dataset, FitConfig(targets=(TARGET,), ledger="promotion"))
    fit_s = time.perf_counter() - began
    report = verdict.report
    out: dict[str, Any] = {
        "fit_s": round(fit_s, 2),
        "peak_mib": round(peak()),
        "traces_mib": round(before_mib),
        "certified": not isinstance(verdict, Refused),
        "n_train": report.n_train,
        "n_shadow": report.n_shadow,
        "n_trainings": report.n_trainings,
        "seconds": {name: round(value, 2) for name, value in report.seconds.items()},
    }
    if not isinstance(verdict, Refused):
        certificate = verdict.policy.certificate
        out |= {"n_handled": certificate.n_handled, "n_agreed": certificate.n_agreed}
    return out


def main() -> None:
    """Each size in a process of its own."""
    given = arguments(__doc__ or "", _add)
    if given.one:
        world, what, n = World.load(Path(given.one[0])), given.one[1], int(given.one[2])
        json.dump(measure_fit(world, n, texts=what == "both"), sys.stdout)
        return
    part = load_part(given.data / "clinc150" / "train.jsonl", limit=QUICK_ROWS if given.quick else None)
    cells = Cells("speed_growth", part.digest, revision=2, quick=given.quick)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "world.npz"
        World(part.dataset).save(path)

        def run(what: str, n: int) -> dict[str, Any]:
            command = [
                sys.executable,
                "-m",
                "benchmarks.speed_growth",
                "--data",
                str(given.data),
                "--one",
                str(path),
                what,
                str(n),
            ]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=7200)
            if done.returncode:
                raise RuntimeError(f"{what} {n} failed:\n{done.stderr[-2000:]}")
            cell: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
            print(what, n, cell, flush=True)
            return cell

        sizes = QUICK_SIZES if given.quick else SIZES
        fits = {
            what: {n: cells.get(f"{what} {n}", lambda what=what, n=n: run(what, n)) for n in wanted if n <= max(sizes)}  # type: ignore[misc]
            for what, wanted in (("dense", sizes), ("both", TEXT_SIZES))
        }
    content = {
        "digest": part.digest[:16],
        "seed": 1,
        "target": TARGET,
        "fits": {what: {str(n): cell for n, cell in found.items()} for what, found in fits.items()},
    }
    write_result("speed_growth", content, quick=given.quick)


def _add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--one", nargs=3, metavar=("WORLD", "WHAT", "N"), help=argparse.SUPPRESS)


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log seconds on log n, least squares."""
    return float(np.polyfit([math.log(n) for n in sizes], [math.log(s) for s in seconds], 1)[0])


def render(result: dict[str, Any]) -> str:
    """Time and memory by size, and the update."""
    titles = {"dense": "embeddings", "both": "embeddings and texts"}
    rows = []
    slopes = []
    for what, found in result["fits"].items():
        sizes = [int(n) for n in found]
        slopes.append(f"{titles[what]} {exponent(sizes, [cell['fit_s'] for cell in found.values()]):.2f}")
        for n, cell in found.items():
            rows.append(
                (
                    titles[what],
                    f"{int(n):,}",
                    cell["fit_s"],
                    f"{cell['peak_mib']:,}",
                    f"{cell['traces_mib']:,}",
                    share(cell["n_handled"], cell["n_shadow"]) if cell["certified"] else "refused",
                    share(cell["n_agreed"], cell["n_handled"]) if cell["certified"] else "-",
                )
            )
    head = ("features", "traces", "fit, s", "peak memory, MiB", "before the fit, MiB", "coverage", "agreement")
    return f"""## Growth

Drawn traces of 150 classes that look like CLINC150: embeddings of 384 dimensions from its class means and shared
covariance (at twice the spread, which leaves 4% of them ambiguous), words of its messages by class; seed {result["seed"]}, target {result["target"]}, lean pool, each size in a process of its own. No row is left
out: all training rows train (from 50,000 training rows on, neighbours are not tried), all shadow rows certify. Coverage
and agreement are those on the shadow traces.

{table(head, rows)}

Exponent of growth of the time (least squares on the logarithms): {", ".join(slopes)}.

{footer(result)}
"""


if __name__ == "__main__":
    main()
