"""What a trace store says of itself and of what was done to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tracer.errors import TraceError
from tracer.types import Dataset, EmbedderIdentity


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: traces added, ids known before, ids that were forgotten and stay so, and known ids that came
    with another label. ``through`` is the number of the newest row."""

    n_added: int
    n_known: int
    n_forgotten: int
    relabelled: tuple[str, ...]
    through: int


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """The traces of one teacher under one prompt: how many, and the numbers of the first and the last."""

    teacher: str | None
    prompt: str | None
    n: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class StoreFacts:
    """What is stored. ``has_texts`` is None for an empty store.

    ``embedders``: who made the stored vectors, with the number of rows that each has done, the newest last.
    """

    n: int
    origins: Mapping[str, int]
    has_texts: bool | None
    embedders: tuple[tuple[EmbedderIdentity, int], ...]
    fingerprints: tuple[Fingerprint, ...]

    @property
    def embedder(self) -> EmbedderIdentity | None:
        """Who made the most vectors, the newest of equals; None where there are none."""
        newest_first = reversed(self.embedders)
        best = max(newest_first, key=lambda pair: pair[1], default=None)
        return None if best is None else best[0]

    @property
    def n_embedded(self) -> int:
        """Rows that have a vector of ``embedder``."""
        return max((n for _, n in self.embedders), default=0)


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The traces that went away, or would."""

    numbers: tuple[int, ...]
    ids: tuple[str, ...]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.numbers)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counts of ``n`` requests under a policy in the ``seconds`` from ``started`` (seconds since the epoch)."""

    policy: str | None
    started: float
    seconds: float
    n: int
    facts: Mapping[str, object]


def check_fits(facts: StoreFacts, new: Dataset) -> None:
    """Raise TraceError where new traces cannot stand beside the stored ones.

    Traces with texts may come without vectors to a store that has some: they are embedded later.
    """
    columns = None if new.dense is None else new.dense.shape[1]
    check_columns(facts, has_texts=new.texts is not None, columns=columns, embedder=new.embedder)


def check_columns(
    facts: StoreFacts, *, has_texts: bool, columns: int | None, embedder: EmbedderIdentity | None
) -> None:
    """``check_fits`` of traces that are no dataset yet; ``columns`` of their vectors, None without."""
    if not facts.n:
        return
    if facts.has_texts != has_texts:
        raise TraceError("stored and new traces do not fit: one has texts, the other embeddings alone")
    if columns is None:
        return
    if not facts.embedders:
        raise TraceError("only the new traces have embeddings: give them for both, or for neither")
    dimensions = [known.dimension for known, _ in facts.embedders]
    if columns not in dimensions:
        raise TraceError(f"stored embeddings have {dimensions[-1]} columns, new ones {columns}")
    if embedder is not None and embedder.digest not in {known.digest for known, _ in facts.embedders}:
        raise TraceError(
            f"stored embeddings were made by {facts.embedders[-1][0].name!r}, the new ones by {embedder.name!r}: "
            f"embed all traces with one embedder and fit anew"
        )
