"""A home folder as a place to work in: its lock, its trace store, and what a crash left half done."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tracer import storage
from tracer.errors import ConfigError, PolicyError, StoreError
from tracer.flywheel.goals import Goals
from tracer.flywheel.settings import TEACHER, Line, Settings
from tracer.policies.fingerprints import Fingerprint, belongs
from tracer.policies.history import UNRECORDED, Event
from tracer.policies.registry import SETTINGS, PolicyRegistry
from tracer.traces.database import FILE
from tracer.traces.store import COPY, TraceStore
from tracer.types import Dataset, LabelSpace

log = logging.getLogger("tracer.flywheel")

_WAIT_S = 60.0

HOME = ".tracer"
ARTEFACTS = "artefacts"
"""Folder in a home with the five artefacts of each version, and of the last refusal as ``refused.json``."""
WARM = "training.safetensors"
"""File in a home folder with what the next fit may start from; it may be deleted at any time."""
CACHE = "cache"
DATABASE_URL = "DATABASE_URL"
"""Environment variable with a ``postgresql://`` URL: a home that is made while it is set keeps its traces there."""


@contextmanager
def fitting(home: Path) -> Iterator[None]:
    """Be the only one who fits, or forgets, in this home: for as long as that takes. Clears up after a killed process.

    Raises TracerError at once where another process does, ConfigError where nothing can be written.
    """
    with _lock(home, ".fit.lock", "fitting", 0.0):
        with locked(home):
            for folder in (home, home / "policies", home / ARTEFACTS):
                storage.sweep(folder)
        yield


@contextmanager
def locked(home: Path) -> Iterator[None]:
    """Be the only one who changes what is in force, for a moment; first finish what a killed process had decided.

    It is never held while anything is trained, so that an alarm demotes, and an operator rolls back, in the middle of a
    long fit. Raises TracerError where another process holds it for a minute, ConfigError where nothing can be written.
    """
    with _lock(home, ".lock", "changing the policy", _WAIT_S):
        _recover(home)
        yield


@contextmanager
def _lock(home: Path, name: str, what: str, wait_s: float) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            stack.enter_context(storage.locked(home, name, what=what, wait_s=wait_s))
        except OSError as error:
            raise ConfigError(f"home {home}: cannot be written ({error.strerror}: {error.filename})") from error
        yield


@contextmanager
def opened(
    home: Path, settings: Settings | None, task: str = "default"
) -> Iterator[tuple[TraceStore, Callable[[], None]]]:
    """The trace store of a home: as its settings say, else by ``DATABASE_URL``, else SQLite in the folder.

    On PostgreSQL its lock is held too, which homes on other machines see; the function given beside the store raises
    StoreError where it was lost: call it before what only its holder may do. Raises ConfigError, StoreError.
    """
    with store_of(home, settings, task) as store, store.lock() as held:
        yield store, held


def store_of(home: Path, settings: Settings | None, task: str = "default") -> TraceStore:
    """The same without a lock, to read from and to append to."""
    url = os.environ.get(DATABASE_URL, "")
    remote = _is_postgresql(url)
    if settings is not None:
        remote, task = settings.store == "postgresql", settings.task
        if remote and not url:
            raise ConfigError(f"{home}: its traces are in PostgreSQL: set {DATABASE_URL} to the URL of the database")
    elif remote and task == "default" and (goals := Goals.read(home)) is not None:
        task = goals.task
    home.mkdir(parents=True, exist_ok=True)
    store = TraceStore.open(url, task=task, copy=home / COPY) if remote else TraceStore.open(home, task=task)
    if settings is not None and settings.store_id not in ("", store.store_id):
        store.close()
        raise StoreError(f"{store.url}: is another trace store than the one that {home} was fitted on")
    return store


def may_hold_traces(home: Path) -> bool:
    """Whether traces may be stored for this home: false where it has no file of them and no database is named."""
    known = (home / FILE).exists() or (home / SETTINGS).exists()
    return known or _is_postgresql(os.environ.get(DATABASE_URL, ""))


def _is_postgresql(url: str) -> bool:
    return url.startswith(("postgres://", "postgresql://", "postgresql+"))


def stored_traces(home: Path, settings: Settings) -> Dataset:
    """The traces of the policy line in force, in the order in which they came."""
    with store_of(home, settings) as store:
        return traces_of(store, settings.line)


def traces_of(store: TraceStore, line: Line) -> Dataset:
    """The traces of a policy line. Raises TraceError where there are none."""
    labels = LabelSpace(line.labels, declared=True) if line.labels is not None else None
    mine = [
        f for f in (Fingerprint(s.teacher, s.prompt) for s in store.fingerprints()) if belongs(line.fingerprints, f)
    ]
    return store.load(fingerprints=mine, labels=labels)


def clear_tainted(home: Path, settings: Settings, registry: PolicyRegistry) -> None:
    """Write the settings, and remove versions that learned from forgotten traces once they are not in force."""
    active, there = registry.active_version(), registry.versions()
    gone = [version for version in settings.tainted if version in there and version != active]
    for version in gone:
        registry.remove(version, note="learned from traces that were forgotten")
        (home / ARTEFACTS / f"{version}.json").unlink(missing_ok=True)
    kept = tuple(version for version in settings.tainted if version == active)
    replace(settings, tainted=kept).write(home)


def _recover(home: Path) -> None:
    """Finish what was decided for when a process died: the decision stands in the settings, pointer and history follow.

    What that process would have done for later, artefacts and a warm start, is not made up for: the next fit trains
    anew.
    """
    settings = Settings.read(home)
    if settings is None or settings.pending is None:
        return
    registry = PolicyRegistry(home)
    wanted = None if settings.pending == TEACHER else settings.pending
    untold = settings.untold
    if wanted is None or wanted in registry.versions():
        moved = registry.active_version() != wanted
        if moved or not _told(registry, settings, wanted):
            _tell(registry, settings, wanted)
        if moved:
            log.warning("%s is in force: the process that decided so died before", wanted or "the teacher")
        untold = settings.note if settings.event == "demote" else untold
    clear_tainted(home, replace(settings, pending=None, untold=untold), registry)


def _told(registry: PolicyRegistry, settings: Settings, wanted: str | None) -> bool:
    """Whether the history has the line of what is pending."""
    return any(
        event.event == settings.event
        and event.note.startswith(settings.note)
        and (event.after == wanted if event.moved else event.facts.get("attempt") == settings.attempts)
        for event in _history(registry)
    )


def _history(registry: PolicyRegistry) -> tuple[Event, ...]:
    """The events; none where the file is damaged, which must not stop the mending."""
    try:
        return registry.history()
    except PolicyError:
        return ()


def _tell(registry: PolicyRegistry, settings: Settings, wanted: str | None) -> None:
    event, line = settings.event or "recovered", settings.line
    note = f"{settings.note} (finished after the process that decided so had died)".lstrip()
    history = _history(registry)
    if registry.active_version() != wanted or (history and history[-1].event == UNRECORDED):
        registry.activate(wanted, event=event, note=note)
    else:
        registry.record(event, note=note, attempt=line.attempts, line=line.number, version=wanted)
