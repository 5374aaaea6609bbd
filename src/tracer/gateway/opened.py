"""Native calls that wait for the label that their caller's own teacher gives.

They stand in a file in the task's home, so that any process of the host takes the label in, and a new start forgets
none. A call waits ``wait_s`` seconds. What comes too late is unknown. Where no file may hold texts, a call belongs to
the process that has its text: no other one takes its label in, or forgets it.
"""

from __future__ import annotations

import json
import logging
import secrets
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from tracer.errors import StoreError
from tracer.traces.digests import digest_of
from tracer.types import Origin, Seen, Trace, Usage

log = logging.getLogger("tracer.gateway")

NAME = "open-calls.sqlite"
_MOST = 100_000
_BYTES = 256 << 20
_GRACE_S = 60.0
_ORPHAN_S = 3600.0
"""How long the calls of another process stay when their time is over: it may have ended."""
_SCHEMA = """CREATE TABLE IF NOT EXISTS calls (
    id TEXT PRIMARY KEY, expires REAL NOT NULL, content TEXT, label TEXT, taken INTEGER NOT NULL DEFAULT 0,
    owner TEXT NOT NULL DEFAULT ''
) WITHOUT ROWID"""


Status = Literal["recorded", "known", "conflict", "unknown"]


@dataclass(frozen=True, slots=True)
class Opened:
    """A native call that was left to its caller: ``text`` as it is to be stored, ``at`` in seconds since the epoch.

    ``owed`` says that a trace is due whatever happens: a plain sample, of a task whose callers label all of them.
    """

    id: str
    text: str
    at: float
    origin: Origin
    seen: Seen | None
    owed: bool

    def trace(self, label: str, *, teacher: str | None, prompt: str | None = None, usage: Usage | None = None) -> Trace:
        """The record of its label."""
        time = datetime.fromtimestamp(self.at, UTC)
        return Trace(
            self.id, self.text, label, teacher=teacher, prompt=prompt, usage=usage, time=time, origin=self.origin,
            seen=self.seen,
        )  # fmt: skip


