"""Answers of LLM APIs with a label in them, in the JSON and the events that the vendors send."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tests.gateway import choosing

CREATED = 1_790_000_000


def text_of(path: str, asked: Mapping[str, Any]) -> str:
    """The last user message of a request, its text parts joined."""
    if path.endswith("/systemone"):
        return choosing.text_of(asked)
    given = asked.get("input" if path.endswith(("/responses", "/decisions")) else "messages", "")
    if isinstance(given, str):
        return given
    users = [item for item in given if isinstance(item, dict) and item.get("role") == "user"]
    content = users[-1].get("content", "") if users else ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def schema_of(path: str, asked: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The JSON schema that the text of the answer must follow."""
    if path.endswith("/responses"):
        found = (asked.get("text") or {}).get("format") or {}
        return found.get("schema")
    if path.endswith("/messages"):
        found = (asked.get("output_config") or {}).get("format") or asked.get("output_format") or {}
        return found.get("schema")
    found = asked.get("response_format") or {}
    return (found.get("json_schema") or {}).get("schema")


def tool_of(asked: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]] | None:
    """Name and schema of the first tool; None where there is none or the request forbids it."""
    tools = asked.get("tools") or []
    if not tools or asked.get("tool_choice") == "none":
        return None
    tool = tools[0].get("function", tools[0])
    return tool["name"], tool.get("parameters") or tool.get("input_schema") or {}


def filled(schema: Mapping[str, Any], label: str) -> dict[str, Any]:
    """An object of a schema: the label in the enum that has it (or the first string), something in the others."""
    named: Mapping[str, Any] = schema.get("$defs", {})
    properties: Mapping[str, Any] = {
        key: named.get(str(one.get("$ref", "")).rpartition("/")[2], one)
        for key, one in schema.get("properties", {}).items()
    }
    home = [key for key, one in properties.items() if label in one.get("enum", ())]
    home = home or [key for key, one in properties.items() if one.get("type") == "string"][:1]
    return {key: label if key in home[:1] else _something(one) for key, one in properties.items()}


def _something(one: Mapping[str, Any]) -> object:
    if one.get("enum"):
        return one["enum"][0]
    return {"number": 0.9, "integer": 1, "boolean": True, "array": [], "object": {}}.get(one.get("type", ""), "because")


def answer(path: str, asked: Mapping[str, Any], label: str, n: int) -> dict[str, Any]:
    """The whole answer number n to a request: a text, an object of its schema, or a call of its tool."""
    if path.endswith("/decisions"):
        return choosing.decision(asked, label, 12)
    if path.endswith("/systemone"):
        return choosing.systemone(asked, label, 12)
    tool, schema = tool_of(asked), schema_of(path, asked)
    text = label if schema is None else json.dumps(filled(schema, label))
    call = None if tool is None else (tool[0], filled(tool[1], label))
    model, n_in, n_out = str(asked.get("model", "stand-in")), 12 + len(text_of(path, asked)) // 4, 2 + len(text) // 4
    if path.endswith("/responses"):
        return _response(model, text, call, n, n_in, n_out)
    if path.endswith("/messages"):
        return _message(model, text, call, n, n_in, n_out)
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None, "annotations": []}
    if call is not None:
        function = {"name": call[0], "arguments": json.dumps(call[1])}
        message |= {"content": None, "tool_calls": [{"id": f"call_{n:08d}", "type": "function", "function": function}]}
    finish = "stop" if call is None else "tool_calls"
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {
        "id": f"chatcmpl-{n:08d}",
        "object": "chat.completion",
        "created": CREATED,
        "model": model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": n_in,
            "completion_tokens": n_out,
            "total_tokens": n_in + n_out,
            "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
            "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
        },
        "service_tier": "default",
        "system_fingerprint": "fp_standin",
    }


def _response(
    model: str, text: str, call: tuple[str, dict[str, Any]] | None, n: int, n_in: int, n_out: int
) -> dict[str, Any]:
    if call is None:
        part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
        item: dict[str, Any] = {"id": f"msg_{n:08d}", "type": "message", "status": "completed", "role": "assistant"}
        item["content"] = [part]
    else:
        item = {"id": f"fc_{n:08d}", "type": "function_call", "status": "completed", "call_id": f"call_{n:08d}"}
        item |= {"name": call[0], "arguments": json.dumps(call[1])}
    return {
        "id": f"resp_{n:08d}",
        "object": "response",
        "created_at": CREATED,
        "status": "completed",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "max_output_tokens": None,
        "model": model,
        "output": [item],
        "parallel_tool_calls": True,
        "previous_response_id": None,
        "temperature": 1.0,
        "text": {"format": {"type": "text"}},
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": {
            "input_tokens": n_in,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": n_out,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": n_in + n_out,
        },
        "metadata": {},
    }


def _message(
    model: str, text: str, call: tuple[str, dict[str, Any]] | None, n: int, n_in: int, n_out: int
) -> dict[str, Any]:
    block: dict[str, Any] = {"type": "text", "text": text}
    if call is not None:
        block = {"type": "tool_use", "id": f"toolu_{n:08d}", "name": call[0], "input": call[1]}
    return {
        "id": f"msg_{n:08d}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": [block],
        "stop_reason": "end_turn" if call is None else "tool_use",
        "stop_sequence": None,
        "usage": {
            "input_tokens": n_in,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": n_out,
        },
    }


