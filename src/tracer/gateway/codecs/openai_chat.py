"""OpenAI's chat completions: ``/v1/chat/completions``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from tracer.errors import CodecError
from tracer.gateway.calls import Call, Slot, Wire
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
    strings,
    tokens,
    whole,
)
from tracer.gateway.codecs.openai_errors import error_body, error_data
from tracer.gateway.codecs.openai_slots import slot_of_format, slot_of_tools
from tracer.gateway.codecs.schemas import options_of
from tracer.gateway.codecs.sse import Event, encoded
from tracer.gateway.codecs.turns import Ids, chat_turn, parted, thought
from tracer.types import Usage

_FIELDS = """messages model frequency_penalty logit_bias logprobs max_completion_tokens max_tokens metadata n
    parallel_tool_calls prediction presence_penalty prompt_cache_key prompt_cache_options prompt_cache_retention
    reasoning_effort response_format safety_identifier seed service_tier stop store stream stream_options temperature
    tool_choice tools top_logprobs top_p user verbosity modalities top_k min_p repetition_penalty guided_choice
    functions function_call"""
_KNOWN = frozenset(_FIELDS.split())
_SHAPING = (
    "response_format",
    "tools",
    "tool_choice",
    "functions",
    "function_call",
    "guided_choice",
    "logit_bias",
    "verbosity",
)
_COMPLETE = ("stop", "tool_calls", "function_call")


class OpenAIChat(Codec):
    """Chat completions; also what vLLM, LiteLLM and others speak."""

    wire: ClassVar[Wire] = "openai.chat"

    def read(self, body: bytes) -> Call:
        request = read_object(body)
        why: list[str] = []
        model = string(request, "model")
        turns = objects(request, "messages")
        if not model or not turns:
            raise CodecError("a chat completion needs a model and messages")
        ids: Ids = {}
        system, messages = parted(chat_turn(turn, ids, why) for turn in turns)
        if turns[-1].get("role") == "assistant":
            why.append("a prefilled answer")
        why += _asked_for_more(request)
        known_only(request, _KNOWN, why)
        slot, options = self._slot(request, why)
        schema = {key: request[key] for key in _SHAPING if request.get(key) is not None}
        schema |= thought({"effort": request.get("reasoning_effort")}, "reasoning")
        limits = [n for key in ("max_completion_tokens", "max_tokens") if (n := count(request, key)) is not None]
        return Call(
            wire=self.wire,
            model=model,
            stream=flag(request, "stream"),
            system="\n".join(system),
            messages=messages,
            options=options,
            slot=slot,
            schema=canonical(schema) if schema else "",
            unanswerable="; ".join(dict.fromkeys(why)),
            metadata=metadata_of(request),
            stop=strings(request, "stop"),
            max_tokens=min(limits) if limits else None,
            include_usage=flag(mapping(request, "stream_options"), "include_usage"),
            echo={
                "named": isinstance(request.get("tool_choice") or request.get("function_call"), dict),
                "legacy": bool(request.get("functions")),
            },
        )

    def _slot(self, request: Mapping[str, Any], why: list[str]) -> tuple[Slot, tuple[str, ...] | None]:
        tools = [
            mapping(tool, "function") if tool.get("type") == "function" else None for tool in objects(request, "tools")
        ]
        choice = request.get("tool_choice")
        if isinstance(choice, dict):
            choice = mapping(choice, "function") if choice.get("type") == "function" else {}
        if functions := objects(request, "functions"):
            if tools:
                why.append("functions beside tools")
            tools, choice = list(functions), request.get("function_call")
        form = mapping(request, "response_format")
        slot = slot_of_tools(tools, choice, why)
        if slot is not None:
            if form.get("type", "text") != "text":
                why.append("a response format beside a tool")
            return slot, options_of(slot)
        slot = slot_of_format(form, mapping(form, "json_schema").get("schema"), why)
        guided = strings(request, "guided_choice")
        return slot, options_of(slot) if slot.kind == "json" else guided or None

    def error(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        return error_body(status, message, type)

    def error_event(self, status: int, message: str, type: str | None = None) -> bytes:  # noqa: A002
        return error_data(status, message, type)

    def _text(self, call: Call, reply: Mapping[str, Any]) -> str | None:
        choice = _choice(reply)
        message = choice.get("message")
        if not isinstance(message, dict) or choice.get("finish_reason") not in _COMPLETE or message.get("refusal"):
            return None
        tools, content = message.get("tool_calls"), message.get("content")
        if call.slot.kind != "tool":
            return content if isinstance(content, str) and not tools and not message.get("function_call") else None
        if call.echo.get("legacy"):
            function = message.get("function_call")
        elif not isinstance(tools, list) or len(tools) != 1 or not isinstance(tools[0], dict):
            return None
        else:
            function = tools[0].get("function")
        if not isinstance(function, dict) or function.get("name") != call.slot.tool:
            return None
        arguments = function.get("arguments")
        return arguments if isinstance(arguments, str) else None

    def _usage(self, reply: Mapping[str, Any]) -> Usage | None:
        return tokens(reply, "prompt_tokens", "completion_tokens")

    def _assembled(self, events: Iterable[Event]) -> dict[str, Any] | None:
        texts: list[str] = []
        tools: dict[int, dict[str, str]] = {}
        functions: dict[int, dict[str, str]] = {}
        found: dict[str, Any] = {}
        finish, refusal, many = None, False, False
        for event in events:
            if event.data.strip() == "[DONE]":
                break
            try:
                chunk = read_object(event.data)
            except CodecError:
                return None
            if chunk.get("error") is not None:
                return None
            found |= {key: chunk[key] for key in ("usage", "service_tier") if chunk.get(key) is not None}
            choices = chunk.get("choices")
            for choice in choices if isinstance(choices, list) else ():
                delta = choice.get("delta") if isinstance(choice, dict) else None
                if not isinstance(delta, dict):
                    continue
                many = many or choice.get("index", 0) != 0
                finish = choice.get("finish_reason") or finish
                refusal = refusal or bool(delta.get("refusal"))
                if isinstance(delta.get("content"), str):
                    texts.append(delta["content"])
                _add_tools(tools, delta.get("tool_calls"))
                _add_tools(functions, [{"function": delta.get("function_call")}])
        if finish is None or many:
            return None
        message: dict[str, Any] = {
            "content": "".join(texts) if texts or not (tools or functions) else None,
            "refusal": refusal,
        }
        if tools:
            message["tool_calls"] = [{"function": tool} for tool in tools.values()]
        if functions:
            message["function_call"] = functions[0]
        return found | {"choices": [{"message": message, "finish_reason": finish}]}

    def _reply(self, call: Call, new: Written) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": new.text, "refusal": None, "annotations": []}
        if call.slot.kind == "tool":
            message = message | {"content": None} | _calling(call, new.text, new.id)
        before = _choice(new.form or {})
        always = ("role", "content", *message.keys() & {"tool_calls", "function_call"})
        choice = {
            "index": 0,
            "message": shaped(message, before.get("message"), always),
            "logprobs": None,
            "finish_reason": _finish(call, new.prior),
        }
        reply = {
            "id": f"chatcmpl-{new.id}",
            "object": "chat.completion",
            "created": new.created,
            "model": new.model,
            "choices": [shaped(choice, before or None, ("index", "message", "finish_reason"))],
            "usage": shaped(
                _usage_of(new.usage), (new.form or {}).get("usage"), ("prompt_tokens", "completion_tokens")
            ),
        } | _tier(new.prior)
        return _unsigned(shaped(reply, new.form, ("id", "object", "created", "model", "choices", "usage")))

    def _events(self, call: Call, new: Written) -> list[bytes]:
        head = {
            "id": f"chatcmpl-{new.id}",
            "object": "chat.completion.chunk",
            "created": new.created,
            "model": new.model,
        }
        head = head | _tier(new.prior)
        extra: dict[str, Any] = {"usage": None} if call.include_usage else {}

        def chunk(delta: dict[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return encoded(encode(head | {"choices": [choice]} | extra))

        if call.echo.get("legacy") and call.slot.kind == "tool":
            events = [
                chunk({"role": "assistant", "content": None, **_calling(call, "", new.id), "refusal": None}),
                chunk({"function_call": {"arguments": new.text}}),
            ]
        elif call.slot.kind == "tool":
            first = {"index": 0} | _tool_call(call, "", new.id)
            events = [
                chunk({"role": "assistant", "content": None, "tool_calls": [first], "refusal": None}),
                chunk({"tool_calls": [{"index": 0, "function": {"arguments": new.text}}]}),
            ]
        else:
            events = [chunk({"role": "assistant", "content": "", "refusal": None}), chunk({"content": new.text})]
        events.append(chunk({}, _finish(call, new.prior)))
        if call.include_usage:
            events.append(encoded(encode(head | {"choices": [], "usage": _usage_of(new.usage)})))
        return [*events, encoded(b"[DONE]")]


def _asked_for_more(request: Mapping[str, Any]) -> list[str]:
    """What is asked for that a surrogate does not have."""
    why = []
    if request.get("n") not in (None, 1):
        why.append("n > 1")
    if request.get("logprobs") or request.get("top_logprobs"):
        why.append("logprobs")
    if request.get("modalities") not in (None, ["text"]):
        why.append("another modality than text")
    if request.get("store"):
        why.append("store")
    if 0 in (request.get("max_tokens"), request.get("max_completion_tokens")):
        why.append("no tokens to answer in")
    return why


def _choice(reply: Mapping[str, Any]) -> dict[str, Any]:
    choices = reply.get("choices")
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        return {}
    return choices[0]


def _finish(call: Call, prior: Mapping[str, Any] | None) -> str:
    """A forced function ends with ``stop``, a chosen one with ``tool_calls``, unless the teacher does otherwise."""
    if call.slot.kind != "tool":
        return "stop"
    before = _choice(prior or {}).get("finish_reason")
    chosen = "function_call" if call.echo.get("legacy") else "tool_calls"
    return before if before in ("stop", chosen) else "stop" if call.echo.get("named") else chosen


def _calling(call: Call, arguments: str, id: str) -> dict[str, Any]:  # noqa: A002
    """The call in a message, by its field of today or by the earlier one."""
    if call.echo.get("legacy"):
        return {"function_call": {"name": call.slot.tool, "arguments": arguments}}
    return {"tool_calls": [_tool_call(call, arguments, id)]}


def _tool_call(call: Call, arguments: str, id: str) -> dict[str, Any]:  # noqa: A002
    return {"id": f"call_{id}", "type": "function", "function": {"name": call.slot.tool, "arguments": arguments}}


def _add_tools(tools: dict[int, dict[str, str]], deltas: object) -> None:
    for delta in deltas if isinstance(deltas, list) else ():
        function = delta.get("function") if isinstance(delta, dict) else None
        if not isinstance(function, dict):
            continue
        tool = tools.setdefault(whole(delta.get("index")), {"name": "", "arguments": ""})
        for key in tool:
            if isinstance(function.get(key), str):
                tool[key] += function[key]


def _usage_of(usage: Usage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _tier(prior: Mapping[str, Any] | None) -> dict[str, Any]:
    tier = (prior or {}).get("service_tier")
    return {"service_tier": tier} if isinstance(tier, str) else {}


def _unsigned(reply: dict[str, Any]) -> dict[str, Any]:
    """Without the fingerprint of a system that did not answer."""
    return {key: value for key, value in reply.items() if key != "system_fingerprint"}
