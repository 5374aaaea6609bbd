"""Door 1: the traces of a task, append-only and in order, in SQLite or in PostgreSQL.

An append is one transaction, and the same one again adds nothing: what it returned for is on disk. Numbers rise in the
order in which rows become visible, so that "all up to number n" is a snapshot that never changes, unless traces are
forgotten. The layout is documented in ``docs/operations.md``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from tracer import storage
from tracer.errors import ConfigError, StoreError, TraceError
from tracer.traces import columns, forgetting, locking
from tracer.traces.database import Database
from tracer.traces.digests import n_digests
from tracer.traces.escaping import escaped, unescaped
from tracer.traces.facts import Appended, Fingerprint, Forgotten, StoreFacts, Traffic, check_fits
from tracer.traces.reading import Reader
from tracer.traces.recent import Recent
from tracer.traces.rows import batch_of, trace_of
from tracer.traces.schema import embedders, traces, traffic, vectors
from tracer.traces.writing import Writer, fingerprints_of
from tracer.types import Dataset, EmbedderIdentity, Int64, LabelSpace, Origin, Trace

__all__ = ["Appended", "Fingerprint", "Forgotten", "StoreFacts", "TraceStore", "Traffic", "check_fits"]

COPY = "columns"
NONE_STORED = "no traces are stored here: give a log (`tracer fit LOG`), or let a gateway record some"
"""Folder in a home with the local copy that fits read (see ``columns``); it may be deleted at any time."""
_TASK = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_PAGE = 1_000
_ROUTED = frozenset({"bootstrap", "imported"})
"""Origins of traces that came from a log; all others were recorded while routing."""


class TraceStore:
    """The traces of one task. Use ``open``; threads, forks and other processes may share what it opens."""

    def __init__(self, database: Database, task: str, copy: Path | None) -> None:
        self._database, self.task, self.copy = database, task, copy
        self.url = database.url
        self.kind: Literal["sqlite", "postgresql"] = "sqlite" if database.is_sqlite else "postgresql"
        self.store_id, self._task = database.setup(task)

    @classmethod
    def open(
        cls,
        where: str | Path,
        *,
        task: str = "default",
        copy: str | Path | None = None,
        wait_s: float = 60.0,
    ) -> TraceStore:
        """Open the store of a home folder (``traces.sqlite``), or of a ``postgresql://`` URL; made where there is none.

        ``copy`` is a folder for the local columnar copy, ``columns`` in a home folder by default; without one, each
        ``load`` reads the database. ``wait_s`` is how long a writer waits for another one. Raises StoreError, without
        the password of the URL; MissingExtraError where psycopg is not installed.
        """
        if not _TASK.fullmatch(task):
            raise ConfigError(f"task = {task!r}: up to 100 letters, digits, dots, dashes and underscores")
        database = Database.open(where, wait_s)
        if copy is None and database.is_sqlite:
            copy = Path(where) / COPY
        return cls(database, task, None if copy is None else Path(copy) / task)

    def close(self) -> None:
        """Let go of the database."""
        self._database.engine.dispose()

    def __enter__(self) -> TraceStore:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"TraceStore({self.url!r}, task={self.task!r})"

    # Writing.

    def append(
        self,
        traces: Dataset | Sequence[Trace],
        *,
        records: Sequence[Trace] | None = None,
        dense: NDArray[np.floating] | None = None,
        embedder: EmbedderIdentity | None = None,
        recorded_at: datetime | None = None,
    ) -> Appended:
        """Add traces in one transaction; when it returns they are on disk. Known ids are left as they are.

        ``records`` (n,) are the traces of a Dataset: they bring usage, metadata and what the policy said. ``dense``
        (n, d) are vectors of a sequence of traces. Made-up ids that are taken are made new, unless all of them are:
        then the same log is being read again. Raises TraceError for traces that do not fit the stored ones, before
        anything is written.
        """
        batch = batch_of(traces, records, dense, embedder, recorded_at)
        with self._writing() as writer:
            done = writer.append(batch)
            storage.step("store.appending")
        return done

    def replace(
        self,
        dataset: Dataset,
        *,
        records: Sequence[Trace] | None = None,
        recorded_at: datetime | None = None,
        routed: bool = False,
    ) -> Appended:
        """These traces instead of all stored ones, in one transaction. What was forgotten stays so.

        Raises StoreError where traces were recorded while routing, which no log brings back, unless ``routed``.
        """
        batch = batch_of(dataset, records, recorded_at=recorded_at)
        with self._writing() as writer:
            recorded = {o: n for o, n in self._origins(writer.connection).items() if o not in _ROUTED}
            if recorded and not routed:
                what = ", ".join(f"{n:,} {origin}" for origin, n in sorted(recorded.items()))
                raise StoreError(
                    f"{self.url}: holds traces that were recorded while routing ({what}); add to them instead"
                )
            writer.clear()
            done = writer.append(batch)
            storage.step("store.replacing")
        storage.step("store.replaced")
        self._drop_copy()
        return done

    def add_vectors(
        self, numbers: Sequence[int] | Int64, dense: NDArray[np.floating], embedder: EmbedderIdentity
    ) -> int:
        """Store vectors (n, d) of the rows with these numbers; how many were new. Rows that went away are left out."""
        with self._writing() as writer:
            return writer.add_vectors([int(number) for number in numbers], dense, embedder)

    def forget(
        self,
        *,
        ids: Collection[str] = (),
        texts: Collection[str] = (),
        containing: str | None = None,
        matching: re.Pattern[str] | None = None,
        before: datetime | None = None,
        dry_run: bool = False,
    ) -> Forgotten:
        """Remove the traces that any of these picks, with their vectors, for good; see ``forgetting``."""
        wanted = forgetting.Wanted.of(ids, texts, containing, matching, before)
        if dry_run:
            with self._database.reading() as connection:
                return forgetting.find(connection, self._task, wanted)
        with self._writing() as writer:
            found = forgetting.find(writer.connection, self._task, wanted)
            forgetting.remove(writer, found, wanted)
            storage.step("store.rows-removing")
        storage.step("store.rows-removed")
        self._drop_copy()
        storage.step("store.copy-dropped")
        forgetting.scrub(self._database)
        return found

    def tally(
        self, policy: str | None, started: float, seconds: float, n: int, facts: Mapping[str, int | Mapping[str, int]]
    ) -> None:
        """Record counts of ``n`` requests in the ``seconds`` from ``started``: no text, no row of a request."""
        content = json.dumps(dict(facts))
        row = {"task": self._task, "policy": None if policy is None else escaped(policy), "facts": content}
        with self._database.writing() as connection:
            connection.execute(sa.insert(traffic), row | {"started": started, "seconds": seconds, "n": n})

    # Reading.

    def count(self) -> int:
        """Traces of the task."""
        with self._database.reading() as connection:
            return self._count(connection)

    def through(self) -> int:
        """The highest number ever given, 0 before the first; it never falls."""
        with self._database.reading() as connection:
            return self._reader(connection).head.through

    def facts(self) -> StoreFacts:
        """What is stored, in counts."""
        with self._database.reading() as connection:
            first = sa.select(traces.c.text.is_not(None)).where(traces.c.task == self._task).limit(1)
            has_texts = connection.execute(first).scalar_one_or_none()
            origins = self._origins(connection)
            return StoreFacts(
                n=sum(origins.values()),
                origins=origins,
                has_texts=None if has_texts is None else bool(has_texts),
                embedders=tuple((maker.identity, maker.n) for maker in self._reader(connection).makers()),
                fingerprints=fingerprints_of(connection, self._task),
            )

    def fingerprints(self) -> tuple[Fingerprint, ...]:
        """Teachers and prompts of the traces, in the order in which they came."""
        with self._database.reading() as connection:
            return fingerprints_of(connection, self._task)

    def load(
        self,
        *,
        fingerprints: Collection[tuple[str | None, str | None]] | None = None,
        through: int | None = None,
        labels: LabelSpace | None = None,
    ) -> Dataset:
        """The traces in the order of their numbers, of these (teacher, prompt) pairs alone, up to a number.

        Embeddings are there where one embedder has made all of them, the newest such. Of rows that the local copy
        holds nothing is read from the database. Where digests stand for some texts and there are embeddings, there are
        no texts: what reads them would take digests for words. Raises TraceError where nothing is stored.
        """
        with columns.held(self.copy) as folder, self._database.reading() as connection:
            reader = self._reader(connection)
            dataset = columns.load(reader, folder, fingerprints=fingerprints, through=through, labels=labels)
        if dataset is None:
            raise TraceError(f"{self.url}: {NONE_STORED}")
        if dataset.dense is not None and dataset.texts is not None and n_digests(dataset.texts):
            return replace(dataset, texts=None)
        return dataset

    def traces(
        self,
        *,
        origins: Collection[Origin] | None = None,
        after: int = 0,
        through: int | None = None,
        policy: str | None = None,
    ) -> Iterator[tuple[int, Trace]]:
        """Numbers and traces in order, of these origins and seen by this policy; read page by page.

        Raises TraceError where the store holds embeddings alone.
        """
        wanted = [traces.c.task == self._task]
        if origins is not None:
            wanted.append(traces.c.origin.in_(sorted(origins)))
        if through is not None:
            wanted.append(traces.c.number <= through)
        if policy is not None:
            wanted.append(traces.c.policy == escaped(policy))
        query = sa.select(traces).where(*wanted).order_by(traces.c.number).limit(_PAGE)
        while True:
            with self._database.reading() as connection:
                page = connection.execute(query.where(traces.c.number > after)).mappings().all()
            for row in page:
                if row["text"] is None:
                    raise TraceError(f"{self.url}: holds embeddings alone; a trace needs a text")
                yield row["number"], trace_of(dict(row))
            if len(page) < _PAGE:
                return
            after = page[-1]["number"]

    def without_vectors(self, embedder: EmbedderIdentity) -> tuple[Int64, tuple[str, ...]]:
        """Numbers (n,) and texts of the rows that have no vector of this embedder."""
        same = sa.select(embedders.c.id).where(
            embedders.c.task == self._task,
            embedders.c.dimension == embedder.dimension,
            embedders.c.digest == embedder.digest,
        )
        made = sa.exists().where(vectors.c.embedder.in_(same), vectors.c.number == traces.c.number)
        query = sa.select(traces.c.number, traces.c.text).where(traces.c.task == self._task, ~made)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(traces.c.number)).all()
        if any(text is None for _, text in rows):
            raise TraceError(f"{self.url}: holds embeddings alone; there are no texts to embed")
        texts = tuple(unescaped(text) for _, text in rows)
        if n := n_digests(texts):
            raise TraceError(
                f"{self.url}: {n:,} traces hold digests in place of texts, and no vector of {embedder.name!r}; "
                f"`tracer forget --containing sha256:` removes such traces, those with vectors too"
            )
        return np.array([number for number, _ in rows], dtype=np.int64), texts

    def traffic(self, after: float = 0.0) -> list[Traffic]:
        """What was tallied from a time on (seconds since the epoch), in order."""
        query = sa.select(traffic).where(traffic.c.task == self._task, traffic.c.started >= after)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(traffic.c.started, traffic.c.id)).mappings().all()
        return [
            Traffic(
                None if row["policy"] is None else unescaped(row["policy"]),
                row["started"],
                row["seconds"],
                row["n"],
                json.loads(row["facts"]),
            )
            for row in rows
        ]

    @contextmanager
    def recent(self) -> Iterator[Recent]:
        """What a page shows, from one state of the store and in bounded time."""
        with self._database.reading() as connection:
            yield Recent(connection, self._task, is_sqlite=self._database.is_sqlite)

    # One fitter at a time.

    @contextmanager
    def lock(self, name: str = "fit") -> Iterator[Callable[[], None]]:
        """Hold a lock that all processes on a PostgreSQL store share; TracerError at once where another holds it.

        On SQLite it does nothing: the home folder's lock serves. Gives a function that raises StoreError where the
        lock was lost with its connection: call it before what only the holder may do. So does the end of the block.
        """
        if self._database.is_sqlite:
            yield lambda: None
            return
        with locking.locked(self._database, f"{self.store_id}\0{self.task}\0{name}") as held:
            yield held

    # Within.

    @contextmanager
    def _writing(self) -> Iterator[Writer]:
        with self._database.writing() as connection:
            yield Writer(connection, self.store_id, self._task)

    def _reader(self, connection: Connection) -> Reader:
        return Reader(connection, self.store_id, self._task)

    def _drop_copy(self) -> None:
        if self.copy is not None:
            columns.drop(self.copy)

    def _count(self, connection: Connection) -> int:
        query = sa.select(sa.func.count()).select_from(traces).where(traces.c.task == self._task)
        return int(connection.execute(query).scalar_one())

    def _origins(self, connection: Connection) -> dict[str, int]:
        query = sa.select(traces.c.origin, sa.func.count()).where(traces.c.task == self._task)
        rows = connection.execute(query.group_by(traces.c.origin).order_by(traces.c.origin))
        return {str(origin): int(n) for origin, n in rows}
