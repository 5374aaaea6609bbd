"""One fitter at a time, on whichever machine; and a lock that is lost is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.traces.test_store import rows
from tracer.errors import StoreError, TracerError
from tracer.traces.store import TraceStore


def test_the_lock_is_one_for_all_on_postgresql(postgres: str) -> None:
    with TraceStore.open(postgres) as one, TraceStore.open(postgres) as two, TraceStore.open(postgres, task="b") as b:
        with one.lock() as held:
            held()
            with (
                pytest.raises(TracerError, match="another process is fitting here; try again when it is done"),
                two.lock(),
            ):
                pytest.fail("it was locked")
            with two.lock("other"), b.lock():
                two.append(rows("a"))
        with two.lock():
            pass


def kill_others(store: TraceStore) -> None:
    """End all other sessions of the database, as a failing server or network does."""
    others = "FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND datname = current_database()"
    with store._database.outside() as connection:
        assert connection.exec_driver_sql(f"SELECT pg_terminate_backend(pid) {others}").all()


def lose(one: TraceStore, two: TraceStore, *, ask: bool, fail: bool = False) -> None:
    with one.lock() as held:
        kill_others(two)
        with two.lock():
            pass
        if fail:
            raise KeyError
        if ask:
            held()


@pytest.mark.parametrize("ask", [True, False])
def test_a_lost_lock_does_not_look_like_success(postgres: str, ask: bool) -> None:
    with TraceStore.open(postgres) as one, TraceStore.open(postgres) as two:
        with pytest.raises(StoreError, match="the connection broke, and the lock with it"):
            lose(one, two, ask=ask)
        with pytest.raises(KeyError):
            lose(one, two, ask=ask, fail=True)


def test_on_sqlite_the_lock_is_the_folder_s(tmp_path: Path) -> None:
    with TraceStore.open(tmp_path) as store, store.lock() as held, store.lock():
        held()
