"""Rules that select rows: words that texts contain, clusters of the vectors. They never read an outcome."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from tracer.explanations.examples import clip
from tracer.explanations.table import RoutingTable
from tracer.features.lexical import normalise
from tracer.types import Bool

if TYPE_CHECKING:
    from scipy import sparse

Kind = Literal["words", "cluster"]

_WORDS_READ = 64
_ROWS_A_CLUSTER, _MAX_CLUSTERS, _CLUSTERED = 50, 24, 5000
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*")


@dataclass(frozen=True, slots=True, eq=False)
class Rules:
    """Columns of ``inside`` (n, m), sparse and of ones: which of n rows each of m rules selects.

    The first ``n_words`` are rules of words, the others clusters.
    """

    names: tuple[str, ...]
    n_words: int
    inside: sparse.csc_matrix

    def kind(self, rule: int) -> Kind:
        """What a rule is."""
        return "words" if rule < self.n_words else "cluster"

    def rows(self, rule: int) -> NDArray[np.intp]:
        """The rows of a rule."""
        start, end = self.inside.indptr[rule : rule + 2]
        return np.asarray(self.inside.indices[start:end], dtype=np.intp)


def candidate_rules(table: RoutingTable, proposing: Bool, min_rows: int, seed: int) -> Rules:
    """All rules: those of words that ``min_rows`` texts meet, and the clusters of the rows ``proposing`` (n,)."""
    from scipy import sparse

    grams, words = _word_rules(table, min_rows)
    names, clusters = _cluster_rules(table, proposing, seed)
    return Rules((*grams, *names), len(grams), sparse.hstack([words, clusters], format="csc"))


def _word_rules(table: RoutingTable, min_rows: int) -> tuple[list[str], sparse.csc_matrix]:
    """Words and pairs of neighbouring words, of the first ``_WORDS_READ`` of each text."""
    from scipy import sparse

    codes: dict[str, int] = {}
    columns: list[int] = []
    pointers = [0]
    for text in table.texts or ("",) * len(table):
        words = _WORD.findall(normalise(text[: 20 * _WORDS_READ]))[:_WORDS_READ]
        grams = {*words, *(f"{a} {b}" for a, b in pairwise(words))}
        columns += [codes.setdefault(gram, len(codes)) for gram in sorted(grams)]
        pointers.append(len(columns))
    ones = np.ones(len(columns), dtype=np.int64)
    found = sparse.csr_matrix((ones, columns, pointers), shape=(len(table), len(codes))).tocsc()
    kept = np.flatnonzero(np.diff(found.indptr) >= min_rows)
    names = list(codes)
    return [f'contains "{names[i]}"' for i in kept], found[:, kept]


def _cluster_rules(table: RoutingTable, proposing: Bool, seed: int) -> tuple[list[str], sparse.csc_matrix]:
    """Clusters of the vectors, each named by the row nearest to its centre."""
    from scipy import sparse

    rows = np.flatnonzero(proposing)[:_CLUSTERED]
    k = min(len(rows) // _ROWS_A_CLUSTER, _MAX_CLUSTERS)
    if k < 2:
        return [], sparse.csc_matrix((len(table), 0), dtype=np.int64)
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    vectors: Any = table.vectors
    with warnings.catch_warnings():
        # Fewer distinct rows than clusters: then there are fewer clusters, which is as well.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = KMeans(k, n_init=1, max_iter=30, random_state=seed).fit(vectors[rows])
    # |v|^2 is the same for all centres of a row, and 1 for all rows; sparse products stay sparse.
    centres = clusters.cluster_centers_.astype(np.float32)
    distances = (centres * centres).sum(axis=1) - 2.0 * np.asarray(vectors @ centres.T)
    codes = distances.argmin(axis=1)
    inside = sparse.csc_matrix((np.ones(len(table), dtype=np.int64), (np.arange(len(table)), codes)), (len(table), k))
    nearest = distances.argmin(axis=0)
    return [f'like "{clip(table.text(int(i)) or table.ids[i], 60)}"' for i in nearest], inside
