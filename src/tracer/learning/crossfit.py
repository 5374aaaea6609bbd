"""Cross-fitting: every surviving recipe is trained K + 1 times, on K folds and once on all training rows.

The out-of-fold logits of the K folds choose the surrogate, train the acceptor and order the proposals, so the
final surrogate trains on all of ``train`` and no shadow row is spent on choices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracer.errors import TracerError, TrainingError
from tracer.learning import blending
from tracer.learning.heads import Head, stack
from tracer.learning.pool import Learner
from tracer.learning.surrogates import BlockName, Blocks
from tracer.types import Float32, Int32

_CLEARLY_WORSE = 0.05
"""Agreement on the first fold by which a family must trail the best of its block to be dropped."""

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
    dropped: list[Dropped] = []
    screened: list[_Run] = []
    n_folds = int(folds.max()) + 1
    steps, done = len(learners) * 2, 0
    for learner in learners:
        progress(f"screening {learner.name}", done, steps)
        done += 1
        if learner.max_rows is not None and len(y) > learner.max_rows:
            dropped.append(Dropped(learner.name, f"keeps at most {learner.max_rows:,} prototypes; {len(y):,} rows"))
            continue
        previous = next((r for r in reversed(screened) if _same_family(r.learner, learner)), None)
        run = _Run(learner, bench, previous.heads[0] if previous else None)
        try:
            run.fold(0)
        except (TracerError, ValueError, ArithmeticError, MemoryError, np.linalg.LinAlgError) as error:
            dropped.append(Dropped(learner.name, f"{type(error).__name__}: {error}", failed=True))
            continue
        screened.append(run)
    survivors = _screen(screened, dropped)
    if not survivors:
        reasons = "; ".join(f"{d.name}: {d.reason}" for d in dropped)
        raise TrainingError(f"no candidate could be trained. {reasons}")
    steps = done + len(survivors) * n_folds
    members = []
    for run in survivors:
        for fold in range(1, n_folds):
            progress(f"training {run.learner.name}, fold {fold + 1} of {n_folds}", done, steps)
            run.fold(fold)
            done += 1
        progress(f"training {run.learner.name} on all rows", done, steps)
        members.append(run.finish())
        done += 1
    progress("surrogates trained", steps, steps)
    n_trainings = len(screened) + len(survivors) * n_folds
    return CrossFit(tuple(members), tuple(dropped), n_trainings)


def _same_family(a: Learner, b: Learner) -> bool:
    return (a.family, a.block) == (b.family, b.block)


def _screen(screened: list[_Run], dropped: list[Dropped]) -> list[_Run]:
    """Keep the best variant of each family, and no family that is clearly worse than the best of its block."""
    best: dict[tuple[str, BlockName], _Run] = {}
    for run in screened:
        key = (run.learner.family, run.learner.block)
        if key not in best or run.loss < best[key].loss:
            best[key] = run
    kept = []
    for run in screened:
        winner = best[run.learner.family, run.learner.block]
        top = max(other.agreement for other in best.values() if other.learner.block == run.learner.block)
        noise = 2.0 * np.sqrt(top * (1.0 - top) / max(run.n_held_out, 1))
        if run is not winner:
            dropped.append(Dropped(run.learner.name, f"{winner.learner.name} does better on the first fold"))
        elif run.agreement < top - _CLEARLY_WORSE - noise:
            why = f"agrees on {run.agreement:.1%} of the first fold, the best of its block on {top:.1%}"
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
        self.loss = self.agreement = 0.0
        self.n_held_out = 0

    def fold(self, fold: int) -> None:
        bench = self.bench
        out = np.flatnonzero(bench.folds == fold)
        began = time.perf_counter()
        # Never from another fold's head: it has seen this fold's rows, and a fit that stops early remembers.
        start = self.start if fold == 0 else None
        head = bench.train(self.learner, np.flatnonzero(bench.folds != fold), start)
        self.logits[out] = bench.logits(self.learner, head, out)
        self.seconds += time.perf_counter() - began
        self.heads.append(head)
        if fold == 0:
            held_out, y = self.logits[out], bench.y[out]
            self.n_held_out = len(y)
            self.loss = blending.fit_weights((held_out,), y)[1]
            self.agreement = float((held_out.argmax(axis=1) == y).mean())

    def finish(self) -> Member:
        began = time.perf_counter()
        head = self.bench.train(self.learner, np.arange(len(self.bench.y)), self.heads[-1])
        seconds = self.seconds + time.perf_counter() - began
        return Member(self.learner, head, self.logits, seconds)
