"""Lexical features: hashed word and character n-grams, TF-IDF weighted.

Hashing is stateless and vectorised: rolling polynomial hashes over the code points of all texts at once, so
there is no Python loop over n-grams and one message costs what its length asks. What is fitted is label-free:
which hashes to keep, and their inverse document frequency.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, Self, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from tracer.types import Float32

if TYPE_CHECKING:
    from scipy import sparse

CHARACTER_SIZE = 4
"""Length of the character n-grams, counted within words and their edges. Words and pairs of words join them."""
MAX_FEATURES = 1 << 17

NgramKind = Literal["characters", "word", "pair"]
_UInt64: TypeAlias = NDArray[np.uint64]
_Unsigned = TypeVar("_Unsigned", np.uint32, np.uint64)
Counts: TypeAlias = tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]
"""Row, hash and count of each distinct n-gram of each text, ordered by row and hash."""

_BASE = np.uint64(0x100000001B3)  # odd, hence invertible modulo 2**64
_INVERSE = np.uint64(pow(int(_BASE), -1, 1 << 64))
_WORD_SALT = np.uint64(0xA0761D6478BD642F)
_CHARACTER_SALT = np.uint64(0xE7037ED1A0B428DB * CHARACTER_SIZE & 0xFFFFFFFFFFFFFFFF)
_HALF = np.uint64(32)
_SHIFTS = np.uint64(30), np.uint64(27), np.uint64(31)
_FACTORS = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
_SPACE = 0x20
_CHUNK = 8192
"""Texts that are hashed at a time."""


def normalise(text: str) -> str:
    """NFKC, lower case, single spaces: what is hashed."""
    text = text.replace("\x00", " ")
    if text.isascii():  # NFKC has nothing to do
        return " ".join(text.lower().split())
    # Lower case may leave what composes anew.
    return " ".join(unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower()).split())


class Ngram(NamedTuple):
    """What is hashed: four characters (a space stands for the edge of a word), a word, or two words in a row."""

    kind: NgramKind
    text: str
    hash: int


class SparseRow(NamedTuple):
    """One row of ``dimension`` features: ``columns`` (m,) and ``values`` (m,)."""

    columns: NDArray[np.intp]
    values: Float32
    dimension: int

    def matrix(self) -> sparse.csr_matrix:
        """The row as a matrix (1, d)."""
        from scipy import sparse

        pointers = [0, len(self.columns)]
        return sparse.csr_matrix((self.values, self.columns, pointers), shape=(1, self.dimension))


@dataclass(frozen=True, slots=True, eq=False)
class LexicalFeatures:
    """A fitted vectoriser. ``hashes`` uint32 (d,) ascending; ``idf`` float32 (d,)."""

    hashes: NDArray[np.uint32]
    idf: Float32

    @property
    def dimension(self) -> int:
        """Number of features d."""
        return len(self.hashes)

    @classmethod
    def fit(cls, texts: Sequence[str], *, min_count: int = 2, max_features: int = MAX_FEATURES) -> Self:
        """Keep n-grams found in at least ``min_count`` texts, the most frequent ``max_features`` of them."""
        return cls._of(count_ngrams(texts)[1], len(texts), min_count, max_features)

    @classmethod
    def fit_transform(
        cls, texts: Sequence[str], *, min_count: int = 2, max_features: int = MAX_FEATURES
    ) -> tuple[Self, sparse.csr_matrix]:
        """``fit`` and ``transform`` of the same texts, which are hashed once."""
        counted = count_ngrams(texts)
        fitted = cls._of(counted[1], len(texts), min_count, max_features)
        return fitted, fitted._matrix(counted, len(texts))

    @classmethod
    def _of(cls, hashes: NDArray[np.uint32], n_texts: int, min_count: int, max_features: int) -> Self:
        kept, frequency = np.unique(hashes, return_counts=True)
        chosen = frequency >= min(min_count, max(n_texts // 2, 1))
        if chosen.sum() > max_features:
            # Ties at the cut fall to the smaller hash, so the choice does not depend on row order.
            order = np.lexsort((kept, -frequency))[:max_features]
            chosen = np.zeros(len(kept), dtype=bool)
            chosen[order] = True
        idf = np.log((1.0 + n_texts) / (1.0 + frequency[chosen])) + 1.0
        return cls(kept[chosen], idf.astype(np.float32))

    def transform(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Rows of unit length (n, d), float32; a text with no known n-gram is a zero row."""
        return self._matrix(count_ngrams(texts), len(texts))

    def transform_one(self, text: str) -> SparseRow:
        """The row that ``transform`` makes of this text."""
        keys = _keys([text]).astype(np.uint32)  # the row, which is 0, falls away
        starts, counts = _runs(keys)
        _, columns, values = self._weigh(keys[starts], counts)
        length = float(np.dot(values, values)) ** 0.5
        if length:
            values /= np.float32(length)
        return SparseRow(columns, values, self.dimension)

    def _weigh(
        self, hashes: NDArray[np.uint32], counts: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.intp], Float32]:
        """Which n-grams are known, their columns, and their values before a row gets unit length."""
        columns = self.hashes.searchsorted(hashes)
        known = self.hashes.take(columns, mode="clip") == hashes if len(self.hashes) else np.zeros(len(hashes), bool)
        columns = columns[known]
        values = np.log(counts[known], dtype=np.float32)
        values += np.float32(1.0)
        values *= self.idf[columns]
        return known, columns, values

    def _matrix(self, counted: Counts, n_texts: int) -> sparse.csr_matrix:
        # Serving decides on one text without scipy, which takes longer to import than all the rest.
        from scipy import sparse

        rows, hashes, counts = counted
        known, columns, values = self._weigh(hashes, counts)
        rows = rows[known]
        norm = np.sqrt(np.bincount(rows, weights=values * values, minlength=n_texts))
        values /= norm[rows].astype(np.float32)
        pointers = np.zeros(n_texts + 1, dtype=np.int32)
        np.cumsum(np.bincount(rows, minlength=n_texts), out=pointers[1:])
        shape = (n_texts, self.dimension)
        return sparse.csr_matrix((values, columns.astype(np.int32), pointers), shape=shape, copy=False)


