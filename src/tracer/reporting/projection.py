"""The map of traces: two dimensions in which similar inputs lie near each other."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from tracer.explanations.table import RoutingTable
from tracer.reporting.texts import shown
from tracer.types import Float64

MOST_POINTS = 2_000
_LONGEST = 100
"""Characters of a text on the map: two thousand of them stay below the size of a picture."""


def traces_map(table: RoutingTable, most: int = MOST_POINTS) -> dict[str, Any]:
    """Facts of the map: how it was made, the share of variance it shows, and its points in [0, 1] x [0, 1].

    Above ``most`` rows it is an even draw; ``every_label`` says whether all labels are in it. ``decision`` is
    ``agreed`` or ``disagreed`` where handled, else ``deferred``.
    """
    rows = even_draw(table.labels, most)
    xy, explained, method = _two_dimensions(table, rows)
    points = []
    for (x, y), row in zip(xy, rows.tolist(), strict=True):
        decision = ("agreed" if table.agree[row] else "disagreed") if table.handled[row] else "deferred"
        score = float(table.shown[row])
        points.append({
            "x": round(float(x), 4), "y": round(float(y), 4), "text": shown(table.text(row), _LONGEST),
            "label": table.labels[row], "predicted": table.label(int(table.predicted[row])),
            "score": round(score, 4) if np.isfinite(score) else None, "decision": decision,
        })  # fmt: skip
    every = len({table.labels[row] for row in rows}) == len(set(table.labels))
    shares = {"n": len(table), "n_shown": len(rows), "every_label": every}
    return {**shares, "method": method, "explained": explained, "points": points}


def even_draw(labels: tuple[str, ...], most: int) -> NDArray[np.intp]:
    """At most ``most`` row numbers, ascending: even steps through the rows ordered by label, and one row of each label.

    Where labels alone would take more than half, the rarest have no row of their own. Deterministic: the same table
    gives the same map.
    """
    n = len(labels)
    if n <= most:
        return np.arange(n, dtype=np.intp)
    codes, counts = np.unique(np.array(labels, dtype=object), return_inverse=True, return_counts=True)[1:]
    order = np.argsort(codes, kind="stable")
    first = order[np.flatnonzero(np.r_[True, np.diff(codes[order]) > 0])]
    first = first[np.argsort(-counts, kind="stable")][: most // 2]
    steps = order[np.linspace(0, n - 1, most - len(first)).round().astype(np.intp)]
    return np.unique(np.r_[first, steps]).astype(np.intp)


def _two_dimensions(table: RoutingTable, rows: NDArray[np.intp]) -> tuple[Float64, float, str]:
    # Imported here: the rest of a report needs no scikit-learn.
    from scipy import sparse
    from sklearn.decomposition import PCA, TruncatedSVD

    block = table.vectors[rows]
    lexical = sparse.issparse(block)
    method = "truncated singular value decomposition of words" if lexical else "principal components of embeddings"
    if min(block.shape) < 3:
        return np.full((len(rows), 2), 0.5), 0.0, method
    if lexical:
        model = TruncatedSVD(2, random_state=0)
    else:
        model = PCA(2, svd_solver="randomized", random_state=0)
        block = np.asarray(block, dtype=np.float64)
        if not np.ptp(block, axis=0).any():
            return np.full((len(rows), 2), 0.5), 0.0, method
    xy = cast("Float64", model.fit_transform(block)).astype(np.float64)
    span = np.ptp(xy, axis=0)
    scaled = (xy - xy.min(axis=0)) / np.where(span > 0, span, 1.0)
    return scaled, round(float(np.nan_to_num(model.explained_variance_ratio_).sum()), 4), method
