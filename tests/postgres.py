"""A real PostgreSQL for the tests: a private cluster in a folder, on a port of the loopback, stopped at the end."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MISSING = "PostgreSQL is missing, and these tests need a real one: apt-get install postgresql"
USER = "tracer"
PASSWORD = "store-test"


def programs(debian: Path = Path("/usr/lib/postgresql")) -> Path:
    """The folder with ``initdb`` and ``pg_ctl``: Debian's newest, or that of PATH. RuntimeError where there is none."""
    versions = sorted(debian.glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
    if versions:
        return versions[-1].parent
    found = shutil.which("initdb")
    if found is None:
        raise RuntimeError(MISSING)
    return Path(found).resolve().parent


@contextmanager
def cluster(*, durable: bool = True) -> Iterator[str]:
    """The URL of a running cluster's ``postgres`` database; it keeps what it acknowledged, as in production.

    One that is not ``durable`` never waits for the disk: for tests in which clients die and the server does not.
    """
    bin_, folder = programs(), Path(tempfile.mkdtemp(prefix="tracer-postgres-"))
    # The server refuses to run as root: it runs as the package's user then.
    as_root = os.geteuid() == 0
    prefix = ["runuser", "-u", "postgres", "--"] if as_root else []
    if as_root:
        shutil.chown(folder, "postgres", "postgres")

    def run(*command: str) -> None:
        done = subprocess.run([*prefix, *command], capture_output=True, text=True, cwd="/", check=False, timeout=120)
        if done.returncode:
            raise RuntimeError(f"{command[0]}: {done.stderr or done.stdout}")

    data, port = folder / "data", _free_port()
    options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories=''"
    options += f" -c fsync={'on' if durable else 'off'}"
    try:
        secret = folder / "secret"
        secret.write_text(PASSWORD, encoding="utf-8")
        secret.chmod(0o644)
        login = ("-U", USER, "-A", "scram-sha-256", f"--pwfile={secret}")
        run(str(bin_ / "initdb"), "-D", str(data), *login, "-E", "UTF8", "--no-locale", *([] if durable else ["-N"]))
        start = ("-D", str(data), "-l", str(folder / "log"), "-o", options, "-w", "-t", "60", "start")
        run(str(bin_ / "pg_ctl"), *start)
        try:
            yield f"postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/postgres"
        finally:
            run(str(bin_ / "pg_ctl"), "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def database(url: str, options: str = "") -> Iterator[str]:
    """The URL of a fresh database of a cluster, dropped at the end. ``options`` are those of CREATE DATABASE."""
    import psycopg

    name = f"t{secrets.token_hex(6)}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} {options}".encode())
        try:
            yield f"{url.rpartition('/')[0]}/{name}"
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
