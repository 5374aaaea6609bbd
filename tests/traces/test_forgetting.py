"""Forgetting: the rows go, their bytes go, copies go, and reading the log again does not bring them back."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from tracer.errors import ConfigError, StoreError
from tracer.traces.store import TraceStore
from tracer.types import EmbedderIdentity, Trace

EMBEDDER = EmbedderIdentity("e", 4, "d")
TRACES = [
    Trace("customer-771", "My name is Wilhelmina Vantongeren", "x", group="user-771", metadata={"m": "w@vant.example"}),
    Trace("b", "WILHELMINA\u00a0 VANTONGEREN called again", "y", time=datetime(2025, 1, 1, tzinfo=UTC)),
    Trace("c", "where is my order", "y", time=datetime(2026, 1, 1, tzinfo=UTC)),
    Trace("d", "Where is  my ORDER", "y"),
]  # fmt: skip
DENSE = np.array([[1.25e-7, 3.5e11, -7.75, 0.1], [2, 2, 2, 2], [3, 3, 3, 3], [4, 4, 4, 4]], dtype=np.float32)
SECRETS = (b"Wilhelmina", b"WILHELMINA", b"customer-771", b"user-771", b"w@vant.example", DENSE[0].tobytes())


@pytest.fixture
def filled(store: TraceStore) -> TraceStore:
    store.append(TRACES, dense=DENSE, embedder=EMBEDDER, recorded_at=datetime(2025, 6, 1, tzinfo=UTC))
    store.load()
    return store


def test_by_text_whatever_its_case_and_spaces(filled: TraceStore) -> None:
    would = filled.forget(containing="wilhelmina vantongeren", dry_run=True)
    assert filled.count() == 4
    gone = filled.forget(containing="wilhelmina vantongeren")
    assert gone == would
    assert (len(gone), gone.numbers, gone.ids) == (2, (1, 2), ("customer-771", "b"))
    assert gone.texts == (TRACES[0].text, TRACES[1].text)
    assert filled.load().ids == ("c", "d")
    assert np.array_equal(filled.load().dense, DENSE[2:])  # type: ignore[arg-type]
    assert (filled.count(), filled.through(), filled.facts().n_embedded) == (2, 4, 2)


@pytest.mark.parametrize(
    ("asked", "ids"),
    [
        ({"ids": ["b", "unknown"]}, ("b",)),
        ({"texts": ["where is my order"]}, ("c", "d")),
        ({"texts": ["where is my"]}, ()),
        ({"containing": "\u00a0 VANT"}, ("customer-771", "b")),
        ({"containing": "771"}, ()),
        ({"matching": re.compile(r"my ORDER$")}, ("d",)),
        ({"matching": re.compile(r"^where is my order$")}, ("c", "d")),
        ({"before": datetime(2025, 6, 1, tzinfo=UTC)}, ("b",)),
        ({"before": datetime(2025, 6, 2, tzinfo=UTC)}, ("customer-771", "b", "d")),
        ({"ids": ["b"], "containing": "order"}, ("b", "c", "d")),
    ],
)
def test_what_is_picked(filled: TraceStore, asked: dict[str, object], ids: tuple[str, ...]) -> None:
    assert filled.forget(**asked, dry_run=True).ids == ids  # type: ignore[arg-type]
    assert filled.forget(**asked).ids == ids  # type: ignore[arg-type]
    left = [t.id for t in TRACES if t.id not in ids]
    assert [trace.id for _, trace in filled.traces()] == left
    assert filled.load().ids == tuple(left)


def test_reading_the_log_again_does_not_bring_it_back(filled: TraceStore) -> None:
    filled.forget(ids=["b", "never stored"])
    done = filled.append([*TRACES, Trace("never stored", "text", "x")])
    assert (done.n_added, done.n_known, done.n_forgotten) == (0, 3, 2)
    filled.replace(filled.load().with_dense(DENSE[:3], EMBEDDER))
    assert filled.append(TRACES).n_forgotten == 1, "nor after all was replaced"
    filled.forget(ids=["b", "never stored"])
    assert filled.append([Trace("e", "text", "x")]).through == 8, "a number is never given twice"


def found(folder: Path) -> dict[str, list[bytes]]:
    files = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    return {
        p.name: [s for s in SECRETS if s in content]
        for p, content in files.items()
        if any(s in content for s in SECRETS)
    }


def test_the_bytes_are_gone_from_all_files(tmp_path: Path) -> None:
    with TraceStore.open(tmp_path) as store:
        store.append(TRACES, dense=DENSE, embedder=EMBEDDER)
        many = [Trace(f"m{i}", f"Wilhelmina wrote at length: {'z' * 3_000} {i}", "x") for i in range(50)]
        store.append(many)
        store.forget(ids=["m49"])
        with store._database.reading():  # a reader keeps the log from being emptied by itself
            store.append([Trace("late", "Wilhelmina again", "x")])
        store.load(fingerprints=[(None, None)])
        assert {"traces.sqlite", "strings.json"} <= set(found(tmp_path))
        assert len(store.forget(containing="wilhelmina")) == 52
        assert found(tmp_path) == {}
        assert store.load().ids == ("c", "d")
        assert found(tmp_path) == {}


def test_a_reader_that_does_not_end_is_told(tmp_path: Path) -> None:
    with TraceStore.open(tmp_path, wait_s=0.2) as store:
        store.append(TRACES)
        with store._database.reading() as reader:
            reader.exec_driver_sql("SELECT count(*) FROM tracer_traces").scalar_one()
            with pytest.raises(StoreError, match="the traces are forgotten, but a process that still reads"):
                store.forget(ids=["customer-771"])
            assert store.count() == 3
        assert len(store.forget(ids=["customer-771"])) == 0
        assert found(tmp_path) == {"traces.sqlite": [b"WILHELMINA"]}


def test_a_copy_on_another_machine_is_void(filled: TraceStore, where: str, tmp_path: Path) -> None:
    with TraceStore.open(where, copy=tmp_path / "elsewhere") as other:
        other.load()
        assert found(tmp_path / "elsewhere")
        filled.forget(containing="wilhelmina")
        assert filled.copy is not None
        assert found(filled.copy) == {}
        assert other.load().ids == ("c", "d")
        assert found(tmp_path / "elsewhere") == {}


def test_forgetting_nothing_spares_the_copies(filled: TraceStore, where: str, tmp_path: Path) -> None:
    with TraceStore.open(where, copy=tmp_path / "elsewhere") as other:
        other.load()
        before = {p: p.stat().st_mtime_ns for p in (tmp_path / "elsewhere").rglob("*")}
        assert filled.forget(containing="nobody").ids == ()
        other.load()
        assert {p: p.stat().st_mtime_ns for p in (tmp_path / "elsewhere").rglob("*")} == before


def test_a_request_that_means_nothing_is_refused(store: TraceStore) -> None:
    with pytest.raises(ConfigError, match="say which traces to forget"):
        store.forget()
    with pytest.raises(ConfigError, match="every text holds that"):
        store.forget(containing=" ")
    with pytest.raises(ConfigError, match="give a list, not one string"):
        store.forget(ids="customer-771")
