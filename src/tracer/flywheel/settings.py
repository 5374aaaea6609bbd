"""What a home folder knows beside its policies: how they were fitted, where its traces are, and its policy lines."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tracer import storage
from tracer.config import FitConfig
from tracer.errors import ConfigError
from tracer.flywheel.goals import Goals
from tracer.policies.fingerprints import Fingerprint
from tracer.policies.registry import SETTINGS

StoreKind = Literal["sqlite", "postgresql"]
TEACHER = ""
"""Pending instead of a version: everything is to go to the teacher."""


@dataclass(frozen=True, slots=True)
class Line:
    """A policy line: all attempts to imitate one task, that is, one teacher under one prompt with one set of labels.

    ``labels`` are the declared ones, None where those seen count. ``attempts`` is the ledger's count. Traces up to
    number ``decided`` have taken part in an attempt that came to a verdict; those up to ``released`` only train, since
    fresh ones certify in their place. Audits after number ``watched`` count for the alarm, but not those of ``demoted``
    versions, which may come late.
    """

    number: int
    fingerprints: tuple[Fingerprint, ...]
    labels: tuple[str, ...] | None = None
    attempts: int = 0
    decided: int = 0
    released: int = 0
    watched: int = 0
    demoted: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Challenger:
    """A saved version that is not in force and waits for audits after number ``since`` to certify it, at ``level``."""

    version: str
    attempt: int
    level: float
    since: int


@dataclass(frozen=True, slots=True)
class Settings:
    """``settings.json``: the config and the embedder's name for the next update, the store, and the policy lines.

    The last line is the one in force. ``store_id`` tells another database under the same URL. ``pending`` is a version
    that was decided for and is not yet known to be active: whoever comes next finishes that, and writes the history's
    line of it, ``event`` and ``note``. ``untold`` is a demotion that was finished so: the loop tells the operator.
    ``refit`` says why one is wanted before its time, empty where none is. ``tainted`` versions learned from traces that
    were forgotten since: they are removed once they are not in force. ``calm_rate`` is the audit rate to go back to
    after a warning. ``held``: an operator sent everything to the teacher, and nothing is promoted until one promotes a
    version.
    """

    config: FitConfig
    embedder: str | None
    lines: tuple[Line, ...]
    store: StoreKind = "sqlite"
    store_id: str = ""
    task: str = "default"
    pending: str | None = None
    event: str = ""
    note: str = ""
    untold: str = ""
    refit: str = ""
    challenger: Challenger | None = None
    tainted: tuple[str, ...] = ()
    calm_rate: float | None = None
    held: bool = False

    @property
    def line(self) -> Line:
        """The policy line in force."""
        return self.lines[-1]

    @property
    def attempts(self) -> int:
        """Attempts of the line in force."""
        return self.line.attempts

    def with_line(self, line: Line) -> Settings:
        """The same with this line in force: the newest state of it, or a new one, or an old one taken up again."""
        others = tuple(known for known in self.lines if known.number != line.number)
        return replace(self, lines=(*others, line))

    def with_count(self, line: Line) -> Settings:
        """The same with this line's attempts, where it stands or first of all: what is in force stays so."""
        lines = tuple(
            replace(known, attempts=line.attempts) if known.number == line.number else known for known in self.lines
        )
        if all(known.number != line.number for known in self.lines):
            lines = (line, *lines)
        return replace(self, lines=lines)

    def tainting(self, parent: str, child: str | None) -> Settings:
        """The same where ``child`` has the weights of ``parent``: it learned from the same traces."""
        if child is None or parent not in self.tainted:
            return self
        return replace(self, tainted=tuple(dict.fromkeys((*self.tainted, child))))

    def write(self, home: Path) -> None:
        """Write ``settings.json`` atomically."""
        lines = [
            {
                "number": line.number, "fingerprints": [list(f) for f in line.fingerprints],
                "labels": None if line.labels is None else list(line.labels), "attempts": line.attempts,
                "decided": line.decided, "released": line.released, "watched": line.watched,
                "demoted": list(line.demoted),
            }
            for line in self.lines
        ]  # fmt: skip
        content = {
            "config": self.config.as_dict(), "embedder": self.embedder, "lines": lines,
            "store": self.store, "store_id": self.store_id, "task": self.task, "pending": self.pending,
            "event": self.event if self.pending is not None else "",
            "note": self.note if self.pending is not None else "", "untold": self.untold,
            "refit": self.refit, "challenger": None if self.challenger is None else asdict(self.challenger),
            "tainted": list(self.tainted), "calm_rate": self.calm_rate, "held": self.held,
        }  # fmt: skip
        storage.write_atomic(home / SETTINGS, json.dumps(content, indent=1).encode())

    @classmethod
    def read(cls, home: Path) -> Settings | None:
        """Settings of a home folder, with its goals in place of what the fit was told; None where nothing was fitted.

        Raises ConfigError for a damaged file.
        """
        path, goals = home / SETTINGS, Goals.read(home)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            lines = tuple(_line(values) for values in content["lines"])
            if not lines or content["store"] not in ("sqlite", "postgresql"):
                raise ValueError(f"lines = {content['lines']!r}, store = {content['store']!r}")
            config = FitConfig.from_dict(content["config"])
            return cls(
                config if goals is None else goals.applied(config), content["embedder"], lines,
                content["store"], str(content["store_id"]), str(content["task"]), content["pending"],
                str(content.get("event", "")), str(content.get("note", "")), str(content.get("untold", "")),
                str(content["refit"]), None if content["challenger"] is None else Challenger(**content["challenger"]),
                tuple(content["tainted"]), content["calm_rate"], bool(content["held"]),
            )  # fmt: skip
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error


def _line(values: dict[str, Any]) -> Line:
    labels = values["labels"]
    return Line(
        int(values["number"]), tuple(Fingerprint(*pair) for pair in values["fingerprints"]),
        None if labels is None else tuple(labels), int(values["attempts"]), int(values["decided"]),
        int(values["released"]), int(values["watched"]),
        tuple(values["demoted"]),
    )  # fmt: skip
