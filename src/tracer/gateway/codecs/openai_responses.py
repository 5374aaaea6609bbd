"""OpenAI's responses: ``/v1/responses``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Message, Slot, Wire
from tracer.gateway.codecs.base import Codec, Written
from tracer.gateway.codecs.bodies import (
    canonical,
    count,
    encode,
    flag,
    known_only,
    mapping,
    metadata_of,
    objects,
    read_object,
    shaped,
    string,
    tokens,
)
from tracer.gateway.codecs.openai_errors import error_body
from tracer.gateway.codecs.openai_slots import slot_of_format, slot_of_tools
from tracer.gateway.codecs.schemas import options_of
from tracer.gateway.codecs.sse import Event, encoded
from tracer.gateway.codecs.turns import Ids, parted, responses_item, thought
from tracer.types import Usage

_FIELDS = """background include input instructions max_output_tokens max_tool_calls metadata model parallel_tool_calls
    prompt_cache_key prompt_cache_options prompt_cache_retention reasoning safety_identifier service_tier store stream
    stream_options temperature text tool_choice tools top_logprobs top_p truncation user"""
_KNOWN = frozenset(_FIELDS.split())
_ECHOED: dict[str, Any] = {
    "instructions": None,
    "max_output_tokens": None,
    "max_tool_calls": None,
    "parallel_tool_calls": True,
    "prompt_cache_key": None,
    "reasoning": {"effort": None, "summary": None},
    "safety_identifier": None,
    "store": False,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [],
    "top_p": 1.0,
    "truncation": "disabled",
    "user": None,
    "metadata": {},
}
_ALWAYS = ("id", "object", "created_at", "status", "model", "output", "parallel_tool_calls", "tool_choice", "tools")
_FINAL = ("response.completed", "response.incomplete", "response.failed")
_DEFAULTS = ("parallel_tool_calls", "reasoning", "store", "temperature", "text", "tool_choice", "top_p", "truncation")
"""Echoed fields whose defaults are the server's to say."""


