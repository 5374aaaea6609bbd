"""The reading half of a trace store: pages of rows as columns, and a dataset from them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Final, cast

import numpy as np
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tracer.traces.escaping import escaped, unescaped
from tracer.traces.schema import embedders, tasks, traces, vectors
from tracer.types import Bool, Dataset, EmbedderIdentity, Float32, Float64, Int64, LabelSpace, Origin

STRINGS: Final = ("id", "text", "label", "teacher", "prompt", "origin", "group", "truth")
CHUNK = 20_000
"""Rows read at once."""
_REPEATED = frozenset({"label", "teacher", "prompt", "origin"})

Strings = Sequence[str | None]
Fingerprints = Collection[tuple[str | None, str | None]]


@dataclass(frozen=True, slots=True)
class Head:
    """The state of a task: copies of an older generation hold rows that are gone."""

    store: str
    task: int
    generation: int
    through: int


@dataclass(frozen=True, slots=True)
class Maker:
    """An embedder, its number in the store, and how many rows have its vector."""

    key: int
    identity: EmbedderIdentity
    n: int


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """All rows with ``after`` < number <= ``through``: numbers and times (n,), and columns of escaped strings (n,).

    A column that holds nothing is None. ``last`` is the key of the last row, in hex.
    """

    after: int
    through: int
    last: str
    numbers: Int64
    times: Float64
    strings: Mapping[str, Strings | None]

    def __len__(self) -> int:
        return len(self.numbers)


class Reader:
    """What one transaction sees of a task."""

    def __init__(self, connection: Connection, store: str, task: int) -> None:
        self.connection = connection
        query = sa.select(tasks.c.generation, tasks.c.through).where(tasks.c.id == task)
        generation, through = connection.execute(query).one()
        self.head = Head(store, task, generation, through)

    def makers(self) -> tuple[Maker, ...]:
        """The embedders of the task's vectors, the newest last."""
        counts = sa.select(vectors.c.embedder, sa.func.count().label("n")).group_by(vectors.c.embedder).subquery()
        query = sa.select(embedders, counts.c.n).join(counts, counts.c.embedder == embedders.c.id)
        rows = self.connection.execute(query.where(embedders.c.task == self.head.task).order_by(embedders.c.id))
        return tuple(
            Maker(row["id"], EmbedderIdentity(row["name"], row["dimension"], row["digest"]), row["n"])
            for row in rows.mappings()
        )

    def rows(self, after: int) -> Iterator[Rows]:
        """The rows behind a number, page by page."""
        names = [traces.c[name] for name in STRINGS]
        query = sa.select(traces.c.number, traces.c.key, traces.c.time, *names).where(traces.c.task == self.head.task)
        while True:
            page = query.where(traces.c.number > after).order_by(traces.c.number).limit(CHUNK)
            found = self.connection.execute(page).all()
            if not found:
                return
            numbers, keys, times, *strings = zip(*found, strict=True)
            yield Rows(
                after,
                numbers[-1],
                bytes(keys[-1]).hex(),
                np.array(numbers, dtype=np.int64),
                np.array(times, dtype=np.float64),  # None becomes NaN
                {
                    name: column if any(v is not None for v in column) else None
                    for name, column in zip(STRINGS, strings, strict=True)
                },
            )
            after = numbers[-1]

    def vectors(self, maker: Maker, rows: Rows) -> tuple[Float32, Bool]:
        """The vectors (n, d) of these rows, and which rows (n,) have one."""
        query = sa.select(vectors.c.number, vectors.c.vector).where(
            vectors.c.embedder == maker.key, vectors.c.number > rows.after, vectors.c.number <= rows.through
        )
        found = self.connection.execute(query.order_by(vectors.c.number)).all()
        out = np.zeros((len(rows), maker.identity.dimension), dtype=np.float32)
        there = np.zeros(len(rows), dtype=np.bool_)
        if found:
            at = np.searchsorted(rows.numbers, np.array([number for number, _ in found], dtype=np.int64))
            out[at] = np.frombuffer(b"".join(vector for _, vector in found), dtype="<f4").reshape(len(found), -1)
            there[at] = True
        return out, there

    def key(self, number: int) -> str | None:
        """The key of a row in hex; None where there is no such row."""
        query = sa.select(traces.c.key).where(traces.c.task == self.head.task, traces.c.number == number)
        found = self.connection.execute(query).scalar_one_or_none()
        return None if found is None else bytes(found).hex()


def chosen(rows: Rows, fingerprints: Fingerprints | None, through: int | None) -> Bool:
    """Which rows (n,) were made under these teachers and prompts, up to a number."""
    mask = np.ones(len(rows), dtype=np.bool_) if through is None else rows.numbers <= through
    if fingerprints is None:
        return mask
    wanted = {tuple(None if part is None else escaped(part) for part in pair) for pair in fingerprints}
    teachers, prompts = _column(rows, "teacher"), _column(rows, "prompt")
    pairs = zip(teachers, prompts, strict=True)
    return mask & np.fromiter((pair in wanted for pair in pairs), dtype=np.bool_, count=len(rows))


def dataset_of(
    chunks: Sequence[Rows],
    masks: Sequence[Bool],
    dense: Float32 | None,
    embedder: EmbedderIdentity | None,
    space: LabelSpace | None,
) -> Dataset:
    """The rows that the masks choose, as a dataset; ``dense`` (n, d) are their vectors."""
    columns = {name: _joined(chunks, masks, name) for name in STRINGS}
    labels, ids = columns["label"], columns["id"]
    return Dataset.from_columns(
        cast(list[str], labels),
        texts=None if None in columns["text"] else cast(list[str], columns["text"]),
        dense=dense,
        embedder=embedder,
        space=space,
        ids=cast(list[str], ids),
        origins=cast(list[Origin], columns["origin"]),
        groups=columns["group"],
        times=np.concatenate([rows.times[mask] for rows, mask in zip(chunks, masks, strict=True)]),
        truth=columns["truth"],
        teachers=columns["teacher"],
        prompts=columns["prompt"],
        numbers=np.concatenate([rows.numbers[mask] for rows, mask in zip(chunks, masks, strict=True)]),
    )


def _joined(chunks: Sequence[Rows], masks: Sequence[Bool], name: str) -> list[str | None]:
    out: list[str | None] = []
    for rows, mask in zip(chunks, masks, strict=True):
        column = _column(rows, name)
        out += column if mask.all() else list(compress(column, mask))
    if name in _REPEATED:  # few values, one object each
        plain = {value: None if value is None else unescaped(value) for value in set(out)}
        return [plain[value] for value in out]
    return [None if value is None else unescaped(value) for value in out]


def _column(rows: Rows, name: str) -> Strings:
    return rows.strings[name] or (None,) * len(rows)
