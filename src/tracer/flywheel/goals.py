"""What whoever serves a task asks of its policies: ``goals.json`` in a home folder, written by the gateway.

A fit without words of its own holds to it, and an update holds to it in place of what the first fit was told.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from tracer import storage
from tracer.certification.certificate import Certificate
from tracer.config import FitConfig
from tracer.errors import ConfigError

FILE = "goals.json"


@dataclass(frozen=True, slots=True)
class Goals:
    """``target`` and ``delta`` of the promise; the ``embedder``'s name and the declared ``labels`` for a first fit, and
    the ``task``'s name in a shared database. ``observed``: the gateway lets the teacher answer everything,
    whatever is in force."""

    target: float
    delta: float
    embedder: str | None = None
    labels: tuple[str, ...] | None = None
    task: str = "default"
    observed: bool = False

    def met(self, certificate: Certificate) -> bool:
        """Whether a certificate promises at least as much."""
        return certificate.target >= self.target and certificate.delta <= self.delta

    def applied(self, config: FitConfig) -> FitConfig:
        """The config with this promise, where it makes another one; more targets than one stay beside it."""
        others = tuple(target for target in config.targets[1:] if target != self.target)
        if (config.target, config.delta) == (self.target, self.delta):
            return config
        return replace(config, targets=(self.target, *others), delta=self.delta)

    def write(self, home: Path) -> None:
        """Write ``goals.json`` atomically, where it says something else."""
        with suppress(ConfigError):  # a damaged file is written anew
            if Goals.read(home) == self:
                return
        storage.write_atomic(home / FILE, json.dumps(asdict(self), indent=1).encode())

    @classmethod
    def read(cls, home: Path) -> Goals | None:
        """The goals of a home folder, None where there are none. Raises ConfigError for a damaged file."""
        path = home / FILE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            labels = content["labels"]
            return cls(
                float(content["target"]), float(content["delta"]), content["embedder"],
                None if labels is None else tuple(map(str, labels)), str(content["task"]),
                bool(content.get("observed", False)),
            )  # fmt: skip
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: cannot be read: {error}") from error
