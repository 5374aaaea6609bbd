"""Why one input is handled or deferred: the score, its classes, the nearest traces, and the words that moved it.

The words speak of the surrogate's answer: the predicted class against the runner-up. Whether the answer is accepted is
the acceptor's matter, whose score stands beside its threshold.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from tracer.errors import FeatureError
from tracer.explanations.examples import Example, clip
from tracer.explanations.quality import cosines
from tracer.explanations.table import RoutingTable
from tracer.features.lexical import NgramKind, ngrams
from tracer.learning.candidates import Candidate
from tracer.learning.heads import Block, LinearHead, softmax
from tracer.learning.surrogates import BlockName
from tracer.policies.policy import Embed, Policy
from tracer.types import Float32, Reason

_CLASSES, _NEAR, _GRAMS = 5, 3, 12
_WORDS = 64
"""Words that are left out one by one, from the beginning of the text."""
_TEXT = 2000

PieceKind = NgramKind | Literal["left out"]


@dataclass(frozen=True, slots=True)
class ClassShare:
    """A label and its probability by the surrogate, in [0, 1]."""

    label: str
    probability: float


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A trace that no training has seen, and its cosine to the input, in [-1, 1]."""

    trace: Example
    similarity: float


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of the text, and what it adds to the predicted class's logit over the runner-up's."""

    text: str
    kind: PieceKind
    contribution: float


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an input is handled or deferred.

    ``label`` is the surrogate's answer, which counts where ``handled``. ``score`` is the acceptor's, None where a rule
    barred the input; it is handled from ``threshold`` on (the first stage of a cascade has its own). ``lead`` is the
    predicted logit less the runner-up's; ``lead_of_words`` is what all n-grams together add to it, None where no part
    of the surrogate is linear in them. ``how`` says in words where ``pieces`` and neighbours come from.
    """

    text: str
    policy: str
    certified: bool
    handled: bool
    reason: Reason
    label: str
    runner_up: str | None
    score: float | None
    threshold: float
    stage: int
    classes: tuple[ClassShare, ...]
    lead: float | None
    lead_of_words: float | None
    pieces: tuple[Piece, ...]
    near_handled: tuple[Neighbour, ...]
    near_deferred: tuple[Neighbour, ...]
    how: tuple[str, ...]
    stands_on: str


def explain(
    policy: Policy, text: str, vector: Float32 | None, table: RoutingTable, embed: Embed | None = None
) -> Explanation:
    """Explain what a policy decides on a text.

    ``vector`` (d,) is the text's embedding, where the policy reads any or the table's rows have them; ``table`` is the
    routing table of the same policy, whose rows are the neighbours and whose threshold counts; ``embed`` embeds texts
    of which one word is left out. Raises FeatureError where the input does not fit the policy.
    """
    dense = None if vector is None else np.ascontiguousarray(vector, dtype=np.float32)[None, :]
    if dense is not None and not np.isfinite(dense).all():
        raise FeatureError("embeddings hold NaN or infinity")
    judge = policy
    if table.threshold != policy.threshold:  # the best candidate of a refusal, at the threshold where its chain failed
        judge = replace(policy, certificate=replace(policy.certificate, threshold=table.threshold))
    decided = judge.decide([text], dense, embed)
    stage, score = int(decided.stage[0]), float(decided.scores[0])
    candidate, threshold = policy.candidate, table.threshold
    if stage == 1 and policy.first_stage is not None:
        candidate = policy.first_stage.candidate
        threshold = max(policy.first_stage.cut, table.threshold - 1.0)
    if dense is None and embed is not None and "dense" in candidate.surrogate.blocks:
        dense = embed([text])
    logits = _logits(policy, candidate, [text], dense)[0]
    order = np.argsort(-logits, kind="stable")
    probability = softmax(logits[None, :])[0]
    first, second = int(order[0]), int(order[1]) if len(order) > 1 else None
    lead = None if second is None else float(logits[first] - logits[second])
    pieces: tuple[Piece, ...] = ()
    of_words, how = None, "there is one label only"
    if second is not None and lead is not None:
        pieces, of_words, how = _pieces(policy, candidate, text, (first, second), lead, embed)
    similar, basis = _similar(policy, text, dense, table)
    return Explanation(
        text=clip(text, _TEXT),
        policy=policy.version,
        certified=table.certified,
        handled=bool(decided.handled[0]),
        reason=decided.reasons[0],
        label=decided.labels[0],
        runner_up=None if second is None else policy.space.names[second],
        score=score if np.isfinite(score) else None,
        threshold=threshold,
        stage=stage,
        classes=tuple(ClassShare(policy.space.names[i], float(probability[i])) for i in order[:_CLASSES]),
        lead=lead,
        lead_of_words=of_words,
        pieces=pieces,
        near_handled=_nearest(similar, table, handled=True),
        near_deferred=_nearest(similar, table, handled=False),
        how=(how, basis),
        stands_on=table.stands_on,
    )


