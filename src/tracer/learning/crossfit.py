"""Cross-fitting: every surviving recipe is trained K + 1 times, on K folds and once on all training rows.

Large fits take a first look at rival families on a few rows before that, which is counted too.

The out-of-fold logits of the K folds choose the surrogate, train the acceptor and order the proposals, so the
final surrogate trains on all of ``train`` and no shadow row is spent on choices.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tracer.errors import TracerError, TrainingError
from tracer.learning import blending
from tracer.learning.heads import Head, LinearHead, stack
from tracer.learning.pool import Learner
from tracer.learning.surrogates import BlockName, Blocks
from tracer.learning.threads import LARGE, n_workers, one_thread_each
from tracer.types import Bool, Float32, Int32

_CLEARLY = 3.0
_ALL = -1
_LOOKS = ((500, 8.0), (2000, _CLEARLY))
"""Rows that a family shows itself on, one look after the other, and standard errors by which it may lose there."""
_LOOK_FACTOR = 2
_FAILURES = (TracerError, ValueError, ArithmeticError, MemoryError, RuntimeError)
"""What a recipe may raise without ending the fit: it is dropped by name and reason."""

Progress = Callable[[str, int, int], None]
"""Called with what is done now, steps done and steps in all."""


@dataclass(frozen=True, slots=True, eq=False)
class WarmHeads:
    """Linear heads to start from: one a fold, trained without it, and the one trained on all rows."""

    folds: tuple[LinearHead, ...]
    final: LinearHead


@dataclass(frozen=True, slots=True, eq=False)
class Member:
    """A cross-fitted recipe: its final head, out-of-fold logits (n, k), and what a next fit may start from."""

    learner: Learner
    head: Head
    logits: Float32
    seconds: float
    warm: WarmHeads | None = None


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
    """Members in the order of the pool, and what was dropped. ``screened`` is False after a warm start."""

    members: tuple[Member, ...]
    dropped: tuple[Dropped, ...]
    n_trainings: int
    n_folds: int
    screened: bool = True


def cross_fit(
    learners: Sequence[Learner],
    blocks: Blocks,
    y: Int32,
    folds: NDArray[np.int8],
    n_classes: int,
    seed: int,
    progress: Progress,
    anchors: Anchors | None = None,
    warm: Mapping[str, WarmHeads | None] | None = None,
    *,
    keep_folds: bool = False,
) -> CrossFit:
    """Screen all recipes on the first fold, then train the survivors on the other folds and on all rows.

    ``anchors`` join every training set and no evaluation. With ``warm`` the recipes that it names, if all of them may
    still be trained, are trained without screening, from their own heads where there are any; with ``keep_folds`` the
    heads of the folds are taken as they are, and only the final one is trained. A recipe that fails is reported by
    name and reason. Raises TrainingError if none survives.
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
    # Recipes are trained beside each other, each on one thread: their results do not depend on the order.
    with one_thread_each(), ThreadPoolExecutor(n_workers(4) if len(y) <= LARGE else 1) as workers:
        count = _Count(progress, len(usable) + len(families) * (n_folds + 1))
        if warm is not None and {r.name for r in usable} >= set(warm):
            survivors = [_Run(r, bench, None, warm[r.name], keep_folds) for r in usable if r.name in warm]
            dropped += [
                Dropped(r.name, "was not chosen when all recipes were tried") for r in usable if r.name not in warm
            ]
            screened, first_fold = False, 0
        else:
            survivors = _screened(families, bench, workers, count, dropped)
            screened, first_fold = True, 1
        if not survivors:
            raise TrainingError(_nothing_left(dropped))
        count.total = count.done + len(survivors) * (n_folds + 1 - first_fold)
        members = _complete(survivors, range(first_fold, n_folds), workers, count, dropped)
    if not members:
        raise TrainingError(_nothing_left(dropped))
    return CrossFit(members, tuple(dropped), count.trainings, n_folds, screened)


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


