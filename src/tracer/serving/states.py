"""What a router decides with, as one object that is swapped whole, and the home folder that it comes from."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from tracer.errors import EmbedderError, PolicyError, TracerError
from tracer.features.dense import PROBE_TEXTS, Embedder, checked, same_embedder
from tracer.policies.archive import ARRAYS
from tracer.policies.fingerprints import Fingerprint, belongs
from tracer.policies.policy import Policy
from tracer.policies.registry import OFF, PolicyRegistry
from tracer.policies.serving_settings import SERVING, ServingSettings

log = logging.getLogger("tracer.router")

KILL_SWITCH = "TRACER_OFF"
"""Environment variable: ``1``, ``true``, ``yes`` or ``on`` sends everything to the teacher, at once."""
RETRY_S = 30.0
"""Seconds before a policy or settings that could not be loaded are tried again, where nothing changed."""

_PROBE_TOLERANCE = 1e-3
_UNNAMED = Fingerprint(None, None)
_PARTS = ("policy", "settings")
_Stamp = tuple[int, int, int]


class Switch(Protocol):
    """A file, or whatever else says so: while it exists, everything goes to the teacher."""

    def exists(self) -> bool: ...


def switched_off() -> bool:
    """True while the kill switch is set."""
    return os.environ.get(KILL_SWITCH, "").strip().lower() in {"1", "true", "yes", "on"}


@dataclass(frozen=True, slots=True, eq=False)
class State:
    """A request reads it once, at its start, and is decided wholly by it.

    ``asked`` is whose labels the router's teacher gives; where the policy imitates another, it is not asked.
    """

    policy: Policy | None
    embedder: Embedder | None = None
    settings: ServingSettings = field(default_factory=ServingSettings)
    asked: Fingerprint = _UNNAMED
    foreign: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        task = self.policy.task if self.policy is not None else {}
        known = [Fingerprint(*pair) for pair in task.get("fingerprints", ())]
        object.__setattr__(self, "foreign", not belongs(known, self.asked))

    @property
    def version(self) -> str | None:
        """The policy's version; None without one, or where it was never saved."""
        return (self.policy.version or None) if self.policy is not None else None


