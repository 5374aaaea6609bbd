"""Requests of each wire, and how a teacher answers them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tracer.gateway.calls import Wire

LABELS = ("refund", "card lost", 'say "hi"', "line\nbreak", "größe 😀", "true")
SCHEMA = {
    "type": "object",
    "properties": {"intent": {"$ref": "#/$defs/Intent"}},
    "required": ["intent"],
    "additionalProperties": False,
    "$defs": {"Intent": {"enum": list(LABELS), "type": "string"}},
}


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


def chat(**more: Any) -> bytes:
    messages = [{"role": "system", "content": "Classify."}, {"role": "user", "content": "my card is gone"}]
    return body(**{"model": "gpt-5-mini", "messages": messages} | more)


def responses(**more: Any) -> bytes:
    return body(**{"model": "gpt-5-mini", "instructions": "Classify.", "input": "my card is gone"} | more)


def messages(**more: Any) -> bytes:
    turns = [{"role": "user", "content": [{"type": "text", "text": "my card is gone"}]}]
    return body(**{"model": "claude", "max_tokens": 100, "system": "Classify.", "messages": turns} | more)


def decisions(labels: Any = LABELS, **more: Any) -> bytes:
    choices = [{"value": label} for label in labels]
    question = {"type": "choice", "name": "intent", "instructions": "Which?", "choices": choices}
    return body(**{"model": "gpt-6-luna", "input": "my card is gone", "questions": [question]} | more)


def systemone(labels: Any = LABELS, **more: Any) -> bytes:
    question = {"type": "choice", "instructions": "Which?", "criteria": dict.fromkeys(labels)}
    return body(**{"model": "jev", "state": {"text": "my card is gone"}, "questions": {"intent": question}} | more)


def chat_json(schema: Any = None, **more: Any) -> bytes:
    form = {"type": "json_schema", "json_schema": {"name": "label", "strict": True, "schema": schema or SCHEMA}}
    return chat(response_format=form, **more)


def chat_tool(schema: Any = None, **more: Any) -> bytes:
    tool = {"type": "function", "function": {"name": "classify", "parameters": schema or SCHEMA}}
    return chat(tools=[tool], **{"tool_choice": {"type": "function", "function": {"name": "classify"}}} | more)


def chat_function(schema: Any = None, **more: Any) -> bytes:
    """A function as they were before tools."""
    function = {"name": "classify", "parameters": schema or SCHEMA}
    return chat(functions=[function], **{"function_call": {"name": "classify"}} | more)


def decisions_many(labels: Any = LABELS, **more: Any) -> bytes:
    """Two questions about one input."""
    choices = [{"value": label} for label in labels]
    intent = {"type": "choice", "name": "intent", "instructions": "Which?", "choices": choices}
    urgent = {"type": "choice", "name": "urgent", "instructions": "Now?", "choices": [{"value": True}, {"value": "no"}]}
    return decisions(**{"questions": [intent, urgent]} | more)


def systemone_many(labels: Any = LABELS, **more: Any) -> bytes:
    """Two questions about one state."""
    intent = {"type": "choice", "instructions": "Which?", "criteria": dict.fromkeys(labels)}
    urgent = {"type": "choice", "instructions": "Now?", "criteria": {"yes": None, "no": None}}
    return systemone(**{"questions": {"intent": intent, "urgent": urgent}} | more)


def responses_json(schema: Any = None, **more: Any) -> bytes:
    form = {"type": "json_schema", "name": "label", "strict": True, "schema": schema or SCHEMA}
    return responses(text={"format": form}, **more)


def responses_tool(schema: Any = None, **more: Any) -> bytes:
    tool = {"type": "function", "name": "classify", "parameters": schema or SCHEMA, "strict": True}
    return responses(tools=[tool], tool_choice={"type": "function", "name": "classify"}, **more)


def messages_json(schema: Any = None, **more: Any) -> bytes:
    return messages(output_config={"format": {"type": "json_schema", "schema": schema or SCHEMA}}, **more)


def messages_tool(schema: Any = None, **more: Any) -> bytes:
    tool = {"name": "classify", "input_schema": schema or SCHEMA}
    return messages(tools=[tool], tool_choice={"type": "tool", "name": "classify"}, **more)


Maker = Callable[..., bytes]
STREAMED: dict[Wire, tuple[Maker, Maker, Maker]] = {
    "openai.chat": (chat, chat_json, chat_tool),
    "openai.responses": (responses, responses_json, responses_tool),
    "anthropic.messages": (messages, messages_json, messages_tool),
}
PLAIN: dict[Wire, Maker] = {"decisions": decisions, "systemone": systemone}
ALL: list[tuple[Wire, Maker]] = [(wire, make) for wire, makes in STREAMED.items() for make in makes]
ALL += PLAIN.items()


def chat_reply(content: str | None, **choice: Any) -> bytes:
    """As OpenAI writes it: pretty, with a fingerprint."""
    message: dict[str, Any] = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
    return json.dumps(
        {
            "id": "chatcmpl-B1",
            "object": "chat.completion",
            "created": 1_760_000_000,
            "model": "gpt-5-mini-2026-01-01",
            "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"} | choice],
            "usage": {"prompt_tokens": 20, "completion_tokens": 3, "total_tokens": 23},
            "service_tier": "default",
            "system_fingerprint": "fp_1",
        },
        indent=2,
    ).encode()
