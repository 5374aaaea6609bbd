from __future__ import annotations

import multiprocessing
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracer.errors import EmbedderError, FeatureError
from tracer.features.cache import CachedEmbedder, EmbeddingCache, text_key
from tracer.types import EmbedderIdentity, Float32


class Counting:
    """Embeds a text as (length, first code point, 1), records every text asked, and fails on demand."""

    def __init__(self, digest: str = "v1", fail_after: int | None = None) -> None:
        self.identity = EmbedderIdentity("counting", 3, digest)
        self.asked: list[str] = []
        self.fail_after = fail_after

    def embed(self, texts: Sequence[str]) -> Float32:
        if self.fail_after is not None and len(self.asked) + len(texts) > self.fail_after:
            raise RuntimeError("interrupted")
        self.asked += texts
        return np.array([[len(text), ord(text[0]), 1] for text in texts], dtype=np.float32)


def test_no_text_is_embedded_twice(tmp_path: Path) -> None:
    inner = Counting()
    embedder = CachedEmbedder(inner, EmbeddingCache(tmp_path / "new" / "folder"))
    first = embedder.embed(["aa", "b", "aa", "aa"])
    assert inner.asked == ["aa", "b"]
    assert first[:, 0].tolist() == [2, 1, 2, 2]
    second = embedder.embed(["b", "ccc", "aa"])
    assert inner.asked == ["aa", "b", "ccc"]
    assert second[:, 0].tolist() == [1, 3, 2]
    assert second.dtype == np.float32
    assert second.flags.writeable
    assert embedder.identity == inner.identity
    assert embedder.embed([]).shape == (0, 3)


def test_another_process_and_another_instance_see_the_same_vectors(tmp_path: Path) -> None:
    CachedEmbedder(Counting(), EmbeddingCache(tmp_path)).embed(["a", "b"])
    again = Counting()
    CachedEmbedder(again, EmbeddingCache(tmp_path)).embed(["b", "a"])
    assert again.asked == []


def test_embedders_do_not_share_vectors(tmp_path: Path) -> None:
    cache = EmbeddingCache(tmp_path)
    CachedEmbedder(Counting("v1"), cache).embed(["a"])
    other = Counting("../v2/with strange characters")
    CachedEmbedder(other, cache).embed(["a"])
    assert other.asked == ["a"]
    assert len(list(tmp_path.iterdir())) == 2


def test_an_interrupted_run_resumes(tmp_path: Path) -> None:
    cache, texts = EmbeddingCache(tmp_path), [f"text {i}" for i in range(25)]
    with pytest.raises(EmbedderError, match="'counting' failed on 10 texts: RuntimeError: interrupted"):
        CachedEmbedder(Counting(fail_after=20), cache, chunk_size=10).embed([*texts, *"abcde"])
    resumed = Counting()
    CachedEmbedder(resumed, cache, chunk_size=10).embed(texts)
    assert resumed.asked == texts[20:]


def test_forget_removes_the_vectors_of_all_embedders_from_the_bytes_on_disk(tmp_path: Path) -> None:
    cache, first, second = EmbeddingCache(tmp_path), Counting("v1"), Counting("v2")
    CachedEmbedder(first, cache).embed(["secret", "kept"])
    embedder = CachedEmbedder(second, cache)
    embedder.embed(["secret"])
    assert embedder.forget(["secret", "never seen"]) == 2
    assert embedder.forget(["secret"]) == 0
    assert not any(text_key("secret") in path.read_bytes() for path in tmp_path.iterdir())
    CachedEmbedder(first, cache).embed(["secret", "kept"])
    assert first.asked == ["secret", "kept", "secret"]


def test_the_text_itself_is_never_written(tmp_path: Path) -> None:
    CachedEmbedder(Counting(), EmbeddingCache(tmp_path)).embed(["my private words"])
    assert not any(b"private" in path.read_bytes() for path in tmp_path.iterdir())


def test_a_corrupt_file_is_named(tmp_path: Path) -> None:
    inner, cache = Counting(), EmbeddingCache(tmp_path)
    path = cache.file(inner.identity)
    path.write_bytes(b"this is no database, " * 200)
    with pytest.raises(EmbedderError, match=r"is corrupt .*delete this file") as caught:
        CachedEmbedder(inner, cache).embed(["a"])
    assert str(path) in str(caught.value)
    assert isinstance(caught.value.__cause__, sqlite3.DatabaseError)


@pytest.mark.parametrize(("value", "shown"), [(b"short", "5 bytes"), ("text", "str")])
def test_a_vector_of_the_wrong_length_is_named(tmp_path: Path, value: object, shown: str) -> None:
    inner, cache = Counting(), EmbeddingCache(tmp_path)
    CachedEmbedder(inner, cache).embed(["a"])
    path = cache.file(inner.identity)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("UPDATE vectors SET vector = ?", (value,))
    with pytest.raises(EmbedderError, match=f"corrupt \\(a vector of {shown}, expected 12 bytes\\)") as caught:
        CachedEmbedder(inner, cache).embed(["a"])
    assert str(path) in str(caught.value)


def test_a_folder_that_cannot_be_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EmbedderError, match="cannot be made"):
        CachedEmbedder(Counting(), EmbeddingCache(tmp_path / "file")).embed(["a"])


def test_impossible_arguments(tmp_path: Path) -> None:
    with pytest.raises(FeatureError, match="chunk_size 0"):
        CachedEmbedder(Counting(), EmbeddingCache(tmp_path), chunk_size=0)
    with pytest.raises(FeatureError, match="not one string"):
        CachedEmbedder(Counting(), EmbeddingCache(tmp_path)).embed("one")


@given(st.text(st.characters()), st.text(st.characters()))
def test_keys_differ_where_texts_differ(one: str, two: str) -> None:
    assert (text_key(one) == text_key(two)) == (one == two)
    assert len(text_key("\ud800")) == 32


def fill(folder: Path, start: int) -> None:
    texts = [f"text {i}" for i in range(start, start + 200)]
    CachedEmbedder(Counting(), EmbeddingCache(folder), chunk_size=20).embed(texts)


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=fill, args=(tmp_path, start)) for start in (0, 100, 0)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0, 0]
    inner = Counting()
    CachedEmbedder(inner, EmbeddingCache(tmp_path)).embed([f"text {i}" for i in range(300)])
    assert inner.asked == []
