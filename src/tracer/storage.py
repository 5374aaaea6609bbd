"""Writing files so that a crash leaves the old state or the new one, never a part. Floor 0."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path


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


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
