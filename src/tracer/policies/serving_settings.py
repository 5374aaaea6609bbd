"""How a home folder's policy is served: ``home/serving.json``, read again by routers that run."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, Self, get_args

from tracer import storage
from tracer.errors import PolicyError

SERVING = "serving.json"
"""File in a home folder with its serving settings."""
AUDIT_RATE = 0.02
"""Share of traffic that is audited where a home says nothing else."""

Mode = Literal["shadow", "canary", "live"]


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """``mode``: in ``shadow`` the policy decides and the teacher answers; in ``canary`` a ``share`` of the inputs,
    drawn at random, is served as in ``live`` and the teacher answers the others. ``audit_rate``: the share of all
    inputs that goes to the teacher whatever the policy thinks. Both shares lie in [0, 1].

    Raises PolicyError naming key and value.
    """

    mode: Mode = "live"
    share: float = 1.0
    audit_rate: float = AUDIT_RATE

    def __post_init__(self) -> None:
        if self.mode not in get_args(Mode):
            raise PolicyError(f"mode = {self.mode!r}: is not one of {', '.join(get_args(Mode))}")
        for key, value in (("share", self.share), ("audit_rate", self.audit_rate)):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or not 0.0 <= value <= 1.0:
                raise PolicyError(f"{key} = {value!r}: must be a number in [0, 1]")

    @classmethod
    def read(cls, home: str | Path) -> Self:
        """The settings of a home folder; what it does not say is the default. Raises PolicyError."""
        try:
            return cls.parse((Path(home) / SERVING).read_bytes(), str(Path(home) / SERVING))
        except FileNotFoundError:
            return cls()

    @classmethod
    def parse(cls, content: bytes, where: str = SERVING) -> Self:
        """From the content of the file. Raises PolicyError naming the file, key and value."""
        try:
            given: Any = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise PolicyError(f"{where}: is no JSON: {error}") from error
        if not isinstance(given, dict):
            raise PolicyError(f"{where}: must be an object, not {given!r:.40}")
        known = [field.name for field in fields(cls)]
        for key, value in given.items():
            if key not in known:
                raise PolicyError(f"{where}: {key} = {value!r:.40}: is no setting; there are {', '.join(known)}")
        try:
            return cls(**given)
        except (PolicyError, TypeError) as error:
            raise PolicyError(f"{where}: {error}") from error

    def write(self, home: str | Path) -> None:
        """Replace the file of a home folder at once; routers take it up within their ``reload_s``."""
        storage.write_atomic(Path(home) / SERVING, (json.dumps(asdict(self), indent=2) + "\n").encode())
