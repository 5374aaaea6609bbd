"""What a native request comes to, for the line of its log and for its span."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from tracer.gateway.deciding import Verdict
from tracer.types import Answer

log = logging.getLogger("tracer.gateway.requests")


@dataclass(slots=True)
class Note:
    """One request. ``id``, ``decision``, ``reason`` and ``answer`` are those of a single text, and empty for ``n`` of
    them; ``overhead`` is in seconds."""

    task: str = ""
    id: str = ""
    decision: str = ""
    reason: str = ""
    answer: Answer | None = None
    saved: Decimal | None = None
    overhead: float | None = None
    n: int = 0
    n_handled: int = 0
    n_bytes: int = 0
    key: str | None = None

    def decided(self, told: Sequence[Mapping[str, Any]], verdicts: Sequence[Verdict], saved: Decimal | None) -> None:
        """The answers; ``saved`` in dollars is for each one that is handled."""
        self.n = len(told)
        self.n_handled = sum(one["decision"] == "handled" for one in told)
        if saved is not None and self.n_handled:
            self.saved = saved * self.n_handled
        if self.n == 1:
            self.id, self.decision, self.reason = (str(told[0][key]) for key in ("id", "decision", "reason"))
            self.answer = verdicts[0].answer

    def span(self) -> dict[str, Any]:
        """What `RequestSpan.end` is told beside the status."""
        return {
            "id": self.id, "task": self.task, "decision": self.decision, "reason": self.reason,
            "answer": self.answer, "saved": self.saved,
        }  # fmt: skip

    def write(self, status: int, latency: float) -> None:
        """The line of the log; ``latency`` in seconds."""
        if not log.isEnabledFor(logging.INFO):
            return
        policy = self.answer.policy if self.answer is not None else None
        line = {
            "event": "request", "id": self.id, "task": self.task, "decision": self.decision, "reason": self.reason,
            "policy": policy, "status": status, "ms": round(latency * 1e3, 3),
            "overhead_ms": round((latency if self.overhead is None else self.overhead) * 1e3, 3),
            "bytes": self.n_bytes, "key": self.key,
        }  # fmt: skip
        if self.n > 1:
            line |= {"n": self.n, "handled": self.n_handled}
        log.info("%s", json.dumps(line))
