"""Server-sent events, both ways (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its data, lines joined by newlines, and its name ("" where it has none)."""

    data: str
    name: str = ""


class EventReader:
    """Cuts a stream of bytes into events, however the bytes come in; what is no UTF-8 is replaced."""

    def __init__(self) -> None:
        self._pending = b""
        self._data: list[str] = []
        self._name = ""
        self._begun = False

    def feed(self, chunk: bytes) -> list[Event]:
        """The events that this chunk completes."""
        pending = self._pending + chunk
        if not self._begun:
            if len(pending) < len(_BOM) and _BOM.startswith(pending):
                self._pending = pending
                return []
            self._begun, pending = True, pending.removeprefix(_BOM)
        # A carriage return at the end may be half of a line end.
        held = pending[-1:] == b"\r"
        body = pending[:-1] if held else pending
        lines = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._pending = lines.pop() + (b"\r" if held else b"")
        return [event for line in lines if (event := self._line(line.decode("utf-8", "replace"))) is not None]

    def close(self) -> list[Event]:
        """The last event, where the stream ended without its blank line."""
        events = self.feed(b"\n\n")
        self._pending = b""
        return events

    def _line(self, line: str) -> Event | None:
        if not line:
            event = Event("\n".join(self._data), self._name) if self._data else None
            self._data, self._name = [], ""
            return event
        key, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if key == "data":
            self._data.append(value)
        elif key == "event":
            self._name = value
        return None


def events_of(body: bytes | Iterable[bytes]) -> list[Event]:
    """All events of a whole stream."""
    reader = EventReader()
    chunks = (body,) if isinstance(body, bytes) else body
    events = [event for chunk in chunks for event in reader.feed(chunk)]
    return events + reader.close()


def encoded(data: bytes, name: str = "") -> bytes:
    """The bytes of one event; ``data`` holds no line ends, as compact JSON does not."""
    return (b"event: " + name.encode() + b"\n" if name else b"") + b"data: " + data + b"\n\n"
