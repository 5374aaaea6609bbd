"""Where the label stands in an answer of OpenAI's, by response format and tools."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tracer.errors import CodecError
from tracer.gateway.calls import Slot
from tracer.gateway.codecs.schemas import slot_of_schema


def slot_of_format(form: Mapping[str, Any], schema: object, why: list[str]) -> Slot:
    """The slot of a response format and the schema in it; what no label can fill is added to ``why``."""
    kind = form.get("type", "text")
    if kind == "text":
        return Slot("text")
    if kind == "json_schema":
        slot, problem = slot_of_schema(Slot("json"), schema)
        if problem:
            why.append(problem)
        return slot
    if kind != "json_object":
        why.append(f"a response format {kind!r}")
    return Slot("json")


def slot_of_tools(tools: Sequence[Mapping[str, Any] | None], choice: object, why: list[str]) -> Slot | None:
    """The slot of the one function that is called; None where the answer is no tool's.

    ``tools`` are the functions, with name and parameters, None for a tool that is none; ``choice`` a word, or the
    function chosen by name. Several of which none is named, or one of another kind, is added to ``why``.
    """
    if not isinstance(choice, str | Mapping | None):
        raise CodecError("tool_choice is neither a word nor a tool")
    if choice == "none" or not tools:
        if isinstance(choice, Mapping):
            why.append("a tool that is not there")
        return None
    name = choice.get("name") if isinstance(choice, Mapping) else None
    if isinstance(choice, Mapping):
        chosen = [tool for tool in tools if tool is not None and isinstance(name, str) and tool.get("name") == name]
    elif choice in (None, "auto", "required"):
        chosen = [tool for tool in tools if tool is not None] if len(tools) == 1 else []
    else:
        chosen = []
    if len(chosen) != 1 or not isinstance(chosen[0].get("name"), str):
        why.append("several tools, or one that is no function")
        return Slot("text")
    slot, problem = slot_of_schema(Slot("tool", tool=chosen[0]["name"]), chosen[0].get("parameters"))
    if problem:
        why.append(problem)
    return slot
