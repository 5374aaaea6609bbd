"""Another model in a request's body, and every other byte as it was."""

from __future__ import annotations

import json
import re

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def with_model(body: bytes, model: str) -> bytes:
    """The JSON object ``body`` with the value of each top-level ``model`` replaced.

    Raises ValueError where the body is no JSON object that names a model.
    """
    text = body.decode("utf-8")
    spans = _spans(text)
    if not spans:
        raise ValueError("the request names no model")
    new, parts, end = json.dumps(model), [], 0
    for start, stop in spans:
        parts += [text[end:start], new]
        end = stop
    return "".join([*parts, text[end:]]).encode()


def names_one_model(body: bytes) -> bool:
    """Whether the JSON object ``body``, which was read and names a model, names one alone, in UTF-8."""
    if body.count(b'"model"') == 1 and b"\\u" not in body:
        return True
    try:
        return len(_spans(body.decode("utf-8"))) == 1
    except ValueError:
        return False


def _spans(text: str) -> list[tuple[int, int]]:
    """Where the values of the top-level ``model`` stand."""
    found, at = [], _skip(text, _expect(text, _skip(text, 0), "{"))
    while text[at : at + 1] != "}":
        if text[at : at + 1] != '"':
            raise ValueError("the request is no JSON object")
        key, at = _value(text, at)
        start = _skip(text, _expect(text, _skip(text, at), ":"))
        _, stop = _value(text, start)
        if key == "model":
            found.append((start, stop))
        at = _skip(text, stop)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
    if text[at + 1 :].strip(" \t\n\r"):
        raise ValueError("the request is more than one JSON object")
    return found


def _value(text: str, at: int) -> tuple[object, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except (RecursionError, json.JSONDecodeError) as error:
        # The decoder's own error carries the whole text.
        problem = type(error).__name__
    raise ValueError(f"the request is no JSON object: {problem}")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return at if match is None else match.end()


def _expect(text: str, at: int, mark: str) -> int:
    if text[at : at + 1] != mark:
        raise ValueError("the request is no JSON object")
    return at + 1
