"""A call in the words of another format: one label of a few, asked as the upstream wants to be asked.

Only where nothing is lost that shapes the answer: the instructions, the conversation, the labels and what the schema
says of them go over; limits on tokens and sampling are the other format's own. What asks for more is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tracer.errors import CodecError, UpstreamError, UpstreamFault
from tracer.gateway.calls import Call, Scalar, Wire
from tracer.gateway.codecs import CODECS, PATHS
from tracer.gateway.codecs.bodies import canonical, dumps
from tracer.gateway.codecs.choices import ChoiceCodec
from tracer.gateway.codecs.schema_reader import label_of
from tracer.gateway.composing import Question, composed
from tracer.gateway.replies import Reply
from tracer.gateway.settings import TaskConfig, Upstream
from tracer.types import Usage

_CHOICES: tuple[Wire, ...] = ("decisions", "systemone")
_PATH = {codec.wire: path for path, codec in PATHS.items()}
_VERSION = (b"anthropic-version", b"2023-06-01")
_OF_THE_REQUEST = (b"content-type", b"content-encoding", b"accept")
_OF_THE_ANSWER = (b"content-type", b"content-length", b"content-encoding")
_FILTERS = (b"content_filter", b"content_policy")
_MOST = 1 << 20
STATUS: Mapping[UpstreamFault, int] = {
    "timeout": 504, "connect": 502, "cut": 502, "breaker_open": 503, "busy": 503, "status": 502,
}  # fmt: skip
"""What a client is told of an upstream that gave no answer."""


def unanswered(error: UpstreamError) -> str:
    """The same in words."""
    if error.kind == "breaker_open":
        wait = int(error.retry_after or 0.0) + 1
        return f"upstream {error.upstream!r} is left alone after failures; try again in {wait} s"
    what = "has as many requests as may wait" if error.kind == "busy" else "did not answer"
    return f"upstream {error.upstream!r} {what}"


@dataclass(frozen=True, slots=True)
class Translation:
    """A request as an upstream is asked: ``call`` is what ``body`` reads as there."""

    path: str
    body: bytes = field(repr=False)
    call: Call = field(repr=False)


@dataclass(frozen=True, slots=True)
class Said:
    """What ``upstream`` said: the label, None where there is none; ``facts`` go into the trace's metadata:
    ``probabilities`` by label, and ``confidence``. ``message`` is that of an error. ``refused``: the input itself was
    looked at, and got no label."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    label: str | None = None
    usage: Usage | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    upstream: str = ""
    refused: bool = False


def translation(call: Call, task: TaskConfig, upstream: Upstream, model: str) -> Translation | None:
    """The call in a format that the upstream speaks; None where it goes on as it came.

    Raises CodecError where it cannot be said there. Formats of conversation are not translated into one another.
    """
    wire = target(call, upstream)
    return None if wire is None else _asked(wire, model, question_of(call, task.labels))


def target(call: Call, upstream: Upstream) -> Wire | None:
    """The format into which a call is to be translated, None for none."""
    if call.wire in upstream.speaks:
        return None
    wire = upstream.speaks[0]
    return wire if call.wire in _CHOICES or wire in _CHOICES else None


def native(body: bytes, call: Call, task: TaskConfig, upstream: Upstream, model: str) -> Translation:
    """The gateway's own call, in the first format that the upstream speaks. Raises CodecError."""
    if call.wire in upstream.speaks:
        return Translation(_PATH[call.wire], body, call)
    labels = task.labels if call.slot.kind == "text" else None
    wire = upstream.speaks[0]
    free = wire not in _CHOICES and call.slot.kind == "text"
    question = Question(call.system, call.messages) if free else question_of(call, labels)
    return _asked(wire, model, question)


def _asked(wire: Wire, model: str, question: Question) -> Translation:
    body = composed(wire, model, question)
    return Translation(_PATH[wire], body, CODECS[wire].read(body))


