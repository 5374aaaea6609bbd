"""Door 1: snapshots of traces, whole or not at all, and merging by id."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracer.errors import TraceError
from tracer.traces.store import TraceStore, merge
from tracer.types import Dataset, EmbedderIdentity, LabelSpace

IDENTITY = EmbedderIdentity("e", 2, "digest")


def rows(ids: str, *, label: str = "x", dense: bool = False, **columns: Any) -> Dataset:
    """One row a letter of ``ids``."""
    given: dict[str, Any] = {"texts": [f"text {i}" for i in ids]} | columns
    if dense:
        given |= {"dense": np.array([[ord(i), 1.0] for i in ids]), "embedder": columns.get("embedder", IDENTITY)}
    return Dataset.from_columns([label, *["y"] * (len(ids) - 1)], ids=list(ids), **given)


def same(one: Dataset, two: Dataset) -> bool:
    for f in fields(Dataset):
        a, b = getattr(one, f.name), getattr(two, f.name)
        if isinstance(a, np.ndarray):
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), f.name
        else:
            assert a == b, f.name
    return True


def full() -> Dataset:
    return rows(
        "abc", dense=True, groups=["g", None, "g"], times=[1.5, np.nan, 1e9 + 0.25], truth=[None, "t", None],
        origins=["bootstrap", "audit", "imported"], teachers=["gpt", None, "claude"],
        space=LabelSpace(("y", "x", "z"), declared=True),
    )  # fmt: skip


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    store = TraceStore(tmp_path)
    for dataset in (full(), rows("ab"), replace(full(), texts=None), rows("ab", dense=True, embedder=IDENTITY)):
        store.save(dataset)
        assert same(store.load(), dataset)


ODD = ["new\nline", "\u2028 and \u2029 and \x85", 'quote " \\ back', "\x00", "🔥 خصم", "\r\n", "  spaces  ", "\x1c\x0c"]


def test_odd_texts_survive(tmp_path: Path) -> None:
    dataset = Dataset.from_columns([f"label {t}" for t in ODD], texts=ODD)
    TraceStore(tmp_path).save(dataset)
    assert same(TraceStore(tmp_path).load(), dataset)


def test_a_lone_surrogate_survives(tmp_path: Path) -> None:
    """JSON logs may hold one (an emoji cut in half), and serving routes such texts."""
    dataset = Dataset.from_columns(["x", "y"], texts=["cut \ud83d", "whole"])
    TraceStore(tmp_path).save(dataset)
    assert same(TraceStore(tmp_path).load(), dataset)


def test_embeddings_without_an_embedder_are_called_precomputed(tmp_path: Path) -> None:
    TraceStore(tmp_path).save(replace(full(), embedder=None))
    assert TraceStore(tmp_path).load().embedder == EmbedderIdentity("precomputed", 2, "precomputed")


def test_the_newest_snapshot_counts_and_two_are_kept(tmp_path: Path) -> None:
    store = TraceStore(tmp_path)
    assert store.snapshots() == ()
    names = [store.save(rows("ab"[: 1 + i % 2] + "cdefg"[i])) for i in range(5)]
    assert names == [f"t00000{i}" for i in range(1, 6)]
    assert store.snapshots() == ("t000004", "t000005")
    assert store.load().ids[-1] == "g"


def test_an_empty_home_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="no traces are stored here; run `tracer fit` first"):
        TraceStore(tmp_path).load()


def test_a_crash_leaves_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = TraceStore(tmp_path)
    store.save(full())

    def crash(_self: Path, _target: Path) -> Path:
        raise OSError("full")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", crash)
        with pytest.raises(OSError, match="full"):
            store.save(rows("xyz"))
    assert [p.name for p in store.folder.iterdir()] == ["t000001"]
    assert same(store.load(), full())


def test_leftovers_and_strangers_are_no_snapshots(tmp_path: Path) -> None:
    store = TraceStore(tmp_path)
    store.save(full())
    for name in (".t000002-abcd", "t2", "t000003.bak"):
        (store.folder / name).mkdir()
    assert store.snapshots() == ("t000001",)
    assert store.save(rows("ab")) == "t000002"


def edited(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(change((folder / name).read_bytes()))

    return damage


def field(name: str, value: object) -> Callable[[bytes], bytes]:
    return lambda content: json.dumps(json.loads(content) | {name: value}).encode()


DAMAGE: dict[str, Callable[[Path], None]] = {
    "no traces": lambda f: (f / "traces.jsonl").unlink(),
    "no meta": lambda f: (f / "meta.json").unlink(),
    "no embeddings": lambda f: (f / "embeddings.npy").unlink(),
    "traces cut inside a line": edited("traces.jsonl", lambda c: c[:-9]),
    "traces cut after a line": edited("traces.jsonl", lambda c: b"".join(c.splitlines(keepends=True)[:-1])),
    "embeddings cut": edited("embeddings.npy", lambda c: c[:-4]),
    "embeddings are no array": edited("embeddings.npy", lambda _: b"no array"),
    "meta is no JSON": edited("meta.json", lambda _: b"{"),
    "meta is a list": edited("meta.json", lambda _: b"[]"),
    "meta without labels": edited("meta.json", lambda _: b'{"n": 3, "has_texts": true, "embedder": null}'),
    "meta with another embedder": edited("meta.json", field("embedder", {"name": "e"})),
    "a row without label": edited("traces.jsonl", lambda c: c.replace(b'"label"', b'"lable"', 1)),
    "a row that is a list": edited("traces.jsonl", lambda c: b"[1]\n" + c.split(b"\n", 1)[1]),
    "a time that is text": edited("traces.jsonl", lambda c: c.replace(b"1.5", b'"noon"', 1)),
    "no UTF-8": edited("traces.jsonl", lambda c: c.replace(b"text a", b"text \xff", 1)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_snapshot_is_a_trace_error(name: str, tmp_path: Path) -> None:
    store = TraceStore(tmp_path)
    DAMAGE[name](store.folder / store.save(full()))
    with pytest.raises(TraceError):
        store.load()


def test_a_snapshot_without_embeddings_misses_rows_when_cut_after_a_line(tmp_path: Path) -> None:
    store = TraceStore(tmp_path)
    folder = store.folder / store.save(rows("abc"))
    edited("traces.jsonl", lambda c: b"".join(c.splitlines(keepends=True)[:-1]))(folder)
    with pytest.raises(TraceError):
        store.load()


# Merging.


def test_new_ids_join_and_known_ids_stay_as_they_were() -> None:
    done = merge(rows("abc", label="x"), rows("bdc", label="changed"))
    assert done.dataset.ids == ("a", "b", "c", "d")
    assert done.dataset.labels == ("x", "y", "y", "y")
    assert done.dataset.texts == ("text a", "text b", "text c", "text d")
    assert (done.n_added, done.n_known, done.relabelled) == (1, 2, ("b",))


def test_merging_the_same_traces_changes_nothing() -> None:
    done = merge(full(), full())
    assert same(done.dataset, full())
    assert (done.n_added, done.n_known, done.relabelled) == (0, 3, ())


def test_every_column_is_merged() -> None:
    new = rows(
        "de", dense=True, groups=["h", None], times=[7.0, np.nan], truth=["u", None], origins=["audit", "fallback"],
        teachers=[None, "gpt"],
    )  # fmt: skip
    both = merge(full(), new).dataset
    assert both.groups == ("g", None, "g", "h", None)
    assert both.truth == (None, "t", None, "u", None)
    assert both.origins == ("bootstrap", "audit", "imported", "audit", "fallback")
    assert both.times[3] == 7.0
    assert both.dense is not None
    assert both.dense[:, 0].tolist() == [ord(i) for i in "abcde"]
    assert both.embedder == IDENTITY


def test_an_observed_space_grows_and_a_declared_one_stays_declared() -> None:
    assert merge(rows("ab"), rows("c", label="new")).dataset.space.names == ("new", "x", "y")
    declared = LabelSpace(("x", "y"), declared=True)
    kept = merge(rows("ab", space=declared), rows("c", label="new")).dataset
    assert kept.space == declared
    assert kept.y.tolist() == [0, 1, -1]
    wider = merge(rows("ab", space=declared), rows("c", space=LabelSpace(("x", "z"), declared=True))).dataset
    assert wider.space == LabelSpace(("x", "y", "z"), declared=True)


def test_sides_that_do_not_fit_are_refused() -> None:
    with pytest.raises(TraceError, match="only the stored traces have embeddings"):
        merge(rows("ab", dense=True), rows("c"))
    with pytest.raises(TraceError, match="only the new traces have embeddings"):
        merge(rows("ab"), rows("c", dense=True))
    with pytest.raises(TraceError, match="one has texts, the other embeddings alone"):
        merge(rows("ab", dense=True), replace(rows("c", dense=True), texts=None))
    wide = rows("c").with_dense(np.ones((1, 3)), EmbedderIdentity("e", 3, "digest"))
    with pytest.raises(TraceError, match="stored embeddings have 2 columns, new ones 3"):
        merge(rows("ab", dense=True), wide)
    other = EmbedderIdentity("other", 2, "other-digest")
    with pytest.raises(TraceError, match="made by 'e', the new ones by 'other'"):
        merge(rows("ab", dense=True), replace(rows("c", dense=True), embedder=other))
