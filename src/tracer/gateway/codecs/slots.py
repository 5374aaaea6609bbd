"""Between a label and the text that carries it: read from a teacher's answer, and written like one."""

from __future__ import annotations

import json
import re
from typing import Any

from tracer.errors import CodecError
from tracer.gateway.calls import Scalar, Several, Slot
from tracer.gateway.codecs.bodies import canonical, dumps, loads
from tracer.gateway.codecs.schema_reader import label_of
from tracer.gateway.codecs.schemas import usable

_FENCE = re.compile(r"\A\s*```[a-zA-Z]*\s*\n(?P<inside>.*)\n\s*```\s*\Z", re.DOTALL)
_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()
_NOT_KEPT = object()


def label_in(slot: Slot, text: str) -> str | None:
    """The label that a text carries, None where there is none."""
    if slot.kind == "text":
        bare = text.strip()
        return bare if usable(bare) else None
    fenced = _FENCE.match(text)
    try:
        value = loads(fenced["inside"] if fenced else text)
    except CodecError:
        return None
    for name in slot.path:
        value = value.get(name) if isinstance(value, dict) else None
    if not isinstance(value, dict) or not value:
        return None
    label = _combined(slot, value)
    return label if label is not None and usable(label) else None


def text_with(slot: Slot, label: str, like: str | None) -> str:
    """The text that carries a label, written as the text ``like``. Raises CodecError where the slot takes no such."""
    if not usable(label):
        raise CodecError(f"{label!r} is no label")
    if slot.kind == "text":
        inside = (like or "").strip()
        if like is None or not inside:
            return label
        before, _, after = like.partition(inside)
        return before + label + after
    wanted = _decoded(slot, label)
    if like is not None:
        fenced = _FENCE.match(like)
        start, end = fenced.span("inside") if fenced else (0, len(like))
        rewritten = _rewritten(like[start:end], slot.path, wanted)
        if rewritten is not None:
            return like[:start] + rewritten + like[end:]
    value: Any = {name: wanted[name] for name in slot.order if name in wanted} | wanted
    for name in reversed(slot.path):
        value = {name: value}
    return dumps(value)


def _combined(slot: Slot, value: dict[str, Any]) -> str | None:
    if not slot.fields:
        return canonical(value)
    found = {name: value[name] for name in slot.fields if name in value}
    if any(name not in found and name not in slot.optional for name in slot.fields):
        return None
    for name, allowed in zip(slot.fields, slot.values, strict=False):
        if name in found and (kept := _kept(found[name], allowed, slot.lists.get(name))) is not _NOT_KEPT:
            found[name] = kept
        elif name in found:
            return None
    if len(slot.fields) > 1:
        return canonical(found) if found else None
    only = found[slot.fields[0]]
    if isinstance(only, str):
        return only
    return label_of(only) if slot.lists or (slot.values and _among(only, slot.values[0])) else None


def _kept(value: Any, allowed: tuple[Scalar, ...], several: Several | None) -> Any:
    """A field's value as a label has it, or a mark that it has none."""
    if several is not None:
        held = _listed(value, allowed, several)
        return _NOT_KEPT if held is None else held
    # A value that only reads like an allowed one would come back as another type.
    alike = not _among(value, allowed) and any(_read_alike(value, other) for other in allowed)
    return _NOT_KEPT if alike else value


def _decoded(slot: Slot, label: str) -> dict[str, Any]:
    """Fields and constants with their values."""
    constants = dict(slot.constants)
    if len(slot.fields) == 1:
        if not slot.values:
            return constants | {slot.fields[0]: label}
        if slot.lists:
            return constants | {slot.fields[0]: _held(slot, slot.fields[0], loads(label))}
        for value in slot.values[0]:
            if label_of(value) == label:
                return constants | {slot.fields[0]: value}
        raise CodecError(f"the label {label!r} is none that {slot.fields[0]!r} allows")
    found = loads(label)
    if not isinstance(found, dict) or not found:
        raise CodecError(f"the label {label!r} is no JSON object")
    if not slot.fields:
        return found
    missing = [name for name in slot.fields if name not in found and name not in slot.optional]
    if missing or set(found) - set(slot.fields):
        raise CodecError(f"the label {label!r} has not the fields {', '.join(slot.fields)}")
    for name, allowed in zip(slot.fields, slot.values, strict=False):
        if name in slot.lists and name in found:
            found[name] = _held(slot, name, found[name])
        elif name in found and not _among(found[name], allowed):
            raise CodecError(f"the label {label!r} has a value that {name!r} does not allow")
    return constants | found


def _listed(value: object, allowed: tuple[Scalar, ...], several: Several) -> list[Any] | None:
    """A list of allowed values as a label has it: in its order, or, of a set, sorted; None for any other value."""
    if not isinstance(value, list) or not all(_among(one, allowed) for one in value):
        return None
    kept = sorted(set(value)) if several.unique else value
    return kept if several.least <= len(kept) and (several.most is None or len(kept) <= several.most) else None


def _held(slot: Slot, name: str, value: object) -> list[Any]:
    held = _listed(value, slot.values[slot.fields.index(name)], slot.lists[name])
    if held is None:
        raise CodecError(f"{name!r} does not allow this list of values")
    return held


def _among(value: object, allowed: tuple[Scalar, ...]) -> bool:
    text = canonical(value)
    return any(canonical(other) == text for other in allowed)


def _read_alike(value: object, other: Scalar) -> bool:
    return (value if isinstance(value, str) else canonical(value)) == label_of(other)


def _rewritten(text: str, path: tuple[str, ...], wanted: dict[str, Any]) -> str | None:
    """An object's text with these values and nothing else changed; None where it holds other keys."""
    start = 0
    try:
        for name in path:
            spans = _members(text, start)
            if set(spans) != {name}:
                return None
            start = spans[name][0]
        spans = _members(text, start)
    except (ValueError, IndexError, RecursionError):
        return None
    if set(spans) != set(wanted):
        return None
    escaped, at = "\\u" in text, 0
    out: list[str] = []
    for name, (begin, end) in spans.items():
        value = json.dumps(wanted[name]) if escaped else dumps(wanted[name])
        # The same value keeps its very spelling.
        same = canonical(_DECODER.raw_decode(text, begin)[0]) == canonical(wanted[name])
        out += [text[at:begin], text[begin:end] if same else value]
        at = end
    return "".join(out) + text[at:]


def _members(text: str, at: int) -> dict[str, tuple[int, int]]:
    """Where the values of the object at ``at`` begin and end, by key. Raises ValueError or IndexError if none."""
    spans: dict[str, tuple[int, int]] = {}
    at = _expected(text, at, "{")
    while True:
        name, at = _DECODER.raw_decode(text, _spaced(text, at))
        if not isinstance(name, str):
            raise ValueError("a key that is no string")
        begin = _spaced(text, _expected(text, at, ":"))
        _, end = _DECODER.raw_decode(text, begin)
        if name in spans:
            raise ValueError("a key that repeats")
        spans[name] = (begin, end)
        at = _spaced(text, end)
        if text[at] == "}":
            return spans
        at = _expected(text, at, ",")


def _spaced(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _expected(text: str, at: int, sign: str) -> int:
    at = _spaced(text, at)
    if text[at] != sign:
        raise ValueError(f"no {sign} at {at}")
    return at + 1