class OpenAIResponses(Codec):
    """The responses API, without what the server would have to remember."""

    wire: ClassVar[Wire] = "openai.responses"

    def read(self, body: bytes) -> Call:
        request = read_object(body)
        why: list[str] = []
        model = string(request, "model")
        if not model:
            raise CodecError("a response needs a model")
        instructions = string(request, "instructions")
        system: tuple[str, ...] = ()
        if isinstance(request.get("input"), str):
            messages: tuple[Message, ...] = (Message("user", request["input"]),)
        else:
            items, ids = objects(request, "input"), Ids()
            turns = [responses_item(item, ids, why) for item in items]
            system, messages = parted(turn for turn in turns if turn is not None)
            if not items or (messages and messages[-1].role == "assistant"):
                why.append("a prefilled answer, or no input")
        why += _asked_for_more(request)
        known_only(request, _KNOWN, why)
        slot, options = _slot(request, why)
        schema = {key: request[key] for key in ("text", "tools", "tool_choice") if request.get(key) is not None}
        schema |= thought(mapping(request, "reasoning"), "reasoning")
        return Call(
            wire=self.wire,
            model=model,
            stream=flag(request, "stream"),
            system="\n".join((instructions, *system) if instructions else system),
            messages=messages,
            options=options,
            slot=slot,
            schema=canonical(schema) if schema else "",
            unanswerable="; ".join(dict.fromkeys(why)),
            metadata=metadata_of(request),
            max_tokens=count(request, "max_output_tokens"),
            include_usage=True,
            stored=request.get("store") is None,
            echo={key: request[key] for key in _ECHOED if request.get(key) is not None},
        )

    def error(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        return error_body(status, message, type)

    def error_event(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        code = type or ("server_error" if status >= 500 else "invalid_request_error")
        data = {"type": "error", "code": code, "message": message, "param": None, "sequence_number": 0}
        return encoded(encode(data), "error")

    def _text(self, call: Call, reply: Mapping[str, Any]) -> str | None:
        output = reply.get("output")
        if reply.get("status") != "completed" or not isinstance(output, list):
            return None
        items = [item for item in output if isinstance(item, dict) and item.get("type") != "reasoning"]
        calls = [item for item in items if item.get("type") != "message"]
        if call.slot.kind == "tool":
            if len(calls) != 1 or calls[0].get("type") != "function_call" or calls[0].get("name") != call.slot.tool:
                return None
            arguments = calls[0].get("arguments")
            return arguments if isinstance(arguments, str) else None
        texts = []
        for item in items:
            parts = item.get("content")
            for part in parts if isinstance(parts, list) else ():
                if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                    return None
                texts.append(part["text"])
        return "".join(texts) if texts and not calls else None

    def _usage(self, reply: Mapping[str, Any]) -> Usage | None:
        return tokens(reply, "input_tokens", "output_tokens")

    def _assembled(self, events: Iterable[Event]) -> dict[str, Any] | None:
        for event in events:
            if event.data.strip() == "[DONE]":
                break
            try:
                data = read_object(event.data)
            except CodecError:
                return None
            if data.get("type") in _FINAL:
                response = data.get("response")
                return response if isinstance(response, dict) else None
        return None

    def _reply(self, call: Call, new: Written) -> dict[str, Any]:
        # A stream ends with the same object, so its keys are imitated too.
        reply = _response(call, new.id, new.created, new.model, new.prior) | {
            "status": "completed",
            "completed_at": new.created,
            "output": [_item(call, new.text, new.id)],
            "usage": _usage_of(new.usage),
        }
        return shaped(reply, new.prior, (*_ALWAYS, "usage"))

    def _events(self, call: Call, new: Written) -> list[bytes]:
        begun = shaped(_response(call, new.id, new.created, new.model, new.prior), new.prior, _ALWAYS)
        final = self._reply(call, new)
        item = _item(call, new.text, new.id)
        place = {"item_id": item["id"], "output_index": 0}
        events: list[tuple[str, dict[str, Any]]] = [
            ("response.created", {"response": begun}),
            ("response.in_progress", {"response": begun}),
        ]
        if call.slot.kind == "tool":
            events += [
                ("response.output_item.added", _added(item, {"arguments": ""})),
                ("response.function_call_arguments.delta", place | {"delta": new.text}),
                ("response.function_call_arguments.done", place | {"arguments": new.text, "name": item["name"]}),
            ]
        else:
            part, within = item["content"][0], place | {"content_index": 0}
            events += [
                ("response.output_item.added", _added(item, {"content": []})),
                ("response.content_part.added", within | {"part": part | {"text": ""}}),
                ("response.output_text.delta", within | {"delta": new.text, "logprobs": []}),
                ("response.output_text.done", within | {"text": new.text, "logprobs": []}),
                ("response.content_part.done", within | {"part": part}),
            ]
        events.append(("response.output_item.done", {"output_index": 0, "item": item}))
        events.append(("response.completed", {"response": final}))
        return [
            encoded(encode({"type": name, "sequence_number": i} | data), name) for i, (name, data) in enumerate(events)
        ]


def _slot(request: Mapping[str, Any], why: list[str]) -> tuple[Slot, tuple[str, ...] | None]:
    tools = [tool if tool.get("type") == "function" else None for tool in objects(request, "tools")]
    choice = request.get("tool_choice")
    if isinstance(choice, dict) and choice.get("type") != "function":
        choice = {}
    form = mapping(mapping(request, "text"), "format")
    slot = slot_of_tools(tools, choice, why)
    if slot is None:
        slot = slot_of_format(form, form.get("schema"), why)
    elif form.get("type", "text") != "text":
        why.append("a response format beside a tool")
    return slot, options_of(slot)


def _asked_for_more(request: Mapping[str, Any]) -> list[str]:
    """What is asked for that a surrogate does not have, or does not keep."""
    why = [key for key in ("background", "store", "include", "top_logprobs") if request.get(key)]
    reasoning = mapping(request, "reasoning")
    if any(reasoning.get(key) is not None for key in ("summary", "generate_summary")):
        why.append("a summary of reasoning")
    if request.get("max_output_tokens") == 0:
        why.append("no tokens to answer in")
    return why


def _response(
    call: Call,
    id: str,  # noqa: A002
    created: int,
    model: str,
    prior: Mapping[str, Any] | None,
) -> dict[str, Any]:
    before = prior or {}
    tier = before.get("service_tier")
    return {
        "id": f"resp_{id}",
        "object": "response",
        "created_at": created,
        "status": "in_progress",
        "background": False,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        "previous_response_id": None,
        "service_tier": tier if isinstance(tier, str) else "default",
        "usage": None,
        **_ECHOED,
        **{key: before[key] for key in _DEFAULTS if key in before},
        **call.echo,
    }


def _item(call: Call, text: str, id: str) -> dict[str, Any]:  # noqa: A002
    if call.slot.kind == "tool":
        head = {"id": f"fc_{id}", "type": "function_call", "status": "completed"}
        return head | {"arguments": text, "call_id": f"call_{id}", "name": call.slot.tool}
    part = {"type": "output_text", "annotations": [], "logprobs": [], "text": text}
    return {"id": f"msg_{id}", "type": "message", "status": "completed", "content": [part], "role": "assistant"}


def _added(item: Mapping[str, Any], empty: Mapping[str, Any]) -> dict[str, Any]:
    return {"output_index": 0, "item": {**item, "status": "in_progress", **empty}}


def _usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "input_tokens": usage.input_tokens,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": usage.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage.input_tokens + usage.output_tokens,
    }
