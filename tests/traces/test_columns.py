"""The local copy: only new rows are read, and what cannot be trusted is made again."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.traces.test_store import IDENTITY, OTHER, full, rows, same
from tracer.traces import columns, reading
from tracer.traces.store import TraceStore
from tracer.types import Dataset, Trace


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Rows and vectors that were read from the database."""
    counts = {"rows": 0, "vectors": 0}
    read_rows, read_vectors = reading.Reader.rows, reading.Reader.vectors

    def counted_rows(self: reading.Reader, after: int) -> object:
        for page in read_rows(self, after):
            counts["rows"] += len(page)
            yield page

    def counted_vectors(self: reading.Reader, maker: reading.Maker, page: reading.Rows) -> object:
        found = read_vectors(self, maker, page)
        counts["vectors"] += int(found[1].sum())
        return found

    monkeypatch.setattr(reading.Reader, "rows", counted_rows)
    monkeypatch.setattr(reading.Reader, "vectors", counted_vectors)
    return counts


def took(counts: dict[str, int]) -> tuple[int, int]:
    out = counts["rows"], counts["vectors"]
    counts.update(rows=0, vectors=0)
    return out


def folders(store: TraceStore) -> set[str]:
    assert store.copy is not None
    return {path.name for path in store.copy.iterdir() if path.is_dir()}


def test_only_new_rows_are_read(store: TraceStore, where: str, reads: dict[str, int]) -> None:
    store.append(full())
    store.load()
    assert took(reads) == (3, 3)
    store.load()
    store.load(fingerprints=[("gpt", "p1")])
    assert took(reads) == (0, 0)
    store.append(rows("de", dense=True))
    assert store.load().ids == ("a", "b", "c", "d", "e")
    assert took(reads) == (2, 2)
    assert folders(store) == {"rows-0-3", "vectors-1-0-3", "rows-3-5", "vectors-1-3-5"}
    with TraceStore.open(where, copy=store.copy.parent if store.copy else None) as again:
        assert same(again.load(), store.load())
    assert took(reads) == (0, 0)


def test_without_a_folder_the_database_is_read(where: str, reads: dict[str, int], tmp_path: Path) -> None:
    with TraceStore.open(where) as store:
        store.append(full())
        store.copy = None
        for _ in range(2):
            assert same(store.load(labels=full().space), full())
            assert took(reads) == (3, 3)
    assert not list(tmp_path.rglob("rows-*"))


def test_vectors_that_come_late_are_read_once(store: TraceStore, reads: dict[str, int]) -> None:
    store.append(rows("ab", dense=True))
    store.append(rows("cd"))
    assert store.load().dense is None
    took(reads)
    store.add_vectors([3, 4], np.ones((2, 2)), IDENTITY)
    loaded = store.load()
    assert loaded.dense is not None
    assert loaded.dense[2:].tolist() == [[1, 1], [1, 1]]
    assert took(reads) == (0, 4)
    store.load()
    assert took(reads) == (0, 0)
    store.add_vectors([1, 2, 3, 4], np.full((4, 2), 2), OTHER)
    assert np.array_equal(store.load().dense, np.full((4, 2), 2))  # type: ignore[arg-type]
    assert took(reads) == (0, 4)


def test_large_stores_come_in_chunks(store: TraceStore, reads: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "CHUNK", 10)
    many = Dataset.from_columns(
        ["x", "y"] * 16, texts=[f"t{i}" for i in range(32)], ids=[str(i) for i in range(32)],
        dense=np.arange(64.0).reshape(32, 2), embedder=IDENTITY, teachers=["a", "b", "c", "d"] * 8,
    )  # fmt: skip
    store.append(many)
    for wanted in ((32, 32), (0, 0)):
        assert same(store.load(), many)
        assert took(reads) == wanted
    assert {"rows-0-10", "rows-10-20", "rows-20-30", "rows-30-32"} <= folders(store)
    part = np.arange(32)[np.arange(32) % 4 == 1]
    assert same(
        store.load(fingerprints=[("b", None)]), many.take(part).with_space(store.load(fingerprints=[("b", None)]).space)
    )
    assert store.load(through=12).ids == many.ids[:12]


