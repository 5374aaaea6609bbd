"""What a JSON schema lets an object say: the fields with an enum, and those that no label can fill."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from tracer.gateway.calls import Scalar, Several, Slot
from tracer.gateway.codecs.bodies import canonical
from tracer.types import FAILED

_MAX_DEPTH = 16
_MAX_VALUES = 4096
"""Values of one field beyond which it counts as free."""
_MAX_OPTIONS = 256
"""Combinations of several fields beyond which they are not listed: listing takes time in each request."""
_ABSENT = object()
_OF_LISTS = frozenset({"type", "items", "minItems", "maxItems", "uniqueItems", "description", "title", "default"})


def label_of(value: Scalar) -> str:
    """The label of one value: a string as it is, anything else as JSON."""
    return value if isinstance(value, str) else canonical(value)


def slot_of_schema(slot: Slot, schema: object) -> tuple[Slot, str]:
    """``slot`` with the fields that the schema gives, and why a label cannot fill an answer to it ("" if it can)."""
    if not isinstance(schema, dict):
        return slot, "a schema that is no object"
    node, path = _descended(schema, slot.path)
    required = node.get("required")
    needed = set(filter(_is_text, required)) if isinstance(required, list) else set()
    fields, values, constants, problems = [], [], [], []
    lists: dict[str, Several] = {}
    for name, sub in _properties(node).items():
        held = _resolved(sub, schema)
        allowed, several = _allowed(held, schema), None
        if not allowed and name in needed:
            allowed, several = _members(held, schema)
        if not allowed:
            if name in needed:
                problems.append(f"the free field {name!r}")
        elif len(allowed) == 1 and several is None:
            if name in needed:
                constants.append((name, allowed[0]))
        else:
            fields.append(name)
            values.append(allowed)
            lists |= {} if several is None else {name: several}
            if len({label_of(value) for value in allowed}) < len(allowed):
                problems.append(f"values of {name!r} that read alike")
    known = set(fields) | {name for name, _ in constants}
    if not fields:
        problems.insert(0, "a schema without an enum")
    problems += [f"the free field {name!r}" for name in sorted(needed - set(_properties(node)))]
    filled = replace(
        slot,
        path=path,
        fields=tuple(fields),
        values=tuple(values),
        optional=tuple(name for name in fields if name not in needed) if len(fields) > 1 else (),
        constants=tuple(constants),
        order=tuple(name for name in _properties(node) if name in known),
        lists=lists,
    )
    return filled, "; ".join(problems)


def options_of(slot: Slot) -> tuple[str, ...] | None:
    """The labels that a slot allows; None where they are free, or too many to list."""
    if not slot.values or slot.lists:
        return None
    if len(slot.fields) == 1:
        return tuple(label for value in slot.values[0] if usable(label := label_of(value)))
    pools = [
        (*allowed, _ABSENT) if name in slot.optional else allowed
        for name, allowed in zip(slot.fields, slot.values, strict=True)
    ]
    n = 1
    for pool in pools:
        n *= len(pool)
    if n > _MAX_OPTIONS:
        return None
    rows = (dict(zip(slot.fields, row, strict=True)) for row in product(*pools))
    found = ({name: value for name, value in row.items() if value is not _ABSENT} for row in rows)
    return tuple(canonical(row) for row in found if row)


def usable(label: str) -> bool:
    """Whether a trace can carry this label."""
    return bool(label) and label != FAILED


def _descended(schema: dict[str, Any], path: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The innermost of objects that each hold the next alone, and the path to it."""
    node, start = _resolved(schema, schema), len(path)
    while len(path) - start < _MAX_DEPTH:
        properties = _properties(node)
        if len(properties) != 1:
            break
        ((name, only),) = properties.items()
        only = _resolved(only, schema)
        if not _properties(only):
            break
        node, path = only, (*path, name)
    return node, path


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _properties(node: dict[str, Any]) -> dict[str, Any]:
    found = node.get("properties")
    return found if isinstance(found, dict) else {}


def _resolved(node: object, root: dict[str, Any]) -> dict[str, Any]:
    """The node behind local references; empty where there is none."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(node, dict):
            return {}
        reference, parts = node.get("$ref"), node.get("allOf")
        if isinstance(reference, str) and reference.startswith("#"):
            node = _pointed(root, reference)
        elif isinstance(parts, list) and len(parts) == 1:
            node = parts[0]
        else:
            return {} if reference is not None or parts is not None else node
    return {}


def _pointed(root: dict[str, Any], reference: str) -> object:
    node: object = root
    for part in reference.split("/")[1:]:
        if not isinstance(node, dict):
            return None
        node = node.get(part.replace("~1", "/").replace("~0", "~"))
    return node


def _members(node: dict[str, Any], root: dict[str, Any]) -> tuple[tuple[Scalar, ...], Several | None]:
    """What a list may hold, and how many of it; nothing where the node is no list of an enum of strings."""
    if node.get("type") != "array" or set(node) - _OF_LISTS:
        return (), None
    members = _allowed(_resolved(node.get("items"), root), root)
    least, most = node.get("minItems", 0), node.get("maxItems")
    counts = type(least) is int and (most is None or type(most) is int)
    if not members or not counts or not all(isinstance(member, str) for member in members):
        return (), None
    return members, Several(least, most, node.get("uniqueItems") is True)


def _allowed(node: dict[str, Any], root: dict[str, Any]) -> tuple[Scalar, ...]:
    """The values that a node lists, each once; none where it is free."""
    listed = _values(node, root, 0)
    if not all(value is None or isinstance(value, str | int | float) for value in listed):
        return ()
    return tuple({canonical(value): value for value in listed}.values())


def _values(node: dict[str, Any], root: dict[str, Any], depth: int) -> list[Any]:
    alternatives = node.get("anyOf", node.get("oneOf"))
    if "const" in node:
        return [node["const"]]
    if isinstance(node.get("enum"), list):
        listed = node["enum"]
        return listed if len(listed) <= _MAX_VALUES else []
    if isinstance(alternatives, list) and depth < _MAX_DEPTH:
        gathered: list[Any] = []
        for other in alternatives:
            found = _values(_resolved(other, root), root, depth + 1)
            gathered += found
            if not found or len(gathered) > _MAX_VALUES:
                return []
        return gathered
    if node.get("type") == "boolean":
        return [True, False]
    return [None] if node.get("type") == "null" else []
