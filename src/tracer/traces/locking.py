"""A lock that the processes on a PostgreSQL database share: the server frees it when its holder's connection ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b

import sqlalchemy as sa

from tracer.errors import BusyError, StoreError
from tracer.traces.database import Database


@contextmanager
def locked(database: Database, name: str) -> Iterator[Callable[[], None]]:
    """Hold the lock of this name; BusyError at once where another session holds it.

    Gives a function that raises StoreError where the connection broke and the lock was lost with it; the end of the
    block does so too.
    """
    key = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
    with database.outside() as connection:
        # Some servers end sessions that are idle for long, and the lock with them.
        unlimited = "SELECT set_config('idle_session_timeout', '0', false) FROM pg_settings WHERE name = "
        connection.exec_driver_sql(unlimited + "'idle_session_timeout'")
        if not connection.execute(sa.select(sa.func.pg_try_advisory_lock(key))).scalar_one():
            raise BusyError(f"{database.url}: another process is fitting here; try again when it is done")

        def held() -> None:
            with _lost(database.url):
                connection.execute(sa.select(1)).scalar_one()

        yield held
        with _lost(database.url):
            ours = connection.execute(sa.select(sa.func.pg_advisory_unlock(key))).scalar_one()
        if not ours:
            raise StoreError(f"{database.url}: the lock was not this session's: does a pooler share sessions here?")


@contextmanager
def _lost(url: str) -> Iterator[None]:
    try:
        yield
    except sa.exc.DBAPIError as error:
        raise StoreError(f"{url}: the connection broke, and the lock with it: another may fit here") from error
