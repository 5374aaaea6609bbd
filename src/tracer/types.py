"""The words of the house as frozen dataclasses, validated at birth.

Labels are strings at both ends and ``int32`` codes inside; ``-1`` is a label outside the label space.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Literal, NamedTuple, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from tracer.errors import FeatureError, TraceError, TracerError

_T = TypeVar("_T")

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Bool = NDArray[np.bool_]

Origin = Literal["bootstrap", "audit", "deferred", "requested", "fallback", "imported"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)
GENERATED = "auto-"
"""Prefix of ids that Tracer makes up for records without one."""
_BOOTSTRAP: tuple[Origin, ...] = ("bootstrap",)
OUTSIDE = -1
"""Code of a label that is not in the label space."""
FAILED = "__failed__"
"""The label of a trace whose teacher call gave none: never learned, and a disagreement where it certifies."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one teacher call consumed, in tokens."""

    input_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if self.input_tokens < 0 or self.output_tokens < 0:
            raise TraceError(f"token counts must not be negative: {self.input_tokens}, {self.output_tokens}")


@dataclass(frozen=True, slots=True)
class Seen:
    """What the policy in force said of a traced input, whether or not it was asked to answer.

    ``label`` is the surrogate's, ``handled`` whether the policy would have answered with it, at this ``score``.
    """

    policy: str
    label: str
    handled: bool
    score: float


@dataclass(frozen=True, slots=True)
class Trace:
    """One teacher call: the input text and the label that the teacher gave.

    ``origin`` is the statistical key: only ``bootstrap`` and ``audit`` traces are plain samples of traffic.
    ``group`` ties rows that are not independent (a user, a conversation, a premise). ``teacher`` and ``prompt`` (a
    version or digest of the instructions) say whose label it is: together they are the task's fingerprint. ``seen`` is
    what the policy in force said of it.
    """

    id: str
    text: str
    label: str
    teacher: str | None = None
    time: datetime | None = None
    origin: Origin = "bootstrap"
    group: str | None = None
    truth: str | None = None
    usage: Usage | None = None
    metadata: Mapping[str, object] = field(default_factory=dict)
    prompt: str | None = None
    seen: Seen | None = None

    def __post_init__(self) -> None:
        if not self.id:
            raise TraceError("a trace needs an id")
        if not self.text.strip():
            raise TraceError(f"trace {self.id!r}: the input text is empty")
        if not self.label:
            raise TraceError(f"trace {self.id!r}: the teacher's label is empty")
        if self.origin not in ORIGINS:
            raise TraceError(f"trace {self.id!r}: origin {self.origin!r} is not one of {', '.join(ORIGINS)}")


@dataclass(frozen=True, slots=True)
class LabelSpace:
    """The labels a surrogate may answer, in a fixed order.

    ``declared`` is true where the user listed them; a teacher label outside a declared space is
    never learned, and counts as a disagreement when certifying.
    """

    names: tuple[str, ...]
    declared: bool = False

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names):
            repeated = sorted({name for name in self.names if self.names.count(name) > 1})
            raise TraceError(f"label space has repeated names: {', '.join(repeated)}")
        if not self.names:
            raise TraceError("a label space needs at least one label")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def observed(cls, labels: Sequence[str]) -> LabelSpace:
        """The sorted set of the labels seen, failed calls left out."""
        return cls(tuple(sorted(set(labels) - {FAILED})))

    def encode(self, labels: Sequence[str]) -> Int32:
        """Codes (n,) of label names; ``-1`` for a name outside the space."""
        code = {name: i for i, name in enumerate(self.names)}
        return np.fromiter((code.get(name, OUTSIDE) for name in labels), dtype=np.int32, count=len(labels))


