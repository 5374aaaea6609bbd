"""An operator's hand: put a version in force, go back, or send everything to the teacher and hold it there."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from pathlib import Path

from tracer import storage
from tracer.flywheel.homes import locked, store_of
from tracer.flywheel.settings import TEACHER, Settings
from tracer.policies.registry import PolicyRegistry


def promote(home: str | Path, version: str | None, *, note: str = "", now: datetime | None = None) -> None:
    """Put a version in force; None sends everything to the teacher, and nothing is promoted until a version is.

    The watch starts anew: audits of other policies say nothing of this one's promise. Raises PolicyError for a version
    that is not there or cannot be loaded, and changes nothing then.
    """
    with locked(Path(home)):
        registry = PolicyRegistry(home)
        if version is not None:
            registry.load(version)
        _switch(Path(home), registry, version, "promote" if version is not None else "teacher", note, now)


def roll_back(home: str | Path, *, note: str = "", now: datetime | None = None) -> str:
    """Put the version in force that was before, and give its name; raises PolicyError where there is none."""
    with locked(Path(home)):
        registry = PolicyRegistry(home)
        version = registry.before()
        registry.load(version)
        _switch(Path(home), registry, version, "rollback", note, now)
        return version


def _switch(
    home: Path, registry: PolicyRegistry, version: str | None, event: str, note: str, now: datetime | None
) -> None:
    settings = Settings.read(home)
    after = None
    if settings is not None:
        with store_of(home, settings) as store:
            through = store.through()
        demoted = tuple(known for known in settings.line.demoted if known != version)
        line = replace(settings.line, watched=through, demoted=demoted)
        after = replace(settings.with_line(line), held=version is None)
        replace(after, pending=version or TEACHER, event=event, note=note).write(home)
        storage.step("switch.decided")
    registry.activate(version, event=event, note=note, now=now)
    storage.step("switch.activated")
    if after is not None:
        replace(after, pending=None).write(home)
