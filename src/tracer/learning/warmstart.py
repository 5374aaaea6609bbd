"""What a fit leaves to the next one: which recipes were chosen, and the linear heads of each fold and of the whole.

A head of fold i never saw the rows of fold i. As long as every row that trained still trains, and in the same fold, the
heads of the folds give out-of-fold evidence on old rows and new, and only the final head learns; after more rows each
fold is fitted from its own head; after many more all recipes are tried again. Where one row has left, because a cut in
time moved or a trace of its group now certifies, the heads know what they must not, and all is trained anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save as save_arrays

from tracer.errors import ArchiveError
from tracer.learning.crossfit import CrossFit, WarmHeads
from tracer.learning.heads import LinearHead
from tracer.types import Float32

_CHOSEN_ANEW, _FITTED_ANEW = 1.25, 1.05
"""Training rows, as a multiple of those of then, from which on recipes are chosen anew and folds fitted anew."""
_SCHEMA = "1"


@dataclass(frozen=True, slots=True, eq=False)
class WarmStart:
    """Recipes by name with their heads, None where a recipe cannot start from one.

    ``labels`` (k,) and ``hashes`` (d,) say what columns and rows of the heads mean, ``basis`` what must be equal
    in the next fit (settings that decide who trains on what, the width of the embeddings), ``rows`` (n,) are digests of
    the rows that trained, with their folds, ascending (see `row_digests`), ``n_chosen`` and ``n_folded`` how many of
    them chose the recipes and trained the heads of the folds. ``keep_folds``: these heads serve as they are.
    """

    heads: Mapping[str, WarmHeads | None]
    labels: tuple[str, ...]
    hashes: NDArray[np.uint32] | None
    basis: str
    rows: NDArray[np.uint64]
    n_folds: int
    n_chosen: int
    n_folded: int
    keep_folds: bool = False

    @classmethod
    def of(
        cls,
        cross: CrossFit,
        labels: Sequence[str],
        hashes: NDArray[np.uint32] | None,
        basis: str,
        rows: NDArray[np.uint64],
        before: WarmStart | None,
    ) -> WarmStart:
        """What this cross-fitting of the training ``rows`` leaves; ``before`` is what it was given to start from."""
        heads = {m.learner.name: m.warm for m in cross.members}
        if cross.screened:
            before = None
        n_chosen = before.n_chosen if before is not None else len(rows)
        n_folded = before.n_folded if before is not None and before.keep_folds else len(rows)
        return cls(heads, tuple(labels), hashes, basis, np.sort(rows), cross.n_folds, n_chosen, n_folded)

    def usable(
        self,
        labels: Sequence[str],
        hashes: NDArray[np.uint32] | None,
        basis: str,
        n_folds: int,
        rows: NDArray[np.uint64],
    ) -> WarmStart | None:
        """The same for a fit of these training rows with these features; None where it must start anew."""
        n_rows = len(rows)
        alike = (tuple(labels), basis, n_folds) == (self.labels, self.basis, self.n_folds)
        if not alike or n_rows > _CHOSEN_ANEW * self.n_chosen or (hashes is None) != (self.hashes is None):
            return None
        if not np.isin(self.rows, rows).all():
            return None
        kept = replace(self, keep_folds=n_rows <= _FITTED_ANEW * self.n_folded)
        if hashes is None or self.hashes is None:
            return kept
        moved = {
            name: heads if heads is None or not name.startswith("lexical") else _moved(heads, self.hashes, hashes)
            for name, heads in self.heads.items()
        }
        return replace(kept, heads=moved, hashes=hashes)


def row_digests(ids: Sequence[str], groups: Sequence[str | None], folds: NDArray[np.int8]) -> NDArray[np.uint64]:
    """Eight bytes (n,) of each training row: which trace it is, of which group, in which fold."""
    content = (
        blake2b(json.dumps([key, group, int(fold)]).encode(), digest_size=8).digest()
        for key, group, fold in zip(ids, groups, folds, strict=True)
    )
    return np.frombuffer(b"".join(content), dtype="<u8").astype(np.uint64)


def _moved(heads: WarmHeads, old: NDArray[np.uint32], new: NDArray[np.uint32]) -> WarmHeads:
    """Heads on other lexical features: the rows of those that stay, zero for new ones."""
    at = np.minimum(np.searchsorted(old, new), max(len(old) - 1, 0))
    stays = old[at] == new if len(old) else np.zeros(len(new), dtype=bool)

    def move(head: LinearHead) -> LinearHead:
        weights = np.zeros((len(new), head.weights.shape[1]), dtype=np.float32)
        weights[stays] = head.weights[at[stays]]
        return LinearHead(weights, head.bias, head.step)

    return WarmHeads(tuple(map(move, heads.folds)), move(heads.final))


def dump(warm: WarmStart) -> bytes:
    """One safetensors file; weights in half precision of the largest one, which is enough to start from."""
    arrays: dict[str, NDArray[Any]] = {"rows": warm.rows}
    if warm.hashes is not None:
        arrays["hashes"] = warm.hashes
    for name, heads in warm.heads.items():
        if heads is not None:
            for i, head in enumerate((*heads.folds, heads.final)):
                largest = max(float(np.abs(head.weights).max(initial=0.0)), 1e-30)
                arrays[f"{name}/{i}/weights"] = (head.weights / np.float32(largest)).astype(np.float16)
                arrays[f"{name}/{i}/bias"] = head.bias
                arrays[f"{name}/{i}/numbers"] = np.array([largest, head.step])
    facts = {
        "schema": _SCHEMA,
        "recipes": json.dumps({name: heads is not None for name, heads in warm.heads.items()}),
        "labels": json.dumps(warm.labels),
        "basis": warm.basis,
        "n_folds": str(warm.n_folds),
        "n_chosen": str(warm.n_chosen),
        "n_folded": str(warm.n_folded),
    }
    return save_arrays({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=facts)


def load(path: str) -> WarmStart:
    """What ``dump`` wrote. Raises ArchiveError where the file is damaged."""
    try:
        with safe_open(path, framework="numpy") as file:
            facts = file.metadata() or {}
            if facts.get("schema") != _SCHEMA:
                raise ArchiveError(f"{path}: schema {facts.get('schema')!r}; this version of Tracer reads {_SCHEMA}")
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        n_folds, labels = int(facts["n_folds"]), tuple(json.loads(facts["labels"]))
        heads: dict[str, WarmHeads | None] = {}
        for name, linear in json.loads(facts["recipes"]).items():
            heads[name] = None
            if linear:
                *folds, final = (_head(arrays, f"{name}/{i}", len(labels)) for i in range(n_folds + 1))
                heads[name] = WarmHeads(tuple(folds), final)
        n_chosen, n_folded = int(facts["n_chosen"]), int(facts["n_folded"])
        hashes, rows = arrays.get("hashes"), arrays["rows"].astype(np.uint64)
        return WarmStart(heads, labels, hashes, facts["basis"], rows, n_folds, n_chosen, n_folded)
    except (OSError, SafetensorError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise ArchiveError(f"{path}: cannot be read: {error}") from error


def _head(arrays: Mapping[str, NDArray[Any]], prefix: str, k: int) -> LinearHead:
    largest, step = map(float, arrays[f"{prefix}/numbers"])
    weights: Float32 = arrays[f"{prefix}/weights"].astype(np.float32) * np.float32(largest)
    bias: Float32 = arrays[f"{prefix}/bias"]
    finite = np.isfinite(weights).all() and np.isfinite(bias).all() and np.isfinite(step)
    if weights.ndim != 2 or weights.shape[1] != k or bias.shape != (k,) or not finite:
        raise ValueError(f"{prefix} is no linear head of {k} labels")
    return LinearHead(weights, bias, step)
