"""Anthropic's messages: ``/v1/messages``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Slot, Wire
from tracer.gateway.codecs.base import Codec, Written
from tracer.gateway.codecs.bodies import (
    canonical,
    count,
    dumps,
    encode,
    flag,
    known_only,
    loads,
    mapping,
    metadata_of,
    objects,
    read_object,
    shaped,
    string,
    strings,
    text_of,
    whole,
)
from tracer.gateway.codecs.openai_slots import slot_of_format, slot_of_tools
from tracer.gateway.codecs.schemas import options_of
from tracer.gateway.codecs.sse import Event, encoded
from tracer.gateway.codecs.turns import Ids, anthropic_turn, parted, thought
from tracer.types import Usage

_FIELDS = """max_tokens messages model cache_control inference_geo metadata output_config output_format
    service_tier speed stop_sequences stream system temperature thinking tool_choice tools top_k top_p
    user_profile_id workspace_id"""
_KNOWN = frozenset(_FIELDS.split())
_COMPLETE = ("end_turn", "stop_sequence", "tool_use")
_WORDS = {"any": "required", "auto": "auto", "none": "none"}
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}


class AnthropicMessages(Codec):
    """The messages API."""

    wire: ClassVar[Wire] = "anthropic.messages"

    def read(self, body: bytes) -> Call:
        request = read_object(body)
        why: list[str] = []
        model, turns = string(request, "model"), objects(request, "messages")
        limit = count(request, "max_tokens")
        if not model or not turns or limit is None:
            raise CodecError("a message needs a model, max_tokens and messages")
        ids: Ids = {}
        system, messages = parted(anthropic_turn(turn, ids, why) for turn in turns)
        system = (text_of(request.get("system"), ("text",), why), *system)
        if turns[-1].get("role") == "assistant":
            why.append("a prefilled answer")
        if mapping(request, "thinking").get("type", "disabled") not in ("disabled", "adaptive"):
            why.append("thinking")
        if limit == 0:
            why.append("no tokens to answer in")
        known_only(request, _KNOWN, why)
        slot = _slot(request, why)
        config = {"format": _format(request)} if _format(request) else {}
        schema = config | {key: request[key] for key in ("tools", "tool_choice") if request.get(key) is not None}
        told = {key: value for key, value in mapping(request, "output_config").items() if key != "format"}
        schema |= thought(told, "output_config") | thought({"thinking": request.get("thinking")}, "thinking")
        return Call(
            wire=self.wire,
            model=model,
            stream=flag(request, "stream"),
            system="\n".join(filter(None, system)),
            messages=messages,
            options=options_of(slot),
            slot=slot,
            schema=canonical(schema) if schema else "",
            unanswerable="; ".join(dict.fromkeys(why)),
            metadata=metadata_of(request),
            stop=strings(request, "stop_sequences"),
            max_tokens=limit,
            include_usage=True,
        )

    def error(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        kind = type or _TYPES.get(status) or ("api_error" if status >= 500 else "invalid_request_error")
        return encode({"type": "error", "error": {"type": kind, "message": message}})

    def error_event(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        return encoded(self.error(status, message, type), "error")

    def _text(self, call: Call, reply: Mapping[str, Any]) -> str | None:
        content = reply.get("content")
        if reply.get("stop_reason") not in _COMPLETE or not isinstance(content, list):
            return None
        blocks = [block for block in content if isinstance(block, dict)]
        tools = [block for block in blocks if block.get("type") not in ("text", "thinking", "redacted_thinking")]
        if call.slot.kind != "tool":
            texts = [block["text"] for block in blocks if isinstance(block.get("text"), str)]
            return "".join(texts) if texts and not tools else None
        if len(tools) != 1 or tools[0].get("type") != "tool_use" or tools[0].get("name") != call.slot.tool:
            return None
        spelled = tools[0].get("partial_json")
        return spelled if isinstance(spelled, str) and spelled else _spelled(tools[0].get("input"))

    def _usage(self, reply: Mapping[str, Any]) -> Usage | None:
        usage = reply.get("usage")
        if not isinstance(usage, dict):
            return None
        cached = ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens")
        return Usage(sum(whole(usage.get(key)) for key in cached), whole(usage.get("output_tokens")))

    def _assembled(self, events: Iterable[Event]) -> dict[str, Any] | None:
        reply: dict[str, Any] = {}
        blocks: dict[int, dict[str, Any]] = {}
        for event in events:
            try:
                data = read_object(event.data)
            except CodecError:
                return None
            kind = data.get("type")
            if kind == "error":
                return None
            if kind == "message_start" and isinstance(data.get("message"), dict):
                reply = dict(data["message"])
            elif kind == "content_block_start" and isinstance(data.get("content_block"), dict):
                blocks[whole(data.get("index"))] = dict(data["content_block"])
            elif kind == "content_block_delta" and isinstance(data.get("delta"), dict):
                _add(blocks.setdefault(whole(data.get("index")), {}), data["delta"])
            elif kind == "message_delta" and isinstance(data.get("delta"), dict):
                usage = [part for part in (reply.get("usage"), data.get("usage")) if isinstance(part, dict)]
                merged = {key: value for part in usage for key, value in part.items() if value is not None}
                reply = reply | data["delta"] | ({"usage": merged} if usage else {})
        return reply | {"content": list(blocks.values())} if reply.get("stop_reason") is not None else None

    def _reply(self, call: Call, new: Written) -> dict[str, Any]:
        block = {"type": "text", "text": new.text}
        if call.slot.kind == "tool":
            block = _tool_use(call, new.id) | {"input": loads(new.text)}
        reply = _message(new.id, new.model, new.usage, new.prior) | {"content": [block]} | _end(call, new.prior)
        if new.form is not None:
            reply["usage"] = shaped(reply["usage"], new.form.get("usage"), ("input_tokens", "output_tokens"))
        return shaped(
            reply, new.form, ("id", "type", "role", "content", "model", "stop_reason", "stop_sequence", "usage")
        )

    def _events(self, call: Call, new: Written) -> list[bytes]:
        block: dict[str, Any] = {"type": "text", "text": ""}
        delta: dict[str, Any] = {"type": "text_delta", "text": new.text}
        if call.slot.kind == "tool":
            block, delta = _tool_use(call, new.id), {"type": "input_json_delta", "partial_json": new.text}
        message = _message(new.id, new.model, Usage(new.usage.input_tokens, 0), new.prior)
        data: tuple[dict[str, Any], ...] = (
            {"type": "message_start", "message": message},
            {"type": "content_block_start", "index": 0, "content_block": block},
            {"type": "ping"},
            {"type": "content_block_delta", "index": 0, "delta": delta},
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": _end(call, new.prior),
                "usage": {"output_tokens": new.usage.output_tokens},
            },
            {"type": "message_stop"},
        )
        return [encoded(encode(event), event["type"]) for event in data]


def _format(request: Mapping[str, Any]) -> dict[str, Any]:
    """The output format, by its name of today or by the earlier one."""
    return mapping(mapping(request, "output_config"), "format") or mapping(request, "output_format")


def _slot(request: Mapping[str, Any], why: list[str]) -> Slot:
    tools = [
        {"name": tool.get("name"), "parameters": tool.get("input_schema")}
        if tool.get("type") in (None, "custom")
        else None
        for tool in objects(request, "tools")
    ]
    wish = mapping(request, "tool_choice")
    kind = wish.get("type", "auto")
    choice: object = wish if kind == "tool" else _WORDS.get(kind, "unknown") if isinstance(kind, str) else "unknown"
    slot = slot_of_tools(tools, choice, why)
    form = _format(request)
    if slot is None:
        return slot_of_format(form, form.get("schema"), why)
    if form:
        why.append("an output format beside a tool")
    return slot


def _spelled(value: object) -> str | None:
    return dumps(value, separators=(", ", ": ")) if isinstance(value, dict) else None


def _add(block: dict[str, Any], delta: Mapping[str, Any]) -> None:
    for key in ("text", "partial_json"):
        if isinstance(delta.get(key), str):
            before = block.get(key)
            block[key] = (before if isinstance(before, str) else "") + delta[key]


def _tool_use(call: Call, id: str) -> dict[str, Any]:  # noqa: A002
    return {"type": "tool_use", "id": f"toolu_{id}", "name": call.slot.tool, "input": {}}


def _message(id: str, model: str, usage: Usage, prior: Mapping[str, Any] | None) -> dict[str, Any]:  # noqa: A002
    counts: dict[str, Any] = {
        "input_tokens": usage.input_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": usage.output_tokens,
    }
    before = (prior or {}).get("usage")
    if isinstance(before, dict) and isinstance(before.get("service_tier"), str):
        counts["service_tier"] = before["service_tier"]
    return {
        "model": model,
        "id": f"msg_{id}",
        "type": "message",
        "role": "assistant",
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "usage": counts,
    }


def _end(call: Call, prior: Mapping[str, Any] | None) -> dict[str, Any]:
    """Why the answer ends; a teacher that always ends at a stop sequence of the request is imitated."""
    if call.slot.kind == "tool":
        return {"stop_reason": "tool_use", "stop_sequence": None}
    before = prior or {}
    if before.get("stop_reason") == "stop_sequence" and before.get("stop_sequence") in call.stop:
        return {"stop_reason": "stop_sequence", "stop_sequence": before["stop_sequence"]}
    return {"stop_reason": "end_turn", "stop_sequence": None}
