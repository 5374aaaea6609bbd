"""The routing table: what a policy decides on traces that it never trained on. The one input of all artefacts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracer.learning.candidates import BARS
from tracer.learning.heads import Block
from tracer.policies.policy import Inputs, Policy
from tracer.types import Bool, Dataset, Float64, Int32, LabelSpace, Reason


@dataclass(frozen=True, slots=True, eq=False)
class RoutingTable:
    """One row a trace that the policy never trained on.

    ``labels`` (n,) are the teacher's, by name; ``y`` (n,) their codes, -1 where the label is not learned; ``predicted``
    (n,) the surrogate's codes. ``scores`` (n,) rank the rows on the one scale that ``threshold`` cuts: answers of a
    cascade's first stage stand 1 higher, barred rows are -inf; ``shown`` (n,) are the acceptor's own. ``vectors``
    (n, d) are unit rows, embeddings where there are any, else lexical features. ``stands_on`` says in words which rows
    these are, ``policy`` which version decided; ``certified`` is False for the best candidate of a refusal.
    """

    space: LabelSpace
    ids: tuple[str, ...]
    texts: tuple[str, ...] | None
    labels: tuple[str, ...]
    truth: tuple[str | None, ...]
    y: Int32
    predicted: Int32
    scores: Float64
    shown: Float64
    handled: Bool
    bars: NDArray[np.int8]
    stage: NDArray[np.int8]
    vectors: Block
    threshold: float
    stands_on: str
    policy: str
    certified: bool

    @classmethod
    def of(cls, policy: Policy, rows: Dataset, stands_on: str, threshold: float | None = None) -> RoutingTable:
        """Decide on ``rows`` with a policy; ``threshold`` None takes its own.

        Give the threshold at which a refused candidate first failed, whose own handles nothing. Raises FeatureError
        where the rows do not fit the policy.
        """
        staged = policy.score(Inputs.of(rows.texts, rows.dense))
        scores = staged.scored.scores
        cut = policy.threshold if threshold is None else threshold
        vectors: Block
        if rows.dense is not None:
            length = np.linalg.norm(rows.dense, axis=1, keepdims=True)
            vectors = (rows.dense / np.maximum(length, np.float32(1e-12))).astype(np.float32)
        elif policy.lexical is not None and rows.texts is not None:
            vectors = policy.lexical.transform(rows.texts)
        else:
            vectors = np.zeros((len(rows), 1), dtype=np.float32)
        return cls(
            space=policy.space,
            ids=rows.ids,
            texts=rows.texts,
            labels=rows.labels,
            truth=rows.truth,
            y=policy.space.encode(rows.labels),
            predicted=staged.scored.predicted,
            scores=scores,
            shown=np.where(staged.stage == 1, scores - 1.0, scores),
            handled=scores >= cut,
            bars=staged.scored.bars,
            stage=staged.stage,
            vectors=vectors,
            threshold=cut,
            stands_on=stands_on,
            policy=policy.version,
            certified=threshold is None,
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def agree(self) -> Bool:
        """Rows (n,) on which the surrogate says what the teacher said; a label that is not learned never agrees."""
        return np.asarray(self.predicted == self.y)

    def label(self, code: int) -> str:
        """Name of a label code."""
        return self.space.names[code]

    def reason(self, row: int) -> Reason:
        """Why a row is handled or not."""
        return "handled" if self.handled[row] else BARS[int(self.bars[row])]

    def text(self, row: int) -> str:
        """The row's text; empty where only embeddings are kept."""
        return self.texts[row] if self.texts is not None else ""
