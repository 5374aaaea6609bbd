"""Cross-fitting: who is trained on what, how often, and what a head may know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from tracer.errors import TrainingError
from tracer.learning.crossfit import Anchors, CrossFit, WarmHeads, cross_fit
from tracer.learning.heads import Block, Head, LinearHead
from tracer.learning.pool import Learner
from tracer.types import Float32, Int32

N, K, FOLDS = 60, 3, 4
ROWS = np.arange(N, dtype=np.float32)[:, None]
Y = (np.arange(N) % K).astype(np.int32)
IN_FOLD = (np.arange(N) * 7 % FOLDS).astype(np.int8)


@dataclass(frozen=True, slots=True)
class Memory:
    """A head that knows the rows it was trained on, and those its start knew: it gives them logit 9 for label 0."""

    seen: frozenset[int]
    knows: float = 0.0
    kind: ClassVar[str] = "memory"

    def logits(self, block: Block) -> Float32:
        rows = np.asarray(block)[:, 0].astype(int)
        out = np.zeros((len(rows), K), dtype=np.float32)
        right = np.where(rows >= 0, rows % K, 0)
        out[np.arange(len(rows)), right] = self.knows
        out[[row in self.seen for row in rows], 0] = 9.0
        return out

    def arrays(self) -> dict[str, NDArray[Any]]:
        return {}


@dataclass(slots=True)
class Coach:
    """A recipe that remembers its calls. ``knows`` is how well its heads do on rows they never saw."""

    knows: float = 1.0
    fails_at: int | None = None
    trained: list[frozenset[int]] = field(default_factory=list)
    starts: list[Head | None] = field(default_factory=list)
    labels: list[Int32] = field(default_factory=list)

    def __call__(self, block: Block, y: Int32, k: int, start: Head | None, seed: int) -> Head:
        assert k == K
        rows = np.asarray(block)[:, 0].astype(int)
        self.trained.append(frozenset(rows.tolist()))
        self.starts.append(start)
        self.labels.append(y)
        if self.fails_at == len(self.trained):
            raise ValueError("the matrix is singular")
        inherited = start.seen if isinstance(start, Memory) else frozenset[int]()
        return Memory(self.trained[-1] | inherited, self.knows)


def run(
    *learners: Learner, anchors: Anchors | None = None, progress: Callable[[str, int, int], None] | None = None
) -> CrossFit:
    silent: Callable[[str, int, int], None] = lambda _what, _done, _total: None  # noqa: E731
    return cross_fit(learners, {"dense": ROWS}, Y, IN_FOLD, K, 0, progress or silent, anchors)


def test_a_recipe_is_trained_once_a_fold_and_once_on_all() -> None:
    one, two = Coach(), Coach()
    cross = run(Learner("a", "dense", one), Learner("b", "dense", two))
    folds = [frozenset(np.flatnonzero(fold != IN_FOLD).tolist()) for fold in range(FOLDS)]
    for coach in (one, two):
        # The first fold comes first; the others and the whole wait for nobody and come in any order.
        assert coach.trained[0] == folds[0]
        assert sorted(map(sorted, coach.trained)) == sorted(map(sorted, [*folds, frozenset(range(N))]))
    assert cross.n_trainings == 2 * (FOLDS + 1)
    assert [m.learner.family for m in cross.members] == ["a", "b"]
    assert cross.dropped == ()


def test_no_out_of_fold_logit_comes_from_a_head_that_knew_the_row() -> None:
    variants = [Learner("a", "dense", Coach(knows=1.0 + i), f"variant {i}") for i in range(3)]
    cross = run(*variants, Learner("b", "dense", Coach()))
    assert len(cross.members) == 2
    for member in cross.members:
        assert member.logits.max() < 9.0
        assert np.array_equal(member.logits.argmax(axis=1), Y)
        assert isinstance(member.head, Memory)
        assert member.head.logits(ROWS)[:, 0].min() == 9.0


def test_variants_start_from_the_one_before_on_the_first_fold_only() -> None:
    coaches = [Coach(knows=0.0), Coach(knows=2.0)]
    run(*(Learner("a", "dense", coach, str(i)) for i, coach in enumerate(coaches)), Learner("b", "dense", Coach()))
    assert coaches[0].starts == [None]
    first, *later = coaches[1].starts
    assert isinstance(first, Memory)
    assert first.seen == coaches[0].trained[0]
    for start, rows in zip(later, coaches[1].trained[1:], strict=True):
        # The whole may start from any fold's head, a fold from none: a head remembers what it saw.
        assert isinstance(start, Memory) == (len(rows) == N)


def test_only_the_best_variant_of_a_family_goes_on() -> None:
    weak, strong = Coach(knows=0.0), Coach(knows=4.0)
    cross = run(Learner("a", "dense", weak, "weak"), Learner("a", "dense", strong, "strong"))
    assert [m.learner.variant for m in cross.members] == ["strong"]
    assert (len(weak.trained), len(strong.trained)) == (1, FOLDS + 1)
    assert [(d.name, d.reason, d.failed) for d in cross.dropped] == [
        ("dense a (weak)", "fitted on the other folds dense a (strong) does better", False)
    ]
    assert cross.n_trainings == 2 + FOLDS


def test_a_family_that_is_clearly_worse_is_dropped_with_its_figures() -> None:
    bad = Coach(knows=-5.0)
    cross = run(Learner("good", "dense", Coach()), Learner("bad", "dense", bad))
    assert [m.learner.family for m in cross.members] == ["good"]
    assert [(d.name, d.failed) for d in cross.dropped] == [("dense bad", False)]
    n = int((IN_FOLD == 0).sum())
    assert cross.dropped[0].reason == f"fitted on the other folds it loses {n} rows to dense good and wins 0"
    assert len(bad.trained) == 1


def test_a_recipe_that_fails_is_reported_by_name_and_reason() -> None:
    cross = run(Learner("good", "dense", Coach()), Learner("bad", "dense", Coach(fails_at=1)))
    assert [m.learner.family for m in cross.members] == ["good"]
    assert [(d.name, d.reason, d.failed) for d in cross.dropped] == [
        ("dense bad", "ValueError: the matrix is singular", True)
    ]


@pytest.mark.parametrize("call", [2, FOLDS, FOLDS + 1])
def test_a_recipe_that_fails_later_is_reported_too(call: int) -> None:
    cross = run(Learner("good", "dense", Coach()), Learner("bad", "dense", Coach(fails_at=call)))
    assert [m.learner.family for m in cross.members] == ["good"]
    assert [(d.name, d.failed) for d in cross.dropped] == [("dense bad", True)]


def test_where_all_fail_the_error_names_them_all() -> None:
    with pytest.raises(TrainingError, match=r"no candidate could be trained.*dense a: ValueError.*dense b: ValueError"):
        run(*(Learner(name, "dense", Coach(fails_at=1)) for name in "ab"))


def test_a_recipe_with_too_many_rows_is_not_trained() -> None:
    big = Coach()
    cross = run(Learner("good", "dense", Coach()), Learner("big", "dense", big, max_rows=N - 1))
    assert big.trained == []
    assert [(d.name, d.failed) for d in cross.dropped] == [("dense big", False)]
    assert f"{N} rows" in cross.dropped[0].reason


def test_anchors_are_in_every_training_set_and_in_no_evaluation() -> None:
    coach = Coach()
    anchors = Anchors({"dense": np.array([[-1.0], [-2.0]], dtype=np.float32)}, np.array([0, 2], dtype=np.int32))
    cross = run(Learner("a", "dense", coach), anchors=anchors)
    assert len(coach.trained) == FOLDS + 1
    assert all({-1, -2} <= rows for rows in coach.trained)
    assert all(y[-2:].tolist() == [0, 2] for y in coach.labels)
    assert cross.members[0].logits.shape == (N, K)


def test_progress_rises_and_never_passes_its_end() -> None:
    steps: list[tuple[int, int]] = []
    run(
        Learner("a", "dense", Coach()),
        Learner("b", "dense", Coach()),
        progress=lambda _what, done, total: steps.append((done, total)),
    )
    done = [d for d, _ in steps]
    assert done == sorted(done)
    assert len(steps) >= 2 * (FOLDS + 1)
    assert all(0 <= d <= t for d, t in steps)


def test_a_large_fit_takes_a_first_look_at_rivals() -> None:
    """A clearly worse family is trained on a few rows only, and never on a whole fold."""
    rng = np.random.default_rng(3)
    n = 6000
    y = rng.integers(0, 2, n).astype(np.int32)
    block = np.stack([y + rng.normal(0, 0.1, n), rng.normal(0, 1, n)], axis=1).astype(np.float32)
    folds = (np.arange(n) % 5).astype(np.int8)
    sizes: dict[str, list[int]] = {"good": [], "bad": []}

    def recipe(name: str, sign: float) -> Learner:
        def train(rows: Block, labels: Int32, k: int, start: Head | None, seed: int) -> Head:
            sizes[name].append(len(labels))
            weights = np.array([[-sign, sign], [0.0, 0.0]], dtype=np.float32)
            return LinearHead(weights, np.array([0.5 * sign, -0.5 * sign], dtype=np.float32))

        return Learner(name, "dense", train)

    cross = cross_fit([recipe("good", 1.0), recipe("bad", -1.0)], {"dense": block}, y, folds, 2, 0, lambda *_: None)
    assert [m.learner.family for m in cross.members] == ["good"]
    assert sizes["bad"] == [500]
    assert sorted(sizes["good"]) == [500, *[4800] * 5, 6000]
    assert [d.reason.startswith("fitted on 500 rows it loses") for d in cross.dropped] == [True]


def test_each_fold_starts_from_its_own_head_and_nothing_is_screened() -> None:
    chosen, other = Coach(), Coach()
    warm = WarmHeads(
        tuple(LinearHead(np.full((1, K), float(i), dtype=np.float32), np.zeros(K, np.float32)) for i in range(FOLDS)),
        LinearHead(np.full((1, K), 99.0, dtype=np.float32), np.zeros(K, np.float32)),
    )
    learners = [Learner("a", "dense", chosen), Learner("b", "dense", other)]
    cross = cross_fit(learners, {"dense": ROWS}, Y, IN_FOLD, K, 0, lambda *_: None, None, {"dense a": warm})
    assert other.trained == []
    assert cross.n_trainings == FOLDS + 1
    assert [(d.name, d.reason) for d in cross.dropped] == [("dense b", "was not chosen when all recipes were tried")]
    for rows, first in zip(chosen.trained, chosen.starts, strict=True):
        assert isinstance(first, LinearHead)
        left_out = set(IN_FOLD[sorted(set(range(len(Y))) - rows)].tolist())
        assert left_out == (set() if first.weights[0, 0] == 99.0 else {int(first.weights[0, 0])})


def test_kept_heads_judge_their_folds_and_only_the_whole_is_trained() -> None:
    coach = Coach()
    warm = WarmHeads(
        tuple(LinearHead(np.zeros((1, K), np.float32), np.full(K, float(i), np.float32)) for i in range(FOLDS)),
        LinearHead(np.full((1, K), 99.0, dtype=np.float32), np.zeros(K, np.float32)),
    )
    cross = cross_fit(
        [Learner("a", "dense", coach)], {"dense": ROWS}, Y, IN_FOLD, K, 0, lambda *_: None, None, {"dense a": warm},
        keep_folds=True,
    )  # fmt: skip
    assert cross.n_trainings == 1
    assert coach.trained == [frozenset(range(N))]
    assert coach.starts == [warm.final]
    assert cross.members[0].logits[:, 0].tolist() == IN_FOLD.tolist(), "each row is judged by the head of its fold"


def test_where_a_chosen_recipe_can_no_longer_be_trained_all_are_tried_again() -> None:
    small, other = Coach(), Coach()
    learners = [Learner("small", "dense", small, max_rows=N - 1), Learner("other", "dense", other)]
    cross = cross_fit(learners, {"dense": ROWS}, Y, IN_FOLD, K, 0, lambda *_: None, None, {"dense small": None})
    assert small.trained == []
    assert [m.learner.family for m in cross.members] == ["other"]
