"""A policy: everything that decides, frozen, and the certificate it was promoted with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tracer.certification.certificate import Certificate
from tracer.errors import FeatureError
from tracer.features.lexical import LexicalFeatures, SparseRow
from tracer.learning.candidates import BARS, Candidate, Scored
from tracer.learning.single import One, SingleScorer
from tracer.learning.surrogates import BlockName, Blocks
from tracer.types import Decided, Decisions, EmbedderIdentity, Float32, LabelSpace, Reason

Family = Literal["global", "l2d", "cascade"]
Embed = Callable[[Sequence[str]], Float32]

_FIRST_STAGE_BONUS = 1.0
_NEEDS_TEXTS = "this policy reads texts: embeddings alone are not enough"
_REASONS = np.array([*BARS, "handled"], dtype=object)
_HANDLED = len(BARS)


@dataclass(frozen=True, slots=True, eq=False)
class FirstStage:
    """The lexical stage of a cascade: it answers where its own score reaches ``cut``, with no embedding."""

    candidate: Candidate
    cut: float


class Inputs(NamedTuple):
    """n inputs: texts, embeddings (n, d), or texts with a function that embeds them when needed."""

    n: int
    texts: Sequence[str] | None = None
    dense: Float32 | None = None
    embed: Embed | None = None

    @classmethod
    def of(
        cls,
        texts: Sequence[str] | None,
        dense: NDArray[np.floating] | None = None,
        embed: Embed | None = None,
    ) -> Inputs:
        """Check that there is something to decide on, and that texts and embeddings are as many."""
        if texts is None and dense is None:
            raise FeatureError("nothing to decide on: give texts, embeddings or both")
        if isinstance(texts, str):
            raise FeatureError("texts must be a sequence of strings, not one string")
        vectors = None if dense is None else np.ascontiguousarray(dense, dtype=np.float32)
        if vectors is not None and vectors.ndim != 2:
            raise FeatureError(f"embeddings must be two-dimensional (n, d), not {vectors.shape}")
        if texts is not None and vectors is not None and len(texts) != len(vectors):
            raise FeatureError(f"{len(texts)} texts, {len(vectors)} embeddings")
        n = len(texts) if texts is not None else len(vectors if vectors is not None else ())
        return cls(n, texts, vectors, embed)


@dataclass(frozen=True, slots=True, eq=False)
class StagedScores:
    """Scores of a policy: ``scored`` on one scale for the threshold, ``stage`` (n,) 1 or 2."""

    scored: Scored
    stage: NDArray[np.int8]


@dataclass(frozen=True, eq=False)
class Policy:
    """What serves. ``version`` is empty until the registry gives one.

    ``task`` says what it was certified for: the teachers named in the traces, the embedder's name.
    ``probes`` (m, d) are the embedder's vectors of fixed texts, checked when an embedder is attached.
    """

    space: LabelSpace
    family: Family
    candidate: Candidate
    certificate: Certificate
    lexical: LexicalFeatures | None = None
    embedder: EmbedderIdentity | None = None
    first_stage: FirstStage | None = None
    probes: Float32 | None = None
    version: str = ""
    parent: str | None = None
    created: str = ""
    task: Mapping[str, Any] = field(default_factory=dict)
    report: Mapping[str, Any] = field(default_factory=dict)

    @property
    def threshold(self) -> float:
        """The certified threshold on the acceptor's score; -1 handles all that is not barred."""
        return self.certificate.threshold

    @cached_property
    def needs(self) -> frozenset[BlockName]:
        """The feature blocks that a decision may need."""
        first = self.first_stage.candidate.surrogate.blocks if self.first_stage else frozenset()
        return self.candidate.surrogate.blocks | first

    def score(self, inputs: Inputs) -> StagedScores:
        """Score n inputs, embedding only those that the first stage leaves."""
        blocks: dict[BlockName, Any] = {}
        if "lexical" in self.needs:
            if self.lexical is None or inputs.texts is None:
                raise FeatureError(_NEEDS_TEXTS)
            blocks["lexical"] = self.lexical.transform(inputs.texts)
        if self.first_stage is None:
            if "dense" in self.needs:
                blocks["dense"] = self._dense(inputs, None)
            return StagedScores(self.candidate.score(blocks), np.full(inputs.n, 2, dtype=np.int8))
        first = self.first_stage.candidate.score(blocks)
        rest = left_by(first, self.first_stage.cut)
        second = None
        if len(rest):
            remaining: Blocks = {"lexical": blocks["lexical"][rest], "dense": self._dense(inputs, rest)}
            second = self.candidate.score(remaining)
        return combine_stages(first, self.first_stage.cut, second, rest)

    def decide(
        self,
        texts: Sequence[str] | None = None,
        dense: NDArray[np.floating] | None = None,
        embed: Embed | None = None,
    ) -> Decisions:
        """Decide on n inputs: the one place where a score meets the threshold.

        ``texts`` (n,), ``dense`` (n, d) embeddings, ``embed`` embeds the texts that need it.
        Raises FeatureError where the inputs do not fit the policy.
        """
        inputs = Inputs.of(texts, dense, embed)
        if inputs.n == 1:
            return Decisions.of([self._decide_one(inputs)])
        if inputs.n == 0:
            empty = np.empty(0)
            return Decisions((), empty, empty.astype(bool), (), empty.astype(np.int8))
        staged = self.score(inputs)
        scores = staged.scored.scores
        handled = scores >= self.threshold
        labels = self._names[staged.scored.predicted]
        reasons = _REASONS[np.where(handled, _HANDLED, staged.scored.bars)]
        shown = np.where(staged.stage == 1, scores - _FIRST_STAGE_BONUS, scores)
        return Decisions(tuple(labels.tolist()), shown, handled, tuple(reasons.tolist()), staged.stage)

    def decide_one(self, text: str | None = None, vector: Float32 | None = None, embed: Embed | None = None) -> Decided:
        """What ``decide`` says of one input: a text, its embedding (d,), or both. Raises FeatureError as that does."""
        texts = None if text is None else [text]
        return self._decide_one(Inputs.of(texts, None if vector is None else vector[None, :], embed))

    def decide_early(self, text: str) -> Decided | None:
        """What ``decide_one`` says of a text without its embedding; None where that is needed."""
        if "dense" not in self.needs:
            return self.decide_one(text)
        return None if self.first_stage is None else self._first(self._row([text]))

    def _decide_one(self, inputs: Inputs) -> Decided:
        """One input by the scorer of single rows, with no array of one row."""
        row = self._row(inputs.texts) if "lexical" in self.needs else None
        if self.first_stage is not None and (decided := self._first(row)) is not None:
            return decided
        shown = self._single[1].score(row, self._dense(inputs, None)[0] if "dense" in self.needs else None)
        return self._decided(shown, shown.score >= self.threshold, 2)

    def _row(self, texts: Sequence[str] | None) -> SparseRow:
        if self.lexical is None or texts is None:
            raise FeatureError(_NEEDS_TEXTS)
        return self.lexical.transform_one(texts[0])

    def _first(self, row: SparseRow | None) -> Decided | None:
        """What the first stage says; None where it leaves the input to the second."""
        first, stage = self._single[0], self.first_stage
        if first is None or stage is None:
            return None
        shown = first.score(row, None)
        # What the first stage leaves goes on; what a rule bars stays barred.
        if stage.cut > shown.score > -np.inf:
            return None
        return self._decided(shown, shown.score + _FIRST_STAGE_BONUS >= self.threshold, 1)

    def _decided(self, shown: One, handled: bool, stage: int) -> Decided:
        reason: Reason = "handled" if handled else BARS[shown.bar]
        return Decided(self.space.names[shown.predicted], shown.score, handled, reason, stage)

    @cached_property
    def _single(self) -> tuple[SingleScorer | None, SingleScorer]:
        first = SingleScorer(self.first_stage.candidate) if self.first_stage else None
        return first, SingleScorer(self.candidate)

    @cached_property
    def _names(self) -> NDArray[np.object_]:
        return np.array(self.space.names, dtype=object)

    def _dense(self, inputs: Inputs, rows: NDArray[np.intp] | None) -> Float32:
        """Embeddings of all inputs, or of some rows. Whether they are finite is seen where they are read."""
        if inputs.dense is not None:
            vectors = inputs.dense if rows is None else inputs.dense[rows]
        elif inputs.embed is not None and inputs.texts is not None:
            texts = inputs.texts if rows is None else [inputs.texts[i] for i in rows]
            vectors = inputs.embed(texts)
        else:
            raise FeatureError("this policy reads embeddings: give them, or attach the embedder it was fitted with")
        wanted = inputs.n if rows is None else len(rows)
        if vectors.ndim != 2 or len(vectors) != wanted:
            raise FeatureError(f"embeddings have shape {vectors.shape} for {wanted} texts")
        if self.embedder is not None and vectors.shape[1] != self.embedder.dimension:
            expected = self.embedder.dimension
            raise FeatureError(f"embeddings have {vectors.shape[1]} columns, the policy was fitted on {expected}")
        return vectors


def left_by(first: Scored, cut: float) -> NDArray[np.intp]:
    """Rows that the first stage leaves to the second: neither answered, nor barred by a rule, which is final."""
    return np.flatnonzero((first.scores < cut) & np.isfinite(first.scores))


def combine_stages(first: Scored, cut: float, second: Scored | None, rest: NDArray[np.intp]) -> StagedScores:
    """One scale for both stages: an answer of the first stage ranks above all of the second.

    ``second`` holds the rows ``rest`` that the first stage left. The set handled grows as the threshold
    falls, so one chain tests one number.
    """
    stage = np.ones(len(first.scores), dtype=np.int8)
    predicted, scores, bars = first.predicted.copy(), first.scores + _FIRST_STAGE_BONUS, first.bars.copy()
    if second is not None:
        stage[rest] = 2
        predicted[rest], scores[rest], bars[rest] = second.predicted, second.scores, second.bars
    return StagedScores(Scored(predicted, scores, bars), stage)
