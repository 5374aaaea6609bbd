"""What a JSON schema lets an object say: the fields with an enum, and those that no label can fill."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from tracer.gateway.calls import Several, Slot
from tracer.gateway.codecs.bodies import canonical
from tracer.gateway.codecs.schema_reader import MAX_DEPTH, SchemaReader, SchemaSizeError, label_of
from tracer.types import FAILED

_MAX_OPTIONS = 256
"""Combinations of several fields beyond which they are not listed: listing takes time in each request."""
_ABSENT = object()


def slot_of_schema(slot: Slot, schema: object) -> tuple[Slot, str]:
    """``slot`` with the fields that the schema gives, and why a label cannot fill an answer to it ("" if it can)."""
    if not isinstance(schema, dict):
        return slot, "a schema that is no object"
    try:
        return _slot(slot, SchemaReader(schema))
    except SchemaSizeError:
        return slot, "a schema that is too large or too deep"


def _slot(slot: Slot, reader: SchemaReader) -> tuple[Slot, str]:
    node, path = _descended(reader, slot.path)
    required = node.get("required")
    needed = set(filter(_is_text, required)) if isinstance(required, list) else set()
    fields, values, constants, problems = [], [], [], []
    lists: dict[str, Several] = {}
    for name, sub in _properties(node).items():
        held = reader.resolved(sub)
        found, several = reader.allowed(held), None
        if not found.values and name in needed:
            found, several = reader.members(held)
        allowed = found.values
        if not allowed:
            # Also where it may be left out: teachers fill what they are offered, and whoever asked reads it.
            problems.append(f"the free field {name!r}")
        elif len(allowed) == 1 and several is None:
            if name in needed:
                constants.append((name, allowed[0]))
        else:
            fields.append(name)
            values.append(allowed)
            lists |= {} if several is None else {name: several}
            if found.alike:
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


def _descended(reader: SchemaReader, path: tuple[str, ...]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The innermost of objects that each hold the next alone, and the path to it."""
    node, start = reader.resolved(reader.root), len(path)
    while len(path) - start < MAX_DEPTH:
        properties = _properties(node)
        if len(properties) != 1:
            break
        ((name, only),) = properties.items()
        only = reader.resolved(only)
        if not _properties(only):
            break
        node, path = only, (*path, name)
    return node, path


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _properties(node: dict[str, Any]) -> dict[str, Any]:
    found = node.get("properties")
    return found if isinstance(found, dict) else {}