def events(path: str, asked: Mapping[str, Any], whole: Mapping[str, Any]) -> list[bytes]:
    """The same answer as server-sent events, one item an event."""
    if path.endswith("/responses"):
        return _response_events(whole)
    if path.endswith("/messages"):
        return _message_events(whole)
    base = {key: whole[key] for key in ("id", "created", "model", "service_tier", "system_fingerprint")}
    base = {"id": base.pop("id"), "object": "chat.completion.chunk"} | base
    message, finish = whole["choices"][0]["message"], whole["choices"][0]["finish_reason"]
    if message["content"] is None:
        call = message["tool_calls"][0]
        arguments = call["function"]["arguments"]
        start = {"index": 0} | call | {"function": {"name": call["function"]["name"], "arguments": ""}}
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None, "tool_calls": [start], "refusal": None}]
        deltas += [{"tool_calls": [{"index": 0, "function": {"arguments": one}}]} for one in _pieces(arguments)]
    else:
        deltas = [{"role": "assistant", "content": "", "refusal": None}]
        deltas += [{"content": one} for one in _pieces(message["content"])]
    choices = [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None} for delta in deltas]
    choices.append({"index": 0, "delta": {}, "logprobs": None, "finish_reason": finish})
    counted = bool((asked.get("stream_options") or {}).get("include_usage"))
    out = [base | {"choices": [choice]} | ({"usage": None} if counted else {}) for choice in choices]
    if counted:
        out.append(base | {"choices": [], "usage": whole["usage"]})
    return [b"data: " + _compact(one) + b"\n\n" for one in out] + [b"data: [DONE]\n\n"]


def _response_events(whole: Mapping[str, Any]) -> list[bytes]:
    item = whole["output"][0]
    at: dict[str, Any] = {"item_id": item["id"], "output_index": 0}
    begun = dict(whole) | {"status": "in_progress", "output": [], "usage": None}
    out: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.in_progress", "response": begun},
    ]
    empty: dict[str, Any] = {"content": []} if item["type"] == "message" else {"arguments": ""}
    out.append(
        {"type": "response.output_item.added", "output_index": 0, "item": item | {"status": "in_progress"} | empty}
    )
    if item["type"] == "message":
        part, inside = item["content"][0], at | {"content_index": 0}
        out.append({"type": "response.content_part.added", **inside, "part": part | {"text": ""}})
        pieces = _pieces(part["text"])
        out += [{"type": "response.output_text.delta", **inside, "delta": one, "logprobs": []} for one in pieces]
        out.append({"type": "response.output_text.done", **inside, "text": part["text"], "logprobs": []})
        out.append({"type": "response.content_part.done", **inside, "part": part})
    else:
        pieces = _pieces(item["arguments"])
        out += [{"type": "response.function_call_arguments.delta", **at, "delta": one} for one in pieces]
        done = {"name": item["name"], "arguments": item["arguments"]}
        out.append({"type": "response.function_call_arguments.done", **at, **done})
    out.append({"type": "response.output_item.done", "output_index": 0, "item": item})
    out.append({"type": "response.completed", "response": whole})
    return [_event(one | {"sequence_number": i}) for i, one in enumerate(out)]


def _message_events(whole: Mapping[str, Any]) -> list[bytes]:
    block = whole["content"][0]
    begun = dict(whole) | {"content": [], "stop_reason": None, "usage": whole["usage"] | {"output_tokens": 1}}
    empty: dict[str, Any]
    if block["type"] == "text":
        empty, deltas = {"text": ""}, [{"type": "text_delta", "text": one} for one in _pieces(block["text"])]
    else:
        empty = {"input": {}}
        deltas = [{"type": "input_json_delta", "partial_json": one} for one in _pieces(json.dumps(block["input"]))]
    stop = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    out: list[dict[str, Any]] = [
        {"type": "message_start", "message": begun},
        {"type": "content_block_start", "index": 0, "content_block": block | empty},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": delta} for delta in deltas),
        {"type": "content_block_stop", "index": 0},
        {"type": "message_delta", "delta": stop, "usage": {"output_tokens": whole["usage"]["output_tokens"]}},
        {"type": "message_stop"},
    ]
    return [_event(one) for one in out]


def error(path: str, status: int) -> dict[str, Any]:
    """An error of the API."""
    kind = {429: "rate_limit_error", 529: "overloaded_error"}.get(status, "api_error")
    if path.endswith("/messages"):
        return {"type": "error", "error": {"type": kind, "message": "stand-in"}, "request_id": "req_standin"}
    return {"error": {"message": "stand-in", "type": kind, "param": None, "code": None}}


def _pieces(text: str) -> list[str]:
    return [text[i : i + 4] for i in range(0, len(text), 4)]


def _event(data: Mapping[str, Any]) -> bytes:
    return b"event: " + str(data["type"]).encode() + b"\ndata: " + _compact(data) + b"\n\n"


def _compact(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, separators=(",", ":"), ensure_ascii=False).encode()
