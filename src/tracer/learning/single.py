"""One input at a time: the numbers of `Candidate.score` for a single row, without arrays of one row.

A decision takes microseconds, and most of them go to calls, not to arithmetic. So what can be folded is folded
once (the standardisation, the record of each class), vectors have one dimension, and what is one number is a
Python number. Tests hold both paths to the same scores.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.errors import FeatureError
from tracer.features.lexical import SparseRow
from tracer.learning.acceptors import LOWEST_LOG_P, PAPER_FEATURES, SURE, TINY, Acceptor
from tracer.learning.candidates import ALWAYS_DEFER_PROBABILITY, BARS, Candidate
from tracer.learning.heads import LinearHead
from tracer.learning.neighbours import NEAR, SHARPNESS, Prototypes
from tracer.learning.surrogates import Part
from tracer.learning.threads import one_thread_each
from tracer.types import Float32

_NOVEL, _ALWAYS, _COST, _FLOOR = (BARS.index(r) for r in ("novel", "always_defer", "error_cost", "class_floor"))


class One(NamedTuple):
    """Predicted code, score, and bar code into ``BARS``."""

    predicted: int
    score: float
    bar: int


class SingleScorer:
    """A candidate, prepared to score one input after the other."""

    def __init__(self, candidate: Candidate) -> None:
        self._reads_dense = "dense" in candidate.surrogate.blocks
        self._guard, rules = candidate.guard, candidate.rules
        self._always = rules.always_defer if len(rules.always_defer) else None
        self._always_codes = frozenset(rules.always_defer.tolist())
        self._ratio = None if rules.error_ratio is None else rules.error_ratio.tolist()
        self._floor = None if rules.class_floor is None else rules.class_floor.tolist()
        acceptor = candidate.acceptor
        slopes = acceptor.coefficients / acceptor.scale
        self._intercept = acceptor.intercept - float(slopes @ acceptor.mean)
        self._paper = acceptor.names == PAPER_FEATURES
        self._slopes: list[float] = slopes.tolist()
        self._k = len(acceptor.reliability.agreement)
        self._views = [_View(part, self._k) for part in candidate.surrogate.parts]
        self._entropy_unit = 1.0 / math.log(max(self._k, 2))
        self._ones = np.ones(self._k, dtype=np.float32)  # a product with them is faster than a sum
        self._record = [] if self._paper else _record(acceptor, slopes)
        self._nearest = None if acceptor.prototypes is None else _Nearest(acceptor.prototypes)
        self._linear = self._nearest is None and all(isinstance(p.head, LinearHead) for p in candidate.surrogate.parts)

    def views(self, row: SparseRow | None, vector: Float32 | None) -> list[Float32]:
        """The weighted logits (k,) of each part."""
        return [view.logits(row, vector) for view in self._views]

    def score(self, row: SparseRow | None, vector: Float32 | None) -> One:
        """Score one input from its lexical row and its embedding (d,), as far as the candidate reads them.

        Raises FeatureError where the embedding holds NaN or infinity.
        """
        if self._linear:
            return self._score(row, vector)
        # Products with thousands of prototypes start threads, which wait milliseconds for a processor that is busy.
        with one_thread_each():
            return self._score(row, vector)

    def _score(self, row: SparseRow | None, vector: Float32 | None) -> One:
        length = 0.0
        if self._reads_dense and vector is not None:
            length = math.sqrt(vector.dot(vector))
            if not math.isfinite(length):
                raise FeatureError("embeddings hold NaN or infinity, or numbers too large for float32")
        views = self.views(row, vector)
        logits = views[0] if len(views) == 1 else views[0] + views[1]
        for view in views[2:]:
            logits += view
        code = int(logits.argmax())
        top = float(logits[code])
        rest = logits - logits[code]
        rest[code] = -np.inf
        gap = float(rest[rest.argmax()]) if self._k > 1 else -SURE
        p = np.exp(rest)
        rest[code] = 0.0
        others = float(p.dot(self._ones))
        total = 1.0 + others
        top_1 = 1.0 / total
        top_2 = math.exp(gap) / total if self._k > 1 else 0.0
        entropy = (math.log(total) - float(p.dot(rest)) / total) * self._entropy_unit
        slopes = self._slopes
        z = self._intercept + slopes[0] * top_1 + slopes[1] * top_2 + slopes[2] * (top_1 - top_2) + slopes[3] * entropy
        if not self._paper:
            z += slopes[4] * -gap + slopes[5] * math.log(max(others / total, TINY)) + slopes[6] * top
            z += self._record[code]
            at = len(PAPER_FEATURES) + 3
            if len(views) > 1:
                for view in views:
                    for value in self._view_features(view, code):
                        z += slopes[at] * value
                        at += 1
            if self._nearest is not None and vector is not None:
                for value in self._nearest.features(vector, length, code):
                    z += slopes[at] * value
                    at += 1
        raw = 1.0 / (1.0 + math.exp(min(-z, 700.0)))
        suspicion = 0.0
        if self._always is not None:
            p[code] = 1.0
            suspicion = float(p[self._always].sum()) / total
        return self._barred(code, raw, top, suspicion)

    def _view_features(self, view: Float32, code: int) -> tuple[float, float, float]:
        """The three features of `acceptors.view_columns`."""
        top, own = view[view.argmax()], view[code]
        log_p = float(own - top) - math.log(float(np.exp(view - top).dot(self._ones)))
        return math.exp(log_p), max(log_p, LOWEST_LOG_P), 1.0 if own >= top else 0.0

    def _barred(self, code: int, raw: float, top: float, suspicion: float) -> One:
        """Guard and rules, in the order of `Candidate.score_views`."""
        score, bar = raw, 0
        if self._guard.mode != "off" and top < self._guard.floor:
            bar = _NOVEL
            score = raw - 1.0 if self._guard.mode == "rank" else -math.inf
        if self._floor is not None and raw < self._floor[code]:
            score, bar = -math.inf, _FLOOR
        if self._ratio is not None and (1.0 - raw) * self._ratio[code] > 1.0:
            score, bar = -math.inf, _COST
        if self._always is not None and (suspicion >= ALWAYS_DEFER_PROBABILITY or code in self._always_codes):
            score, bar = -math.inf, _ALWAYS
        return One(code, score, bar)


def _record(acceptor: Acceptor, slopes: NDArray[np.float64]) -> list[float]:
    """What the record of each class adds to the acceptor's sum; its two features come last."""
    record = acceptor.reliability
    both = slopes[-2] * record.agreement + slopes[-1] * record.log_count
    out: list[float] = both.tolist()
    return out


