"""Calls for the tests of tasks and discovery."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tracer.gateway.calls import Call, Message, Slot, Wire

SYSTEM = "Which desk should answer? Say one of: accounts, billing, office, orders, returns, sales, technical."


def call(
    text: str | Sequence[tuple[str, str]] = "where is my parcel?",
    *,
    system: str = SYSTEM,
    model: str = "gpt-4o-mini",
    options: tuple[str, ...] | None = None,
    schema: str = "",
    wire: Wire = "openai.chat",
    **more: Any,
) -> Call:
    turns = [("user", text)] if isinstance(text, str) else text
    slot = Slot("json", (), ("desk",)) if options else Slot("text")
    given: dict[str, Any] = {"stream": False, "slot": slot, "unanswerable": "", "metadata": {}, **more}
    messages = tuple(Message(role, said) for role, said in turns)
    return Call(wire=wire, model=model, system=system, messages=messages, options=options, schema=schema, **given)