def _screened(
    families: Mapping[tuple[str, BlockName], list[Learner]],
    bench: _Bench,
    workers: ThreadPoolExecutor,
    count: _Count,
    dropped: list[Dropped],
) -> list[_Run]:
    """Runs of the recipes that are worth more than the first fold, which they are trained on."""
    contenders = _first_look(families, bench, workers, count, dropped)
    tried = list(workers.map(lambda variants: _screen_family(variants, bench, count), contenders))
    dropped += [drop for _, failures in tried for drop in failures]
    return _survivors([run for runs, _ in tried for run in runs], dropped)


def _first_look(
    families: Mapping[tuple[str, BlockName], list[Learner]],
    bench: _Bench,
    workers: ThreadPoolExecutor,
    count: _Count,
    dropped: list[Dropped],
) -> list[list[Learner]]:
    """Families worth a whole fold. In large fits each shows itself first on few rows and then on more of the first
    fold, where its block has rivals: what is clearly worse goes no further (rungs of successive halving)."""
    blocks = [block for _, block in families]
    rivals = [v for (_, block), v in families.items() if blocks.count(block) > 1]
    if (bench.folds != 0).sum() < _LOOK_FACTOR * _LOOKS[-1][0]:
        return list(families.values())

    def look(variants: list[Learner], n_rows: int) -> _Run | Dropped:
        count.step(f"a look at {variants[-1].name} on {n_rows:,} rows")
        run = _Run(variants[-1], bench, None)
        try:
            run.look(n_rows)
        except _FAILURES as error:
            return _failed(run.learner, error)
        return run

    kept = rivals
    for n_rows, clearly in _LOOKS:
        if len(kept) < 2:
            break
        looks = list(workers.map(partial(look, n_rows=n_rows), kept))
        dropped += [result for result in looks if isinstance(result, Dropped)]
        runs = [result for result in looks if isinstance(result, _Run)]
        last = n_rows == _LOOKS[-1][0]
        left = {run.learner.name for run in _survivors(runs, dropped, f"{n_rows:,} rows", clearly, contests=last)}
        kept = [v for v in kept if v[-1].name in left]
    return [v for v in families.values() if v not in rivals or v in kept]


def _screen_family(variants: Sequence[Learner], bench: _Bench, count: _Count) -> tuple[list[_Run], list[Dropped]]:
    runs: list[_Run] = []
    failures = []
    for learner in variants:
        count.step(f"screening {learner.name}")
        run = _Run(learner, bench, runs[-1].first if runs else None)
        try:
            run.fold(0)
        except _FAILURES as error:
            failures.append(_failed(learner, error))
            continue
        runs.append(run)
    return runs, failures


def _complete(
    survivors: Sequence[_Run], folds: range, workers: ThreadPoolExecutor, count: _Count, dropped: list[Dropped]
) -> tuple[Member, ...]:
    """Train the survivors on the other folds and on all rows. No training waits for another one."""

    def train(run: _Run, fold: int) -> Dropped | None:
        try:
            if fold in folds and run.keeps_folds:
                run.fold(fold)
            elif fold in folds:
                count.step(f"training {run.learner.name}, fold {fold + 1} of {folds.stop}")
                run.fold(fold)
            else:
                count.step(f"training {run.learner.name} on all rows")
                run.finish()
        except _FAILURES as error:
            return _failed(run.learner, error)
        return None

    # The slowest first, so that no worker is left with it at the end.
    longest_first = sorted(survivors, key=lambda run: -run.seconds)
    jobs = [(run, fold) for run in longest_first for fold in (_ALL, *folds)]
    failures: dict[_Run, Dropped] = {}
    for (run, _), failure in zip(jobs, workers.map(lambda job: train(*job), jobs), strict=True):
        if failure is not None:
            failures.setdefault(run, failure)
    dropped += [failures[run] for run in survivors if run in failures]
    return tuple(run.member() for run in survivors if run not in failures)


def _failed(learner: Learner, error: Exception) -> Dropped:
    return Dropped(learner.name, f"{type(error).__name__}: {error}", failed=True)


