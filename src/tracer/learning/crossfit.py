"""Cross-fitting: every surviving recipe is trained K + 1 times, on K folds and once on all training rows.

Large fits take a first look at rival families on a few rows before that, which is counted too.

The out-of-fold logits of the K folds choose the surrogate, train the acceptor and order the proposals, so the
final surrogate trains on all of ``train`` and no shadow row is spent on choices.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from tracer.errors import TracerError, TrainingError
from tracer.learning import blending
from tracer.learning.heads import Head, stack
from tracer.learning.pool import Learner
from tracer.learning.surrogates import BlockName, Blocks
from tracer.types import Bool, Float32, Int32

_CLEARLY = 3.0
_LOOK_ROWS, _LOOK_FACTOR = 2000, 2
_FAILURES = (TracerError, ValueError, ArithmeticError, MemoryError, RuntimeError)
"""What a recipe may raise without ending the fit: it is dropped by name and reason."""

_LARGE = 50_000
"""Above this many training rows, families are trained one after another, with all threads for each."""

Progress = Callable[[str, int, int], None]
"""Called with what is done now, steps done and steps in all."""


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A cross-fitted recipe: its final head, and out-of-fold logits (n, k)."""

    learner: Learner
    head: Head
    logits: Float32
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Anchors:
    """Training rows that are no traces: the names of the labels, as examples of themselves.

    They carry what a label's name says into small training sets. ``y`` (m,) and blocks (m, d).
    """

    blocks: Blocks
    y: Int32


@dataclass(frozen=True, slots=True)
class Dropped:
    """A recipe that did not go on, and why."""

    name: str
    reason: str
    failed: bool = False


@dataclass(frozen=True, slots=True)
class CrossFit:
    """Members in the order of the pool, and what was dropped."""

    members: tuple[Member, ...]
    dropped: tuple[Dropped, ...]
    n_trainings: int


def cross_fit(
    learners: Sequence[Learner],
    blocks: Blocks,
    y: Int32,
    folds: NDArray[np.int8],
    n_classes: int,
    seed: int,
    progress: Progress,
    anchors: Anchors | None = None,
) -> CrossFit:
    """Screen all recipes on the first fold, then train the survivors on the other folds and on all rows.

    ``anchors`` join every training set and no evaluation. A recipe that fails is reported by name and
    reason. Raises TrainingError if none survives.
    """
    bench = _Bench(blocks, y, folds, n_classes, seed, anchors or Anchors({}, np.empty(0, dtype=np.int32)))
    n_folds = int(folds.max()) + 1
    usable = [r for r in learners if r.max_rows is None or len(y) <= r.max_rows]
    dropped = [
        Dropped(r.name, f"keeps at most {r.max_rows:,} prototypes; {len(y):,} rows")
        for r in learners
        if r not in usable and r.max_rows is not None
    ]
    families: dict[tuple[str, BlockName], list[Learner]] = {}
    for learner in usable:
        families.setdefault((learner.family, learner.block), []).append(learner)
    # Families are trained beside each other, each on one thread: their results do not depend on the order.
    with _one_thread_each(len(y)), ThreadPoolExecutor(_workers(len(y))) as workers:
        count = _Count(progress, len(usable) + len(families) * (n_folds + 1))
        contenders = _first_look(families, bench, workers, count, dropped)
        tried = list(workers.map(lambda variants: _screen_family(variants, bench, count), contenders))
        screened = [run for runs, _ in tried for run in runs]
        dropped += [drop for _, failures in tried for drop in failures]
        survivors = _survivors(screened, dropped)
        if not survivors:
            raise TrainingError(_nothing_left(dropped))
        count.total = len(usable) + len(survivors) * n_folds
        done = list(workers.map(lambda run: _complete(run, n_folds, count), survivors))
    dropped += [result for result in done if isinstance(result, Dropped)]
    members = tuple(result for result in done if isinstance(result, Member))
    if not members:
        raise TrainingError(_nothing_left(dropped))
    return CrossFit(members, tuple(dropped), count.trainings)


def _nothing_left(dropped: Sequence[Dropped]) -> str:
    return "no candidate could be trained. " + "; ".join(f"{d.name}: {d.reason}" for d in dropped)


