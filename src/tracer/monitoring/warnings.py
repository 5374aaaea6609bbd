"""Early warnings: what is seen, what was expected, since when, in plain words."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

Kind = Literal["handled_rate", "novelty", "label_mix", "unknown_label", "teacher_failed"]


@dataclass(frozen=True, slots=True)
class Warning_:  # noqa: N801 - the built-in has the name
    """One early warning in plain words: what is seen (``value``) and what was expected, since when."""

    kind: Kind
    since: datetime | None
    message: str
    value: float
    expected: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready fields."""
        return asdict(self) | {"since": None if self.since is None else self.since.isoformat()}
