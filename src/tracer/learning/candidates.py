"""A candidate: surrogate, acceptor, novelty guard and business rules, scored in one place.

Whatever can change "handled" is inside the score, so what is certified is what is served.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tracer.config import Novelty
from tracer.errors import FeatureError
from tracer.learning.acceptors import Acceptor
from tracer.learning.heads import softmax
from tracer.learning.neighbours import Nearness
from tracer.learning.surrogates import BlockName, Blocks, Surrogate
from tracer.learning.threads import n_workers, one_thread_each
from tracer.types import Float32, Float64, Int32, Reason

ALWAYS_DEFER_PROBABILITY = 0.05
"""An input is never handled where the always-defer labels together reach this probability."""

_CHUNK = 2048
"""Inputs scored at a time: their logits stay in the processor's cache, and memory stays bounded."""

BARS: tuple[Reason, ...] = ("below_threshold", "novel", "always_defer", "error_cost", "class_floor")
"""Why a score is barred, by code; 0 is no bar."""


@dataclass(frozen=True, slots=True)
class NoveltyGuard:
    """Inputs whose largest logit is below ``floor`` (an out-of-fold quantile) look like nothing seen."""

    mode: Novelty = "off"
    floor: float = float("-inf")


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """Business rules by label code. ``error_ratio`` (k,): dollars of an error over dollars of a teacher
    call; ``class_floor`` (k,): lowest score at which a predicted class is handled."""

    always_defer: Int32 = field(default_factory=lambda: np.empty(0, dtype=np.int32))
    error_ratio: Float64 | None = None
    class_floor: Float64 | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """Predicted codes (n,), scores (n,), and bar codes (n,) into ``BARS``."""

    predicted: Int32
    scores: Float64
    bars: NDArray[np.int8]


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A surrogate with its acceptor, novelty guard and rules."""

    surrogate: Surrogate
    acceptor: Acceptor
    guard: NoveltyGuard
    rules: Rules

    @property
    def name(self) -> str:
        """The surrogate's name."""
        return self.surrogate.name

    def score(self, blocks: Blocks) -> Scored:
        """Score n inputs from their feature blocks, a chunk at a time and the chunks beside each other.

        Raises FeatureError where an embedding holds NaN or infinity.
        """
        used: set[BlockName] = {"dense"} if self.acceptor.prototypes is not None else set()
        read = {name: blocks[name] for name in used | self.surrogate.blocks}
        n = next(iter(read.values())).shape[0]
        if n <= _CHUNK:
            return self._score(read)
        from concurrent.futures import ThreadPoolExecutor

        chunks = [slice(i, i + _CHUNK) for i in range(0, n, _CHUNK)]
        with one_thread_each(), ThreadPoolExecutor(n_workers(len(chunks))) as workers:
            parts = list(workers.map(lambda chunk: self._score({k: b[chunk] for k, b in read.items()}), chunks))
        return Scored(
            np.concatenate([part.predicted for part in parts]),
            np.concatenate([part.scores for part in parts]),
            np.concatenate([part.bars for part in parts]),
        )

    def _score(self, blocks: Blocks) -> Scored:
        dense = blocks.get("dense")
        if isinstance(dense, np.ndarray) and not np.isfinite(np.dot(dense.ravel(), dense.ravel())):
            raise FeatureError("embeddings hold NaN or infinity, or numbers too large for float32")
        nearness = None
        if self.acceptor.prototypes is not None:
            nearness = self.acceptor.prototypes.nearness(np.asarray(blocks["dense"], dtype=np.float32))
        return self.score_views(self.surrogate.views(blocks), nearness)

    def score_views(self, views: tuple[Float32, ...], nearness: Nearness | None = None) -> Scored:
        """Score n inputs from the weighted logits of each part, and their nearness where the acceptor has
        prototypes; used out of fold as well as in service.

        A novel input loses 1 from its score in mode ``rank``, so it is handled only after all familiar
        ones and keeps its order; barred inputs score -inf and are never handled.
        """
        predicted, features, max_logit = self.acceptor.features(views, nearness)
        scores = self.acceptor.probability(features)
        bars = np.zeros(len(scores), dtype=np.int8)
        raw = scores.copy()
        if self.guard.mode != "off":
            novel = max_logit < self.guard.floor
            bars[novel] = BARS.index("novel")
            scores[novel] = scores[novel] - 1.0 if self.guard.mode == "rank" else -np.inf
        rules = self.rules
        if rules.class_floor is not None:
            _bar(scores, bars, raw < rules.class_floor[predicted], "class_floor")
        if rules.error_ratio is not None:
            _bar(scores, bars, (1.0 - raw) * rules.error_ratio[predicted] > 1.0, "error_cost")
        if len(rules.always_defer):
            logits = views[0] if len(views) == 1 else np.sum(views, axis=0)
            suspicion = softmax(logits)[:, rules.always_defer].sum(axis=1)
            hit = (suspicion >= ALWAYS_DEFER_PROBABILITY) | np.isin(predicted, rules.always_defer)
            _bar(scores, bars, hit, "always_defer")
        return Scored(predicted, scores, bars)


def _bar(scores: Float64, bars: NDArray[np.int8], where: NDArray[np.bool_], reason: Reason) -> None:
    scores[where] = -np.inf
    bars[where] = BARS.index(reason)
