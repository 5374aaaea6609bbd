"""The trainer's local copy of a store as columns: only rows that are new to it are read from the database.

A chunk is a folder, written beside and renamed: ``rows-AFTER-THROUGH`` holds the rows with AFTER < number <= THROUGH,
``vectors-E-AFTER-THROUGH`` their vectors by the store's embedder E. All belong to one store, task and generation; a
copy that is damaged, foreign or stale is dropped and made again, never trusted. ``docs/operations.md`` has the layout.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tracer import storage
from tracer.traces.reading import CHUNK, STRINGS, Fingerprints, Head, Maker, Reader, Rows, chosen, dataset_of
from tracer.types import Bool, Dataset, EmbedderIdentity, Float32, LabelSpace

log = logging.getLogger("tracer.traces")

_FORMAT = 1
_HEAD, _MANIFEST, _STRINGS, _NUMBERS, _TIMES, _VECTORS = (
    "copy.json", "chunk.json", "strings.json", "numbers.i64", "times.f64", "vectors.f32",
)  # fmt: skip
_ROWS = re.compile(r"rows-(\d+)-(\d+)")
_SMALL = 16
"""Small chunks that may lie about before they are made one."""


class _DamagedError(Exception):
    """A copy that cannot be trusted."""


def load(
    reader: Reader,
    folder: Path | None,
    *,
    fingerprints: Fingerprints | None = None,
    through: int | None = None,
    labels: LabelSpace | None = None,
) -> Dataset | None:
    """The wanted rows, through the copy in ``folder`` (``held``) if there is one; None where there are no such rows."""
    if folder is not None:
        try:
            copy = _Copy(folder, reader.head)
            try:
                return _assembled(reader, copy, fingerprints, through, labels)
            except _DamagedError as error:
                log.warning("%s: the copy is made again: %s", folder, error)
                copy.start()
                return _assembled(reader, copy, fingerprints, through, labels)
        except OSError as error:  # a full disk: the database has it all
            log.warning("%s: no copy can be kept: %s", folder, error)
    return _assembled(reader, None, fingerprints, through, labels)


@contextmanager
def held(folder: Path | None) -> Iterator[Path | None]:
    """Hold a copy's folder: one process at a time reads, writes or drops it. None where there can be none.

    Take it before the transaction that reads: waiting within one would keep it open.
    """
    handle = None
    if folder is not None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(folder, os.O_RDONLY)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:  # a folder of somebody else's, or none
            log.warning("%s: no copy can be kept: %s", folder, error)
            folder = None
    try:
        yield folder
    finally:
        if handle is not None:
            os.close(handle)


def drop(folder: Path) -> None:
    """Remove a copy, once nobody reads it."""
    if folder.is_dir():
        with held(folder):
            _empty(folder)


def _assembled(
    reader: Reader,
    copy: _Copy | None,
    fingerprints: Fingerprints | None,
    through: int | None,
    labels: LabelSpace | None,
) -> Dataset | None:
    chunks = [] if copy is None else copy.chunks(reader)
    for rows in reader.rows(chunks[-1].through if chunks else 0):
        chunks.append(rows)
        if copy is not None:
            copy.keep(rows)
    found = [(rows, mask) for rows in chunks if (mask := chosen(rows, fingerprints, through)).any()]
    wanted, masks = [rows for rows, _ in found], [mask for _, mask in found]
    dense, embedder = _vectors(reader, copy, wanted, masks)
    if copy is not None:
        copy.tidy(chunks)
    return dataset_of(wanted, masks, dense, embedder, labels) if found else None


def _vectors(
    reader: Reader, copy: _Copy | None, chunks: Sequence[Rows], masks: Sequence[Bool]
) -> tuple[Float32 | None, EmbedderIdentity | None]:
    """The vectors of the chosen rows by the newest embedder that has made all of them."""
    n = int(sum(mask.sum() for mask in masks))
    if not n:
        return None, None
    for maker in reversed(reader.makers()):
        if maker.n < n:
            continue
        out = np.empty((n, maker.identity.dimension), dtype=np.float32)
        done = 0
        for rows, mask in zip(chunks, masks, strict=True):
            matrix = None if copy is None else copy.vectors(maker, rows)
            if matrix is None:
                matrix, there = reader.vectors(maker, rows)
                if not there[mask].all():
                    break
                if copy is not None and there.all():
                    copy.keep_vectors(maker.key, rows, matrix)
            size = int(mask.sum())
            out[done : done + size] = matrix if size == len(rows) else matrix[mask]
            done += size
        if done == n:
            return out, maker.identity
    return None, None


class _Copy:
    """A copy's folder, in the state of ``head``; hold its lock."""

    def __init__(self, folder: Path, head: Head) -> None:
        self.folder = folder
        self.facts = {"format": _FORMAT, **asdict(head)}
        self.through = self.facts.pop("through")
        try:
            found = json.loads((folder / _HEAD).read_bytes())
        except (OSError, ValueError):
            found = None
        if found != self.facts:
            self.start()
        storage.sweep(folder)

    def start(self) -> None:
        """Begin anew, without a chunk."""
        _empty(self.folder)
        storage.write_atomic(self.folder / _HEAD, json.dumps(self.facts).encode())

    def chunks(self, reader: Reader) -> list[Rows]:
        """The rows that are here, from the first on without a gap."""
        found = sorted(
            ((int(m[1]), int(m[2]), p) for p in self.folder.iterdir() if (m := _ROWS.fullmatch(p.name))),
            key=lambda chunk: (chunk[0], -chunk[1]),
        )
        out: list[Rows] = []
        for after, through, path in found:
            here = out[-1].through if out else 0
            if through <= here:  # left over when small chunks became one
                shutil.rmtree(path)
                continue
            if after != here:
                raise _DamagedError(f"rows between {here} and {after} are missing")
            out.append(_read_rows(path, after, through))
        if out and (out[-1].through > self.through or reader.key(out[-1].through) != out[-1].last):
            raise _DamagedError("it holds rows that the store does not")
        return out

    def keep(self, rows: Rows) -> None:
        """Write a chunk."""
        strings = json.dumps({name: rows.strings[name] for name in STRINGS}, ensure_ascii=False).encode()
        files = {
            _STRINGS: strings,
            _NUMBERS: rows.numbers.astype("<i8").tobytes(),
            _TIMES: rows.times.astype("<f8").tobytes(),
        }
        _write(self.folder / f"rows-{rows.after}-{rows.through}", files, {"n": len(rows), "last": rows.last})

    def keep_vectors(self, maker: int, rows: Rows, matrix: Float32) -> None:
        """Write the vectors of a chunk."""
        files = {_VECTORS: matrix.astype("<f4", copy=False).tobytes()}
        _write(self._vectors(maker, rows), files, {"n": len(rows), "dimension": matrix.shape[1]})

    def vectors(self, maker: Maker, rows: Rows) -> Float32 | None:
        """The vectors (n, d) of a chunk, mapped from the file; None where they are not here."""
        folder, shape = self._vectors(maker.key, rows), (len(rows), maker.identity.dimension)
        return _read_vectors(folder, shape) if folder.is_dir() else None

    def tidy(self, chunks: Sequence[Rows]) -> None:
        """Make small chunks at the end one where there are many."""
        if sum(len(rows) < CHUNK // 2 for rows in chunks) <= _SMALL:
            return
        first, size = len(chunks), 0
        while first and size + len(chunks[first - 1]) <= CHUNK:
            first -= 1
            size += len(chunks[first])
        old = chunks[first:]
        if len(old) < 2:
            return
        one = _one(old)
        self.keep(one)
        for maker in {int(path.name.split("-")[1]) for path in self.folder.glob("vectors-*")}:
            folders = [self._vectors(maker, rows) for rows in old]
            if all(folder.is_dir() for folder in folders):
                parts = [_read_vectors(f, (len(rows), None)) for f, rows in zip(folders, old, strict=True)]
                self.keep_vectors(maker, one, np.concatenate(parts))
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
        for rows in old:
            shutil.rmtree(self.folder / f"rows-{rows.after}-{rows.through}", ignore_errors=True)

    def _vectors(self, maker: int, rows: Rows) -> Path:
        return self.folder / f"vectors-{maker}-{rows.after}-{rows.through}"


def _one(chunks: Sequence[Rows]) -> Rows:
    """Neighbouring chunks as one."""
    strings: dict[str, Any] = {}
    for name in STRINGS:
        column = [value for rows in chunks for value in rows.strings[name] or (None,) * len(rows)]
        strings[name] = column if any(value is not None for value in column) else None
    return Rows(
        chunks[0].after,
        chunks[-1].through,
        chunks[-1].last,
        np.concatenate([rows.numbers for rows in chunks]),
        np.concatenate([rows.times for rows in chunks]),
        strings,
    )


def _write(folder: Path, files: Mapping[str, bytes], facts: Mapping[str, object]) -> None:
    sums = {name: zlib.crc32(content) for name, content in files.items()}
    storage.write_folder(folder, {**files, _MANIFEST: json.dumps({**facts, "crc32": sums}).encode()})


def _read_rows(folder: Path, after: int, through: int) -> Rows:
    try:
        facts = json.loads((folder / _MANIFEST).read_bytes())
        n = facts["n"]
        content = {name: (folder / name).read_bytes() for name in (_STRINGS, _NUMBERS, _TIMES)}
        for name, part in content.items():
            _check(name, zlib.crc32(part), facts)
        numbers = np.frombuffer(content[_NUMBERS], dtype="<i8").astype(np.int64)
        times = np.frombuffer(content[_TIMES], dtype="<f8").astype(np.float64)
        strings = json.loads(content[_STRINGS])
        if len(numbers) != n or len(times) != n or any(len(strings[s] or numbers) != n for s in STRINGS):
            raise ValueError(f"not {n} rows")
        return Rows(after, through, facts["last"], numbers, times, strings)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{folder.name}: {error}") from error


def _read_vectors(folder: Path, shape: tuple[int, int | None]) -> Float32:
    try:
        facts = json.loads((folder / _MANIFEST).read_bytes())
        found = (facts["n"], facts["dimension"])
        if found[0] != shape[0] or shape[1] not in (None, found[1]):
            raise ValueError(f"shape {found}, expected {shape}")
        matrix: Float32 = np.memmap(folder / _VECTORS, dtype="<f4", mode="r")
        _check(_VECTORS, zlib.crc32(matrix.data), facts)
        return matrix.reshape(found)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _DamagedError(f"{folder.name}: {error}") from error


def _check(name: str, found: int, facts: Mapping[str, Any]) -> None:
    if facts["crc32"][name] != found:
        raise ValueError(f"{name} was changed")


def _empty(folder: Path) -> None:
    (folder / _HEAD).unlink(missing_ok=True)  # first: what is left after a crash belongs to nobody then
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
