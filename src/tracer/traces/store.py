"""Door 1, in files: the traces of a home folder as numbered snapshots.

A snapshot holds the traces and their embeddings together, written beside and renamed, so they never fall out of
step; the newest one counts. The layout is documented in ``docs/operations.md``.
"""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer import storage
from tracer.errors import TraceError
from tracer.types import GENERATED, Dataset, EmbedderIdentity, LabelSpace

_SNAPSHOT = re.compile(r"t\d{6}")
_TRACES, _EMBEDDINGS, _META = "traces.jsonl", "embeddings.npy", "meta.json"
_KEPT = 2


@dataclass(frozen=True, slots=True)
class Merge:
    """What a merge did: traces added, ids already known, and known ids that came with another label."""

    dataset: Dataset
    n_added: int
    n_known: int
    relabelled: tuple[str, ...]


class TraceStore:
    """Snapshots under ``home/traces``."""

    def __init__(self, home: str | Path) -> None:
        self.folder = Path(home) / "traces"

    def snapshots(self) -> tuple[str, ...]:
        """Complete snapshots, oldest first."""
        if not self.folder.is_dir():
            return ()
        return tuple(sorted(p.name for p in self.folder.iterdir() if _SNAPSHOT.fullmatch(p.name)))

    def count(self) -> int:
        """Traces in the newest snapshot; 0 where there is none."""
        names = self.snapshots()
        if not names:
            return 0
        try:
            return int(json.loads((self.folder / names[-1] / _META).read_text(encoding="utf-8"))["n"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise TraceError(f"{self.folder / names[-1]}: the snapshot cannot be read: {error}") from error

    def load(self) -> Dataset:
        """The newest snapshot. Raises TraceError where there is none, or where it cannot be read."""
        names = self.snapshots()
        if not names:
            raise TraceError(f"{self.folder}: no traces are stored here; run `tracer fit` first")
        folder = self.folder / names[-1]
        try:
            meta = json.loads((folder / _META).read_text(encoding="utf-8"))
            lines = (folder / _TRACES).read_text(encoding="utf-8").split("\n")
            rows = [json.loads(line) for line in lines if line]
            dense = np.load(folder / _EMBEDDINGS, allow_pickle=False) if meta["embedder"] else None
            if len(rows) != meta["n"]:
                raise TraceError(f"{len(rows)} traces are there, {meta['n']} were written")
            return _dataset(meta, rows, dense)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise TraceError(f"{folder}: the snapshot cannot be read: {error}") from error

    def save(self, dataset: Dataset) -> str:
        """Write a new snapshot and drop all but the newest two."""
        lines = "".join(json.dumps(_row(dataset, i)) + "\n" for i in range(len(dataset)))
        meta = {
            "n": len(dataset),
            "has_texts": dataset.texts is not None,
            "labels": list(dataset.space.names) if dataset.space.declared else None,
            "embedder": asdict(dataset.embedder or _unknown(dataset)) if dataset.dense is not None else None,
        }
        files = {_TRACES: lines.encode(), _META: json.dumps(meta).encode()}
        if dataset.dense is not None:
            buffer = io.BytesIO()
            np.save(buffer, dataset.dense, allow_pickle=False)
            files[_EMBEDDINGS] = buffer.getvalue()
        while True:
            names = self.snapshots()
            name = f"t{int(names[-1][1:]) + 1 if names else 1:06d}"
            if storage.write_folder(self.folder / name, files):
                break
        for old in self.snapshots()[:-_KEPT]:
            shutil.rmtree(self.folder / old, ignore_errors=True)
        return name


def merge(old: Dataset, new: Dataset) -> Merge:
    """Old rows and then the new ones, by id: the first record of an id stays.

    Raises TraceError where one side has texts or embeddings that the other lacks.
    """
    if (old.texts is None) != (new.texts is None):
        raise TraceError("stored and new traces do not fit: one has texts, the other embeddings alone")
    if (old.dense is None) != (new.dense is None):
        side = "stored" if new.dense is None else "new"
        raise TraceError(f"only the {side} traces have embeddings: give them for both, or for neither")
    if old.dense is not None and new.dense is not None and old.dense.shape[1] != new.dense.shape[1]:
        raise TraceError(f"stored embeddings have {old.dense.shape[1]} columns, new ones {new.dense.shape[1]}")
    if old.embedder and new.embedder and old.embedder.digest != new.embedder.digest:
        raise TraceError(
            f"stored embeddings were made by {old.embedder.name!r}, the new ones by {new.embedder.name!r}: "
            f"embed all traces with one embedder and fit anew"
        )
    known = dict(zip(old.ids, old.labels, strict=True))
    new = _renamed(new, known)
    fresh = np.array([i for i, key in enumerate(new.ids) if key not in known], dtype=np.intp)
    relabelled = [key for key, label in zip(new.ids, new.labels, strict=True) if known.get(key, label) != label]
    added = new.take(fresh)
    space = None
    if old.space.declared or new.space.declared:
        names = dict.fromkeys(
            [
                *(old.space.names if old.space.declared else ()),
                *(new.space.names if new.space.declared else ()),
            ]
        )
        space = LabelSpace(tuple(names), declared=True)
    both = Dataset.from_columns(
        [*old.labels, *added.labels],
        texts=None if old.texts is None or added.texts is None else [*old.texts, *added.texts],
        dense=None if old.dense is None or added.dense is None else np.concatenate([old.dense, added.dense]),
        embedder=old.embedder or new.embedder,
        space=space,
        ids=[*old.ids, *added.ids],
        origins=[*old.origins, *added.origins],
        groups=[*old.groups, *added.groups],
        times=np.concatenate([old.times, added.times]),
        truth=[*old.truth, *added.truth],
        teachers=[*old.teachers, *added.teachers],
    )
    return Merge(both, len(fresh), len(new) - len(fresh), tuple(relabelled))


def _renamed(new: Dataset, known: Mapping[str, str]) -> Dataset:
    """Ids that Tracer made up are made new where they are taken: equal texts in two logs are two requests.

    Unless all of them are taken: then the same log is being read again.
    """
    made_up = [key.startswith(GENERATED) for key in new.ids]
    taken = [made and key in known for made, key in zip(made_up, new.ids, strict=True)]
    if not any(taken) or sum(taken) == sum(made_up):
        return new
    used = {*known, *new.ids}
    ids = []
    for key, again in zip(new.ids, taken, strict=True):
        name, n = key, 2
        while again and name in used:
            name, n = f"{key}.{n}", n + 1
        used.add(name)
        ids.append(name)
    return replace(new, ids=tuple(ids))


def _dataset(meta: dict[str, Any], rows: list[dict[str, Any]], dense: NDArray[np.floating] | None) -> Dataset:
    declared = meta["labels"]
    return Dataset.from_columns(
        [row["label"] for row in rows],
        texts=[row["text"] for row in rows] if meta["has_texts"] else None,
        dense=dense,
        embedder=EmbedderIdentity(**meta["embedder"]) if meta["embedder"] else None,
        space=LabelSpace(tuple(declared), declared=True) if declared else None,
        ids=[row["id"] for row in rows],
        origins=[row["origin"] for row in rows],
        groups=[row.get("group") for row in rows],
        times=[float("nan") if row.get("time") is None else row["time"] for row in rows],
        truth=[row.get("truth") for row in rows],
        teachers=[row.get("teacher") for row in rows],
    )


def _row(dataset: Dataset, i: int) -> dict[str, Any]:
    row: dict[str, Any] = {"id": dataset.ids[i], "label": dataset.labels[i], "origin": dataset.origins[i]}
    if dataset.texts is not None:
        row["text"] = dataset.texts[i]
    optional = {"group": dataset.groups[i], "truth": dataset.truth[i], "teacher": dataset.teachers[i]}
    row |= {key: value for key, value in optional.items() if value is not None}
    if not np.isnan(dataset.times[i]):
        row["time"] = float(dataset.times[i])
    return row


def _unknown(dataset: Dataset) -> EmbedderIdentity:
    columns = dataset.dense.shape[1] if dataset.dense is not None else 1
    return EmbedderIdentity("precomputed", columns, "precomputed")
