"""The two rooms: traces that train, and shadow traces that only certify.

A row's room depends on its own content alone, so it never changes when the log grows.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b, sha256
from itertools import islice
from math import ceil
from unicodedata import normalize

import numpy as np
from numpy.typing import NDArray

from tracer.config import Split
from tracer.errors import ConfigError, TraceError
from tracer.types import Bool, Dataset, Float64


@dataclass(frozen=True, slots=True, eq=False)
class Rooms:
    """Row indices of each room, ascending.

    ``shadow`` holds the rows that certify: one a group. ``set_aside`` holds the other shadow rows of those
    groups, which nothing may use. ``digest`` identifies the shadow rows, see ``ids_digest``.
    """

    train: NDArray[np.intp]
    shadow: NDArray[np.intp]
    set_aside: NDArray[np.intp]
    digest: str
    description: str


def assign_rooms(
    dataset: Dataset, *, shadow_share: float, split: Split, released: int = 0, salt: str = "tracer-room-1"
) -> Rooms:
    """Send each row to a room.

    ``bootstrap`` rows are split: by a hash of their group, else of their normalised text, else of their id
    (``hash``), or by time, the newest ``shadow_share`` being shadow (``recent``). ``audit`` rows are plain
    samples of traffic and go to shadow; all other origins are biased and only train. Rows up to number ``released``
    have certified what they could: they only train from then on.

    Rows without a group are all kept, equal texts too: given the hash they are independent draws of traffic,
    and only a stated group says that rows depend on each other. Rows with labels outside the label space
    stay in either room.
    Raises ``TraceError`` if a room stays empty, or for ``recent`` if a time is unknown.
    """
    if not 0.0 < shadow_share < 1.0:
        raise ConfigError(f"shadow_share = {shadow_share}: must lie strictly between 0 and 1")
    origins = np.asarray(dataset.origins)
    bootstrap, audit = origins == "bootstrap", origins == "audit"
    if split == "hash":
        chosen = _unit_hashes(salt, room_keys(dataset)) < shadow_share
        eligible = chosen
    elif split == "recent":
        chosen, eligible = _newest(dataset, bootstrap, shadow_share)
    else:
        raise ConfigError(f"split = {split!r}: must be one of hash, recent")
    shadow = (audit | (bootstrap & chosen)) & (dataset.numbers > released)
    kept = _one_a_group(dataset, shadow, audit | (bootstrap & eligible), salt + "-pick")
    # A trace that only ever trains must not bring a shadow row's group into the train room.
    certifying = {dataset.groups[i] for i in np.flatnonzero(kept)} - {None}
    mates = np.fromiter((group in certifying for group in dataset.groups), dtype=np.bool_, count=len(dataset))
    train = ~shadow & ~mates
    rooms = (np.flatnonzero(train), np.flatnonzero(kept), np.flatnonzero(~train & ~kept))
    return _checked(dataset, *rooms, split=split, shadow_share=shadow_share, released=released)


def fold_ids(dataset: Dataset, rows: NDArray[np.intp], folds: int, *, salt: str = "tracer-fold-1") -> NDArray[np.int8]:
    """Fold number (len(rows),) of each row, in 0 .. folds - 1; groups and equal texts share a fold."""
    if not 2 <= folds <= 127:
        raise ConfigError(f"folds = {folds}: must lie between 2 and 127")
    hashes = _unit_hashes(salt, room_keys(dataset, rows))
    return (hashes * folds).astype(np.int8)


def room_keys(dataset: Dataset, rows: NDArray[np.intp] | None = None) -> list[str]:
    """What each row (of ``rows``, or all) is hashed by: its group, its normalised text, or its id."""
    texts, groups, ids = dataset.texts, dataset.groups, dataset.ids
    keys: list[str] = []
    for i in range(len(dataset)) if rows is None else rows:
        group = groups[i]
        if group is not None:
            keys.append(f"g:{group}")
        else:
            keys.append(f"i:{ids[i]}" if texts is None else f"t:{normalised(texts[i])}")
    return keys


def normalised(text: str) -> str:
    """The text without differences that no reader sees: NFKC, case folded, white space collapsed."""
    return " ".join(normalize("NFKC", text).casefold().split())


def ids_digest(ids: Iterable[str]) -> str:
    """SHA-256 (hex) of the JSON list of the sorted ids: the same rows in any order give the same digest."""
    return sha256(json.dumps(sorted(ids), separators=(",", ":")).encode()).hexdigest()


def traces_digest(dataset: Dataset, n: int | None = None) -> str:
    """BLAKE2b (32 hex) of the first ``n`` rows (all by default) in their order: what decides who trains on what.

    Ids alone do not say which traces these are: a log that numbers its rows may come in another order.
    """
    digest = blake2b(digest_size=16)
    rows = len(dataset) if n is None else n
    texts = dataset.texts or ("",) * len(dataset)
    columns = zip(dataset.ids, dataset.labels, texts, dataset.groups, dataset.origins, dataset.times, strict=True)
    for fields in islice(columns, rows):
        digest.update("\0".join(map(str, fields)).encode("utf-8", "surrogatepass") + b"\n")
    if dataset.texts is None and dataset.dense is not None:
        digest.update(np.ascontiguousarray(dataset.dense[:rows]).data)
    return digest.hexdigest()


def _hash(prefix: bytes, key: str) -> bytes:
    # surrogatepass: texts that no reader has checked must not stop a fit here.
    return blake2b(prefix + key.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _unit_hashes(salt: str, keys: list[str]) -> Float64:
    """A number in [0, 1) for each key."""
    prefix = salt.encode() + b"\0"
    whole = np.frombuffer(b"".join(_hash(prefix, key) for key in keys), dtype=">u8")
    # The upper 53 bits: all 64 would round up to 1.0 now and then.
    return (whole >> np.uint64(11)).astype(np.float64) / 2.0**53


def _newest(dataset: Dataset, bootstrap: Bool, shadow_share: float) -> tuple[Bool, Bool]:
    """Rows on the new side of the cut, whole groups with their newest row; and those new themselves."""
    unknown = np.flatnonzero(np.isnan(dataset.times))
    if unknown.size:
        first = dataset.ids[unknown[0]]
        raise TraceError(f"split='recent' needs the time of every trace: {first!r} has none ({unknown.size} lack it)")
    times = np.sort(dataset.times[bootstrap])
    if not times.size:
        nothing = np.zeros(len(dataset), dtype=np.bool_)
        return nothing, nothing
    cut = times[times.size - ceil(shadow_share * times.size)]
    recent = dataset.times >= cut
    fresh = {dataset.groups[i] for i in np.flatnonzero(recent & bootstrap)} - {None}
    follows = np.fromiter((group in fresh for group in dataset.groups), dtype=np.bool_, count=len(dataset))
    return recent | follows, recent


def _one_a_group(dataset: Dataset, shadow: Bool, eligible: Bool, salt: str) -> Bool:
    """The shadow rows that certify: all without a group, and of each group the eligible one of least hash.

    Under ``recent`` the rows that merely followed their group are not eligible: they are no part of the
    newest block that the certificate speaks of.
    """
    kept = shadow.copy()
    prefix = salt.encode() + b"\0"
    best: dict[str, tuple[bytes, int]] = {}
    for row in np.flatnonzero(shadow):
        group = dataset.groups[row]
        if group is None:
            continue
        kept[row] = False
        if eligible[row]:
            rank = (_hash(prefix, dataset.ids[row]), int(row))
            best[group] = min(best.get(group, rank), rank)
    kept[[row for _, row in best.values()]] = True
    return kept


def _checked(
    dataset: Dataset,
    train: NDArray[np.intp],
    shadow: NDArray[np.intp],
    set_aside: NDArray[np.intp],
    *,
    split: Split,
    shadow_share: float,
    released: int,
) -> Rooms:
    for name, rows in (("train", train), ("shadow", shadow)):
        if not rows.size:
            asked = f"shadow_share = {shadow_share:g}, split = {split!r}"
            since = f"; none of those that came since number {released} can certify yet" if released else ""
            raise TraceError(f"the {name} room is empty: {len(dataset)} rows, {asked}{since}")
    audits = sum(dataset.origins[i] == "audit" for i in shadow)
    rule = f"by hash, share {shadow_share:g}" if split == "hash" else f"newest share {shadow_share:g} by time"
    if released:
        rule = f"audits, and other traces {rule}, since the last decision"
    description = f"{rule}: {train.size} train, {shadow.size} shadow ({audits} audits), {set_aside.size} set aside"
    return Rooms(train, shadow, set_aside, ids_digest(dataset.ids[i] for i in shadow), description)
