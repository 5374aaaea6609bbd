"""Writing: the old state or the new one, and nothing left beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer import storage


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def broken(monkeypatch: pytest.MonkeyPatch, method: str, error: BaseException) -> None:
    def crash(_self: Path, _target: Path) -> Path:
        raise error

    monkeypatch.setattr(Path, method, crash)


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    for content in (b"one", b"", b"three" * 1000):
        storage.write_atomic(path, content)
        assert path.read_bytes() == content
        assert names(path.parent) == ["file"]


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_crash_keeps_the_old_file(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    storage.write_atomic(path, b"old")
    broken(monkeypatch, "replace", error)
    with pytest.raises(type(error)):
        storage.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_new_file_must_be_new(tmp_path: Path) -> None:
    storage.write_synced(tmp_path / "file", b"one")
    with pytest.raises(FileExistsError):
        storage.write_synced(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"one"


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    assert storage.write_folder(tmp_path / "deep" / "v1", {"a": b"1", "b": b"2"})
    assert names(tmp_path / "deep") == ["v1"]
    assert {p.name: p.read_bytes() for p in (tmp_path / "deep" / "v1").iterdir()} == {"a": b"1", "b": b"2"}


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    assert storage.write_folder(tmp_path / "v1", {"a": b"1"})
    assert not storage.write_folder(tmp_path / "v1", {"a": b"2", "b": b"3"})
    assert names(tmp_path) == ["v1"]
    assert names(tmp_path / "v1") == ["a"]
    assert (tmp_path / "v1" / "a").read_bytes() == b"1"


@pytest.mark.parametrize("error", [OSError("full"), KeyboardInterrupt()])
def test_a_crash_leaves_no_folder(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, "rename", error)
    with pytest.raises(type(error)):
        storage.write_folder(tmp_path / "v1", {"a": b"1"})
    assert names(tmp_path) == []


def test_a_file_that_cannot_be_written_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        storage.write_folder(tmp_path / "v1", {"a": b"1", "missing/b": b"2"})
    assert names(tmp_path) == []


def test_steps_are_told_where_someone_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    storage.step("unheard")
    heard: list[str] = []
    monkeypatch.setattr(storage, "on_step", heard.append)
    storage.step("one")
    storage.step("two")
    assert heard == ["one", "two"]
