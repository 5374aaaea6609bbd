"""Forgetting: a person's traces, and all that was derived from them in a home folder.

What is derived goes first and the traces last, so that a crash leaves traces that the same call finds again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from tracer import storage
from tracer.errors import PolicyError, TraceError
from tracer.explanations.asking import ASKED_TWICE
from tracer.features.cache import EmbeddingCache
from tracer.flywheel.homes import ARTEFACTS, CACHE, WARM, clear_tainted, fitting, locked, opened, traces_of
from tracer.flywheel.settings import Settings
from tracer.policies.registry import PolicyRegistry
from tracer.traces.rooms import traces_digest
from tracer.traces.store import Forgotten, TraceStore


@dataclass(frozen=True, slots=True)
class Forgetting:
    """What went away, or would: traces, cached vectors, versions removed; ``active`` is the policy in force where it
    learned from them, None where it did not: a refit is then wanted, after which its version goes too."""

    traces: Forgotten
    n_vectors: int
    removed: tuple[str, ...]
    active: str | None


def forget(
    home: str | Path,
    *,
    ids: Collection[str] = (),
    texts: Collection[str] = (),
    containing: str | None = None,
    matching: re.Pattern[str] | None = None,
    before: datetime | None = None,
    dry_run: bool = False,
    now: datetime | None = None,
) -> Forgetting:
    """Remove the traces that any of these picks: ids, exact texts, texts that contain or match something, or traces
    older than a time; with cached embeddings, artefacts that quote them, second answers, and what the next fit would
    start from. Versions that learned from them are removed, the one in force after the next promotion.

    An id that was forgotten stays so if its log is read again. Reports that were written elsewhere are not found.
    Raises TraceError where nothing was fitted, StoreError where the store cannot be written.
    """
    folder = Path(home)
    if Settings.read(folder) is None:
        raise TraceError(f"{folder}: nothing was fitted here yet; run `tracer fit` first")
    with fitting(folder), locked(folder):
        settings = Settings.read(folder)
        if settings is None:
            raise TraceError(f"{folder}: its settings went away")
        with opened(folder, settings) as (store, _held):

            def select(*, dry_run: bool) -> Forgotten:
                return store.forget(
                    ids=ids, texts=texts, containing=containing, matching=matching, before=before, dry_run=dry_run
                )

            found = select(dry_run=True)
            registry = PolicyRegistry(folder)
            versions = _learned_from(found, store, registry, settings) if found else ()
            active = registry.active_version()
            mine = active if active in versions else None
            if not dry_run and not found:
                # Ids that may come later stay out, and bytes that a killed process left go.
                found = select(dry_run=False)
            if dry_run or not found:
                return Forgetting(found, 0, tuple(v for v in versions if v != active), mine)
            n_vectors = EmbeddingCache(folder / CACHE).forget(found.texts)
            storage.step("forget.cache-cleared")
            _clear_derived(folder, found, versions)
            storage.step("forget.derived-cleared")
            reason = f"{len(found):,} traces were forgotten" if mine else settings.refit
            tainted = tuple(dict.fromkeys((*settings.tainted, *versions)))
            challenger = (
                None if settings.challenger and settings.challenger.version in versions else settings.challenger
            )
            clear_tainted(folder, replace(settings, tainted=tainted, refit=reason, challenger=challenger), registry)
            storage.step("forget.versions-removed")
            done = select(dry_run=False)
            registry.record("forget", now=now, n_traces=len(done), active=mine)
            return Forgetting(done, n_vectors, tuple(v for v in versions if v != active), mine)


def _learned_from(found: Forgotten, store: TraceStore, registry: PolicyRegistry, settings: Settings) -> tuple[str, ...]:
    """Versions that were fitted or certified on one of these rows, or of which that cannot be known."""
    dataset = traces_of(store, settings.line)
    first = min(found.numbers)
    digests: dict[int, str] = {}
    affected = []
    for version in registry.versions():
        try:
            report = registry.load(version).report
            n = int(report["n_traces"])
        except (PolicyError, KeyError, TypeError, ValueError):
            affected.append(version)
            continue
        if n <= len(dataset) and n not in digests:
            digests[n] = traces_digest(dataset, n)
        known = n <= len(dataset) and report.get("traces_digest") == digests[n]
        if not known or dataset.numbers[n - 1] >= first:
            affected.append(version)
    return tuple(affected)


def _clear_derived(home: Path, found: Forgotten, versions: Collection[str]) -> None:
    for name in ("refused", *versions):
        (home / ARTEFACTS / f"{name}.json").unlink(missing_ok=True)
    if versions:
        (home / WARM).unlink(missing_ok=True)
    asked = home / ASKED_TWICE
    if asked.exists():
        gone = set(found.ids)
        lines = asked.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _asked_of(line) not in gone]
        if len(kept) < len(lines):
            storage.write_atomic(asked, b"".join(kept))


def _asked_of(line: bytes) -> str | None:
    try:
        return str(json.loads(line)["id"])
    except (ValueError, KeyError, TypeError):
        return None