class OpenCalls:
    """The calls of one task. At most 100,000 wait, and 256 MiB of text; what is not owed takes half of that. What comes
    then is dropped and counted. With ``on_disk`` false texts stay in memory: a call is unknown to other processes, and
    to all once its own has ended. ``now`` is in seconds of a steady clock that all processes of the host share, so that
    no step of the wall clock makes a label late. Safe to use from several threads. Methods raise StoreError
    where the file cannot be used.
    """

    def __init__(self, home: Path, wait_s: float, *, on_disk: bool = True, most: int = _MOST) -> None:
        self._path, self._wait_s, self._most = home / NAME, wait_s, most
        self._on_disk, self._texts, self._owner = on_disk, dict[str, str](), secrets.token_hex(8)
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._n = self._size = 0
        self.dropped = 0

    def renew(self, wait_s: float, *, on_disk: bool) -> None:
        """Go on under other settings: they hold for the calls that come. What waits in memory waits there still; where
        texts may now be written, it is for its digest alone: it came under the promise that it is not."""
        with self._lock:
            if on_disk and not self._on_disk:
                self._texts = {id: digest_of(text) for id, text in self._texts.items()}  # noqa: A001
            self._wait_s, self._on_disk = wait_s, on_disk

    def put(self, calls: Iterable[Opened], now: float) -> None:
        """Keep calls, all of them or, on an error, none."""
        rows: list[tuple[str, float, str, str]] = []
        with self._lock, _Named(self._path):
            connection = self._open(now)
            for call in calls:
                content = json.dumps(asdict(call if self._on_disk else replace(call, text="")))
                most = self._most if call.owed else self._most // 2
                if self._n + len(rows) >= most or self._size + len(content) > _BYTES:
                    self.dropped += 1
                    continue
                rows.append((call.id, now + self._wait_s, content, "" if self._on_disk else self._owner))
                self._size += len(content)
                if not self._on_disk:
                    self._texts[call.id] = call.text
            if rows:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "INSERT OR IGNORE INTO calls (id, expires, content, owner) VALUES (?, ?, ?, ?)", rows
                )
                connection.execute("COMMIT")
                self._n += len(rows)

    def take(self, id: str, label: str | None, now: float) -> tuple[Status, Opened | None]:  # noqa: A002
        """Take a label in, None where the teacher gave none. Once it was, the same one again is ``known``, another one
        in ``conflict``; the call comes with ``recorded`` alone."""
        with self._lock, _Named(self._path):
            if self._connection is None and not self._path.exists():
                return "unknown", None
            connection = self._open(now)
            connection.execute("BEGIN IMMEDIATE")
            found = connection.execute(
                "SELECT content, label, taken FROM calls WHERE id = ? AND expires > ? AND owner IN ('', ?)",
                (id, now, self._owner),
            ).fetchone()
            if found is not None and not found[2]:
                connection.execute("UPDATE calls SET taken = 1, label = ?, content = NULL WHERE id = ?", (label, id))
            connection.execute("COMMIT")
        if found is None:
            return "unknown", None
        if found[2]:
            return "known" if found[1] == label else "conflict", None
        call = self._read(found[0])
        return ("recorded", call) if call is not None else ("unknown", None)

    def expired(self, now: float) -> list[Opened]:
        """Forget the calls whose time is over, and give those that are owed."""
        with self._lock, _Named(self._path):
            if self._connection is None and not self._path.exists():
                return []
            connection = self._open(now)
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.execute(
                "SELECT content FROM calls WHERE expires <= ? AND taken = 0 AND owner IN ('', ?)", (now, self._owner)
            ).fetchall()
            connection.execute("DELETE FROM calls WHERE expires <= ? AND owner IN ('', ?)", (now, self._owner))
            connection.execute("DELETE FROM calls WHERE expires <= ?", (now - _ORPHAN_S,))
            connection.execute("COMMIT")
            self._count(connection)
        return [call for (content,) in rows if (call := self._read(content)) is not None and call.owed]

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _open(self, now: float) -> sqlite3.Connection:
        connection = self._connection
        if connection is None:
            connection = self._connected()
            # While nobody served, no label could come: that is no fault of the callers. Since a new start of the host
            # the clock counts anew: what came before waits no longer than what comes now.
            times = (now + _GRACE_S, now + max(_GRACE_S, self._wait_s))
            connection.execute("UPDATE calls SET expires = min(max(expires, ?), ?)", times)
            self._count(connection)
            self._connection = connection
        if connection.in_transaction:
            connection.execute("ROLLBACK")  # an earlier call failed halfway
        return connection

    def _connected(self) -> sqlite3.Connection:
        for attempt in range(2):
            connection = sqlite3.connect(self._path, timeout=2.0, isolation_level=None, check_same_thread=False)
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("PRAGMA synchronous = NORMAL")
                connection.execute(_SCHEMA)
                if "owner" not in [row[1] for row in connection.execute("PRAGMA table_info(calls)")]:
                    connection.execute("ALTER TABLE calls ADD COLUMN owner TEXT NOT NULL DEFAULT ''")
            except sqlite3.OperationalError:
                connection.close()
                raise
            except sqlite3.DatabaseError:
                connection.close()
                if attempt:
                    raise
                log.warning("%s was damaged and begins anew", self._path.name)
                for end in ("", "-wal", "-shm"):
                    self._path.with_name(self._path.name + end).unlink(missing_ok=True)
                continue
            return connection
        raise AssertionError("unreachable")

    def _read(self, content: str) -> Opened | None:
        """A call as it was put; None where its text is gone."""
        values = json.loads(content)
        seen = values.pop("seen")
        call = Opened(**values, seen=None if seen is None else Seen(**seen))
        if call.text:
            return call
        text = self._texts.pop(call.id, None)
        return None if text is None else replace(call, text=text)

    def _count(self, connection: sqlite3.Connection) -> None:
        query = "SELECT count(*), coalesce(sum(length(content)), 0) FROM calls"
        self._n, self._size = connection.execute(query).fetchone()


class _Named:
    """Turns SQLite's errors into StoreError."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, where: object) -> None:
        if isinstance(error, sqlite3.Error):
            raise StoreError(f"{self._path}: {type(error).__name__}") from error
