"""What happened to the policies of a home folder: ``home/history.jsonl``, one synced line an event."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

from tracer import storage
from tracer.errors import PolicyError

UNRECORDED = "unrecorded"
"""Event of a change of the active version that no line tells of: a crash came between, or a hand did it."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event. Where ``moved``, the version in force changed from ``before`` to ``after`` (None: the teacher alone).

    ``time`` is None where it was not recorded; ``facts`` is what else the event says.
    """

    time: datetime | None
    event: str
    before: str | None = None
    after: str | None = None
    moved: bool = False
    note: str = ""
    facts: Mapping[str, object] = field(default_factory=dict)


class History:
    """The events of a home folder. The file is its own lock: what is done within ``writing`` is done alone."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Wait for the file and hold it, whole lines only. Freed if the process dies."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = not self.path.exists()
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if new:
                storage.sync_folder(self.path.parent)
            _heal(file)
            yield file

    def append(self, file: BinaryIO, event: Event) -> None:
        """Add a line to the file that ``writing`` holds, and force it to disk."""
        line: dict[str, object] = {"time": event.time.isoformat() if event.time else None, "event": event.event}
        if event.moved:
            line |= {"from": event.before, "to": event.after}
        line |= {"note": event.note} if event.note else {}
        line |= {"facts": dict(event.facts)} if event.facts else {}
        try:
            content = json.dumps(line, ensure_ascii=False, allow_nan=False).encode() + b"\n"
        except (TypeError, ValueError) as error:
            raise PolicyError(f"event {event.event!r} cannot be written: {error}") from error
        file.write(content)
        file.flush()
        storage.step("history.line-written")
        os.fsync(file.fileno())

    def read(self) -> tuple[Event, ...]:
        """The events, oldest first. A torn last line is none; raises PolicyError naming any other that is damaged."""
        try:
            with self.path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_SH)
                lines = file.read().split(b"\n")
        except FileNotFoundError:
            return ()
        if lines and _torn(lines[-1]):
            lines.pop()
        return tuple(self._event(number, line) for number, line in enumerate(lines, 1) if line)

    def _event(self, number: int, line: bytes) -> Event:
        try:
            told = json.loads(line)
            return Event(
                datetime.fromisoformat(told["time"]) if told["time"] else None,
                told["event"],
                told.get("from"),
                told.get("to"),
                "to" in told,
                told.get("note", ""),
                told.get("facts", {}),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PolicyError(f"{self.path}:{number}: is no event: {error}") from error


def with_gaps(events: tuple[Event, ...], active: str | None) -> tuple[Event, ...]:
    """The events with each change of the version in force that none of them tells of, up to ``active``."""
    told: list[Event] = []
    current: str | None = None
    for event in events:
        if event.moved:
            if event.before != current:
                told.append(Event(None, UNRECORDED, current, event.before, moved=True))
            current = event.after
        told.append(event)
    if current != active:
        told.append(Event(None, UNRECORDED, current, active, moved=True))
    return tuple(told)


def in_force(events: tuple[Event, ...]) -> list[str]:
    """Versions by when they came into force, without what was rolled back: the last two are now and before."""
    stack: list[str] = []
    for event in events:
        if not event.moved or event.after is None:
            continue
        if event.event == "rollback" and event.after in stack:
            while stack[-1] != event.after:
                stack.pop()
        elif not stack or stack[-1] != event.after:
            stack.append(event.after)
    return stack


def _torn(line: bytes) -> bool:
    """Whether a last line without its end was cut short; one that only lacks its end is whole."""
    try:
        json.loads(line)
    except ValueError:
        return True
    return False


def _heal(file: BinaryIO) -> None:
    """Cut a torn last line off, or end it."""
    file.seek(0)
    content = file.read()
    if not content or content.endswith(b"\n"):
        return
    start = content.rfind(b"\n") + 1
    if _torn(content[start:]):
        file.truncate(start)
    else:
        file.write(b"\n")
    file.flush()
    os.fsync(file.fileno())