class _Count:
    """Progress from several threads."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress, self.total = progress, total
        self.done = self.trainings = 0
        self.lock = threading.Lock()

    def step(self, what: str) -> None:
        with self.lock:
            self.progress(what, self.done, self.total)
            self.done += 1
            self.trainings += 1


def _workers(n_rows: int) -> int:
    """Families at a time. Large training sets go one by one: each works on copies of its rows."""
    return min(os.cpu_count() or 1, 4) if n_rows <= _LARGE else 1


def _one_thread_each(n_rows: int) -> AbstractContextManager[object]:
    """Threads of the linear algebra would wait for each other on small products; large ones gain from them."""
    return threadpool_limits(1, user_api="blas") if n_rows <= _LARGE else nullcontext()


def _first_look(
    families: Mapping[tuple[str, BlockName], list[Learner]],
    bench: _Bench,
    workers: ThreadPoolExecutor,
    count: _Count,
    dropped: list[Dropped],
) -> list[list[Learner]]:
    """Families worth a whole fold. In large fits each shows itself first on a few rows of the first fold, where
    its block has rivals: what is clearly worse there goes no further (a rung of successive halving)."""
    blocks = [block for _, block in families]
    rivals = [v for (_, block), v in families.items() if blocks.count(block) > 1]
    if (bench.folds != 0).sum() < _LOOK_FACTOR * _LOOK_ROWS or not rivals:
        return list(families.values())

    def look(variants: list[Learner]) -> _Run | Dropped:
        count.step(f"a first look at {variants[-1].name}")
        run = _Run(variants[-1], bench, None)
        try:
            run.look(_LOOK_ROWS)
        except _FAILURES as error:
            return _failed(run.learner, error)
        return run

    looks = list(workers.map(look, rivals))
    dropped += [result for result in looks if isinstance(result, Dropped)]
    kept = {
        (run.learner.family, run.learner.block)
        for run in _survivors([r for r in looks if isinstance(r, _Run)], dropped, f"{_LOOK_ROWS:,} rows")
    }
    return [v for key, v in families.items() if v not in rivals or key in kept]


def _screen_family(variants: Sequence[Learner], bench: _Bench, count: _Count) -> tuple[list[_Run], list[Dropped]]:
    runs: list[_Run] = []
    failures = []
    for learner in variants:
        count.step(f"screening {learner.name}")
        run = _Run(learner, bench, runs[-1].heads[0] if runs else None)
        try:
            run.fold(0)
        except _FAILURES as error:
            failures.append(_failed(learner, error))
            continue
        runs.append(run)
    return runs, failures


def _complete(run: _Run, n_folds: int, count: _Count) -> Member | Dropped:
    try:
        for fold in range(1, n_folds):
            count.step(f"training {run.learner.name}, fold {fold + 1} of {n_folds}")
            run.fold(fold)
        count.step(f"training {run.learner.name} on all rows")
        return run.finish()
    except _FAILURES as error:
        return _failed(run.learner, error)


def _failed(learner: Learner, error: Exception) -> Dropped:
    return Dropped(learner.name, f"{type(error).__name__}: {error}", failed=True)


def _survivors(screened: list[_Run], dropped: list[Dropped], where: str = "the other folds") -> list[_Run]:
    """Keep the best variant of each family, and no family that is clearly worse than the best of its block.

    Clearly: over the same held-out rows, its wins and losses against the best differ by more than
    ``_CLEARLY`` standard errors of a fair coin.
    """
    best: dict[tuple[str, BlockName], _Run] = {}
    for run in screened:
        key = (run.learner.family, run.learner.block)
        if key not in best or run.loss < best[key].loss:
            best[key] = run
    kept = []
    for run in screened:
        winner = best[run.learner.family, run.learner.block]
        rivals = [other for other in best.values() if other.learner.block == run.learner.block]
        top = max(rivals, key=lambda other: int(other.hits.sum()))
        wins, losses = int((run.hits & ~top.hits).sum()), int((top.hits & ~run.hits).sum())
        if run is not winner:
            dropped.append(Dropped(run.learner.name, f"{winner.learner.name} does better on the first fold"))
        elif losses - wins > _CLEARLY * math.sqrt(wins + losses):
            why = f"fitted on {where} it loses {losses} rows to {top.learner.name} and wins {wins}"
            dropped.append(Dropped(run.learner.name, why))
        else:
            kept.append(run)
    return kept


@dataclass(frozen=True, slots=True, eq=False)
class _Bench:
    blocks: Blocks
    y: Int32
    folds: NDArray[np.int8]
    n_classes: int
    seed: int
    anchors: Anchors

    def train(self, learner: Learner, rows: NDArray[np.intp], start: Head | None) -> Head:
        block, y = self.blocks[learner.block][rows], self.y[rows]
        extra = self.anchors.blocks.get(learner.block)
        if extra is not None:
            block = stack(block, extra)
            y = np.concatenate([y, self.anchors.y])
        return learner.train(block, y, self.n_classes, start, self.seed)

    def logits(self, learner: Learner, head: Head, rows: NDArray[np.intp]) -> Float32:
        return head.logits(self.blocks[learner.block][rows])


class _Run:
    """One recipe on its way through the folds."""

    def __init__(self, learner: Learner, bench: _Bench, start: Head | None) -> None:
        self.learner, self.bench, self.start = learner, bench, start
        self.heads: list[Head] = []
        self.logits = np.zeros((len(bench.y), bench.n_classes), dtype=np.float32)
        self.seconds = 0.0
        self.loss = 0.0
        self.hits: Bool = np.zeros(0, dtype=np.bool_)

    def look(self, n_rows: int) -> None:
        """Train on a few rows outside the first fold, evenly spaced, and see how the first fold does."""
        bench = self.bench
        rest, out = np.flatnonzero(bench.folds != 0), np.flatnonzero(bench.folds == 0)
        rows = rest[np.linspace(0, len(rest) - 1, n_rows).astype(np.intp)]
        logits = bench.logits(self.learner, bench.train(self.learner, rows, None), out)
        self.loss = blending.fit_weights((logits,), bench.y[out])[1]
        self.hits = logits.argmax(axis=1) == bench.y[out]

    def fold(self, fold: int) -> None:
        bench = self.bench
        out = np.flatnonzero(bench.folds == fold)
        began = time.perf_counter()
        # Never from another fold's head: it has seen this fold's rows, and a fit that stops early remembers.
        start = self.start if fold == 0 else None
        head = bench.train(self.learner, np.flatnonzero(bench.folds != fold), start)
        self.logits[out] = bench.logits(self.learner, head, out)
        self.seconds += time.perf_counter() - began
        # Only these two are ever asked for: the start of the next variant, and of the final fit.
        self.heads = [*self.heads[:1], head]
        if fold == 0:
            held_out, y = self.logits[out], bench.y[out]
            self.loss = blending.fit_weights((held_out,), y)[1]
            self.hits = held_out.argmax(axis=1) == y

    def finish(self) -> Member:
        began = time.perf_counter()
        trained = self.bench.train(self.learner, np.arange(len(self.bench.y)), self.heads[-1])
        head = self.learner.export(trained)
        seconds = self.seconds + time.perf_counter() - began
        return Member(self.learner, head, self.logits, seconds)