def fitted(there: Call, headers: Iterable[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """A client's headers as they go with a translated request."""
    given = [(name, value) for name, value in headers if name.lower() not in _OF_THE_REQUEST]
    given.append((b"content-type", b"application/json"))
    if there.wire == "anthropic.messages" and all(name.lower() != _VERSION[0] for name, _ in given):
        given.append(_VERSION)
    return given


async def heard(there: Call, reply: Reply) -> Said:
    """What a reply to a request that reads as ``there`` says; it is closed then. Raises UpstreamError."""
    body = await reply.read(_MOST)
    kept = tuple(pair for pair in reply.headers if pair[0] not in _OF_THE_ANSWER)
    if reply.status >= 300:
        message = _message(body) or f"the upstream answered with status {reply.status}"
        refused = filtered(reply.status, body)
        return Said(reply.status, kept, message=message, upstream=reply.upstream, refused=refused)
    codec = CODECS[there.wire]
    facts = codec.facts(there, body) if isinstance(codec, ChoiceCodec) else {}
    label = codec.label(there, body)
    return Said(reply.status, kept, label, codec.usage(body), facts, upstream=reply.upstream, refused=label is None)


def filtered(status: int, body: bytes) -> bool:
    """Whether an error is a filter's: a teacher that looks at the text before it answers refuses some inputs."""
    return status == 400 and any(word in body for word in _FILTERS)


def parts_of(call: Call, said: Said, *, id: str, created: int) -> tuple[Said, list[bytes]]:  # noqa: A002
    """The parts of an answer to ``call``; none where there is an error to tell, which stands in what is returned."""
    if said.status >= 300:
        return said, []
    if said.label is None:
        return replace(said, status=502, message="the upstream's answer has no label"), []
    codec = CODECS[call.wire]
    given: dict[str, Any] = {"id": id, "created": created, "model": call.model, "usage": said.usage}
    try:
        if call.stream:
            return said, codec.stream(call, said.label, **given)
        body = codec.answer(call, said.label, **given)
    except CodecError as error:
        return replace(said, status=400, message=f"the label cannot be written into an answer: {error}"), []
    return said, [codec.with_facts(call, body, said.facts) if isinstance(codec, ChoiceCodec) else body]


def _message(body: bytes) -> str:
    """What an upstream says of its error; "" where it says nothing that is understood."""
    try:
        error = json.loads(body).get("error")
        text = error.get("message") if isinstance(error, dict) else error
    except (ValueError, AttributeError, RecursionError):
        return ""
    return text[:1000] if isinstance(text, str) else ""


def question_of(call: Call, labels: tuple[str, ...] | None) -> Question:
    """What a call asks, where that is one label of a known few: by its schema, its choices, or as the task declares.

    Raises CodecError where it asks for anything else.
    """
    slot = call.slot
    if call.unanswerable:
        raise CodecError(call.unanswerable)
    if not call.messages or call.messages[-1].role != "user":
        raise CodecError("no user message at the end")
    if any(turn.more for turn in call.messages):
        raise CodecError("turns that hold more than text")
    if slot.kind == "text":
        values: tuple[Scalar, ...] = call.options or labels or ()
    elif len(slot.fields) != 1 or not slot.values or slot.optional or slot.lists:
        raise CodecError("not one field with an enum")
    else:
        values = slot.values[0]
    if not values:
        raise CodecError("no list of labels")
    said, notes = _described(call)
    return Question("\n\n".join(filter(None, (call.system, *said))), call.messages, values, notes)


def _described(call: Call) -> tuple[list[str], dict[str, str]]:
    """What the schema says in words: as a whole, and of single values."""
    said: list[str] = []
    notes: dict[str, str] = {}
    schema = json.loads(call.schema) if call.schema else {}
    if call.wire in ("decisions", "systemone"):
        asked: Any = schema["questions"]
        one = next(iter(asked.values() if isinstance(asked, dict) else asked))
        for choice in one.get("choices", ()):
            if isinstance(choice.get("description"), str):
                notes[label_of(choice["value"])] = choice["description"]
        for label, note in one.get("criteria", {}).items():
            if note is not None:
                notes[label] = note if isinstance(note, str) else dumps(note)
        instructions = one.get("instructions")
        if call.wire == "systemone" and instructions is not None and not isinstance(instructions, str):
            said.append(canonical(instructions))
        return said, notes
    _gather(schema, said, notes)
    return said, notes


def _gather(node: object, said: list[str], notes: dict[str, str]) -> None:
    if isinstance(node, list):
        for item in node:
            _gather(item, said, notes)
    elif isinstance(node, dict):
        text, value = node.get("description"), node.get("const")
        if isinstance(text, str) and text.strip():
            if isinstance(value, str | bool | int | float):
                notes[label_of(value)] = text
            else:
                said.append(text)
        for name, inner in node.items():
            if name != "enum":
                _gather(inner, said, notes)
