"""JSON bodies: read with care, written compactly, and shaped like an earlier one."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from tracer.errors import CodecError
from tracer.types import Usage

_OF_PARTS = frozenset({"type", "text", "data", "cache_control"})


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


# Made once: ``json.loads`` and ``json.dumps`` make one a call where they are told anything.
_DECODER = json.JSONDecoder(parse_constant=_no_constant)
_COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False)
_CANONICAL = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False, sort_keys=True)


def loads(text: bytes | str) -> Any:
    """The value of a JSON text in UTF-8. Raises CodecError, also on lone surrogates, which no store takes."""
    try:
        text = text.decode() if isinstance(text, bytes) else text
        if text.startswith("\ufeff"):
            raise ValueError("a byte order mark")
        value = _DECODER.decode(text)
        if "\\u" in text:
            _COMPACT.encode(value).encode()
    except (ValueError, RecursionError) as error:
        raise CodecError(f"a body that is no JSON: {type(error).__name__}") from error
    return value


def read_object(text: bytes | str) -> dict[str, Any]:
    """The JSON object of a body. Raises CodecError."""
    value = loads(text)
    if not isinstance(value, dict):
        raise CodecError("a body that is no JSON object")
    return value


def dumps(value: object, *, separators: tuple[str, str] = (",", ":"), sort_keys: bool = False) -> str:
    """JSON text, compact unless told. Raises CodecError where there is none: infinities, too deep a nesting."""
    try:
        if separators == (",", ":"):
            return (_CANONICAL if sort_keys else _COMPACT).encode(value)
        return json.dumps(value, ensure_ascii=False, separators=separators, sort_keys=sort_keys, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise CodecError(f"a value that no JSON holds: {type(error).__name__}") from error


def canonical(value: object) -> str:
    """The one text of a JSON value: compact, keys sorted."""
    return dumps(value, sort_keys=True)


def encode(value: object) -> bytes:
    """A body. Raises CodecError."""
    try:
        return dumps(value).encode()
    except UnicodeEncodeError as error:
        raise CodecError("a label with lone surrogates") from error


def string(body: Mapping[str, Any], key: str, default: str = "") -> str:
    """A string of a body; None is as good as absent. Raises CodecError on another type."""
    value = body.get(key)
    if value is None:
        return default
    if not isinstance(value, str):
        raise CodecError(f"{key} is no string")
    return value


def mapping(body: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object of a body; empty where absent. Raises CodecError on another type."""
    value = body.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CodecError(f"{key} is no object")
    return value


def objects(body: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """A list of objects of a body; empty where absent. Raises CodecError on anything else."""
    value = body.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise CodecError(f"{key} is no list of objects")
    return value


def flag(body: Mapping[str, Any], key: str) -> bool:
    """A boolean of a body, false where absent. Raises CodecError on another type."""
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise CodecError(f"{key} is no boolean")
    return bool(value)


def count(body: Mapping[str, Any], key: str) -> int | None:
    """A whole number of a body, None where absent. Raises CodecError on anything else."""
    value = body.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise CodecError(f"{key} is no whole number")
    return value


def strings(body: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """A string or a list of them. Raises CodecError on anything else."""
    value = body.get(key)
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise CodecError(f"{key} is no list of strings")
    return tuple(value)


def text_of(content: object, kinds: Collection[str], why: list[str]) -> str:
    """The text of a message's content: a string, or parts of these ``kinds``; others are added to ``why``."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise CodecError("content is neither text nor a list of parts")
    texts = []
    for part in content:
        kind = part.get("type")
        if kind not in kinds:
            why.append(f"a part of type {kind!r}")
            continue
        nothing_more(part, _OF_PARTS, why)
        if kind == "input_json":
            texts.append(dumps(part.get("data")))
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            raise CodecError("a text part without text")
    return "\n".join(texts)


def known_only(body: Mapping[str, Any], known: Collection[str], why: list[str]) -> None:
    """Adds fields that are set and not ``known`` to ``why``: nobody can say what they ask for."""
    why.extend(f"the field {key!r}" for key, value in body.items() if value is not None and key not in known)


def nothing_more(body: Mapping[str, Any], known: Collection[str], why: list[str]) -> None:
    """Adds what is set in a turn or a part, and not ``known``, to ``why``; empty lists and objects say nothing."""
    why.extend(
        f"the field {key!r} of a message"
        for key, value in body.items()
        if key not in known and value is not None and value not in ([], {})
    )


def metadata_of(body: Mapping[str, Any]) -> dict[str, str]:
    """Metadata that is text; other values are left out."""
    found = mapping(body, "metadata")
    return {key: value for key, value in found.items() if isinstance(value, str)}


def shaped(fresh: Mapping[str, Any], like: object, always: Iterable[str] = ()) -> dict[str, Any]:
    """``fresh`` in the key order of ``like``, with what else is empty there; ``always`` are kept anyway."""
    if not isinstance(like, dict):
        return dict(fresh)
    out: dict[str, Any] = {}
    for key, value in like.items():
        if key in fresh:
            out[key] = fresh[key]
        elif value is None or value in ([], {}):
            out[key] = value
    return out | {key: fresh[key] for key in always if key not in out}


def tokens(reply: Mapping[str, Any], spent_in: str, spent_out: str) -> Usage | None:
    """The tokens that a reply's ``usage`` counts under these two keys."""
    usage = reply.get("usage")
    return Usage(whole(usage.get(spent_in)), whole(usage.get(spent_out))) if isinstance(usage, dict) else None


def whole(value: object) -> int:
    """A count of tokens: zero where it is none, or one that no answer has (a store takes 64 bits, a mean a float)."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 53 else 0
