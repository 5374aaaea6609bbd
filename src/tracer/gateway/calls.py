"""What a request on the wire asks, as far as Tracer needs to know; its bytes stay with the app."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Wire = Literal["openai.chat", "openai.responses", "anthropic.messages", "decisions", "systemone"]
Scalar: TypeAlias = str | int | float | bool | None
"""What an enum of a schema can list."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of the conversation: who speaks, and the text parts joined by newlines.

    ``more`` is canonical JSON of what else a model reads of it (calls of tools, a name), "" where there is nothing.
    """

    role: str
    text: str
    more: str = ""


@dataclass(frozen=True, slots=True)
class Several:
    """A field that holds a list of its values, ``least`` to ``most`` of them. ``unique``: a set, which has no order."""

    least: int = 0
    most: int | None = None
    unique: bool = False


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the label stands in an answer.

    ``text``: the label is the whole text. ``json``: the text is a JSON object, ``path`` leads to the object in it that
    holds ``fields``. ``tool``: the same in the arguments of a call of ``tool``. One field makes a plain label, several
    make the canonical JSON of them all, and none makes the canonical JSON of the whole object.

    ``values`` lists what the schema allows for each field; empty where no schema says. ``optional`` fields may be left
    out, and those in ``lists`` hold several values. ``constants`` are required and have one value only. ``order`` names
    fields and constants as the schema does.
    """

    kind: Literal["text", "json", "tool"]
    path: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    tool: str | None = None
    values: tuple[tuple[Scalar, ...], ...] = ()
    optional: tuple[str, ...] = ()
    constants: tuple[tuple[str, Scalar], ...] = ()
    order: tuple[str, ...] = ()
    lists: Mapping[str, Several] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """A request, read. ``unanswerable`` is empty, or says why a surrogate cannot give what is asked.

    ``system`` are the instructions before all turns; such as come later are turns with the role ``system``.
    ``options`` are the labels that the request itself allows, None where it leaves them free. ``schema`` is canonical
    JSON of all that shapes the answer besides words (response format, tools, effort): part of the fingerprint.
    ``stored`` says that the upstream would keep the answer for later calls to refer to, as it does unless told not to.
    ``stop`` and ``max_tokens`` (0 is none at all) limit the text of an answer; ``echo`` holds what it repeats.
    """

    wire: Wire
    model: str
    stream: bool
    system: str
    messages: tuple[Message, ...]
    options: tuple[str, ...] | None
    slot: Slot
    schema: str
    unanswerable: str
    metadata: Mapping[str, str]
    stop: tuple[str, ...] = ()
    max_tokens: int | None = None
    include_usage: bool = False
    stored: bool = False
    echo: Mapping[str, Any] = field(default_factory=dict)
