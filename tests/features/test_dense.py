from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from tracer.errors import EmbedderError, FeatureError
from tracer.features.dense import (
    PROBE_TEXTS,
    CallableEmbedder,
    as_vectors,
    checked,
    probe_digest,
    same_embedder,
    vectors_digest,
)
from tracer.types import EmbedderIdentity, Float32


def letters(texts: Sequence[str]) -> Float32:
    """Counts of the letters a to e and the length: a tiny deterministic embedder, d = 6."""
    return np.array([[*(text.count(c) for c in "abcde"), len(text)] for text in texts], dtype=np.float32)


class Broken:
    """An embedder that declares 3 dimensions and answers whatever it is given."""

    identity = EmbedderIdentity("broken", 3, "x")

    def __init__(self, answer: object) -> None:
        self.answer = answer

    def embed(self, texts: Sequence[str]) -> Float32:
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer  # type: ignore[return-value]  # wrong on purpose


def test_a_callable_learns_its_dimension_with_one_probe_call() -> None:
    calls: list[list[str]] = []

    def function(texts: list[str]) -> Float32:
        calls.append(texts)
        return letters(texts)

    embedder = CallableEmbedder(function, "letters")
    assert calls == [list(PROBE_TEXTS)]
    assert (embedder.identity.name, embedder.identity.dimension) == ("letters", 6)
    assert embedder.identity.digest == probe_digest(letters)
    assert np.array_equal(embedder.embed(["abba", "c"]), letters(["abba", "c"]))
    assert embedder.embed([]).shape == (0, 6)
    assert len(calls) == 2


def test_a_given_digest_is_kept() -> None:
    assert CallableEmbedder(letters, digest="v1").identity == EmbedderIdentity("callable", 6, "v1")


def test_lists_and_float64_become_contiguous_float32() -> None:
    embedder = CallableEmbedder(lambda texts: [[1.0, float(len(text))] for text in texts])
    vectors = checked(embedder, ["abc"])
    assert vectors.dtype == np.float32
    assert vectors.tolist() == [[1.0, 3.0]]
    fortran = np.asfortranarray(np.ones((4, 3)))
    assert as_vectors(fortran, "f", 4, 3).flags.c_contiguous


def test_a_failing_callable_is_named() -> None:
    with pytest.raises(EmbedderError, match=r"embedder 'mine' failed on 8 texts: ZeroDivisionError") as caught:
        CallableEmbedder(lambda texts: 1 / 0, "mine")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (RuntimeError("out of memory"), r"'broken' failed on 2 texts: RuntimeError: out of memory"),
        (np.zeros((3, 3)), r"'broken' answered 3 vectors for 2 texts"),
        (np.zeros((2, 4)), r"'broken' answered 4 columns, expected 3"),
        (np.zeros(3), r"'broken' answered shape \(3,\), not \(n, d\) with n = 2"),
        ([[0, 0, 0], [0, float("nan"), 0]], r"'broken' answered NaN or infinity in row 1 of 2"),
        (np.full((2, 3), 1e300), r"'broken' answered NaN or infinity in row 0 of 2"),
        ([["a", "b", "c"]] * 2, r"'broken' answered <U1 values, not real numbers"),
        ([[1.0], [1.0, 2.0]], r"'broken' answered no array"),
        (None, r"'broken' answered object values"),
    ],
)
def test_checked_refuses_what_does_not_fit(answer: object, message: str) -> None:
    with pytest.raises(EmbedderError, match=message):
        checked(Broken(answer), ["one", "two"])


def test_checked_keeps_errors_of_ours_and_answers_no_texts_without_a_call() -> None:
    ours = EmbedderError("the server is away")
    with pytest.raises(EmbedderError) as caught:
        checked(Broken(ours), ["one"])
    assert caught.value is ours
    assert checked(Broken(ours), []).shape == (0, 3)


def test_one_string_is_not_a_sequence_of_texts() -> None:
    with pytest.raises(FeatureError, match="not one string"):
        checked(Broken(None), "one")


def test_zero_columns_are_refused() -> None:
    with pytest.raises(EmbedderError, match="0 columns, expected at least 1"):
        CallableEmbedder(lambda texts: np.zeros((len(texts), 0)))


def test_the_behavioural_digest_survives_float_noise_and_tells_embedders_apart() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(len(PROBE_TEXTS), 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    noisy = (vectors + rng.normal(0, 1e-7, vectors.shape)).astype(np.float32)
    digest = vectors_digest(vectors)
    assert digest == vectors_digest(noisy)
    others = [
        2 * vectors,
        vectors[:, :256],
        vectors[::-1],
        -vectors,
        vectors[:, ::-1],
        np.zeros_like(vectors),
    ]
    digests = {digest, *(vectors_digest(other) for other in others)}
    assert len(digests) == 1 + len(others)


def test_same_embedder_goes_by_dimension_and_digest() -> None:
    expected = EmbedderIdentity("minilm", 384, "aaaa")
    same_embedder(expected, EmbedderIdentity("/models/minilm", 384, "aaaa"))
    with pytest.raises(EmbedderError, match=r"expected embedder 'minilm' \(dimension 384, digest aaaa\), got 'x'"):
        same_embedder(expected, EmbedderIdentity("x", 384, "bbbb"))
    with pytest.raises(EmbedderError, match="got 'minilm' \\(dimension 256"):
        same_embedder(expected, EmbedderIdentity("minilm", 256, "aaaa"))