class _View:
    """The weighted logits of one part. The weight is folded into the bias."""

    def __init__(self, part: Part, k: int) -> None:
        self._head = part.head
        self._weight = np.full(k, part.weight, dtype=np.float32)  # faster than a number
        self._lexical = part.block == "lexical"
        self._linear = part.head if isinstance(part.head, LinearHead) else None
        self._bias = None if self._linear is None else self._linear.bias * self._weight

    def logits(self, row: SparseRow | None, vector: Float32 | None) -> Float32:
        out: Float32
        if self._lexical:
            if row is None:
                raise FeatureError("a lexical row is needed")
            if self._linear is None:
                out = self._head.logits(row.matrix())[0]
            else:
                out = row.values @ self._linear.weights.take(row.columns, axis=0)
        elif vector is None:
            raise FeatureError("an embedding is needed")
        elif self._linear is None:
            out = self._head.logits(vector[None, :])[0]
        else:
            out = vector @ self._linear.weights
        out *= self._weight
        if self._bias is not None:
            out += self._bias
        return out


class _Nearest:
    """The five features of `neighbours.Nearness.columns`. Prototypes lie in the order of their labels."""

    def __init__(self, prototypes: Prototypes) -> None:
        self._vectors, self._labels = prototypes.vectors, prototypes.labels
        self._starts: list[int] = np.searchsorted(self._labels, np.arange(prototypes.n_classes + 1)).tolist()
        self._near = min(NEAR, len(self._labels))

    def features(self, vector: Float32, length: float, code: int) -> tuple[float, float, float, float, float]:
        similar = self._vectors @ vector
        similar *= np.float32(1.0 / max(length, 1e-12))
        near = similar.argpartition(len(similar) - self._near)[-self._near :]
        values = similar[near]
        weights = np.exp(values * np.float32(SHARPNESS))
        share = float(weights[self._labels[near] == code].sum()) / float(weights.sum())
        start, end = self._starts[code], self._starts[code + 1]
        same, other = _best(similar[start:end]), max(_best(similar[:start]), _best(similar[end:]))
        return float(values.max()), float(values.sum()) / self._near, share, same - other, same


def _best(similar: Float32) -> float:
    return max(float(similar[similar.argmax()]), 0.0) if len(similar) else 0.0