def _survivors(
    screened: list[_Run],
    dropped: list[Dropped],
    where: str = "the other folds",
    clearly: float = _CLEARLY,
    *,
    contests: bool = True,
) -> list[_Run]:
    """Keep the best of each contest, and none that is clearly worse than the best of its block.

    Clearly: over the same held-out rows, its wins and losses against the best differ by more than ``clearly``
    standard errors of a fair coin. Without ``contests`` only that is asked.
    """
    best: dict[tuple[str, BlockName], _Run] = {}
    for run in screened:
        key = run.learner.contest if contests else (run.learner.name, run.learner.block)
        if key not in best or run.loss < best[key].loss:
            best[key] = run
    kept = []
    for run in screened:
        winner = best[run.learner.contest] if contests else run
        rivals = [other for other in best.values() if other.learner.block == run.learner.block]
        top = max(rivals, key=lambda other: int(other.hits.sum()))
        wins, losses = int((run.hits & ~top.hits).sum()), int((top.hits & ~run.hits).sum())
        if run is not winner:
            dropped.append(Dropped(run.learner.name, f"fitted on {where} {winner.learner.name} does better"))
        elif losses - wins > clearly * math.sqrt(wins + losses):
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

    def __init__(
        self,
        learner: Learner,
        bench: _Bench,
        start: Head | None,
        warm: WarmHeads | None = None,
        keep_folds: bool = False,
    ) -> None:
        self.learner, self.bench, self.start, self.warm = learner, bench, start, warm
        self.keeps_folds = keep_folds and warm is not None
        self.heads: dict[int, Head] = {}
        self.final: Head | None = None
        self.logits = np.zeros((len(bench.y), bench.n_classes), dtype=np.float32)
        self.seconds = 0.0
        self.loss = 0.0
        self.hits: Bool = np.zeros(0, dtype=np.bool_)

    @property
    def first(self) -> Head | None:
        """The first fold's head."""
        return self.heads.get(0)

    def look(self, n_rows: int) -> None:
        """Train on a few rows outside the first fold, evenly spaced, and see how the first fold does."""
        bench = self.bench
        rest, out = np.flatnonzero(bench.folds != 0), np.flatnonzero(bench.folds == 0)
        rows = rest[np.linspace(0, len(rest) - 1, n_rows).astype(np.intp)]
        logits = bench.logits(self.learner, bench.train(self.learner, rows, None), out)
        self.loss = blending.fit_weights((logits,), bench.y[out])[1]
        self.hits = logits.argmax(axis=1) == bench.y[out]

    def fold(self, fold: int) -> None:
        """Train on the other folds, unless that was done before, and judge this one."""
        bench = self.bench
        out = np.flatnonzero(bench.folds == fold)
        began = time.perf_counter()
        # Never from another fold's head: it has seen this fold's rows, and a fit that stops early remembers.
        start = self.warm.folds[fold] if self.warm else self.start if fold == 0 else None
        head: Head
        if self.warm is not None and self.keeps_folds:
            head = self.warm.folds[fold]
        else:
            head = bench.train(self.learner, np.flatnonzero(bench.folds != fold), start)
        self.logits[out] = bench.logits(self.learner, head, out)
        self.seconds += time.perf_counter() - began
        self.heads[fold] = head
        if fold == 0:
            held_out, y = self.logits[out], bench.y[out]
            self.loss = blending.fit_weights((held_out,), y)[1]
            self.hits = held_out.argmax(axis=1) == y

    def finish(self) -> None:
        """Train on all rows, from the head of an earlier fit or of the first fold."""
        began = time.perf_counter()
        trained = self.bench.train(
            self.learner, np.arange(len(self.bench.y)), self.warm.final if self.warm else self.first
        )
        self.final = self.learner.export(trained)
        self.seconds += time.perf_counter() - began

    def member(self) -> Member:
        """What all its trainings came to."""
        if self.final is None:
            raise TrainingError(f"{self.learner.name} was not finished")
        folds = [head for _, head in sorted(self.heads.items()) if isinstance(head, LinearHead)]
        warm = None
        if isinstance(self.final, LinearHead) and len(folds) == len(self.heads) and self.learner.starts_warm:
            warm = WarmHeads(tuple(folds), self.final)
        return Member(self.learner, self.final, self.logits, self.seconds, warm)
