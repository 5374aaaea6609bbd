"""Dataclasses of facts to plain values and back. What comes back was stored, and stored files are not trusted."""

from __future__ import annotations

import math
from dataclasses import fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from tracer.errors import ArchiveError


def to_plain(value: Any) -> Any:
    """Dicts, lists, strings and numbers, ready for JSON. Properties come with the fields they derive from."""
    if is_dataclass(value):
        names = [f.name for f in fields(value)] + _derived(type(value))
        return {name: to_plain(getattr(value, name)) for name in names}
    if isinstance(value, tuple):
        return [to_plain(item) for item in value]
    return value


def from_plain(kind: Any, value: Any, where: str) -> Any:
    """A value of type ``kind`` from plain values. Properties are computed anew, never read.

    ``kind`` is a dataclass, a tuple, a union, a literal, or one of str, bool, int and float; ``where`` names the value
    in messages. Whole numbers are counts here. Raises ArchiveError where a value does not have its type, a field is
    missing or unknown, a count is negative or a number not finite.
    """
    if is_dataclass(kind) and isinstance(kind, type):
        return _record(kind, value, where)
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        if value is None and NoneType in inner:
            return None
        (kind,) = (k for k in inner if k is not NoneType)
        return from_plain(kind, value, where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ArchiveError(f"{where} is no list")
        return tuple(from_plain(inner[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is Literal:
        if not any(value == allowed and type(value) is type(allowed) for allowed in inner):
            raise ArchiveError(f"{where} must be one of {', '.join(map(str, inner))}")
        return value
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not kind:
        raise ArchiveError(f"{where} must be of type {kind.__name__}, not {type(value).__name__}")
    if kind is float and not math.isfinite(value):
        raise ArchiveError(f"{where} is not finite")
    if kind is int and value < 0:
        raise ArchiveError(f"{where} = {value}: a count is not negative")
    return value


def _record(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise ArchiveError(f"{where} is no object")
    types = _types(kind)
    names = [f.name for f in fields(kind)]
    if missing := [name for name in names if name not in value]:
        raise ArchiveError(f"{where} lacks {', '.join(missing)}")
    if unknown := set(value) - set(names) - set(_derived(kind)):
        raise ArchiveError(f"{where} has unknown fields: {', '.join(sorted(map(str, unknown)))}")
    try:
        return kind(**{name: from_plain(types[name], value[name], f"{where}.{name}") for name in names})
    except (ValueError, OverflowError) as error:  # what the record itself finds impossible, or no float can hold
        raise ArchiveError(f"{where}: {error}") from error


@cache
def _types(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _derived(kind: type) -> list[str]:
    return [name for name, member in vars(kind).items() if isinstance(member, property)]