def ngrams(text: str) -> list[Ngram]:
    """The n-grams of one text as a reader knows them, repeats included, each with the hash it is known by.

    For explanations: the text is cut again in plain Python, in the order in which `_keys` hashes it.
    """
    laid = f" {normalise(text)} "
    windows = [laid[i : i + CHARACTER_SIZE] for i in range(len(laid) - CHARACTER_SIZE + 1)]
    characters = [window for window in windows if " " not in window[1:-1]]
    words = "".join(letter if letter.isalnum() else " " for letter in laid).split()
    pairs = [f"{first} {second}" for first, second in pairwise(words)]
    kinds: tuple[tuple[NgramKind, list[str]], ...] = (("characters", characters), ("word", words), ("pair", pairs))
    named = [(kind, gram) for kind, grams in kinds for gram in grams]
    return [Ngram(*ngram, key) for ngram, key in zip(named, _keys([text]).tolist(), strict=True)]


def count_ngrams(texts: Sequence[str]) -> Counts:
    """Distinct n-grams of each text: row, hash and count, ordered by row and hash."""
    if len(texts) <= _CHUNK:
        return _count(texts)
    parts = [_count(texts[i : i + _CHUNK]) for i in range(0, len(texts), _CHUNK)]
    rows = np.concatenate([part[0] + i * _CHUNK for i, part in enumerate(parts)])
    return rows, np.concatenate([part[1] for part in parts]), np.concatenate([part[2] for part in parts])


def _count(texts: Sequence[str]) -> Counts:
    keys = _keys(texts)
    starts, counts = _runs(keys)
    distinct = keys[starts]
    return (distinct >> _HALF).astype(np.int64), distinct.astype(np.uint32), counts


def _runs(keys: NDArray[_Unsigned]) -> tuple[NDArray[np.intp], NDArray[np.int64]]:
    """Sorts ``keys`` in place. Where each distinct one starts then, and how often it is there."""
    keys.sort()
    first = np.empty(len(keys), dtype=bool)
    first[:1] = True
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    starts = first.nonzero()[0]
    counts = np.empty(len(starts), dtype=np.int64)
    np.subtract(starts[1:], starts[:-1], out=counts[:-1])
    counts[-1:] = len(keys) - starts[-1:]
    return starts, counts