class HomeSource:
    """States of a home folder: the first, and others as ``ACTIVE`` or ``serving.json`` change.

    ``version`` holds one version, whatever is active; ``settings`` hold whatever the file says. The content of the
    two small files is compared, not their times: a change within one tick of the file system's clock is seen.
    """

    def __init__(
        self,
        home: str | Path,
        *,
        version: str | None = None,
        embedder: Embedder | str | None = None,
        settings: ServingSettings | None = None,
        asked: Fingerprint = _UNNAMED,
        reload_s: float | None = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.registry = PolicyRegistry(home)
        self.switch = self.registry.home / OFF
        self._version, self._embedder, self._settings, self._asked = version, embedder, settings, asked
        self._reload_s, self._clock = reload_s, clock
        self._due = float("inf")
        self._failed: set[str] = set()
        self._retry_at = float("inf")
        self._lock = threading.Lock()
        self._active: bytes | None = None
        self._serving: bytes | None = None
        self._made: tuple[str, Embedder] | None = None
        self._mapped: tuple[Path, _Stamp] | None = None

    def start(self) -> State:
        """The state to begin with. Raises PolicyError, ArchiveError or EmbedderError, unless switched off."""
        # Read before what they lead to: a change in between is then seen as one.
        self._active, self._serving = self._contents()
        try:
            settings = self._settings or ServingSettings.read(self.registry.home)
            state = State(*self._policy(at_start=True), settings, self._asked)
        except TracerError as error:
            if not (switched_off() or self.switch.exists()):
                raise
            log.warning("switched off, and the policy cannot be loaded: %s", error)
            state = State(None, asked=self._asked)
            self._failed, self._retry_at = set(_PARTS), self._clock() + RETRY_S
        if self._reload_s is not None:
            self._due = self._clock() + self._reload_s
        return state

    def due(self) -> bool:
        """Whether it is time to look again."""
        return self._clock() >= self._due

    def refresh(
        self, old: Callable[[], State], swap: Callable[[State], None], fault: Callable[[], None], *, now: bool = False
    ) -> None:
        """Look where that is due, or ``now``, and swap the state where something changed. One thread at a time; others
        return at once.

        What cannot be loaded is logged once a change, counted by ``fault`` and tried again after ``RETRY_S``; what
        was in force goes on meanwhile.
        """
        if not self._lock.acquire(blocking=False):
            return
        try:
            if now or self.due():
                self._look(old(), swap, fault)
                self._due = float("inf") if self._reload_s is None else self._clock() + self._reload_s
        finally:
            self._lock.release()

    def _look(self, state: State, swap: Callable[[State], None], fault: Callable[[], None]) -> None:
        try:
            active, serving = self._contents()
        except OSError:
            active, serving = self._active, self._serving  # unreadable just now: nothing is known to have changed
        changed = (active != self._active, serving != self._serving)
        again = tuple(self._failed) if self._clock() >= self._retry_at else ()
        self._active, self._serving, found = active, serving, state
        for what, has_changed in zip(_PARTS, changed, strict=True):
            if not (has_changed or what in again):
                continue
            try:
                found = self._with_policy(found) if what == "policy" else self._with_settings(found)
                self._failed.discard(what)
            except Exception as error:
                fault()
                self._failed.add(what)
                self._retry_at = self._clock() + RETRY_S
                level = logging.WARNING if has_changed else logging.DEBUG
                log.log(level, "the new %s cannot be used, the old goes on: %s", what, _told(error))
                log.debug("the failure", exc_info=error)
        if found.policy is not None and found.policy is state.policy and self._was_changed():
            found = self._anew(found, fault)
        if found is not state:
            swap(found)
            version, settings = found.version or "no policy", found.settings
            log.info("now serving %s: %s, audit rate %g", version, settings.mode, settings.audit_rate)

    def _was_changed(self) -> bool:
        """Whether the weights in force were written over or cut short where they lie: they are mapped, not copied."""
        if self._mapped is None:
            return False
        path, stamp = self._mapped
        now = _stamp(path)
        return now is not None and now != stamp  # a file that is gone is still mapped as it was

    def _anew(self, state: State, fault: Callable[[], None]) -> State:
        """The policy checked and loaded again; none, where its files are no longer what was certified."""
        try:
            return self._with_policy(state)
        except Exception as error:
            fault()
            self._failed.add("policy")
            self._retry_at = self._clock() + RETRY_S
            log.warning("the files of policy %s were changed in place, the teacher answers: %s",
                        state.version, _told(error))  # fmt: skip
            log.debug("the failure", exc_info=error)
            return replace(state, policy=None, embedder=None)

    def _with_policy(self, state: State) -> State:
        policy, embedder = self._policy(at_start=False)
        return replace(state, policy=policy, embedder=embedder)

    def _with_settings(self, state: State) -> State:
        return replace(state, settings=self._settings or ServingSettings.read(self.registry.home))

    def _contents(self) -> tuple[bytes | None, bytes | None]:
        """What decides about the state: the pointer, unless a version is held, and the settings, unless given."""
        return (
            _content(self.registry.pointer) if self._version is None else None,
            _content(self.registry.home / SERVING) if self._settings is None else None,
        )

    def _policy(self, *, at_start: bool) -> tuple[Policy | None, Embedder | None]:
        """The policy in force and its embedder, checked against each other."""
        name = self._version or self.registry.active_version()
        if name is None and (not at_start or self.registry.pointer.exists()):
            # Set aside on purpose: a service that starts now must start, with the teacher.
            return None, None
        path = self.registry.folder / (name or "") / ARRAYS
        stamp = _stamp(path)  # before it is read: a change meanwhile is then seen as one
        policy = self.registry.load(name)
        self._mapped = None if stamp is None else (path, stamp)
        embedder = self._embedder_of(policy)
        if embedder is not None and policy.embedder is not None:
            check_embedder(policy, embedder)
        return policy, embedder

    def _embedder_of(self, policy: Policy) -> Embedder | None:
        """The embedder given, or the one that the home's settings name where the policy reads embeddings."""
        named = self._embedder
        if named is None and "dense" in policy.needs:
            named = self.registry.embedder_name()
        if isinstance(named, str):
            named = self._from_name(named)
        if "dense" not in policy.needs:
            return named
        if named is None:
            log.warning("policy %s reads embeddings: route with them, or give an embedder", policy.version)
        elif policy.probes is None:
            log.warning("policy %s was fitted on given embeddings: the embedder cannot be checked", policy.version)
        return named

    def _from_name(self, name: str) -> Embedder:
        """Made once: the next policy that names it shares it."""
        if self._made is None or self._made[0] != name:
            from tracer.features.sources import embedder_from_name  # reads no embedder where none is named

            self._made = (name, embedder_from_name(name))
        return self._made[1]


def check_embedder(policy: Policy, embedder: Embedder) -> None:
    """Raise EmbedderError unless the embedder is the one that the policy was certified with.

    Vectors of fixed texts are compared where the policy stored them; they catch what a name cannot.
    """
    if policy.embedder is None:
        raise PolicyError("this policy reads no embeddings")
    if policy.embedder.digest != "precomputed" or embedder.identity.dimension != policy.embedder.dimension:
        same_embedder(policy.embedder, embedder.identity)
    if policy.probes is not None:
        vectors = checked(embedder, PROBE_TEXTS)
        worst = float(np.abs(vectors - policy.probes).max())
        if worst > _PROBE_TOLERANCE:
            raise EmbedderError(
                f"embedder {embedder.identity.name!r} gives other vectors than when the policy was certified: "
                f"probe texts differ by up to {worst:.3g}, {_PROBE_TOLERANCE:g} is allowed"
            )


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _stamp(path: Path) -> _Stamp | None:
    """What changes where a file is written to: its place on disk, size and time; None where it is not to be seen."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _told(error: Exception) -> str:
    """Our own messages name the file; of others, only the kind is told."""
    return str(error) if isinstance(error, TracerError) else type(error).__name__
