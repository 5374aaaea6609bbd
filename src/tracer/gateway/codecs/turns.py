"""One turn of a conversation, as it counts: its text, and all else in it that a model reads.

What is not known here makes a call unanswerable. Calls of tools, their results and names are part of the prompt; ids
only tie a result to its call and differ each time, so they count by the order in which they come.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tracer.gateway.calls import Message
from tracer.gateway.codecs.bodies import canonical, nothing_more, string, text_of

Ids = dict[str, int]
"""The ids seen so far in a conversation, by number."""

_TOOLS = ("tool_calls", "function_call", "tool_call_id")
_CHAT = frozenset({"role", "content", "name", "refusal", "cache_control", *_TOOLS})
_ANTHROPIC = frozenset({"role", "content"})
_ITEM = frozenset({"type", "role", "content", "id", "status"})
_TOOL_USE = frozenset({"type", "id", "name", "input", "cache_control"})
_TOOL_RESULT = frozenset({"type", "tool_use_id", "content", "is_error", "cache_control"})
_CALL = frozenset({"type", "id", "status", "call_id", "name", "arguments"})
_OUTPUT = frozenset({"type", "id", "status", "call_id", "output"})
_UNREAD = ("cache_control", "type", "role", "content", "status")
"""Known, and either read elsewhere or nothing that a model reads."""


def chat_turn(turn: Mapping[str, Any], ids: Ids, why: list[str]) -> Message:
    """A message of a chat completion."""
    nothing_more(turn, _CHAT, why)
    more = {key: turn[key] for key in ("name", "function_call", "refusal") if turn.get(key)}
    if calls := turn.get("tool_calls"):
        listed = calls if isinstance(calls, list) else [calls]
        more["tool_calls"] = [_numbered(call, "id", ids) if isinstance(call, dict) else call for call in listed]
    return _message(turn, text_of(turn.get("content"), ("text",), why), more | _tied(turn, "tool_call_id", ids))


def anthropic_turn(turn: Mapping[str, Any], ids: Ids, why: list[str]) -> Message:
    """A message of Anthropic's, whose content may call tools and bring results."""
    nothing_more(turn, _ANTHROPIC, why)
    content, tools = turn.get("content"), []
    if isinstance(content, list):
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind == "tool_use":
                nothing_more(part, _TOOL_USE, why)
                tools.append(_numbered(_read(part), "id", ids) | {"type": kind})
            elif kind == "tool_result":
                nothing_more(part, _TOOL_RESULT, why)
                said = text_of(part.get("content"), ("text",), why)
                tools.append(_numbered(_read(part), "tool_use_id", ids) | {"type": kind, "content": said})
        content = [part for part in content if not _is_tool(part)]
    return _message(turn, text_of(content, ("text",), why), {"tools": tools} if tools else {})


def responses_item(item: Mapping[str, Any], ids: Ids, why: list[str]) -> Message | None:
    """An input item of a response; None for one that nothing is known of."""
    kind = item.get("type", "message")
    if kind not in ("function_call", "function_call_output"):
        return item_turn(item, ("input_text", "output_text"), why)
    nothing_more(item, _CALL if kind == "function_call" else _OUTPUT, why)
    more = {key: item[key] for key in ("type", "name", "arguments") if key in item} | _tied(item, "call_id", ids)
    text = text_of(item.get("output"), ("input_text",), why)
    return Message("assistant" if kind == "function_call" else "tool", text, canonical(more))


def item_turn(item: Mapping[str, Any], parts: Collection[str], why: list[str]) -> Message | None:
    """An input item that is a message with ``parts`` of these types; None for any other."""
    kind = item.get("type", "message")
    if kind != "message":
        why.append(f"an input item of type {kind!r}")
        return None
    nothing_more(item, _ITEM, why)
    return _message(item, text_of(item.get("content"), parts, why), {})


def parted(turns: Iterable[Message]) -> tuple[tuple[str, ...], tuple[Message, ...]]:
    """The texts of the instructions that stand before all else, and the turns after them."""
    system: list[str] = []
    messages: list[Message] = []
    for turn in turns:
        instructs = turn.role in ("system", "developer")
        if instructs and not messages and not turn.more:
            system.append(turn.text)
        else:
            messages.append(Message("system", turn.text, turn.more) if instructs else turn)
    return tuple(system), tuple(messages)


def thought(told: Mapping[str, Any], name: str) -> dict[str, Any]:
    """How much the model is to think, as part of what shapes its answer: ``effort``, and all else under ``name``."""
    more = {key: value for key, value in told.items() if key != "effort" and value is not None}
    effort = told.get("effort")
    return ({} if effort is None else {"effort": effort}) | ({name: more} if more else {})


def _message(turn: Mapping[str, Any], text: str, more: Mapping[str, Any]) -> Message:
    return Message(string(turn, "role"), text, canonical(more) if more else "")


def _is_tool(part: object) -> bool:
    return isinstance(part, dict) and part.get("type") in ("tool_use", "tool_result")


def _read(part: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key not in _UNREAD and value is not None}


def _numbered(value: Mapping[str, Any], key: str, ids: Ids) -> dict[str, Any]:
    return {**value, **_tied(value, key, ids)}


def _tied(value: Mapping[str, Any], key: str, ids: Ids) -> dict[str, Any]:
    """The number of an id under its key; nothing where there is none."""
    found = value.get(key)
    return {key: ids.setdefault(found, len(ids))} if isinstance(found, str) else {}
