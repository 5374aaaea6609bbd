"""What is known of one request while it lasts."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from starlette.types import Receive, Scope, Send

from tracer.gateway.auth import Caller
from tracer.gateway.calls import Call
from tracer.gateway.codecs.base import Codec
from tracer.gateway.deciding import Verdict
from tracer.gateway.lines import TaskLine
from tracer.gateway.reading import Pieces
from tracer.gateway.serving import Serving
from tracer.gateway.tasks import Match
from tracer.gateway.telemetry import RequestSpan
from tracer.gateway.translating import Translation

NO_STORE = "x-tracer-no-store"


@dataclass(slots=True)
class Exchange:
    """One request, and how it is answered."""

    scope: Scope
    receive: Receive
    send: Send
    serving: Serving
    codec: Codec
    path: str
    headers: Mapping[str, str]
    begun: float
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    caller: Caller = field(default_factory=lambda: Caller(None))
    body: bytes = b""
    pieces: Pieces | None = None
    unread: bool = True
    call: Call | None = None
    match: Match | None = None
    line: TaskLine | None = None
    version: str | None = None
    verdict: Verdict | None = None
    answered_by: str = ""
    failed: tuple[str, str] | None = None
    """The upstream that failed last, and its kind of fault."""
    asked: bool = True
    filtered: bool = False
    whole: bool = True
    decision: str = "passed"
    reason: str = "no_task"
    status: int = 0
    translation: Translation | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    saved: Decimal | None = None
    overhead: float | None = None
    span: RequestSpan | None = None

    @property
    def n_bytes(self) -> int:
        """Bytes of the body that came."""
        return len(self.body) if self.pieces is None else self.pieces.n_bytes

    @property
    def kept(self) -> bool:
        """Whether the client allows a trace of it."""
        return self.headers.get(NO_STORE, "").lower() not in ("1", "true", "yes", "on")

    @property
    def task(self) -> str:
        """The task's name, empty for none."""
        return self.match.task.name if self.match is not None else ""