@dataclass(frozen=True, slots=True)
class EmbedderIdentity:
    """Which embedder made a vector: its name, its dimension and a digest of its weights or settings."""

    name: str
    dimension: int
    digest: str

    def __post_init__(self) -> None:
        if self.dimension < 1:
            raise FeatureError(f"embedder {self.name!r}: dimension {self.dimension} must be positive")


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Traces as columns. ``texts`` is None for a set that holds embeddings alone.

    Shapes: ``labels``, ``ids``, ``origins``, ``groups``, ``truth``, ``teachers``, ``prompts`` (n,); ``y`` int32 (n,);
    ``times`` float64 (n,), seconds since the epoch, NaN where unknown; ``dense`` float32 (n, d) or None; ``numbers``
    int64 (n,), the rows' places in the store in the order in which they came, 1 to n where they were never stored.
    """

    labels: tuple[str, ...]
    y: Int32
    space: LabelSpace
    ids: tuple[str, ...]
    texts: tuple[str, ...] | None
    dense: Float32 | None
    embedder: EmbedderIdentity | None
    origins: tuple[Origin, ...]
    groups: tuple[str | None, ...]
    times: Float64
    truth: tuple[str | None, ...]
    teachers: tuple[str | None, ...]
    prompts: tuple[str | None, ...]
    numbers: Int64

    def __post_init__(self) -> None:
        n = len(self.labels)
        sizes = {"y": len(self.y), "ids": len(self.ids), "origins": len(self.origins)}
        sizes |= {"groups": len(self.groups), "times": len(self.times), "truth": len(self.truth)}
        sizes |= {"teachers": len(self.teachers), "prompts": len(self.prompts), "numbers": len(self.numbers)}
        if self.texts is not None:
            sizes["texts"] = len(self.texts)
        if self.dense is not None:
            sizes["embeddings"] = len(self.dense)
        for name, size in sizes.items():
            if size != n:
                raise FeatureError(f"{name} has {size} rows, labels has {n}")
        if self.texts is None and self.dense is None:
            raise FeatureError("a dataset needs texts, embeddings or both")
        if len(set(self.ids)) != n:
            raise TraceError(f"trace ids repeat: {n} rows, {len(set(self.ids))} distinct ids")
        if self.dense is not None:
            _check_dense(self.dense)
            if self.embedder is not None and self.embedder.dimension != self.dense.shape[1]:
                raise FeatureError(
                    f"embeddings have {self.dense.shape[1]} columns, "
                    f"embedder {self.embedder.name!r} gives {self.embedder.dimension}"
                )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_units(self) -> int:
        """Independent units: groups, and rows without one."""
        return len(set(self.groups) - {None}) + sum(group is None for group in self.groups)

    @classmethod
    def from_columns(
        cls,
        labels: Sequence[str],
        *,
        texts: Sequence[str] | None = None,
        dense: NDArray[np.floating] | None = None,
        embedder: EmbedderIdentity | None = None,
        space: LabelSpace | None = None,
        ids: Sequence[str] | None = None,
        origins: Sequence[Origin] | None = None,
        groups: Sequence[str | None] | None = None,
        times: Sequence[float] | Float64 | None = None,
        truth: Sequence[str | None] | None = None,
        teachers: Sequence[str | None] | None = None,
        prompts: Sequence[str | None] | None = None,
        numbers: Sequence[int] | Int64 | None = None,
    ) -> Dataset:
        """Build a dataset from columns; what is not given gets its neutral value."""
        n = len(labels)
        _check_strings("labels", labels)
        if texts is not None:
            _check_strings("texts", texts)
        space = space or LabelSpace.observed(labels)
        return cls(
            labels=tuple(labels),
            y=space.encode(labels),
            space=space,
            ids=tuple(ids) if ids is not None else generated_ids(labels, texts),
            texts=tuple(texts) if texts is not None else None,
            dense=None if dense is None else np.ascontiguousarray(dense, dtype=np.float32),
            embedder=embedder,
            origins=tuple(origins) if origins is not None else _BOOTSTRAP * n,
            groups=tuple(groups) if groups is not None else (None,) * n,
            times=np.full(n, np.nan) if times is None else np.asarray(times, dtype=np.float64),
            truth=tuple(truth) if truth is not None else (None,) * n,
            teachers=tuple(teachers) if teachers is not None else (None,) * n,
            prompts=tuple(prompts) if prompts is not None else (None,) * n,
            numbers=np.arange(1, n + 1) if numbers is None else np.asarray(numbers, dtype=np.int64),
        )

    @classmethod
    def from_traces(
        cls,
        traces: Sequence[Trace],
        *,
        dense: NDArray[np.floating] | None = None,
        embedder: EmbedderIdentity | None = None,
        space: LabelSpace | None = None,
    ) -> Dataset:
        """Columns from records. ``dense`` (n, d) lies in the order of the records."""
        if not traces:
            raise TraceError("there are no traces")
        return cls.from_columns(
            [t.label for t in traces],
            texts=[t.text for t in traces],
            dense=dense,
            embedder=embedder,
            space=space,
            ids=[t.id for t in traces],
            origins=[t.origin for t in traces],
            groups=[t.group for t in traces],
            times=[t.time.timestamp() if t.time else float("nan") for t in traces],
            truth=[t.truth for t in traces],
            teachers=[t.teacher for t in traces],
            prompts=[t.prompt for t in traces],
        )

    def take(self, rows: NDArray[np.intp]) -> Dataset:
        """The rows with these indices, in this order."""

        def pick(column: tuple[_T, ...]) -> tuple[_T, ...]:
            return tuple(column[i] for i in rows)

        return replace(
            self,
            labels=pick(self.labels),
            y=self.y[rows],
            ids=pick(self.ids),
            texts=None if self.texts is None else pick(self.texts),
            dense=None if self.dense is None else self.dense[rows],
            origins=pick(self.origins),
            groups=pick(self.groups),
            times=self.times[rows],
            truth=pick(self.truth),
            teachers=pick(self.teachers),
            prompts=pick(self.prompts),
            numbers=self.numbers[rows],
        )

    def with_dense(self, dense: NDArray[np.floating], embedder: EmbedderIdentity) -> Dataset:
        """The same rows with embeddings (n, d)."""
        return replace(self, dense=np.ascontiguousarray(dense, dtype=np.float32), embedder=embedder)

    def with_space(self, space: LabelSpace) -> Dataset:
        """The same rows coded in another label space."""
        return replace(self, space=space, y=space.encode(self.labels))


Reason = Literal[
    "handled",
    "below_threshold",
    "novel",
    "always_defer",
    "error_cost",
    "class_floor",
    "kill_switch",
    "no_policy",
    "other_task",
    "error",
    "teacher_error",
    "audit",
    "shadow",
    "canary",
    "requested",
]


class Decided(NamedTuple):
    """What a policy says of one input: a row of `Decisions`."""

    label: str
    score: float
    handled: bool
    reason: Reason
    stage: int


@dataclass(frozen=True, slots=True, eq=False)
class Decisions:
    """What a policy says of n inputs: surrogate labels, acceptor scores, handled or deferred, and why.

    ``stage`` (n,) is 1 where the lexical stage of a cascade decided, else 2.
    """

    labels: tuple[str, ...]
    scores: Float64
    handled: Bool
    reasons: tuple[Reason, ...]
    stage: NDArray[np.int8]

    @classmethod
    def of(cls, rows: Sequence[Decided]) -> Decisions:
        """From n rows."""
        labels, scores, handled, reasons, stage = zip(*rows, strict=True) if rows else ((), (), (), (), ())
        return cls(labels, np.array(scores), np.array(handled, dtype=bool), reasons, np.array(stage, dtype=np.int8))

    def rows(self) -> list[Decided]:
        """The same one by one, in Python's own numbers."""
        columns = (self.scores.tolist(), self.handled.tolist(), self.reasons, self.stage.tolist())
        return list(map(Decided, self.labels, *columns))

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def coverage(self) -> float:
        """Share handled, in [0, 1]."""
        return float(self.handled.mean()) if len(self) else 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """The router's answer to one request.

    ``label`` is None only where the teacher is to be asked and none was given.
    ``latency_s`` counts routing and, where it was asked, the teacher; ``error`` is the teacher's failure.
    ``origin`` is that of a teacher's label for this request, None where the surrogate answered; ``audited`` where the
    audit coin sent it to the teacher; ``seen`` is what the policy said, None where it was not asked or failed.
    """

    label: str | None
    source: Literal["surrogate", "teacher", "none"]
    reason: Reason
    surrogate_label: str | None
    score: float
    threshold: float
    policy: str | None
    latency_s: float
    error: TracerError | None = None
    audited: bool = False
    origin: Origin | None = None
    seen: Seen | None = None

    @property
    def handled(self) -> bool:
        """True where the surrogate answered."""
        return self.source == "surrogate"

    def trace(
        self,
        text: str,
        label: str,
        *,
        id: str,  # noqa: A002 - the field's name
        time: datetime | None = None,
        teacher: str | None = None,
        prompt: str | None = None,
        group: str | None = None,
        usage: Usage | None = None,
        metadata: Mapping[str, object] | None = None,
    ) -> Trace:
        """The record of a teacher's label for this request, for callers who ask the teacher themselves.

        An audit must come back whatever happens: where the teacher fails twice, with the label ``FAILED``. A label
        for what the surrogate answered was asked for after its answer was known: that is ``requested``.
        """
        return Trace(
            id,
            text,
            label,
            teacher=teacher,
            time=time,
            origin=self.origin or "requested",
            group=group,
            usage=usage,
            metadata={} if metadata is None else metadata,
            prompt=prompt,
            seen=self.seen,
        )


def generated_ids(labels: Sequence[str], texts: Sequence[str] | None) -> tuple[str, ...]:
    """Ids of rows that have none: a digest of the content and a count, so that equal rows stay apart."""
    seen: dict[str, int] = {}
    out = []
    for i, label in enumerate(labels):
        content = f"{texts[i] if texts is not None else i}\0{label}"
        digest = hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        seen[digest] = seen.get(digest, -1) + 1
        out.append(f"{GENERATED}{digest}-{seen[digest]}")
    return tuple(out)


def _check_strings(name: str, values: Sequence[str]) -> None:
    if isinstance(values, str):
        raise TraceError(f"{name} must be a sequence of strings, not one string")
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise TraceError(f"{name}[{i}] = {value!r}: must be a string")


def _check_dense(dense: Float32) -> None:
    if dense.ndim != 2:
        raise FeatureError(f"embeddings must be two-dimensional (n, d), not {dense.shape}")
    if not np.isfinite(dense).all():
        row = int(np.flatnonzero(~np.isfinite(dense).all(axis=1))[0])
        raise FeatureError(f"embeddings row {row} holds NaN or infinity")