def _keys(texts: Sequence[str]) -> _UInt64:
    """Row and hash of each n-gram in one number: 32 bits each.

    Every text is laid between two spaces, so no word and no window of characters reaches into the next text.
    """
    laid = [f" {normalise(text)} " for text in texts]
    joined = "".join(laid)
    if joined.isascii():
        codes = np.frombuffer(joined.encode("ascii"), dtype=np.uint8)
        letters, word = _ASCII_LETTERS.take(codes), _ASCII_WORD.take(codes)
    else:
        # Lone surrogates cannot be encoded; "surrogatepass" keeps serving alive on any string.
        points = np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        letters, word = _mix(points.astype(np.uint64) + np.uint64(1)), _is_alphanumeric(points)
        codes = np.minimum(points, 255).astype(np.uint8)
    at, windows = _character_ngrams(codes, letters)
    starts, runs = _words(letters, word)
    hashes = _mix(np.concatenate([windows, runs]))
    words = hashes[len(windows) :]
    pairs = _mix(words[:-1] * _BASE + words[1:])
    if len(texts) == 1:
        return np.concatenate([hashes, pairs]) >> _HALF
    ends = np.cumsum(np.fromiter(map(len, laid), dtype=np.int64, count=len(laid)))
    rows = np.searchsorted(ends, np.concatenate([at, starts]), side="right").astype(np.uint64)
    of_word = rows[len(at) :]
    together = of_word[1:] == of_word[:-1]
    all_rows = np.concatenate([rows, of_word[1:][together]])
    return (all_rows << _HALF) | (np.concatenate([hashes, pairs[together]]) >> _HALF)


def _character_ngrams(codes: NDArray[np.uint8], letters: _UInt64) -> tuple[NDArray[np.intp], _UInt64]:
    """Where windows start that hold a space at their edges only, and their hashes before mixing."""
    n = len(codes) - CHARACTER_SIZE + 1
    if n <= 0:
        return np.empty(0, dtype=np.intp), np.empty(0, dtype=np.uint64)
    inside = codes != _SPACE
    allowed = inside[1 : n + 1]
    for offset in range(2, CHARACTER_SIZE - 1):
        allowed = allowed & inside[offset : n + offset]
    at = allowed.nonzero()[0]
    # All windows are hashed, also those that are left out: slices cost less than gathering each letter.
    rolling = letters[:n] * _BASE
    for offset in range(1, CHARACTER_SIZE):
        rolling += letters[offset : n + offset]
        if offset < CHARACTER_SIZE - 1:
            rolling *= _BASE
    chosen = rolling[at]
    chosen += _CHARACTER_SALT
    return at, chosen


def _words(letters: _UInt64, word: NDArray[np.bool_]) -> tuple[NDArray[np.intp], _UInt64]:
    """Where runs of letters and digits start, and their hashes before mixing.

    With H the prefix sums of letter * BASE**-position, (H[end] - H[start]) * BASE**start is the same for a
    word wherever it stands, so all words are hashed without a loop.
    """
    edges = (word[1:] != word[:-1]).nonzero()[0]  # texts begin and end with a space
    down, up = _powers(len(letters))
    prefix = (letters * down).cumsum()[edges]
    starts = edges[::2] + 1
    return starts, (prefix[1::2] - prefix[::2]) * up[starts] + _WORD_SALT


def _is_alphanumeric(codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    distinct, inverse = np.unique(codes, return_inverse=True)
    flags = np.fromiter((chr(code).isalnum() for code in distinct), dtype=bool, count=len(distinct))
    return flags[inverse]


def _powers(n: int) -> tuple[_UInt64, _UInt64]:
    """Powers of the base, falling and rising: (n,) each."""
    if n <= len(_SHORT_POWERS[0]):
        return _SHORT_POWERS[0][:n], _SHORT_POWERS[1][:n]
    return _power(_INVERSE, n), _power(_BASE, n)


def _power(base: np.uint64, n: int) -> _UInt64:
    out = np.full(n, base, dtype=np.uint64)
    out[:1] = 1
    return np.cumprod(out, dtype=np.uint64)


def _mix(h: _UInt64) -> _UInt64:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014), in place: every bit depends on every bit."""
    h ^= h >> _SHIFTS[0]
    h *= _FACTORS[0]
    h ^= h >> _SHIFTS[1]
    h *= _FACTORS[1]
    h ^= h >> _SHIFTS[2]
    return h


_SHORT_POWERS = _power(_INVERSE, 4096), _power(_BASE, 4096)
_ASCII_LETTERS = _mix(np.arange(1, 129, dtype=np.uint64))
_ASCII_WORD = np.array([chr(code).isalnum() for code in range(128)])
