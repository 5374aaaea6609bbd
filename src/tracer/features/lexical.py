"""Lexical features: hashed word and character n-grams, TF-IDF weighted.

Hashing is stateless and vectorised: rolling polynomial hashes over the code points of all texts at once, so
there is no Python loop over n-grams and one message costs what its length asks. What is fitted is label-free:
which hashes to keep, and their inverse document frequency.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from tracer.types import Float32

CHARACTER_SIZES = (4,)
"""Lengths of the character n-grams, counted within words and their edges."""
WORD_SIZES = (1, 2)
MAX_FEATURES = 1 << 17

_UInt64 = NDArray[np.uint64]
_BASE = 0x100000001B3  # odd, hence invertible modulo 2**64
_INVERSE = pow(_BASE, -1, 1 << 64)
_WORD_SALT = np.uint64(0xA0761D6478BD642F)
_CHARACTER_SALT = 0xE7037ED1A0B428DB
_SPACE, _END = 0x20, 0x00


def normalise(text: str) -> str:
    """NFKC, lower case, single spaces: what is hashed."""
    lower = unicodedata.normalize("NFKC", text.replace("\x00", " ")).lower()
    # Lower case may leave what composes anew.
    return " ".join(unicodedata.normalize("NFKC", lower).split())


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
        _, hashes, _ = count_ngrams(texts)
        kept, frequency = np.unique(hashes, return_counts=True)
        chosen = frequency >= min(min_count, max(len(texts) // 2, 1))
        if chosen.sum() > max_features:
            # Ties at the cut fall to the smaller hash, so the choice does not depend on row order.
            order = np.lexsort((kept, -frequency))[:max_features]
            chosen = np.zeros(len(kept), dtype=bool)
            chosen[order] = True
        idf = np.log((1.0 + len(texts)) / (1.0 + frequency[chosen])) + 1.0
        return cls(kept[chosen], idf.astype(np.float32))

    def transform(self, texts: Sequence[str]) -> sparse.csr_matrix:
        """Rows of unit length (n, d), float32; a text with no known n-gram is a zero row."""
        rows, hashes, counts = count_ngrams(texts)
        columns = np.searchsorted(self.hashes, hashes)
        columns[columns == len(self.hashes)] = 0
        known = self.hashes[columns] == hashes if len(self.hashes) else np.zeros(len(hashes), dtype=bool)
        rows, columns, counts = rows[known], columns[known], counts[known]
        values = (1.0 + np.log(counts, dtype=np.float32)) * self.idf[columns]
        norm = np.sqrt(np.bincount(rows, weights=values * values, minlength=len(texts)))
        values /= norm[rows].astype(np.float32)
        pointers = np.zeros(len(texts) + 1, dtype=np.int32)
        np.cumsum(np.bincount(rows, minlength=len(texts)), out=pointers[1:])
        shape = (len(texts), self.dimension)
        return sparse.csr_matrix((values, columns.astype(np.int32), pointers), shape=shape, copy=False)


def count_ngrams(
    texts: Sequence[str],
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]:
    """Distinct n-grams of each text: row, hash and count, ordered by row and hash."""
    rows, hashes = _hash_ngrams(texts)
    keys = (rows.astype(np.uint64) << np.uint64(32)) | (hashes >> np.uint64(32))
    keys.sort()
    first = np.ones(len(keys), dtype=bool)
    np.not_equal(keys[1:], keys[:-1], out=first[1:])
    starts = np.flatnonzero(first)
    counts = np.diff(np.append(starts, len(keys)))
    distinct = keys[starts]
    return (
        (distinct >> np.uint64(32)).astype(np.int64),
        (distinct & np.uint64(0xFFFFFFFF)).astype(np.uint32),
        counts,
    )


def _hash_ngrams(texts: Sequence[str]) -> tuple[NDArray[np.int64], _UInt64]:
    laid = [f" {normalise(text)} \x00" for text in texts]
    lengths = np.fromiter(map(len, laid), dtype=np.int64, count=len(laid))
    # Lone surrogates cannot be encoded; "surrogatepass" keeps serving alive on any string.
    codes = np.frombuffer("".join(laid).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    row = np.repeat(np.arange(len(laid)), lengths)
    letters = _mix(codes.astype(np.uint64) + np.uint64(1))
    rows, hashes = zip(*_character_ngrams(codes, letters, row), *_word_ngrams(codes, letters, row), strict=True)
    return np.concatenate(rows), np.concatenate(hashes)


def _character_ngrams(
    codes: NDArray[np.uint32], letters: _UInt64, row: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], _UInt64]]:
    """Windows that do not cross a text and hold a space at their edges only."""
    n = len(codes)
    inner_stop = (codes == _SPACE) | (codes == _END)
    end = codes == _END
    found = []
    rolling = letters
    for size in range(2, max(CHARACTER_SIZES) + 1):
        if size > n:
            break
        rolling = rolling[: n - size + 1] * np.uint64(_BASE) + letters[size - 1 :]
        if size not in CHARACTER_SIZES:
            continue
        allowed = ~(end[: n - size + 1] | end[size - 1 :])
        for offset in range(1, size - 1):
            allowed &= ~inner_stop[offset : n - size + 1 + offset]
        at = np.flatnonzero(allowed)
        salt = np.uint64(_CHARACTER_SALT * size & 0xFFFFFFFFFFFFFFFF)
        found.append((row[at], _mix(rolling[at] + salt)))
    return found


def _word_ngrams(
    codes: NDArray[np.uint32], letters: _UInt64, row: NDArray[np.int64]
) -> list[tuple[NDArray[np.int64], _UInt64]]:
    """Runs of letters and digits, and pairs of neighbouring runs.

    With H the prefix sums of letter * BASE**-position, (H[end] - H[start]) * BASE**start is the same for a
    word wherever it stands, so all words are hashed without a loop.
    """
    word = _is_alphanumeric(codes)
    edges = np.flatnonzero(np.diff(np.concatenate([[False], word, [False]]).astype(np.int8)))
    start, end = edges[::2], edges[1::2]
    down, up = _powers(_INVERSE, len(codes)), _powers(_BASE, len(codes))
    prefix = np.zeros(len(codes) + 1, dtype=np.uint64)
    np.cumsum(letters * down, out=prefix[1:])
    words = _mix((prefix[end] - prefix[start]) * up[start] + _WORD_SALT)
    at = row[start]
    together = at[1:] == at[:-1]
    pairs = _mix(words[:-1] * np.uint64(_BASE) + words[1:])
    return [(at, words), (at[1:][together], pairs[together])]


def _is_alphanumeric(codes: NDArray[np.uint32]) -> NDArray[np.bool_]:
    distinct, inverse = np.unique(codes, return_inverse=True)
    flags = np.fromiter((chr(code).isalnum() for code in distinct), dtype=bool, count=len(distinct))
    return flags[inverse]


def _powers(base: int, n: int) -> _UInt64:
    out = np.full(n, base, dtype=np.uint64)
    out[:1] = 1
    return np.cumprod(out, dtype=np.uint64)


def _mix(h: _UInt64) -> _UInt64:
    """The finaliser of splitmix64 (Steele, Lea and Flood 2014): every bit depends on every bit."""
    h = (h ^ (h >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    h = (h ^ (h >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return h ^ (h >> np.uint64(31))