def _logits(policy: Policy, candidate: Candidate, texts: list[str], dense: Float32 | None) -> Float32:
    """The surrogate's logits (n, k)."""
    blocks: dict[BlockName, Block] = {}
    if "lexical" in candidate.surrogate.blocks and policy.lexical is not None:
        blocks["lexical"] = policy.lexical.transform(texts)
    if "dense" in candidate.surrogate.blocks and dense is not None:
        blocks["dense"] = dense
    return np.asarray(np.sum(candidate.surrogate.views(blocks), axis=0), dtype=np.float32)


def _pieces(
    policy: Policy, candidate: Candidate, text: str, pair: tuple[int, int], lead: float, embed: Embed | None
) -> tuple[tuple[Piece, ...], float | None, str]:
    """The pieces that move the answer most, what all n-grams together add, and where that comes from."""
    linear = [
        (part.head, part.weight)
        for part in candidate.surrogate.parts
        if part.block == "lexical" and isinstance(part.head, LinearHead)
    ]
    if linear and policy.lexical is not None:
        row = policy.lexical.transform_one(text)
        first, second = pair
        added = np.zeros(len(row.columns))
        for head, weight in linear:
            weights = head.weights[row.columns].astype(np.float64)
            added += weight * row.values * (weights[:, first] - weights[:, second])
        names: dict[int, dict[tuple[NgramKind, str], None]] = {}
        for ngram in ngrams(text):
            names.setdefault(ngram.hash, {})[ngram.kind, ngram.text] = None
        found = []
        for column, value in zip(row.columns, added.tolist(), strict=True):
            # Two n-grams of one hash are one feature.
            known = list(names[int(policy.lexical.hashes[column])])
            found.append(Piece(" or ".join(text for _, text in known), known[0][0], value))
        how = f"each n-gram's weight times its value; {len(found)} of {len(names)} n-grams are known to the policy"
        return _strongest(found), float(added.sum()), how
    if "dense" not in candidate.surrogate.blocks:
        return (), None, "no part of this surrogate is linear in words: it has no words to show"
    if embed is None:
        return (), None, "the surrogate reads embeddings: attach its embedder to see what each word does"
    words = text.split()
    if len(words) < 2:
        return (), None, "the surrogate reads embeddings: a text of one word cannot be taken apart"
    tried = words[:_WORDS]
    without = [" ".join([*words[:i], *words[i + 1 :]]) for i in range(len(tried))]
    logits = _logits(policy, candidate, without, embed(without))
    lost = (lead - (logits[:, pair[0]] - logits[:, pair[1]])).tolist()
    how = "the surrogate reads embeddings: the text was embedded again without each word in turn"
    if len(words) > _WORDS:
        how += f" (of the first {_WORDS}, of {len(words):,})"
    return _strongest([Piece(word, "left out", loss) for word, loss in zip(tried, lost, strict=True)]), None, how


def _strongest(pieces: list[Piece]) -> tuple[Piece, ...]:
    moved = [piece for piece in pieces if piece.contribution != 0.0]
    return tuple(sorted(moved, key=lambda piece: (-abs(piece.contribution), piece.text))[:_GRAMS])


def _similar(policy: Policy, text: str, dense: Float32 | None, table: RoutingTable) -> tuple[Float32 | None, str]:
    """Cosines (n,) of the input to the table's rows, and of what they are."""
    if isinstance(table.vectors, np.ndarray):
        if dense is not None and table.vectors.shape[1] == dense.shape[1]:
            length = max(float(np.linalg.norm(dense[0])), 1e-12)
            return np.asarray(table.vectors @ (dense[0] / length), dtype=np.float32), "neighbours by their embeddings"
        if policy.lexical is None or table.texts is None:
            return None, "no neighbours: the text has no embedding to compare"
        vectors: Block = policy.lexical.transform(table.texts)
    else:
        vectors = table.vectors
    if policy.lexical is None:
        return None, "no neighbours: the policy reads no words"
    row = policy.lexical.transform([text])
    return cosines(vectors, row)[:, 0], "neighbours by the n-grams they share"


def _nearest(similar: Float32 | None, table: RoutingTable, *, handled: bool) -> tuple[Neighbour, ...]:
    """The nearest rows of one decision; what shares nothing with the input is no neighbour."""
    if similar is None:
        return ()
    rows = np.flatnonzero((table.handled == handled) & (similar > 0.0))
    rows = rows[np.argsort(-similar[rows], kind="stable")][:_NEAR]
    return tuple(Neighbour(Example.of(table, int(row)), float(similar[row])) for row in rows)
