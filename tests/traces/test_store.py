"""Door 1, on SQLite and on PostgreSQL: what was appended is there once, in order, and as it was."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracer.errors import ConfigError, FeatureError, StoreError, TraceError
from tracer.traces.facts import check_fits
from tracer.traces.store import Fingerprint, TraceStore
from tracer.types import FAILED, Dataset, EmbedderIdentity, LabelSpace, Seen, Trace, Usage

IDENTITY = EmbedderIdentity("e", 2, "digest")
OTHER = EmbedderIdentity("other", 2, "other-digest")


def rows(ids: str, *, label: str = "x", dense: bool = False, **columns: Any) -> Dataset:
    """One row a letter of ``ids``."""
    given: dict[str, Any] = {"texts": [f"text {i}" for i in ids]} | columns
    if dense:
        given |= {"dense": np.array([[ord(i), 1.0] for i in ids]), "embedder": columns.get("embedder", IDENTITY)}
    return Dataset.from_columns([label, *["y"] * (len(ids) - 1)], ids=list(ids), **given)


def full() -> Dataset:
    return rows(
        "abc", dense=True, groups=["g", None, "g"], times=[1.5, np.nan, 1e9 + 0.25], truth=[None, "t", None],
        origins=["bootstrap", "audit", "imported"], teachers=["gpt", None, "claude"], prompts=["p1", None, "p1"],
        space=LabelSpace(("y", "x", "z"), declared=True),
    )  # fmt: skip


def trace(name: str, **values: Any) -> Trace:
    return Trace(**{"id": name, "text": f"text {name}", "label": "x"} | values)


def same(one: Dataset, two: Dataset) -> bool:
    for f in fields(Dataset):
        a, b = getattr(one, f.name), getattr(two, f.name)
        if isinstance(a, np.ndarray):
            assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f"), f.name
        else:
            assert a == b, f.name
    return True


def stored(store: TraceStore, **asked: Any) -> list[Trace]:
    return [found for _, found in store.traces(**asked)]


ALL = Trace(
    id="all", text="where is it?", label="delivery", teacher="gpt", prompt="v3", origin="audit", group="g", truth="t",
    time=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), usage=Usage(800, 15), metadata={"a": [1, {"b": None}]},
    seen=Seen("v0001", "refund", handled=True, score=0.123456789012345),
)  # fmt: skip


# What goes in comes out.


def test_a_dataset_is_loaded_as_it_was(store: TraceStore) -> None:
    done = store.append(full())
    assert (done.n_added, done.n_known, done.n_forgotten, done.relabelled, done.through) == (3, 0, 0, (), 3)
    assert same(store.load(labels=full().space), full())
    assert same(store.load(labels=full().space), full()), "and again, from the copy"


@pytest.mark.parametrize(
    "dataset", [rows("ab"), replace(full(), texts=None, space=LabelSpace(("x", "y")), y=np.array([0, 1, 1], np.int32))]
)
def test_texts_alone_or_embeddings_alone(store: TraceStore, dataset: Dataset) -> None:
    store.append(dataset)
    assert same(store.load(), dataset)


def test_a_trace_comes_back_whole(store: TraceStore) -> None:
    traces = [ALL, trace("plain"), trace("never scored", seen=Seen("v2", "x", handled=False, score=-np.inf))]
    store.append(traces)
    assert stored(store) == traces


def test_records_bring_what_a_dataset_has_no_column_for(store: TraceStore) -> None:
    records = [ALL, trace("b")]
    store.append(Dataset.from_traces(records, dense=np.eye(2), embedder=IDENTITY), records=records)
    assert stored(store) == records
    assert np.array_equal(store.load().dense, np.eye(2))  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="1 traces that are not the 2 rows"):
        store.append(rows("cd"), records=records[:1])


def test_a_score_that_is_no_number_comes_back_as_none(store: TraceStore) -> None:
    store.append([trace("a", seen=Seen("v1", "x", handled=False, score=float("nan")))])
    (found,) = stored(store)
    assert found.seen is not None
    assert np.isnan(found.seen.score)


NASTY = [
    "cut \ud83d",
    "\udcff\ud83d",
    "nul \0 nul",
    "\ufdd0",
    "\ufdd0d83d",
    "\ufdd0\ufdd0fdd0\0",
    "whole \U0001f600 ✓",
    "'\"%;\\",
]


def test_texts_that_no_database_holds_come_back(store: TraceStore) -> None:
    traces = [
        trace(f"id {nasty}", text=nasty, label=f"l{nasty}", teacher=nasty, prompt=nasty, group=nasty, truth=nasty,
              metadata={nasty: nasty}, seen=Seen(nasty, nasty, handled=False, score=0.0))
        for nasty in NASTY
    ]  # fmt: skip
    store.append(traces)
    assert store.append(traces).n_known == len(NASTY)
    assert stored(store) == traces
    assert stored(store, policy=NASTY[0]) == traces[:1]
    for _ in range(2):
        loaded = store.load()
        assert loaded.texts == tuple(NASTY)
        assert loaded.ids == tuple(t.id for t in traces)
        assert loaded.labels == tuple(t.label for t in traces)
        assert loaded.groups == loaded.prompts == loaded.teachers == loaded.truth == tuple(NASTY)
    assert store.load(fingerprints=[(NASTY[2], NASTY[2])]).ids == (traces[2].id,)
    assert store.forget(ids=[traces[0].id], texts=[NASTY[2]]).ids == (traces[0].id, traces[2].id)


def test_times_keep_their_moment_in_any_zone(store: TraceStore) -> None:
    zones = [UTC, timezone(timedelta(hours=5, minutes=45)), timezone(-timedelta(hours=11))]
    moments = [datetime(2026, 3, 29, 2, 30, 0, 1, tzinfo=zone) for zone in zones]
    store.append([trace(str(i), time=moment) for i, moment in enumerate(moments)])
    assert [t.time for t in stored(store)] == moments
    assert store.load().times.tolist() == [moment.timestamp() for moment in moments]


def test_failed_calls_are_kept(store: TraceStore) -> None:
    store.append([trace("a", label=FAILED)])
    store.append([trace("b")])
    assert store.load().labels == (FAILED, "x")
    assert store.load().y.tolist() == [-1, 0]


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (rows("ab", texts=["fine", " \n"]), "trace 'b': the input text is empty"),
        (rows("a", label=""), "trace 'a': the teacher's label is empty"),
        (rows("a", origins=["rumour"]), "trace 'a': origin 'rumour' is not one of bootstrap"),
        (replace(rows("ab"), ids=("", "b")), "a trace needs an id"),
        (replace(rows("ab"), ids=(7, "b")), "id 7: must be a string"),  # type: ignore[arg-type]
    ],
)
def test_rows_that_are_no_traces_are_refused_whole(store: TraceStore, dataset: Dataset, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        store.append(dataset)
    assert store.count() == 0


# Once, and in order.


def test_appending_again_adds_nothing(store: TraceStore) -> None:
    store.append(full())
    again = store.append(full())
    assert (again.n_added, again.n_known, again.through) == (0, 3, 3)
    assert same(store.load(labels=full().space), full())


def test_the_first_record_of_an_id_stays(store: TraceStore) -> None:
    store.append(rows("abc"))
    done = store.append(rows("bdc", label="changed"))
    assert (done.n_added, done.n_known, done.relabelled) == (1, 2, ("b",))
    assert store.load().ids == ("a", "b", "c", "d")
    assert store.load().labels == ("x", "y", "y", "y")


def test_an_id_that_repeats_in_one_call_is_taken_once(store: TraceStore) -> None:
    done = store.append(
        [trace("a"), trace("b"), trace("a", label="z"), trace("c")],
        dense=np.eye(4),
        embedder=replace(IDENTITY, dimension=4),
    )
    assert (done.n_added, done.n_known, done.through) == (3, 1, 3)
    assert store.load().labels == ("x", "x", "x")
    assert np.array_equal(store.load().dense, np.eye(4)[[0, 1, 3]])  # type: ignore[arg-type]


def test_nothing_to_append_is_nothing(store: TraceStore) -> None:
    assert store.append([]).n_added == 0
    assert (store.count(), store.through(), stored(store), store.fingerprints()) == (0, 0, [], ())
    with pytest.raises(TraceError, match="no traces are stored here: give a log"):
        store.load()


def test_ids_of_any_length(store: TraceStore) -> None:
    names = [str(i) * 20_000 for i in range(2)]
    store.append([trace(name) for name in names])
    assert store.append([trace(name) for name in names]).n_known == 2
    assert store.load().ids == tuple(names)


def test_many_rows_keep_their_order(store: TraceStore) -> None:
    n = 4_500
    many = Dataset.from_columns(
        ["x"] * n,
        ids=[str(i) for i in range(n)],
        texts=[f"t {i}" for i in range(n)],
        dense=np.arange(2.0 * n).reshape(n, 2),
    )
    store.append(many.take(np.arange(100)))
    assert store.append(many).n_added == n - 100
    loaded = store.load()
    assert loaded.ids == many.ids
    assert np.array_equal(loaded.dense, many.dense)  # type: ignore[arg-type]
    assert [number for number, _ in store.traces()] == list(range(1, n + 1))
    assert [number for number, _ in store.traces(after=4_000, through=4_003)] == [4_001, 4_002, 4_003]


def test_made_up_ids_are_made_new_where_another_log_took_them(store: TraceStore) -> None:
    def log(*texts: str) -> Dataset:
        return Dataset.from_columns(["x"] * len(texts), texts=texts)

    store.append(log("hi", "hello"))
    assert store.append(log("hi", "hello")).n_known == 2, "the same log is being read again"
    assert store.append(log("hi", "bye")).n_added == 2, "equal texts in two logs are two requests"
    assert store.append(log("hi", "late")).n_added == 2
    assert store.load().texts == ("hi", "hello", "hi", "bye", "hi", "late")
    assert len(set(store.load().ids)) == 6
    store.forget(texts=["hi"])
    done = store.append(log("hi", "new"))
    assert (done.n_added, done.n_forgotten) == (1, 1), "what was forgotten does not come back under a new name"


def test_tasks_do_not_know_each_other(where: str, tmp_path: Path) -> None:
    with (
        TraceStore.open(where, task="one", copy=tmp_path / "c") as one,
        TraceStore.open(where, task="two", copy=tmp_path / "c") as two,
    ):
        assert one.store_id == two.store_id
        one.append(rows("ab", dense=True))
        assert (two.count(), two.through(), two.facts().embedder) == (0, 0, None)
        two.append(rows("bcd", label="z"))
        assert one.load().ids == ("a", "b")
        assert two.load().labels == ("z", "y", "y")
        one.tally("v1", 1.0, 1.0, 1, {})
        assert two.traffic() == []
        one.forget(ids=["b"])
        two.replace(rows("x"))
        assert one.load().ids == ("a",)
        assert two.load().ids == ("x",)
        assert np.array_equal(one.load().dense, [[ord("a"), 1.0]])  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["", "..", "a/b", "a b", "x" * 101])
def test_a_task_has_a_plain_name(tmp_path: Path, task: str) -> None:
    with pytest.raises(ConfigError, match="up to 100 letters"):
        TraceStore.open(tmp_path, task=task)


def test_opening_again_finds_the_same_store(where: str) -> None:
    with TraceStore.open(where) as first:
        first.append(rows("ab"))
    with TraceStore.open(where) as second:
        assert second.store_id == first.store_id
        assert second.load().ids == ("a", "b")


# What fits.


def test_sides_that_do_not_fit_are_refused(store: TraceStore) -> None:
    def refused(new: Dataset, message: str) -> None:
        for call in (store.append, lambda d: check_fits(store.facts(), d)):
            with pytest.raises(TraceError, match=message):
                call(new)

    check_fits(store.facts(), full())
    store.append(rows("ab"))
    refused(rows("c", dense=True), "only the new traces have embeddings")
    store.replace(rows("ab", dense=True))
    refused(replace(rows("c", dense=True), texts=None), "one has texts, the other embeddings alone")
    refused(
        rows("c").with_dense(np.ones((1, 3)), EmbedderIdentity("e", 3, "d")), "embeddings have 2 columns, new ones 3"
    )
    refused(replace(rows("c", dense=True), embedder=OTHER), "made by 'e', the new ones by 'other'")
    assert store.load().ids == ("a", "b")


@pytest.mark.parametrize("dense", [np.ones((2, 2)), np.ones(2), np.full((1, 2), np.nan)])
def test_vectors_that_are_none_are_refused(store: TraceStore, dense: np.ndarray[Any, Any]) -> None:
    with pytest.raises(FeatureError):
        store.append([trace("a")], dense=dense)
    with pytest.raises(FeatureError, match="3 columns, embedder 'e' gives 2"):
        store.append([trace("a")], dense=np.ones((1, 3)), embedder=IDENTITY)
    assert store.count() == 0


def test_traces_without_vectors_get_them_later(store: TraceStore) -> None:
    store.append(rows("ab", dense=True))
    store.append(rows("cd"))
    assert store.load().dense is None
    assert store.facts().embedders == ((IDENTITY, 2),)
    numbers, texts = store.without_vectors(IDENTITY)
    assert (numbers.tolist(), texts) == ([3, 4], ("text c", "text d"))
    store.forget(ids=["c"])
    assert store.add_vectors(numbers, np.array([[7, 7], [8, 8]]), IDENTITY) == 1, "no vector of what is forgotten"
    assert store.add_vectors(numbers, np.array([[7, 7], [9, 9]]), IDENTITY) == 0
    loaded = store.load()
    assert loaded.embedder == IDENTITY
    assert loaded.dense is not None
    assert loaded.dense.tolist() == [[ord("a"), 1.0], [ord("b"), 1.0], [8.0, 8.0]]
    with pytest.raises(FeatureError, match="have shape"):
        store.add_vectors([1], np.ones((1, 3)), IDENTITY)


def test_the_newest_embedder_that_made_all_counts(store: TraceStore) -> None:
    store.append(rows("ab", dense=True))
    store.add_vectors([1], np.ones((1, 2)), OTHER)
    assert store.load().embedder == IDENTITY
    assert store.facts().embedder == IDENTITY
    assert store.load(through=1).embedder == OTHER
    store.add_vectors([2], np.ones((1, 2)), OTHER)
    assert store.load().embedder == store.facts().embedder == OTHER
    assert store.without_vectors(OTHER)[1] == ()


# Replacing.


def test_replacing_takes_all_and_numbers_go_on(store: TraceStore) -> None:
    store.append(full().take(np.array([0, 2])))
    store.tally("v1", 1.0, 1.0, 1, {})
    store.load()
    done = store.replace(rows("xyz"))
    assert (done.n_added, done.through) == (3, 5)
    assert store.load().numbers.tolist() == [3, 4, 5]
    assert store.load().dense is None
    assert (store.traffic(), store.facts().embedders) == ([], ())


def test_replacing_spares_what_routing_recorded(store: TraceStore) -> None:
    store.append([trace("a"), trace("b", origin="audit"), trace("c", origin="deferred")])
    with pytest.raises(StoreError, match=r"recorded while routing \(1 audit, 1 deferred\)"):
        store.replace(rows("x"))
    assert store.count() == 3
    store.replace(rows("x"), routed=True)
    assert store.load().ids == ("x",)


def test_a_replacement_that_fails_leaves_all(store: TraceStore) -> None:
    store.append(rows("ab"))
    with pytest.raises(TraceError):
        store.replace(rows("x", label=""))
    assert store.load().ids == ("a", "b")


# Asking.


def test_facts(store: TraceStore) -> None:
    store.append(full())
    store.append([trace("d", teacher="gpt", prompt="p1", origin="audit")])
    facts = store.facts()
    assert (facts.n, facts.origins, facts.has_texts) == (4, {"audit": 2, "bootstrap": 1, "imported": 1}, True)
    assert (facts.embedders, facts.embedder, facts.n_embedded) == (((IDENTITY, 3),), IDENTITY, 3)
    assert facts.fingerprints == store.fingerprints()
    assert store.fingerprints() == (
        Fingerprint("gpt", "p1", 2, 1, 4), Fingerprint(None, None, 1, 2, 2), Fingerprint("claude", "p1", 1, 3, 3),
    )  # fmt: skip


def test_loading_a_part(store: TraceStore) -> None:
    store.append(full())
    for _ in range(2):
        assert store.load(fingerprints=[("gpt", "p1"), (None, None)]).ids == ("a", "b")
        part = store.load(fingerprints=[("claude", "p1")])
        assert part.dense is not None
        assert (part.ids, part.numbers.tolist(), part.dense.tolist()) == (("c",), [3], [[ord("c"), 1.0]])
        assert store.load(through=2).ids == ("a", "b")
        with pytest.raises(TraceError, match="no traces are stored"):
            store.load(fingerprints=[("gpt", None)])


def test_streaming_a_part(store: TraceStore) -> None:
    seen = Seen("v1", "x", handled=True, score=1.0)
    store.append([trace("a"), trace("b", origin="audit", seen=seen), trace("c", origin="audit"), trace("d", seen=seen)])
    assert [t.id for t in stored(store, origins=["audit"])] == ["b", "c"]
    assert [t.id for t in stored(store, policy="v1")] == ["b", "d"]
    assert [t.id for t in stored(store, policy="v1", origins=["audit", "deferred"], after=1)] == ["b"]
    assert stored(store, origins=[]) == []


def test_embeddings_alone_are_no_traces(store: TraceStore) -> None:
    store.append(replace(rows("a", dense=True), texts=None))
    with pytest.raises(TraceError, match="holds embeddings alone"):
        stored(store)
    with pytest.raises(TraceError, match="no texts to embed"):
        store.without_vectors(OTHER)


def test_traffic_is_counted_without_texts(store: TraceStore) -> None:
    store.tally("v1", 100.0, 60.0, 7, {"handled": 5, "labels": {"x": 5}})
    store.tally(None, 40.0, 60.0, 2, {})
    assert [(t.policy, t.started, t.seconds, t.n, t.facts) for t in store.traffic()] == [
        (None, 40.0, 60.0, 2, {}), ("v1", 100.0, 60.0, 7, {"handled": 5, "labels": {"x": 5}}),
    ]  # fmt: skip
    assert [t.n for t in store.traffic(after=100.0)] == [7]
