"""Lexical features against a slow reference written from the definition."""

from __future__ import annotations

import math
import unicodedata
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import sparse

from tracer.features.lexical import LexicalFeatures, Ngram, count_ngrams, ngrams, normalise

MASK = (1 << 64) - 1
BASE = 0x100000001B3
words = st.sampled_from(["refund", "lamp", "Lamp", "naïve", "straße", "3", "a", "!", "--", "пароль", "خصم", "🔥"])
texts = st.one_of(
    st.lists(words, max_size=8).map(" ".join),
    st.text(st.characters(), max_size=40),  # lone surrogates and control characters too
    st.text(st.sampled_from("ab \t\n\x00\ud800\U0001f525é"), max_size=30),
)


def mix(h: int) -> int:
    h = ((h ^ (h >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    h = ((h ^ (h >> 27)) * 0x94D049BB133111EB) & MASK
    return h ^ (h >> 31)


def rolled(text: str) -> int:
    h = 0
    for letter in text:
        h = (h * BASE + mix(ord(letter) + 1)) & MASK
    return h


def falling(word: str) -> int:
    """The hash of a word counted from its first letter: letter i has weight BASE ** -i."""
    inverse = pow(BASE, -1, 1 << 64)
    return sum(mix(ord(letter) + 1) * pow(inverse, i, 1 << 64) for i, letter in enumerate(word)) & MASK


def reference(text: str) -> Counter[int]:
    """The n-grams of one text as 32-bit hashes with their counts, one by one."""
    laid = f" {normalise(text)} "
    grams: list[int] = []
    for i in range(len(laid) - 3):
        window = laid[i : i + 4]
        if " " not in window[1:3]:
            grams.append(mix((rolled(window) + 0xE7037ED1A0B428DB * 4) & MASK))
    marked = "".join(letter if letter.isalnum() else " " for letter in laid)
    hashes = [mix((falling(word) + 0xA0761D6478BD642F) & MASK) for word in marked.split(" ") if word]
    grams += hashes
    grams += [mix((a * BASE + b) & MASK) for a, b in pairwise(hashes)]
    return Counter(gram >> 32 for gram in grams)


def counted(batch: Sequence[str]) -> list[dict[int, int]]:
    out: list[dict[int, int]] = [{} for _ in batch]
    for row, gram, count in zip(*(column.tolist() for column in count_ngrams(batch)), strict=True):
        assert gram not in out[row]
        out[row][gram] = count
    return out


def dense(matrix: sparse.csr_matrix) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.asarray(matrix.toarray())


@given(st.lists(texts, min_size=1, max_size=6))
@example(["\ud800\udc00", "a\x00b", "", "x"])
@settings(max_examples=150, deadline=None)
def test_counts_equal_the_slow_reference(batch: list[str]) -> None:
    assert counted(batch) == [dict(reference(text)) for text in batch]


@given(texts, st.lists(texts, max_size=3), st.lists(texts, max_size=3))
@settings(max_examples=60, deadline=None)
def test_a_text_has_the_same_ngrams_alone_and_in_any_company(text: str, before: list[str], after: list[str]) -> None:
    assert counted([*before, text, *after])[len(before)] == counted([text])[0]


@given(st.lists(words, min_size=2, max_size=6))
@settings(max_examples=40, deadline=None)
def test_a_word_counts_the_same_wherever_it_stands(tokens: list[str]) -> None:
    front, back = counted([" ".join(["refund", *tokens]), " ".join([*tokens, "refund"])])
    (alone,) = counted(["refund"])
    assert set(alone) <= set(front) & set(back)
    assert {gram: front[gram] for gram in alone} == {gram: back[gram] for gram in alone}


def test_neighbours_make_pairs_and_pairs_have_an_order() -> None:
    ab, ba, a, b = counted(["lost card", "card lost", "lost", "card"])
    assert set(ab) != set(ba)
    assert set(a) | set(b) < set(ab)
    assert len(set(ab) - set(a) - set(b)) == 1


@pytest.mark.parametrize(
    ("given_text", "expected"),
    [
        ("  Hello\tWORLD \n", "hello world"),
        ("ﬁne ＬＡＭＰ", "fine lamp"),  # noqa: RUF001 - ligature and full width on purpose
        ("a\x00b", "a b"),
        ("\u00a0\u2003", ""),
        ("", ""),
        ("İ", "i̇"),
    ],
)
def test_normalisation(given_text: str, expected: str) -> None:
    assert normalise(given_text) == expected


@given(st.text(max_size=30))
@settings(max_examples=60, deadline=None)
def test_composed_and_decomposed_texts_are_one(text: str) -> None:
    assert normalise(unicodedata.normalize("NFD", text)) == normalise(unicodedata.normalize("NFC", text))


CORPUS = [f"order {i} of a {kind} is {state}" for i in range(6) for kind in ("lamp", "phone") for state in "ab"]
ODD = ["", "   ", "\x00", "\t\n", "\ud800", "\udfff\ud800", "🔥", "...", "\u202eabc\u202c", "خصم", "\u0301"]


def test_odd_texts_are_rows_and_not_errors() -> None:
    features = LexicalFeatures.fit(CORPUS)
    matrix = features.transform(ODD)
    assert matrix.shape == (len(ODD), features.dimension)
    assert matrix.nnz == 0
    assert features.transform(["order", *ODD]).getnnz(axis=1)[0] > 0


def test_a_fit_on_odd_texts_alone_knows_what_it_saw() -> None:
    features = LexicalFeatures.fit(ODD, min_count=1)
    lengths = np.linalg.norm(dense(features.transform(ODD)), axis=1)
    has_grams = [bool(reference(text)) for text in ODD]
    assert {text for text, has in zip(ODD, has_grams, strict=True) if has} >= {"...", "\u202eabc\u202c", "خصم"}
    assert np.allclose(lengths, has_grams)


@pytest.mark.parametrize("batch", [[""], ["  ", "\x00"], []])
def test_nothing_to_learn_from_gives_no_features(batch: list[str]) -> None:
    features = LexicalFeatures.fit(batch)
    assert features.dimension == 0
    assert features.transform(["a lamp"]).shape == (1, 0)


def test_no_texts_give_no_rows() -> None:
    features = LexicalFeatures.fit(CORPUS)
    assert features.transform([]).shape == (0, features.dimension)


def test_a_huge_text_is_one_row_of_unit_length() -> None:
    long = ["lamp order " * 9100, "x" * 100_000, "a b " * 25_000]
    features = LexicalFeatures.fit([*CORPUS, *long], min_count=1)
    assert np.allclose(np.linalg.norm(dense(features.transform(long)), axis=1), 1.0, atol=1e-5)
    assert counted(long[1:2]) == [dict(reference(long[1]))]


@given(st.lists(texts, min_size=2, max_size=8))
@settings(max_examples=60, deadline=None)
def test_rows_have_unit_length_and_equal_those_made_one_by_one(batch: list[str]) -> None:
    features = LexicalFeatures.fit(batch, min_count=1)
    together = features.transform(batch)
    alone = sparse.vstack([features.transform([text]) for text in batch]).tocsr()
    assert np.array_equal(dense(together), dense(alone))
    lengths = np.linalg.norm(dense(together), axis=1)
    has_grams = np.array([bool(reference(text)) for text in batch])
    assert np.allclose(lengths, has_grams.astype(float), atol=1e-5)
    assert together.dtype == np.float32


def test_values_are_tf_idf() -> None:
    features = LexicalFeatures.fit(CORPUS, min_count=2)
    documents = Counter(gram for text in CORPUS for gram in reference(text))
    assert features.hashes.tolist() == sorted(gram for gram, n in documents.items() if n >= 2)
    text = "a lamp, a lamp, a lamp: order 3"
    grams = {g: n for g, n in reference(text).items() if documents[g] >= 2}
    values = {g: (1 + math.log(n)) * (math.log((1 + len(CORPUS)) / (1 + documents[g])) + 1) for g, n in grams.items()}
    length = math.sqrt(sum(v * v for v in values.values()))
    row = features.transform([text])
    found = dict(zip(features.hashes[row.indices].tolist(), row.data.tolist(), strict=True))
    assert found == pytest.approx({g: v / length for g, v in values.items()}, rel=1e-5)


@given(st.permutations(CORPUS), st.integers(1, 60), st.integers(1, 5))
@settings(max_examples=30, deadline=None)
def test_what_is_kept_does_not_depend_on_row_order(shuffled: list[str], most: int, min_count: int) -> None:
    one = LexicalFeatures.fit(CORPUS, max_features=most, min_count=min_count)
    two = LexicalFeatures.fit(shuffled, max_features=most, min_count=min_count)
    assert one.dimension <= most
    assert np.array_equal(one.hashes, two.hashes)
    assert np.array_equal(one.idf, two.idf)
    assert (np.diff(one.hashes.astype(np.int64)) > 0).all()


def test_the_most_frequent_features_are_kept() -> None:
    documents = Counter(gram for text in CORPUS for gram in reference(text))
    kept = LexicalFeatures.fit(CORPUS, max_features=10).hashes.tolist()
    best = sorted(documents, key=lambda gram: (-documents[gram], gram))[:10]
    assert kept == sorted(best)


def test_few_texts_keep_what_occurs_once() -> None:
    assert LexicalFeatures.fit(["lamp", "phone"]).dimension == len(reference("lamp") | reference("phone"))


@given(texts)
@example("")
@example("\ud800 a\u0301 \x00b")
@example("word " * 2000)
@settings(max_examples=150, deadline=None)
def test_named_ngrams_are_those_that_are_hashed(text: str) -> None:
    assert dict(Counter(ngram.hash for ngram in ngrams(text))) == counted([text])[0]


@given(texts)
@settings(max_examples=100, deadline=None)
def test_each_named_ngram_has_the_hash_of_its_own_text(text: str) -> None:
    for kind, gram, key in ngrams(text):
        if kind == "characters":
            assert key == mix((rolled(gram) + 0xE7037ED1A0B428DB * 4) & MASK) >> 32
        else:
            hashes = [mix((falling(word) + 0xA0761D6478BD642F) & MASK) for word in gram.split()]
            assert len(hashes) == (1 if kind == "word" else 2)
            assert key == (hashes[0] if kind == "word" else mix((hashes[0] * BASE + hashes[1]) & MASK)) >> 32


def test_ngrams_read_as_their_text_does() -> None:
    found = [(ngram.kind, ngram.text) for ngram in ngrams("Ab  cd!")]
    assert found == [
        ("characters", " ab "),
        ("characters", " cd!"),
        ("characters", "cd! "),
        ("word", "ab"),
        ("word", "cd"),
        ("pair", "ab cd"),
    ]
    assert ngrams("") == []
    assert isinstance(ngrams("a")[0], Ngram)
