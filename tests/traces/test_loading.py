"""Datasets from files, with and without embeddings."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest

from tracer.errors import FeatureError, TraceError
from tracer.traces.loading import load_dataset
from tracer.types import EmbedderIdentity

LINES = (
    '{"id": "a", "input": "1", "label": "x"}',
    '{"id": "b", "input": "", "label": "x"}',
    '{"id": "a", "input": "3", "label": "x"}',
    '{"id": "d", "input": "4", "label": "y", "time": "2026-01-02T03:00:00Z"}',
)
VECTORS = np.arange(8, dtype=np.float64).reshape(4, 2)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "traces.jsonl"
    path.write_text("\n".join(LINES), encoding="utf-8")
    return path


def test_without_embeddings(log: Path) -> None:
    dataset, found = load_dataset(log, skip_bad=True)
    assert dataset.ids == ("a", "d")
    assert dataset.texts == ("1", "4")
    assert (dataset.space.names, dataset.space.declared) == (("x", "y"), False)
    assert (dataset.dense, dataset.embedder) == (None, None)
    assert np.isnan(dataset.times[0])
    assert dataset.times[1] == 1_767_322_800
    assert (len(found.skipped), found.duplicates) == (1, ("a",))


def test_embeddings_beside_the_log_are_cut_to_the_kept_rows(log: Path) -> None:
    np.save(log.with_suffix(".npy"), VECTORS)
    dataset, _ = load_dataset(log, skip_bad=True)
    assert dataset.dense is not None
    assert dataset.dense.dtype == np.float32
    assert dataset.dense.tolist() == [[0, 1], [6, 7]]
    assert dataset.embedder == EmbedderIdentity("precomputed", 2, "precomputed")


def test_embeddings_beside_a_gzipped_log(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl.gz"
    path.write_bytes(gzip.compress(LINES[0].encode()))
    np.save(tmp_path / "log.npy", VECTORS[:1].astype(np.float16))
    dataset, _ = load_dataset(path)
    assert dataset.dense is not None
    assert dataset.dense.shape == (1, 2)


def test_named_embeddings_and_embedder(log: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "other.npy", VECTORS)
    identity = EmbedderIdentity("mini", 2, "abc")
    dataset, _ = load_dataset(log, embeddings=tmp_path / "other.npy", embedder=identity, skip_bad=True)
    assert dataset.embedder == identity
    with pytest.raises(FeatureError, match="2 columns, embedder 'mini' gives 3"):
        load_dataset(
            log,
            embeddings=tmp_path / "other.npy",
            embedder=EmbedderIdentity("mini", 3, "abc"),
            skip_bad=True,
        )


def test_declared_labels(log: Path) -> None:
    dataset, _ = load_dataset(log, labels=["y", "z"], skip_bad=True)
    assert dataset.space.declared
    assert dataset.y.tolist() == [-1, 0]
    with pytest.raises(TraceError, match="give a list of labels"):
        load_dataset(log, labels="yes", skip_bad=True)


def test_rows_that_do_not_match_name_both_files_and_numbers(log: Path) -> None:
    np.save(log.with_suffix(".npy"), VECTORS[:3])
    with pytest.raises(FeatureError) as caught:
        load_dataset(log, skip_bad=True)
    message = str(caught.value)
    assert message.startswith(f"{log.with_suffix('.npy')} has 3 rows, {log} has 4 records")


def test_files_that_are_no_embeddings(log: Path, tmp_path: Path) -> None:
    path = tmp_path / "e.npy"
    with pytest.raises(FeatureError, match=r"e\.npy: no readable"):
        load_dataset(log, embeddings=path, skip_bad=True)
    path.write_bytes(b"junk")
    with pytest.raises(FeatureError, match=r"e\.npy: no readable"):
        load_dataset(log, embeddings=path, skip_bad=True)
    np.save(path, np.arange(4.0))
    with pytest.raises(FeatureError, match=r"must be a numeric array \(n, d\), not float64\(4,\)"):
        load_dataset(log, embeddings=path, skip_bad=True)
    np.save(path, np.empty((4, 0)))
    with pytest.raises(FeatureError, match="have no columns"):
        load_dataset(log, embeddings=path, skip_bad=True)
    np.save(path, np.full((4, 2), 1e300))
    with pytest.raises(FeatureError, match="row 0 holds NaN or infinity"):
        load_dataset(log, embeddings=path, skip_bad=True)


def test_an_embedder_without_embeddings(log: Path) -> None:
    with pytest.raises(FeatureError, match="embedder 'mini' is named, but there are no embeddings"):
        load_dataset(log, embedder=EmbedderIdentity("mini", 2, "abc"), skip_bad=True)
