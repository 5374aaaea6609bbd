"""One question with one label for an answer, as a request of any format; and the call that a task's fallback makes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Message, Scalar, Wire
from tracer.gateway.codecs import CODECS
from tracer.gateway.codecs.bodies import encode
from tracer.gateway.codecs.schema_reader import label_of
from tracer.gateway.selecting import select
from tracer.gateway.settings import Asking, TaskConfig

NAME = "label"
_MAX_TOKENS = 1024
_PROBE = "a probe"


@dataclass(frozen=True, slots=True)
class Question:
    """Instructions, a conversation that ends with the user, and the ``values`` of which one is wanted.

    Empty ``values`` leave the label free: the answer is a text. ``notes`` say more of single values, by label.
    """

    system: str
    messages: tuple[Message, ...]
    values: tuple[Scalar, ...] = ()
    notes: Mapping[str, str] = field(default_factory=dict)
    name: str = NAME


def composed(wire: Wire, model: str, question: Question) -> bytes:
    """The request. Raises CodecError where the format cannot ask that."""
    if wire in ("decisions", "systemone"):
        if not question.values or not all(isinstance(value, str | bool) for value in question.values):
            raise CodecError("a choice question needs choices that are strings or booleans")
        return encode({"model": model, **(_decision(question) if wire == "decisions" else _state(question))})
    turns = _turns(question)
    system, schema = _instructions(question), _schema(question)
    body: dict[str, Any]
    if wire == "anthropic.messages":
        body = {"model": model, "max_tokens": _MAX_TOKENS, "system": system, "messages": turns}
        if schema:
            body["output_config"] = {"format": {"type": "json_schema", "schema": schema}}
    elif wire == "openai.chat":
        body = {"model": model, "messages": [{"role": "system", "content": system}, *turns] if system else turns}
        if schema:
            form = {"name": NAME, "strict": True, "schema": schema}
            body["response_format"] = {"type": "json_schema", "json_schema": form}
    else:
        body = {"model": model, "instructions": system, "input": turns, "store": False}
        if schema:
            body["text"] = {"format": {"type": "json_schema", "name": NAME, "strict": True, "schema": schema}}
    return encode({key: value for key, value in body.items() if value != ""})


def asked(task: TaskConfig, asking: Asking, text: str) -> tuple[bytes, Call]:
    """The chat completion in which a task's fallback asks for the label of a text, and what it reads as.

    Raises CodecError for a text that no body takes.
    """
    values = task.labels or () if asking.field else ()
    user = Message("user", asking.user.replace("{text}", text))
    question = Question(asking.system, (user,), values, name=asking.field or NAME)
    body = composed("openai.chat", task.teacher or "", question)
    return body, CODECS["openai.chat"].read(body)


def is_selected(task: TaskConfig, asking: Asking) -> bool:
    """Whether the task's input finds the text in what its fallback asks."""
    selection = select(asked(task, asking, _PROBE)[1], task.input)
    return selection is not None and selection.text == _PROBE


def _instructions(question: Question) -> str:
    notes = [f"- {label}: {note}" for label, note in question.notes.items()]
    return "\n\n".join(filter(None, (question.system, "\n".join(notes))))


def _schema(question: Question) -> dict[str, Any]:
    if not question.values:
        return {}
    types = sorted({json.dumps(_type(value)) for value in question.values})
    kind = json.loads(types[0]) if len(types) == 1 else [json.loads(one) for one in types]
    return {
        "type": "object",
        "properties": {question.name: {"type": kind, "enum": list(question.values)}},
        "required": [question.name],
        "additionalProperties": False,
    }


def _type(value: Scalar) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "string" if isinstance(value, str) else "null" if value is None else "number"


def _decision(question: Question) -> dict[str, Any]:
    choices = []
    for value in question.values:
        note = question.notes.get(label_of(value))
        choices.append({"value": value} if note is None else {"value": value, "description": note})
    one = {"type": "choice", "name": NAME, "instructions": question.system, "choices": choices}
    turns = _turns(question)
    return {"input": turns[0]["content"] if len(turns) == 1 else turns, "questions": [one]}


def _state(question: Question) -> dict[str, Any]:
    if not all(isinstance(value, str) for value in question.values):
        raise CodecError("the choices of a System One question are strings")
    criteria = {str(value): question.notes.get(str(value)) for value in question.values}
    one = {"type": "choice", "instructions": question.system, "criteria": criteria}
    turns = _turns(question)
    return {"state": turns[0]["content"] if len(turns) == 1 else {"messages": turns}, "questions": {NAME: one}}


def _turns(question: Question) -> list[dict[str, str]]:
    if any(turn.role not in ("user", "assistant") for turn in question.messages):
        raise CodecError("a conversation with other turns than the user's and the assistant's")
    return [{"role": turn.role, "content": turn.text} for turn in question.messages]
