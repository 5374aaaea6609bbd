"""Where the variable text of a call is, and the digest of all that is not: the prompt.

The digest is taken of the instructions, the other messages and the schema with the variable text cut out. Runs of white
space count as one blank, and keys of JSON objects have no order: a prompt that was only laid out anew is the same
prompt. Everything else counts, also the order of lists, and cases of letters. The model is no part of it.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from tracer.gateway import patterns
from tracer.gateway.calls import Call, Message
from tracer.gateway.settings import InputSelector

CUT = "\x00"
"""Stands in the prompt where variable text was. A NUL that a caller sends is escaped, so that it stands for itself."""

_TURNS = 4
_ROLE = 128
_CACHED = 32_768
"""Longer prompts are digested each time: what callers send must not fill the memory."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The variable text of a call, and what is around it: digests (hexadecimal) of the parts of the prompt.

    ``turns`` are (role, digest) of the messages that belong to the prompt; ``at`` is the place of the last user message
    among them, -1 where there is none.
    """

    text: str
    system: str
    schema: str
    turns: tuple[tuple[str, str], ...]
    at: int


def select(call: Call, selector: InputSelector) -> Selection | None:
    """The variable text by a selector; None where the call has none there, or only blanks."""
    at = max((i for i, message in enumerate(call.messages) if message.role == "user"), default=-1)
    if selector.source == "system":
        cut = _by_pattern(selector, call.system)
        message = call.messages[at].text if at >= 0 else ""
        found = None if cut is None else (cut[0], cut[1], _escaped(message))
    elif at < 0:
        return None
    else:
        cut = _cut(selector, call.messages[at].text)
        found = None if cut is None else (cut[0], _escaped(call.system), cut[1])
    if found is None or not found[0].strip():
        return None
    text, system, last = found
    counted = [i for i in range(len(call.messages)) if selector.history != "ignore" or _never_ignored(call, i, at)]
    turns = tuple(_turn(call.messages[i], last if i == at else _escaped(call.messages[i].text)) for i in counted)
    return Selection(text, digest_of(system), _schema_digest(call), turns, counted.index(at) if at >= 0 else -1)


def fingerprint(selection: Selection) -> str:
    """The digest of the prompt, 32 hexadecimal digits: the same on each wire that brings the same instructions."""
    turns = selection.turns
    short = len(turns) <= _TURNS and all(len(role) <= _ROLE for role, _ in turns)
    return (_short_print if short else _print)(selection.system, selection.schema, turns)


@lru_cache(maxsize=128)
def _short_print(system: str, schema: str, turns: tuple[tuple[str, str], ...]) -> str:
    return _print(system, schema, turns)


def _print(system: str, schema: str, turns: tuple[tuple[str, str], ...]) -> str:
    parts = [system, schema]
    for role, digest in turns:
        parts += [role, digest]
    return _sha(json.dumps(parts))[:32]


def digest_of(text: str) -> str:
    """The digest of a part of a prompt, in which runs of white space count as one blank."""
    return _short_digest(text) if len(text) <= _CACHED else _spaced(text)


@lru_cache(maxsize=128)
def _short_digest(text: str) -> str:
    return _spaced(text)


def _spaced(text: str) -> str:
    return _sha(" ".join(text.split()))


def template(prefix: str, suffix: str) -> str:
    """A message with variable text between two fixed ones, as `digest_of` takes it."""
    return f"{_escaped(prefix)}{CUT}{_escaped(suffix)}"


def _never_ignored(call: Call, i: int, at: int) -> bool:
    """Instructions are no history, and neither is what follows the last user message."""
    return i >= at >= 0 or call.messages[i].role == "system"


def _turn(message: Message, said: str) -> tuple[str, str]:
    role = message.role if not message.more else f"{_escaped(message.role)}{CUT}{_sha(message.more)}"
    return role, digest_of(said)


def _cut(selector: InputSelector, message: str) -> tuple[str, str] | None:
    """(text, the message with all that is variable cut out), or None."""
    if selector.regex is not None:
        return _by_pattern(selector, message)
    return (message, CUT) if selector.json is None else _by_path(selector, message)


def _by_pattern(selector: InputSelector, where: str) -> tuple[str, str] | None:
    found = patterns.spans(selector.regex or "", selector.group, where)
    if found is None:
        return None
    out, end = [], 0
    for start, stop in sorted({*found.groups, found.wanted}):
        if stop > end:  # a group within another one is cut with it
            out += [_escaped(where[end : max(start, end)]), CUT]
            end = stop
    return where[slice(*found.wanted)], "".join([*out, _escaped(where[end:])])


def _by_path(selector: InputSelector, message: str) -> tuple[str, str] | None:
    if message.lstrip()[:1] not in ("{", "["):
        return None
    try:
        value = json.loads(message)
        text = _taken(value, selector.json or ())
        if not isinstance(text, str):
            return None
        for path in selector.ignore:
            _taken(value, path)
        return text, json.dumps(value, sort_keys=True)
    except (ValueError, RecursionError):
        return None


def _taken(value: Any, path: tuple[str, ...]) -> Any:
    """What stands at a path, with a cut put in its place; None where it leads nowhere."""
    here = value
    for i, part in enumerate(path):
        key: Any = part
        if isinstance(here, list):
            if not (part.isascii() and part.isdigit() and len(part) < 7 and int(part) < len(here)):
                return None
            key = int(part)
        elif not isinstance(here, dict) or part not in here:
            return None
        if i == len(path) - 1:
            found, here[key] = here[key], {CUT: True}
            return found
        here = here[key]
    return None


def _schema_digest(call: Call) -> str:
    if len(call.schema) + sum(map(len, call.options or ())) <= _CACHED:
        return _short_schema(call.schema, call.options)
    return _schema(call.schema, call.options)


@lru_cache(maxsize=128)
def _short_schema(schema: str, options: tuple[str, ...] | None) -> str:
    return _schema(schema, options)


def _schema(schema: str, options: tuple[str, ...] | None) -> str:
    if schema:
        with suppress(ValueError, RecursionError):  # then it counts as it is written
            schema = json.dumps(json.loads(schema), sort_keys=True)
    return _sha(json.dumps([schema, options]))


def _escaped(text: str) -> str:
    return text.replace("\x01", "\x01\x01").replace(CUT, "\x01\x02")


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
