"""Door 2: versions of policies as folders, and which one is active.

A version is written beside, synced and renamed, so it exists whole or not at all. ``ACTIVE`` is a small file
replaced by an atomic rename; promoting and rolling back are the same operation. ``history.jsonl`` tells what happened,
written after the pointer: a crash between the two shows as a change that no line tells of, never as one that was not.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from tracer import storage
from tracer.certification.certificate import Certificate
from tracer.errors import PolicyError
from tracer.policies import archive
from tracer.policies.history import Event, History, in_force, with_gaps
from tracer.policies.policy import Policy

SETTINGS = "settings.json"
"""File in a home folder that says how its policy was fitted."""
OFF = "OFF"
"""File in a home folder whose presence sends everything to the teacher."""

_VERSION = re.compile(r"v\d{4,}")


class PolicyRegistry:
    """Policies under ``home/policies``, the pointer ``home/ACTIVE`` and the events in ``home/history.jsonl``."""

    def __init__(self, home: str | Path) -> None:
        self.home = Path(home)
        self.folder = self.home / "policies"
        self.pointer = self.home / "ACTIVE"
        self._history = History(self.home / "history.jsonl")

    def versions(self) -> tuple[str, ...]:
        """All versions, oldest first."""
        if not self.folder.is_dir():
            return ()
        found = [p.name for p in self.folder.iterdir() if _VERSION.fullmatch(p.name)]
        return tuple(sorted(found, key=lambda name: int(name[1:])))

    def active_version(self) -> str | None:
        """The active version, or None where there is none."""
        try:
            text = self.pointer.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise PolicyError(f"{self.pointer}: is not text: {error}") from error
        if not text:
            return None
        if not _VERSION.fullmatch(text):
            raise PolicyError(f"{self.pointer}: {text[:40]!r} is no version such as v0001")
        return text

    def embedder_name(self) -> str | None:
        """The embedder that the home's settings name, not one that an archive brings along."""
        try:
            named = json.loads((self.home / SETTINGS).read_text(encoding="utf-8"))["embedder"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError) as error:
            raise PolicyError(f"{self.home / SETTINGS}: cannot be read: {error}") from error
        return named if isinstance(named, str) else None

    def load(self, version: str | None = None) -> Policy:
        """Load a version, by default the active one. Raises PolicyError or ArchiveError."""
        name = version or self.active_version()
        if name is None:
            raise PolicyError(f"{self.home}: no policy is active: nothing was fitted here, or the gate refused")
        if name not in self.versions():
            known = ", ".join(self.versions()) or "none"
            raise PolicyError(f"{self.home}: there is no policy {name!r}; versions: {known}")
        return archive.load(archive.read_files(self.folder / name), str(self.folder / name))

    def certificate(self, version: str) -> Certificate:
        """What a version promises, without loading it. Raises ArchiveError."""
        return archive.read_certificate(self.folder / version)

    def save(self, policy: Policy) -> Policy:
        """Write a policy as the next version and give it back with its version. A number is never given twice."""
        while True:
            number = max((int(v[1:]) for v in self._ever()), default=0) + 1
            named = replace(policy, version=f"v{number:04d}")
            # False: another process took the number in the meantime. Take the next.
            if storage.write_folder(self.folder / named.version, archive.dump(named)):
                return named

    def activate(
        self, version: str | None, *, event: str | None = None, note: str = "", now: datetime | None = None
    ) -> None:
        """Make a version the active one, and record it; None leaves everything to the teacher.

        ``event`` says why: by default ``promote``, or ``teacher`` for None. Waits for another process that does the
        same. Raises PolicyError for an unknown version.
        """
        with self._history.writing() as file:
            if version is not None and version not in self.versions():
                raise PolicyError(f"{self.home}: there is no policy {version!r} to activate")
            before = self._pointed()
            storage.step("activate.begun")
            storage.write_atomic(self.pointer, f"{version or ''}\n".encode())
            storage.step("activate.pointer-written")
            name = event or ("promote" if version else "teacher")
            self._history.append(file, Event(now or _now(), name, before, version, moved=True, note=note))
            storage.step("activate.recorded")

    def rollback(self, *, note: str = "", now: datetime | None = None) -> str:
        """Activate the version that was in force before, and give its name; again for the one before that.

        Whatever came last is undone, a demotion too; where everything goes to the teacher, the last version in force
        comes back. Versions that were removed are passed over. Raises PolicyError where there is none.
        """
        version = self.before()
        self.activate(version, event="rollback", note=note, now=now)
        return version

    def before(self) -> str:
        """The version that `rollback` would activate. Raises PolicyError where there is none."""
        active, there = self.active_version(), self.versions()
        earlier = [v for v in in_force(self.history()) if v in there]
        if active is not None and active in earlier:
            del earlier[len(earlier) - 1 - earlier[::-1].index(active) :]
        earlier = [v for v in earlier if v != active]
        if not earlier:
            raise PolicyError(f"{self.home}: no other version was in force before {active or 'the teacher'}")
        return earlier[-1]

    def history(self) -> tuple[Event, ...]:
        """All events, oldest first; a change of the active version that was never recorded is ``unrecorded``.

        Raises PolicyError where the file is damaged.
        """
        return with_gaps(self._history.read(), self._pointed())

    def record(self, event: str, *, note: str = "", now: datetime | None = None, **facts: object) -> None:
        """Record an event that moves no pointer, with facts that JSON can hold: an attempt, an alarm."""
        with self._history.writing() as file:
            self._history.append(file, Event(now or _now(), event, note=note, facts=facts))

    def note(self, version: str, text: str, *, now: datetime | None = None) -> None:
        """Record a remark on a version. Raises PolicyError for an unknown one."""
        if version not in self.versions():
            raise PolicyError(f"{self.home}: there is no policy {version!r} to note on")
        self.record("note", note=text, now=now, version=version)

    def lineage(self, version: str) -> tuple[str, ...]:
        """The version, its parent, the parent's parent and so on; the last may have been removed.

        Raises PolicyError for an unknown version.
        """
        there, line = self.versions(), [version]
        while (parent := self.load(line[-1]).parent) and parent not in line:
            line.append(parent)
            if parent not in there:
                break
        return tuple(line)

    def remove(self, version: str, *, note: str = "", now: datetime | None = None) -> None:
        """Delete a version that is not active; once more after a crash finishes what was begun.

        A router that still serves it goes on from the files that it holds open. Raises PolicyError.
        """
        with self._history.writing() as file:
            folder, beside = self.folder / version, self.folder / f".{version}-removed"
            if not _VERSION.fullmatch(version) or not (folder.is_dir() or beside.is_dir()):
                raise PolicyError(f"{self.home}: there is no policy {version!r} to remove")
            if version == self._pointed():
                raise PolicyError(f"{self.home}: policy {version!r} is active: activate another, or none, first")
            # Recorded first, so that its number stays taken.
            event = Event(now or _now(), "remove", note=note, facts={"version": version})
            self._history.append(file, event)
            storage.step("remove.recorded")
            if folder.is_dir():
                shutil.rmtree(beside, ignore_errors=True)
                folder.rename(beside)
                storage.sync_folder(self.folder)
            storage.step("remove.renamed")
            shutil.rmtree(beside)
            storage.sync_folder(self.folder)

    def _pointed(self) -> str | None:
        """The active version, or None where the pointer is damaged: what is to be mended must not stop the mending."""
        try:
            return self.active_version()
        except PolicyError:
            return None

    def _ever(self) -> set[str]:
        """All versions that are there, and those that were removed."""
        removed = (str(e.facts.get("version")) for e in self._history.read() if e.event == "remove")
        return set(self.versions()) | {version for version in removed if _VERSION.fullmatch(version)}


def _now() -> datetime:
    return datetime.now(UTC)