def test_small_chunks_become_one(store: TraceStore, reads: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns, "CHUNK", 30)
    for i in range(40):
        store.append([Trace(f"{i}-{j}", f"t{i}", "x") for j in range(3)], dense=np.full((3, 2), i), embedder=IDENTITY)
        loaded = store.load()
        assert took(reads) == (3, 3)
        assert loaded.numbers.tolist() == list(range(1, 3 * i + 4))
        assert loaded.dense is not None
        assert loaded.dense[:, 0].tolist() == [n for n in range(i + 1) for _ in range(3)]
        assert loaded.texts == tuple(f"t{n}" for n in range(i + 1) for _ in range(3))
        assert len(folders(store)) <= 2 * (columns._SMALL + 1 + i // 8)


def test_leftovers_of_making_one_are_no_rows(store: TraceStore, tmp_path: Path) -> None:
    store.append(rows("ab", dense=True))
    store.load()
    assert store.copy is not None
    shutil.copytree(store.copy / "rows-0-2", tmp_path / "old")
    store.append(rows("cd", dense=True))
    columns.drop(store.copy)
    store.load()
    shutil.copytree(tmp_path / "old", store.copy / "rows-0-2")
    (store.copy / ".rows-4-5-abcd").mkdir()
    assert store.load().ids == ("a", "b", "c", "d")
    assert folders(store) == {"rows-0-4", "vectors-1-0-4"}


def changed(name: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(copy: Path) -> None:
        (path,) = copy.glob(name)
        path.write_bytes(edit(path.read_bytes()))

    return damage


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def manifest(**values: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | values).encode()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "no head": lambda copy: (copy / "copy.json").unlink(),
    "head is no JSON": changed("copy.json", lambda _: b"{"),
    "head is a list": changed("copy.json", lambda _: b"[]"),
    "another format": changed("copy.json", manifest(format=0)),
    "another store": changed("copy.json", manifest(store="0" * 32)),
    "another task": changed("copy.json", manifest(task=77)),
    "another generation": changed("copy.json", manifest(generation=77)),
    "no rows": lambda copy: shutil.rmtree(copy / "rows-0-3"),
    "a hole": lambda copy: (copy / "rows-0-3").rename(copy / "rows-2-3"),
    "more rows than there are": lambda copy: (copy / "rows-0-3").rename(copy / "rows-0-9"),
    "no manifest": lambda copy: (copy / "rows-0-3" / "chunk.json").unlink(),
    "manifest is no JSON": changed("rows-0-3/chunk.json", lambda _: b""),
    "manifest is a list": changed("rows-0-3/chunk.json", lambda _: b"[]"),
    "other rows": changed("rows-0-3/chunk.json", manifest(last="00")),
    "fewer rows": changed("rows-0-3/chunk.json", manifest(n=2)),
    "no texts": lambda copy: (copy / "rows-0-3" / "strings.json").unlink(),
    "another text": changed("rows-0-3/strings.json", lambda c: c.replace(b"text a", b"text z")),
    "numbers cut": changed("rows-0-3/numbers.i64", lambda c: c[:-8]),
    "times flipped": changed("rows-0-3/times.f64", flipped),
    "vectors flipped": changed("vectors-*/vectors.f32", flipped),
    "vectors cut": changed("vectors-*/vectors.f32", lambda c: c[:-4]),
    "vectors empty": changed("vectors-*/vectors.f32", lambda _: b""),
    "vectors of another size": changed("vectors-*/chunk.json", manifest(dimension=3)),
    "no manifest of vectors": lambda copy: next(copy.glob("vectors-*/chunk.json")).unlink(),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_copy_is_made_again(name: str, tmp_path: Path, reads: dict[str, int]) -> None:
    with TraceStore.open(tmp_path) as store:
        store.append(full())
        store.load()
        took(reads)
        assert store.copy is not None
        DAMAGE[name](store.copy)
        assert same(store.load(labels=full().space), full())
        assert took(reads) == ((3, 0) if name == "no rows" else (3, 3))
        assert same(store.load(labels=full().space), full())
        assert took(reads) == (0, 0)


def test_a_copy_of_another_store_is_not_trusted(where: str, tmp_path: Path, reads: dict[str, int]) -> None:
    with TraceStore.open(tmp_path / "one") as one, TraceStore.open(where, copy=tmp_path / "one" / "columns") as two:
        assert one.store_id != two.store_id
        one.append(rows("abc"))
        two.append(rows("xyz"))
        for store, ids in ((one, "abc"), (two, "xyz"), (one, "abc")):
            assert store.load().ids == tuple(ids)
            assert took(reads)[0] == 3


def test_a_store_that_was_restored_from_a_backup_is_read_again(tmp_path: Path) -> None:
    with TraceStore.open(tmp_path / "home") as store:
        store.append(rows("abc"))
        shutil.copy(tmp_path / "home" / "traces.sqlite", tmp_path / "backup")
        store.append(rows("de"))
        store.load()
        shutil.copy(tmp_path / "backup", tmp_path / "home" / "traces.sqlite")
        assert store.load().ids == ("a", "b", "c")
        store.append(rows("fg"))
        store.load()
        shutil.copy(tmp_path / "backup", tmp_path / "home" / "traces.sqlite")
        store.append(rows("xyz"))
        assert store.load().ids == ("a", "b", "c", "x", "y", "z")


def test_where_no_copy_can_be_kept_the_database_is_read(
    where: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    with TraceStore.open(where, copy=tmp_path / "file") as store, caplog.at_level(logging.WARNING, "tracer.traces"):
        store.append(full())
        assert same(store.load(labels=full().space), full())
    assert "no copy can be kept" in caplog.text


def test_the_copy_of_a_home_lies_in_it(tmp_path: Path) -> None:
    with TraceStore.open(tmp_path, task="refunds") as store:
        store.append(rows("a"))
        store.load()
        assert store.copy == tmp_path / "columns" / "refunds"
        assert folders(store) == {"rows-0-1"}


def test_a_full_disk_leaves_no_half_chunk(store: TraceStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    store.append(full())
    with monkeypatch.context() as patched:
        patched.setattr("tracer.storage.write_synced", full_disk)
        assert same(store.load(labels=full().space), full())
    assert folders(store) == set()
    assert same(store.load(labels=full().space), full())
