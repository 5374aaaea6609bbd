"""The writing half of a trace store: what happens within a transaction that holds the task's row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

from tracer.errors import FeatureError
from tracer.traces.escaping import unescaped
from tracer.traces.facts import Appended, Fingerprint, StoreFacts, check_columns
from tracer.traces.rows import Batch, key_of
from tracer.traces.schema import embedders, forgotten, tasks, traces, traffic, vectors
from tracer.types import GENERATED, EmbedderIdentity, Float32

_ASKED_AT_ONCE = 500
"""Values in one list of a query: old builds of SQLite allow 999."""
_WRITTEN_AT_ONCE = 2_000


class Writer:
    """One transaction on the rows of one task, alone: others wait until it ends."""

    def __init__(self, connection: Connection, store: str, task: int) -> None:
        self.connection, self.store, self.task = connection, store, task
        held = sa.select(tasks.c.through).where(tasks.c.id == task).with_for_update()
        self.through: int = connection.execute(held).scalar_one()

    def append(self, batch: Batch) -> Appended:
        """Add the rows that are not known and were not forgotten; the first record of an id stays."""
        asked = len(batch.rows)
        first: dict[str, int] = {}
        for i, row in enumerate(batch.rows):
            first.setdefault(row["id"], i)
        batch = batch.take(list(first.values()))
        self._check(batch)
        keys = [key_of(self.store, row["id"]) for row in batch.rows]
        known, gone = self._known(keys), self._gone(keys)
        batch, keys = self._renamed(batch, keys, known, gone)
        relabelled = [
            unescaped(row["id"])
            for key, row in zip(keys, batch.rows, strict=True)
            if known.get(key, row["label"]) != row["label"]
        ]
        fresh = [i for i, key in enumerate(keys) if key not in known and key not in gone]
        n_forgotten = sum(key in gone for key in keys)
        self._insert(batch.take(fresh), [keys[i] for i in fresh])
        return Appended(len(fresh), asked - len(fresh) - n_forgotten, n_forgotten, tuple(relabelled), self.through)

    def clear(self) -> None:
        """Remove all rows, vectors and traffic of the task; tombstones stay, and numbers go on rising."""
        ours = sa.select(embedders.c.id).where(embedders.c.task == self.task)
        self.connection.execute(sa.delete(vectors).where(vectors.c.embedder.in_(ours)))
        for table in (embedders, traces, traffic):
            self.connection.execute(sa.delete(table).where(table.c.task == self.task))
        self._next_generation()

    def remove(self, numbers: Sequence[int], keys: Sequence[bytes]) -> None:
        """Remove these rows with their vectors, and leave tombstones for these keys."""
        ours = sa.select(embedders.c.id).where(embedders.c.task == self.task)
        for some in _chunks(numbers, _ASKED_AT_ONCE):
            self.connection.execute(
                sa.delete(vectors).where(vectors.c.embedder.in_(ours), self._among(vectors.c.number, some))
            )
            self.connection.execute(
                sa.delete(traces).where(traces.c.task == self.task, self._among(traces.c.number, some))
            )
        gone = self._gone(keys)
        new = [{"task": self.task, "key": key} for key in dict.fromkeys(keys) if key not in gone]
        if new:
            self.connection.execute(sa.insert(forgotten), new)
        if numbers:
            self._next_generation()

    def add_vectors(self, numbers: Sequence[int], dense: NDArray[np.floating], embedder: EmbedderIdentity) -> int:
        """Store vectors of rows that are still there and have none of this embedder; how many were stored."""
        matrix = np.ascontiguousarray(dense, dtype="<f4")
        if matrix.shape != (len(numbers), embedder.dimension):
            wanted = (len(numbers), embedder.dimension)
            raise FeatureError(f"embeddings have shape {matrix.shape}, embedder {embedder.name!r} and rows {wanted}")
        if not np.isfinite(matrix).all():
            raise FeatureError("embeddings hold NaN or infinity")
        maker, done = self._embedder(embedder), set[int]()
        there = set[int]()
        for some in _chunks(numbers, _ASKED_AT_ONCE):
            rows = sa.select(traces.c.number).where(traces.c.task == self.task, self._among(traces.c.number, some))
            made = sa.select(vectors.c.number).where(vectors.c.embedder == maker, self._among(vectors.c.number, some))
            there.update(self.connection.execute(rows).scalars())
            done.update(self.connection.execute(made).scalars())
        wanted_rows = [i for i, number in enumerate(numbers) if number in there - done]
        self._insert_vectors([numbers[i] for i in wanted_rows], matrix[wanted_rows], maker)
        return len(wanted_rows)

    def _check(self, batch: Batch) -> None:
        if not batch.rows:
            return
        first = sa.select(traces.c.text.is_not(None)).where(traces.c.task == self.task).limit(1)
        stored = self.connection.execute(first).scalar_one_or_none()
        if stored is None:
            return
        makers = self.connection.execute(sa.select(embedders).where(embedders.c.task == self.task)).mappings()
        known = tuple((EmbedderIdentity(m["name"], m["dimension"], m["digest"]), 1) for m in makers)
        facts = StoreFacts(1, {}, bool(stored), known, ())
        columns = None if batch.dense is None else batch.dense.shape[1]
        has_texts = batch.rows[0]["text"] is not None
        check_columns(facts, has_texts=has_texts, columns=columns, embedder=batch.embedder)

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, str]:
        """The labels of those keys that have a row."""
        found: dict[bytes, str] = {}
        if self.through:
            for some in _chunks(keys, _ASKED_AT_ONCE):
                rows = sa.select(traces.c.key, traces.c.label).where(
                    traces.c.task == self.task, self._among(traces.c.key, some)
                )
                found.update((bytes(key), label) for key, label in self.connection.execute(rows))
        return found

    def _gone(self, keys: Sequence[bytes]) -> set[bytes]:
        """Those keys that have a tombstone."""
        found: set[bytes] = set()
        ours = sa.select(forgotten.c.key).where(forgotten.c.task == self.task)
        if self.connection.execute(ours.limit(1)).first() is not None:
            for some in _chunks(keys, _ASKED_AT_ONCE):
                found.update(
                    map(bytes, self.connection.execute(ours.where(self._among(forgotten.c.key, some))).scalars())
                )
        return found

    def _renamed(
        self, batch: Batch, keys: list[bytes], known: dict[bytes, str], gone: set[bytes]
    ) -> tuple[Batch, list[bytes]]:
        """Ids that Tracer made up are made new where they are taken: equal texts in two logs are two requests.

        Unless all of them are taken: then the same log is being read again. What was forgotten stays forgotten.
        """
        made_up = [i for i, row in enumerate(batch.rows) if row["id"].startswith(GENERATED)]
        taken = [i for i in made_up if keys[i] in known]
        if not taken or all(keys[i] in known or keys[i] in gone for i in made_up):
            return batch, keys
        rows, keys = list(batch.rows), list(keys)
        used, n = {row["id"] for row in rows}, self.through
        while taken:
            for i in taken:
                n += 1  # a number above all stored ones: almost surely a free name at once
                rows[i] = rows[i] | {"id": f"{batch.rows[i]['id']}.{n}"}
                keys[i] = key_of(self.store, rows[i]["id"])
            stored = self._known([keys[i] for i in taken])
            taken = [i for i in taken if keys[i] in stored or rows[i]["id"] in used]
        return Batch(rows, batch.dense, batch.embedder), keys

    def _insert(self, batch: Batch, keys: Sequence[bytes]) -> None:
        numbers = range(self.through + 1, self.through + 1 + len(keys))
        if not numbers:
            return
        for some in _chunks(range(len(keys)), _WRITTEN_AT_ONCE):
            places = [{"task": self.task, "number": numbers[i], "key": keys[i]} for i in some]
            rows = [batch.rows[i] | place for i, place in zip(some, places, strict=True)]
            self.connection.execute(sa.insert(traces), rows)
        if batch.dense is not None and batch.embedder is not None:
            self._insert_vectors(numbers, batch.dense, self._embedder(batch.embedder))
        self.through = numbers[-1]
        self._set(through=self.through)

    def _insert_vectors(self, numbers: Sequence[int], dense: Float32, maker: int) -> None:
        for some in _chunks(range(len(numbers)), _WRITTEN_AT_ONCE):
            rows = [{"embedder": maker, "number": numbers[i], "vector": dense[i].tobytes()} for i in some]
            self.connection.execute(sa.insert(vectors), rows)

    def _embedder(self, embedder: EmbedderIdentity) -> int:
        """The number of an embedder's row, made where it is new."""
        facts: dict[str, Any] = {"name": embedder.name, "dimension": embedder.dimension, "digest": embedder.digest}
        same = sa.select(embedders.c.id).where(
            embedders.c.task == self.task,
            embedders.c.dimension == embedder.dimension,
            embedders.c.digest == embedder.digest,
        )
        found = self.connection.execute(same).scalar_one_or_none()
        if found is None:
            self.connection.execute(sa.insert(embedders), facts | {"task": self.task})
            found = self.connection.execute(same).scalar_one()
        return int(found)

    def _among(self, column: sa.Column[Any], values: Sequence[Any]) -> sa.ColumnElement[bool]:
        """Whether a column's value is one of these. PostgreSQL takes a list as one value, at a fraction of the cost."""
        if self.connection.dialect.name == "sqlite":
            return column.in_(values)
        return column == sa.any_(sa.literal(list(values), ARRAY(column.type)))

    def _next_generation(self) -> None:
        self._set(generation=tasks.c.generation + 1)

    def _set(self, **values: Any) -> None:
        self.connection.execute(sa.update(tasks).where(tasks.c.id == self.task).values(**values))


def fingerprints_of(connection: Connection, task: int) -> tuple[Fingerprint, ...]:
    """Teachers and prompts of a task's traces, in the order in which they came."""
    number = traces.c.number
    counts = (sa.func.count(), sa.func.min(number), sa.func.max(number))
    query = sa.select(traces.c.teacher, traces.c.prompt, *counts).where(traces.c.task == task)
    rows = connection.execute(query.group_by(traces.c.teacher, traces.c.prompt).order_by(sa.func.min(number)))
    return tuple(
        Fingerprint(None if t is None else unescaped(t), None if p is None else unescaped(p), n, first, last)
        for t, p, n, first, last in rows
    )


def _chunks(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))
