"""Sessions that were ended before their time, in a file that all workers of a gateway read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from tracer import storage

ENDED_FILE = "session.ended"
"""File in the gateway's home beside the key of cookies: lines of ``UNTIL.NONCE``, until the cookie has run out."""
_MOST = 10_000
_WAIT_S = 2.0


class Ended:
    """What the file holds, read again where it has changed; what this process ended holds though it cannot write."""

    def __init__(self) -> None:
        self._own: set[str] = set()
        self._mark: tuple[int, int, int] | None = None
        self._read: frozenset[str] = frozenset()

    def holds(self, home: Path, content: str) -> bool:
        """Whether the session whose cookie says ``UNTIL.NONCE`` was ended. One look at the file's age."""
        return content in self._own or content in self._told(home / ENDED_FILE)

    def add(self, home: Path, content: str, now: float) -> None:
        """End a session for all workers. Raises OSError, BusyError where it ended in this process alone."""
        self._own = _lasting([*self._own, content], now)
        with storage.locked(home, ".session.lock", what="ending a session", wait_s=_WAIT_S):
            path = home / ENDED_FILE
            kept = _lasting([*_lines(path), content], now)
            storage.write_atomic(path, "".join(f"{one}\n" for one in sorted(kept)[-_MOST:]).encode())

    def _told(self, path: Path) -> frozenset[str]:
        try:
            at = path.stat()
        except OSError:
            return frozenset()
        mark = at.st_mtime_ns, at.st_size, at.st_ino
        if mark != self._mark:
            self._read, self._mark = frozenset(_lines(path)), mark
        return self._read


def _lines(path: Path) -> list[str]:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return path.read_text(encoding="ascii").split()
    return []


def _lasting(contents: Iterable[str], now: float) -> set[str]:
    """Those whose cookies would still be let in."""
    found = set()
    for one in contents:
        until = one.partition(".")[0]
        if until.isascii() and until.isdigit() and int(until) > now:
            found.add(one)
    return found
