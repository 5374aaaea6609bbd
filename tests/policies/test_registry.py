"""Door 2: versions whole or not at all, and one pointer."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import pytest

from tracer.errors import ArchiveError, PolicyError
from tracer.policies import archive
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry


@pytest.fixture
def registry(tmp_path: Path) -> PolicyRegistry:
    return PolicyRegistry(tmp_path / "home")


def test_a_new_home_has_nothing(registry: PolicyRegistry) -> None:
    assert registry.versions() == ()
    assert registry.active_version() is None
    with pytest.raises(PolicyError, match="no policy is active"):
        registry.load()


def test_versions_count_up_and_load_what_was_saved(registry: PolicyRegistry, tiny_policy: Policy) -> None:
    saved = [registry.save(replace(tiny_policy, parent=f"p{i}")) for i in range(3)]
    assert [p.version for p in saved] == ["v0001", "v0002", "v0003"] == list(registry.versions())
    for policy in saved:
        assert archive.dump(registry.load(policy.version)) == archive.dump(policy)
    assert tiny_policy.version == ""
    assert registry.active_version() is None, "saving does not promote"


def test_promoting_and_rolling_back_are_one_operation(registry: PolicyRegistry, tiny_policy: Policy) -> None:
    for i in range(3):
        registry.save(replace(tiny_policy, parent=f"p{i}"))
    for version in ("v0003", "v0001", "v0002"):
        registry.activate(version)
        assert registry.active_version() == version
        assert registry.load().version == version
    registry.activate(None)
    assert registry.active_version() is None
    with pytest.raises(PolicyError, match="no policy is active"):
        registry.load()
    assert registry.load("v0002").parent == "p1"


def test_unknown_versions_are_refused_and_change_nothing(registry: PolicyRegistry, tiny_policy: Policy) -> None:
    registry.activate(registry.save(tiny_policy).version)
    with pytest.raises(PolicyError, match="no policy 'v0009' to activate"):
        registry.activate("v0009")
    with pytest.raises(PolicyError, match=r"no policy '\.\./x'; versions: v0001"):
        registry.load("../x")
    assert registry.active_version() == "v0001"


@pytest.mark.parametrize("content", ["../../etc", "v1", "latest", "v0001 v0002"])
def test_a_pointer_to_no_version_is_refused(content: str, registry: PolicyRegistry, tiny_policy: Policy) -> None:
    registry.save(tiny_policy)
    registry.pointer.write_text(content, encoding="utf-8")
    with pytest.raises(PolicyError, match="is no version such as v0001"):
        registry.load()


def test_a_damaged_pointer_is_a_policy_error(registry: PolicyRegistry, tiny_policy: Policy) -> None:
    registry.save(tiny_policy)
    registry.pointer.write_bytes(b"\xff\xfe")
    with pytest.raises(PolicyError):
        registry.load()


def test_a_crash_before_the_rename_leaves_no_version(
    registry: PolicyRegistry, tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.activate(registry.save(tiny_policy).version)

    def crash(_self: Path, _target: Path) -> Path:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        with pytest.raises(OSError, match="no space left"):
            registry.save(tiny_policy)
    assert registry.versions() == ("v0001",)
    assert [p.name for p in registry.folder.iterdir()] == ["v0001"]
    assert registry.load().version == "v0001"
    assert registry.save(tiny_policy).version == "v0002"


def test_a_crash_while_the_pointer_moves_keeps_the_old_one(
    registry: PolicyRegistry, tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        registry.save(tiny_policy)
    registry.activate("v0001")

    def crash(_self: Path, _target: Path) -> Path:
        raise OSError("killed")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        with pytest.raises(OSError, match="killed"):
            registry.activate("v0002")
    assert registry.active_version() == "v0001"
    assert sorted(p.name for p in registry.home.iterdir()) == ["ACTIVE", "history.jsonl", "policies"]
    assert [(event.before, event.after) for event in registry.history()] == [(None, "v0001")]


def test_leftovers_and_strangers_are_no_versions(registry: PolicyRegistry, tiny_policy: Policy) -> None:
    registry.save(tiny_policy)
    for name in (".v0002-abcd1234", "v2", "v0003.bak", "notes"):
        (registry.folder / name).mkdir()
    assert registry.versions() == ("v0001",)
    assert registry.save(tiny_policy).version == "v0002"


def test_versions_sort_by_number(registry: PolicyRegistry, tiny_policy: Policy) -> None:
    registry.save(tiny_policy)
    (registry.folder / "v0001").rename(registry.folder / "v9999")
    assert registry.save(tiny_policy).version == "v10000"
    assert registry.versions() == ("v9999", "v10000")


def test_many_threads_saving_at_once_get_a_version_each(registry: PolicyRegistry, tiny_policy: Policy) -> None:
    n = 6
    together, versions = threading.Barrier(n), []

    def save(i: int) -> None:
        together.wait()
        versions.append((registry.save(replace(tiny_policy, parent=f"p{i}")).version, f"p{i}"))

    threads = [threading.Thread(target=save, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(v for v, _ in versions) == [f"v{i:04d}" for i in range(1, n + 1)] == list(registry.versions())
    assert all(registry.load(version).parent == parent for version, parent in versions)


def test_a_damaged_version_is_an_archive_error_that_names_it(registry: PolicyRegistry, tiny_policy: Policy) -> None:
    registry.save(tiny_policy)
    path = registry.folder / "v0001" / archive.ARRAYS
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ArchiveError, match=r"v0001: arrays\.safetensors was changed or cut short"):
        registry.load("v0001")
