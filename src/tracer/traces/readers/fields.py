"""The values of one record, checked: each function gives a clean value or says which key is wrong and why."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, time
from typing import Final

from tracer.types import Usage

INPUT_NAMES: Final = ("input", "query", "text", "prompt", "question")
LABEL_NAMES: Final = ("teacher", "teacher_output", "label", "intent", "output", "answer")
MISSING: Final = object()
"""What ``lookup`` gives for a path that leads nowhere; None is a value."""

_EPOCH = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?([eE][+-]?[0-9]+)?")
_DAY_DIGITS = 8


class FieldError(Exception):
    """A field that makes a record no trace; the reader adds the file and the line."""

    def __init__(self, key: str, value: object, problem: str) -> None:
        self.key, self.value, self.problem = key, value, problem
        super().__init__(f"{key}: {problem}")


def parse_json(text: str) -> object:
    """The JSON value of a text; ValueError for whatever cannot be read."""
    try:
        value: object = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    return value


def kind(value: object) -> str:
    """A value's type in the words of JSON."""
    if value is None:
        return "null"
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN or infinity"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, list | tuple):
        return "a list"
    return f"a {type(value).__name__}"


def lookup(record: Mapping[str, object], path: str) -> object:
    """The value at a key, or at a dotted path where no key has that very name; else ``MISSING``."""
    if path in record:
        return record[path]
    here: object = record
    for part in path.split("."):
        if not isinstance(here, Mapping) or part not in here:
            return MISSING
        here = here[part]
    return here


def pick(record: Mapping[str, object], what: str, accepted: Sequence[str], wanted: str | None) -> tuple[str, object]:
    """The key and value of the input or the label: the wanted path, or the first accepted name there is.

    The first name decides even where its value is null: falling through to the next would mix columns
    (a teacher's answer in one row, somebody's annotation in another) without a word.
    """
    if wanted is not None:
        value = lookup(record, wanted)
        if value is MISSING:
            raise FieldError(wanted, None, f"no such field; the record has {_keys(record)}")
        return wanted, value
    for name in accepted:
        if name in record:
            return name, record[name]
    hint = f"accepted names are {', '.join(accepted)}, or pass {what}_field"
    raise FieldError(what, None, f"no {what} in this record: {hint}; the record has {_keys(record)}")


def valid_unicode(key: str, text: str) -> str:
    """The text itself; lone surrogates, which no encoder can write, are an error."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        problem = f"not valid Unicode: lone surrogate at character {error.start}"
        raise FieldError(key, text, problem) from None
    return text


def label_text(key: str, value: object) -> str:
    """A label: a stripped string, or the JSON text of a number or a boolean; never blank."""
    label = _scalar(key, value).strip()
    if not label:
        raise FieldError(key, value, "the label is empty")
    return label


def input_text(key: str, value: object) -> str:
    """An input: a string that is not blank, kept as it is."""
    if not isinstance(value, str):
        raise FieldError(key, value, f"the input must be a string or a list of messages, not {kind(value)}")
    if not value.strip():
        raise FieldError(key, value, "the input is empty")
    return valid_unicode(key, value)


def optional_text(record: Mapping[str, object], *names: str) -> str | None:
    """The first of these fields that holds something; null, NaN and blank count as absent."""
    for name in names:
        value = record.get(name)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            continue
        text = _scalar(name, value)
        if text.strip():
            return text
    return None


def optional_time(key: str, value: object) -> datetime | None:
    """A time with its zone, from ISO 8601 or epoch seconds. A time without a zone is taken as UTC."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        moment = _moment(value)
    except (ValueError, OverflowError, OSError):
        moment = None
    if moment is None:
        raise FieldError(key, value, "must be a time: ISO 8601, or seconds (not milliseconds) since the epoch")
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment


def optional_usage(record: Mapping[str, object]) -> Usage | None:
    """Token counts, from a ``usage`` object or from the record itself; None unless both are there."""
    usage = record.get("usage")
    holder = usage if isinstance(usage, Mapping) else record
    spent = _count(holder, "prompt_tokens", "input_tokens")
    made = _count(holder, "completion_tokens", "output_tokens")
    return None if spent is None or made is None else Usage(spent, made)


def optional_metadata(key: str, value: object) -> Mapping[str, object]:
    """A mapping with string keys; a string holding a JSON object is read (a CSV cell holds no other)."""
    if value is None or value == "":
        return {}
    if isinstance(value, str) and value.lstrip().startswith("{"):
        try:
            value = parse_json(value)
        except ValueError as error:
            raise FieldError(key, value, f"invalid JSON: {error}") from error
    if not isinstance(value, Mapping):
        raise FieldError(key, value, f"must be an object, not {kind(value)}")
    try:
        # Whoever stores or exports a trace writes JSON: what cannot be written must not get that far.
        json.dumps(value, ensure_ascii=False, default=str).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise FieldError(key, f"({len(value)} fields)", f"cannot be written as JSON: {error}") from error
    return dict(value)


def _scalar(key: str, value: object) -> str:
    if isinstance(value, str):
        return valid_unicode(key, value)
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return json.dumps(value)
    raise FieldError(key, value, f"must be a string, a number or a boolean, not {kind(value)}")


def _moment(value: object) -> datetime | None:
    if isinstance(value, datetime):
        return value
    if isinstance(value, date):
        return datetime.combine(value, time(), tzinfo=UTC)
    if isinstance(value, str):
        stripped = value.strip()
        # Eight digits are a day of the ISO basic format (20260131), other bare numbers are seconds.
        if not _EPOCH.fullmatch(stripped) or (stripped.isdigit() and len(stripped) == _DAY_DIGITS):
            return datetime.fromisoformat(stripped)
        return datetime.fromtimestamp(float(stripped), tz=UTC)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return datetime.fromtimestamp(value, tz=UTC)
    return None


def _count(holder: Mapping[str, object], *names: str) -> int | None:
    for name in names:
        value = holder.get(name)
        if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
            continue
        if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
            return int(value)
        if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0 and value % 1 == 0:
            return int(value)
        raise FieldError(name, value, "must be a whole number of tokens")
    return None


def _keys(record: Mapping[str, object]) -> str:
    shown = [repr(key)[1:-1] for key in list(record)[:12]]
    more = len(record) - len(shown)
    return (", ".join(shown) or "no fields") + (f" and {more} more" if more else "")
