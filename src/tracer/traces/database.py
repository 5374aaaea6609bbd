"""Connections of a trace store: SQLite in a folder, or PostgreSQL by its URL; their errors in the house's words.

A connection lives for one operation, so that threads and forks need no care. SQLite keeps a write-ahead log, syncs each
commit and lets one writer in at a time. On PostgreSQL a writer waits for its task's row (see ``schema``).
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import sqlalchemy as sa
from sqlalchemy import event, exc
from sqlalchemy.engine import URL, Connection, Engine, make_url
from sqlalchemy.pool import NullPool

from tracer.errors import MissingExtraError, StoreError
from tracer.traces import schema

FILE = "traces.sqlite"
NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "glusterfs", "fuse.sshfs"})
"""File systems on which the processes of several machines would share a file: SQLite's log cannot live there."""
_SECRET = ("password", "sslpassword", "passfile")
_SETUP_LOCK = 0x7472_6163_6572  # "tracer": who makes the tables of a PostgreSQL database


class Database:
    """Where the tables lie. ``wait_s``: how long a writer waits for another one."""

    def __init__(self, engine: Engine, url: str, wait_s: float) -> None:
        self.engine, self.url, self.wait_s = engine, url, wait_s
        self.is_sqlite = engine.dialect.name == "sqlite"

    @classmethod
    def open(cls, where: str | Path, wait_s: float) -> Database:
        """The database of a folder or a URL; ``setup`` connects first."""
        return _postgresql(where, wait_s) if isinstance(where, str) and "://" in where else _sqlite(Path(where), wait_s)

    def setup(self, task: str) -> tuple[str, int]:
        """Make the tables where there are none; the store's id, and the number of a task's row."""
        with self.reading() as connection:
            found = _found(connection, self.url, task)
        if found is not None:  # without a wait for a writer
            return found
        with self.writing() as connection:
            if not self.is_sqlite:
                connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_SETUP_LOCK)))
            return _found(connection, self.url, task) or _made(connection, self.url, task)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of the database."""
        with self.guarded(), self.engine.connect() as connection:
            if not self.is_sqlite:
                connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes: the only one on SQLite; committed at the end, undone by an error."""
        with self.guarded(), self.engine.connect() as connection:
            connection.execution_options(tracer_begin="BEGIN IMMEDIATE")
            with connection.begin():
                yield connection

    @contextmanager
    def outside(self) -> Iterator[Connection]:
        """A connection without a transaction."""
        with self.guarded(), self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT", tracer_begin="")

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Errors of the database as StoreError, without the values of a statement."""
        try:
            yield
        except exc.DBAPIError as error:
            raise StoreError(f"{self.url}: {self._problem(error)}") from error
        except exc.SQLAlchemyError as error:
            raise StoreError(f"{self.url}: {type(error).__name__}: {error}") from error
        except sqlite3.Error as error:
            raise StoreError(f"{self.url}: {_of_sqlite(error, self.wait_s)}") from error

    def _problem(self, error: exc.DBAPIError) -> str:
        original = error.orig or error
        if self.is_sqlite:
            return _of_sqlite(original, self.wait_s)
        state = getattr(original, "sqlstate", None)
        text = (str(original).strip().splitlines() or [type(original).__name__])[0]
        if state == "55P03":
            return f"another writer held the store for over {self.wait_s:g} seconds; try again"
        if state == "53100":
            return f"the disk is full: {text}"
        if state is None and isinstance(error, exc.OperationalError):
            return f"cannot be reached: {text}"
        return text


def _of_sqlite(error: BaseException, wait_s: float) -> str:
    text = str(error)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"another process held the store for over {wait_s:g} seconds; try again ({text})"
    if code == sqlite3.SQLITE_FULL:
        return f"the disk is full ({text})"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"the file is damaged, or no trace store ({text}): restore it from a backup"
    if code == sqlite3.SQLITE_CANTOPEN:
        return f"the file cannot be opened ({text}): was it moved?"
    return text


def _sqlite(home: Path, wait_s: float) -> Database:
    path = home / FILE
    kind = file_system(home)
    if kind in NETWORK:
        raise StoreError(f"{home}: lies on a network folder ({kind}); take a local disk, or a PostgreSQL URL")
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{home}: cannot be made: {error.strerror}") from error

    def connect(mode: str = "rw") -> sqlite3.Connection:
        address = f"file:{quote(str(path.absolute()))}?mode={mode}"
        connection = sqlite3.connect(address, uri=True, timeout=wait_s, isolation_level=None, check_same_thread=False)
        try:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA secure_delete = ON")
            connection.execute("PRAGMA foreign_keys = ON")
        except BaseException:
            connection.close()
            raise
        return connection

    engine = sa.create_engine("sqlite://", creator=connect, poolclass=NullPool, hide_parameters=True)
    database = Database(engine, str(path), wait_s)
    event.listen(engine, "begin", _begin)
    with database.guarded(), _alone(home):
        first = connect("rwc")
        try:
            if first.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
                mode = first.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                if mode != "wal":
                    raise StoreError(f"{path}: no write-ahead log can be kept here (journal mode {mode})")
        finally:
            first.close()
    return database


def _begin(connection: Connection) -> None:
    # A writer takes its lock at once: one that read first could not become a writer behind another.
    statement = connection.get_execution_options().get("tracer_begin", "BEGIN")
    if statement:
        connection.exec_driver_sql(statement)


def _postgresql(given: str, wait_s: float) -> Database:
    try:
        url = make_url(given)
    except (exc.ArgumentError, ValueError):
        scheme = given.partition("://")[0]
        raise StoreError(f"{scheme}://...: no URL of a database") from None
    if url.drivername.partition("+")[0] not in ("postgres", "postgresql"):
        raise StoreError(f"{hidden(url)}: give a folder for SQLite, or a postgresql:// URL")
    # UTF-8 at this end even where the database has another encoding, so that ``_made`` can say so; and a peer that is
    # gone is noticed while a lock is held for long.
    session: dict[str, Any] = {"client_encoding": "utf8", "connect_timeout": max(2, int(wait_s))}
    session |= {"keepalives_idle": 30, "keepalives_interval": 10, "keepalives_count": 3}
    try:
        engine = sa.create_engine(
            url.set(drivername="postgresql+psycopg"),
            poolclass=NullPool,
            hide_parameters=True,
            connect_args={name: value for name, value in session.items() if name not in url.query},
        )
    except ImportError as error:
        raise MissingExtraError("psycopg", "postgres", f"a trace store on {hidden(url)}") from error

    @event.listens_for(engine, "connect")
    def _session(connection: sqlite3.Connection, _record: object) -> None:  # any DBAPI connection
        settings = {"lock_timeout": wait_s, "idle_in_transaction_session_timeout": wait_s / 2}
        with_cursor = connection.cursor()
        for name, seconds in settings.items():
            with_cursor.execute(f"SET {name} = {max(1, round(seconds * 1000))}")
        # A commit that was acknowledged is on disk, whatever the server's default.
        with_cursor.execute("SELECT set_config('synchronous_commit', 'on', false) "
                            "WHERE current_setting('synchronous_commit') = 'off'")  # fmt: skip
        with_cursor.close()
        connection.commit()

    return Database(engine, hidden(url), wait_s)


def hidden(url: URL) -> str:
    """A URL to show, without its passwords."""
    return url.difference_update_query(_SECRET).render_as_string(hide_password=True)


def file_system(path: Path, mounts: str | None = None) -> str | None:
    """The kind of file system that holds a path, by ``mounts`` (/proc/self/mountinfo); None where unknown."""
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None
    here = path.resolve()
    best, found = -1, None
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if len(fields) < 5 or not right:
            continue
        point = Path(fields[4].replace("\\040", " "))
        if len(point.parts) >= best and here.is_relative_to(point):  # of equals the later mount covers the earlier
            best, found = len(point.parts), right.split()[0]
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold a lock on the folder itself: who makes the tables, or first turns the log on, does so alone."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _found(connection: Connection, url: str, task: str) -> tuple[str, int] | None:
    """The store's id and the number of a task's row; None where the one or the other is not there yet."""
    if not sa.inspect(connection).has_table(schema.meta.name):
        return None
    rows = connection.execute(sa.select(schema.meta.c.name, schema.meta.c.value))
    facts = {str(name): str(value) for name, value in rows}
    if facts.get("schema") != schema.SCHEMA:
        raise StoreError(f"{url}: its tables have version {facts.get('schema')}, this Tracer knows {schema.SCHEMA}")
    number = connection.execute(sa.select(schema.tasks.c.id).where(schema.tasks.c.name == task)).scalar_one_or_none()
    return None if number is None else (facts["store"], number)


def _made(connection: Connection, url: str, task: str) -> tuple[str, int]:
    if connection.dialect.name == "postgresql":
        encoding = connection.exec_driver_sql("SHOW server_encoding").scalar_one()
        if encoding != "UTF8":
            raise StoreError(f"{url}: the database's encoding is {encoding}, it must be UTF8")
    if not sa.inspect(connection).has_table(schema.meta.name):
        schema.tables.create_all(connection)
        rows = [{"name": "schema", "value": schema.SCHEMA}, {"name": "store", "value": uuid.uuid4().hex}]
        connection.execute(sa.insert(schema.meta), rows)
    connection.execute(sa.insert(schema.tasks), {"name": task, "through": 0, "generation": 0})
    found = _found(connection, url, task)
    assert found is not None  # noqa: S101 - it was made two lines above
    return found
