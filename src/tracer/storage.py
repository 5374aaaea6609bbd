"""Writing files so that a crash leaves the old state or the new one, never a part. Floor 0."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tracer.errors import TracerError

_POLL_S = 0.02

on_step: Callable[[str], None] | None = None
"""Told the name of each step of what must survive a crash: a test kills the process there."""


def step(name: str) -> None:
    """Between two writes that a crash may part."""
    if on_step is not None:
        on_step(name)


def write_synced(path: Path, content: bytes) -> None:
    """Write a new file and force it to disk."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomic(path: Path, content: bytes) -> None:
    """Replace a file so that readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        write_synced(beside, content)
        step(f"beside:{path.name}")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_folder(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Create a folder with these files, whole or not at all. False where the folder exists already."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = folder.with_name(f".{folder.name}-{secrets.token_hex(4)}")
    beside.mkdir()
    try:
        for name, content in files.items():
            write_synced(beside / name, content)
        sync_folder(beside)
        step(f"beside:{folder.name}")
        try:
            beside.rename(folder)
        except OSError:
            if folder.exists():
                return False
            raise
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sync_folder(folder.parent)
    return True


def sweep(folder: Path) -> None:
    """Remove what a killed process left beside: hold the lock while you do."""
    for left in folder.glob(".*-*") if folder.is_dir() else ():
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


@contextmanager
def locked(folder: Path, name: str = ".lock", *, what: str = "fitting", wait_s: float = 0.0) -> Iterator[None]:
    """Hold a lock file in a folder; freed if the process dies.

    Raises TracerError where another process, which is then ``what``, holds it for longer than ``wait_s``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    until = time.monotonic() + wait_s
    with (folder / name).open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= until:
                    raise TracerError(f"{folder}: another process is {what} here; try again when it is done") from error
            time.sleep(_POLL_S)
        yield


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
