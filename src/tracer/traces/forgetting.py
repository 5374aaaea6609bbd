"""Removing traces for good: a store of customers' messages must be able to forget.

Rows and vectors go, and a tombstone (a keyed digest of the id) stays, so that reading the log again does not bring them
back. The bytes go too: SQLite overwrites what it frees and its log is emptied, on PostgreSQL the tables are vacuumed
(what lies in archives of its log and in backups is its operator's). Local copies on other machines are void at their
next use.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from tracer.errors import ConfigError, StoreError
from tracer.traces import schema
from tracer.traces.database import Database
from tracer.traces.escaping import escaped, unescaped
from tracer.traces.facts import Forgotten
from tracer.traces.rooms import normalised
from tracer.traces.rows import key_of
from tracer.traces.schema import traces
from tracer.traces.writing import Writer

_PAGE = 5_000
_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which traces: any of these ids, any of these texts, or texts that hold or match something, or are older."""

    ids: frozenset[str]
    texts: frozenset[str]
    containing: tuple[str, ...]
    matching: re.Pattern[str] | None
    before: float | None

    @classmethod
    def of(
        cls,
        ids: Collection[str],
        texts: Collection[str],
        containing: str | None,
        matching: re.Pattern[str] | None,
        before: datetime | None,
    ) -> Wanted:
        """Raises ConfigError where nothing is asked for, or something that every text holds."""
        for name, value in (("ids", ids), ("texts", texts)):
            if isinstance(value, str):
                raise ConfigError(f"{name} = {value!r}: give a list, not one string")
        if containing is not None and not normalised(containing):
            raise ConfigError(f"containing = {containing!r}: every text holds that")
        if not ids and not texts and containing is None and matching is None and before is None:
            raise ConfigError("say which traces to forget: ids, texts, containing, matching or before")
        return cls(
            frozenset(ids),
            frozenset(map(normalised, texts)),
            () if containing is None else (containing, normalised(containing)),
            matching,
            None if before is None else before.timestamp(),
        )

    def picks(self, name: str, text: str | None, when: float | None) -> bool:
        """Whether a trace is one of them. Texts are compared as they are and normalised."""
        if name in self.ids or (self.before is not None and when is not None and when < self.before):
            return True
        if text is None or not (self.texts or self.containing or self.matching is not None):
            return False
        plain = normalised(text)
        if plain in self.texts or any(part in text or part in plain for part in self.containing):
            return True
        return self.matching is not None and bool(self.matching.search(text) or self.matching.search(plain))


def find(connection: Connection, task: int, wanted: Wanted) -> Forgotten:
    """The stored traces that are wanted. A trace without a time is as old as its recording."""
    when = sa.func.coalesce(traces.c.time, traces.c.recorded_at)
    query = sa.select(traces.c.number, traces.c.id, traces.c.text, when).where(traces.c.task == task)
    found: list[tuple[int, str, str | None]] = []
    after = 0
    while True:
        page = connection.execute(query.where(traces.c.number > after).order_by(traces.c.number).limit(_PAGE)).all()
        for number, stored_id, stored_text, moment in page:
            name, text = unescaped(stored_id), None if stored_text is None else unescaped(stored_text)
            if wanted.picks(name, text, moment):
                found.append((number, name, text))
        if len(page) < _PAGE:
            break
        after = page[-1][0]
    return Forgotten(
        tuple(number for number, _, _ in found),
        tuple(name for _, name, _ in found),
        tuple(text for _, _, text in found if text is not None),
    )


def remove(writer: Writer, found: Forgotten, wanted: Wanted) -> None:
    """Remove what was found; ids that were asked for stay out even where no row has them yet."""
    names = dict.fromkeys([*found.ids, *sorted(wanted.ids)])
    writer.remove(found.numbers, [key_of(writer.store, escaped(name)) for name in names])


def scrub(database: Database) -> None:
    """Take removed rows out of the files. Raises StoreError where a reader of SQLite's log does not end."""
    with database.outside() as connection:
        if not database.is_sqlite:
            for table in (schema.traces, schema.vectors):
                connection.exec_driver_sql(f"VACUUM {table.name}")
            return
        tries = max(1, round(database.wait_s / _RETRY_S))
        for _ in range(tries):
            busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
            if not busy:
                return
            time.sleep(_RETRY_S)
    raise StoreError(
        f"{database.url}: the traces are forgotten, but a process that still reads keeps their bytes in the log; "
        "stop it and forget again"
    )
