"""Connecting: what cannot be opened or used says so in one line, without a password."""

from __future__ import annotations

import shutil
import sqlite3
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy import event

from tests import postgres as postgresql
from tracer.errors import MissingExtraError, StoreError
from tracer.traces import database
from tracer.traces.store import TraceStore
from tracer.types import Trace

MANY = [Trace(str(i), f"text {i} " * 20, "x") for i in range(500)]


def test_what_it_is_and_where(where: str, tmp_path: Path) -> None:
    with TraceStore.open(where) as store:
        if store.kind == "sqlite":
            assert store.url == str(tmp_path / "home" / "traces.sqlite")
        else:
            assert postgresql.PASSWORD not in store.url + repr(store)
            assert store.url.startswith("postgresql://tracer:***@127.0.0.1:")


def test_both_spellings_of_a_url(postgres: str) -> None:
    with TraceStore.open(postgres) as one:
        for scheme in ("postgres", "postgresql+psycopg"):
            with TraceStore.open(postgres.replace("postgresql", scheme, 1)) as two:
                assert (two.store_id, two.kind) == (one.store_id, "postgresql")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgresql://u:secret@127.0.0.1:1/db", r"postgresql://u:\*\*\*@127.0.0.1:1/db: cannot be reached"),
        ("postgresql://u@127.0.0.1:1/db?password=secret", r"postgresql://u@127.0.0.1:1/db: cannot be reached"),
        ("mysql://u:secret@host/db", r"mysql://u:\*\*\*@host/db: give a folder for SQLite, or a postgresql:// URL"),
        ("postgresql://u:secret@host:port/db", "postgresql://...: no URL of a database"),
        ("sqlite:///secret/file", "give a folder for SQLite"),
    ],
)
def test_a_url_that_leads_nowhere(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as caught:
        TraceStore.open(url)
    if not url.startswith("sqlite"):
        assert "secret" not in str(caught.value)


def test_a_wrong_password_is_not_shown(postgres: str) -> None:
    with pytest.raises(StoreError, match="password authentication failed") as caught:
        TraceStore.open(postgres.replace(postgresql.PASSWORD, "s3cr3t"))
    assert "s3cr3t" not in str(caught.value)


def test_without_psycopg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(MissingExtraError, match=r"needs psycopg: pip install 'tracer-router\[postgres\]'") as caught:
        TraceStore.open("postgresql://u:secret@host/db")
    assert "secret" not in str(caught.value)


def test_a_database_of_another_encoding_is_refused(postgres_url: str) -> None:
    with (
        postgresql.database(postgres_url, "TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'") as url,
        pytest.raises(StoreError, match="encoding is SQL_ASCII, it must be UTF8"),
    ):
        TraceStore.open(url)


def test_tables_of_another_version_are_refused(where: str) -> None:
    with TraceStore.open(where) as store, store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE tracer_meta SET value = '99' WHERE name = 'schema'")
    with pytest.raises(StoreError, match="its tables have version 99, this Tracer knows 1"):
        TraceStore.open(where)


def test_errors_do_not_quote_traces(store: TraceStore) -> None:
    with store._database.writing() as connection:
        connection.exec_driver_sql("ALTER TABLE tracer_traces RENAME COLUMN truth TO lies")
    with pytest.raises(StoreError, match="truth") as caught:
        store.append([Trace("a", "a secret of a customer", "x")])
    assert "secret" not in f"{caught.value} {caught.value.__cause__}"


# Files.


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / "traces.sqlite").write_bytes(b"not a database, but long enough to have a header" * 100)
    with pytest.raises(StoreError, match="the file is damaged, or no trace store"):
        TraceStore.open(tmp_path)


def test_a_damaged_page(tmp_path: Path) -> None:
    with TraceStore.open(tmp_path) as store:
        store.append(MANY)
        path = tmp_path / "traces.sqlite"
        content = bytearray(path.read_bytes())
        content[8192:-4096] = b"\xff" * (len(content) - 8192 - 4096)
        path.write_bytes(content)
        with pytest.raises(StoreError, match="the file is damaged"):
            store.load()


def test_a_full_disk(tmp_path: Path) -> None:
    with TraceStore.open(tmp_path) as store:
        store.append(MANY[:1])

        def small(connection: sqlite3.Connection, _record: object) -> None:
            connection.execute("PRAGMA max_page_count = 24")

        event.listen(store._database.engine, "connect", small)
        with pytest.raises(StoreError, match="the disk is full"):
            store.append(MANY)
        event.remove(store._database.engine, "connect", small)
        assert (store.count(), store.append(MANY).through) == (1, 500)


def test_a_file_that_was_moved_is_not_made_again(tmp_path: Path) -> None:
    with TraceStore.open(tmp_path / "home") as store:
        store.append(MANY[:1])
        shutil.move(tmp_path / "home", tmp_path / "there")
        with pytest.raises(StoreError, match=r"cannot be opened .*: was it moved"):
            store.count()
    assert not (tmp_path / "home").exists()
    with TraceStore.open(tmp_path / "there") as store:
        assert store.count() == 1


def test_a_home_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "home").touch()
    with pytest.raises(StoreError, match="home: cannot be made"):
        TraceStore.open(tmp_path / "home")


MOUNTS = """\
22 1 8:1 / / rw - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/share rw,relatime shared:1 - nfs4 server:/export rw
31 30 8:2 / /mnt/share/local rw - xfs /dev/sdb rw
32 22 0:41 / /mnt/with\\040space rw - cifs //server/x rw
33 22 0:42 / /mnt/over rw - nfs server:/y rw
34 22 0:43 / /mnt/over rw - tmpfs none rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/home/me", "ext4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/a/b", "nfs4"),
        ("/mnt/shared", "ext4"),
        ("/mnt/share/local/a", "xfs"),
        ("/mnt/with space/a", "cifs"),
        ("/mnt/over/a", "tmpfs"),
    ],
)
def test_the_file_system_of_a_folder(path: str, kind: str) -> None:
    assert database.file_system(Path(path), MOUNTS) == kind
    assert database.file_system(Path(path), "") is None


def test_a_network_folder_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert database.file_system(tmp_path) not in database.NETWORK
    monkeypatch.setattr(database, "file_system", lambda _: "nfs4")
    with pytest.raises(StoreError, match=r"lies on a network folder \(nfs4\); take a local disk, or a PostgreSQL URL"):
        TraceStore.open(tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_a_server_s_default_does_not_lose_commits(postgres: str) -> None:
    with TraceStore.open(postgres) as store:
        with store._database.outside() as connection:
            name = connection.exec_driver_sql("SELECT current_database()").scalar_one()
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET synchronous_commit = off")
        with store._database.reading() as connection:
            assert connection.execute(sa.text("SHOW synchronous_commit")).scalar_one() == "on"


def test_without_postgresql_the_tests_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="apt-get install postgresql"):
        postgresql.programs(tmp_path)
    for version in ("9", "15"):
        (tmp_path / version / "bin").mkdir(parents=True)
        (tmp_path / version / "bin" / "initdb").touch()
    assert postgresql.programs(tmp_path) == tmp_path / "15" / "bin"
