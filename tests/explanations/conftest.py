"""Hand-made routing tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike

from tracer.explanations.table import RoutingTable
from tracer.types import LabelSpace


def make(
    labels: Sequence[str],
    predicted: Sequence[str] | None = None,
    scores: ArrayLike | None = None,
    *,
    texts: Sequence[str] | None = None,
    vectors: Any = None,
    ids: Sequence[str] | None = None,
    space: Sequence[str] | None = None,
    threshold: float = 0.5,
    policy: str = "000002",
    certified: bool = True,
) -> RoutingTable:
    n = len(labels)
    said = labels if predicted is None else predicted
    known = LabelSpace(tuple(space) if space is not None else tuple(sorted({*labels, *said})) or ("none",))
    ranks = np.ones(n) if scores is None else np.asarray(scores, dtype=np.float64)
    barred = ~np.isfinite(ranks)
    return RoutingTable(
        space=known,
        ids=tuple(ids) if ids is not None else tuple(f"row-{i}" for i in range(n)),
        texts=None if texts is None else tuple(texts),
        labels=tuple(labels),
        truth=(None,) * n,
        y=known.encode(labels),
        predicted=known.encode(said),
        scores=ranks,
        shown=ranks.copy(),
        handled=ranks >= threshold,
        bars=np.where(barred, 2, 0).astype(np.int8),
        stage=np.full(n, 2, dtype=np.int8),
        vectors=np.eye(max(n, 1), dtype=np.float32)[:n] if vectors is None else vectors,
        threshold=threshold,
        stands_on="hand-made rows",
        policy=policy,
        certified=certified,
    )


@pytest.fixture(scope="session")
def make_table() -> Callable[..., RoutingTable]:
    """Makes a table from names; what is not given gets a neutral value."""
    return make
