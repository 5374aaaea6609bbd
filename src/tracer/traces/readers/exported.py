"""Records that Tracer exported: a trace as one flat record, and the very same trace from it.

They read as any other log does, ``input`` and ``label`` under their plain names. The key ``tracer_export`` says that
nothing is to be guessed or stripped, and that texts are escaped (see ``tracer.traces.escaping``), since neither Parquet
nor a careful reader takes half of a surrogate pair.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Final

from tracer.traces.escaping import escaped, unescaped
from tracer.traces.readers.fields import FieldError, kind, optional_time, optional_usage, parse_json
from tracer.types import ORIGINS, Origin, Seen, Trace

MARK: Final = "tracer_export"
VERSION: Final = 1
COLUMNS: Final = {
    MARK: "int8",
    "id": "string",
    "input": "string",
    "label": "string",
    "teacher_model": "string",
    "prompt_version": "string",
    "time": "string",
    "origin": "string",
    "group": "string",
    "ground_truth": "string",
    "input_tokens": "int64",
    "output_tokens": "int64",
    "metadata": "string",
    "seen_policy": "string",
    "seen_label": "string",
    "seen_handled": "bool",
    "seen_score": "double",
}
"""The keys of a record, and the types that they have in Parquet."""


def record_of(trace: Trace) -> dict[str, object]:
    """A trace as a record, without the keys that say nothing."""
    seen = trace.seen
    texts: dict[str, str | None] = {
        "id": trace.id,
        "input": trace.text,
        "label": trace.label,
        "teacher_model": trace.teacher,
        "prompt_version": trace.prompt,
        "origin": trace.origin,
        "group": trace.group,
        "ground_truth": trace.truth,
        "seen_policy": seen.policy if seen else None,
        "seen_label": seen.label if seen else None,
    }
    others: dict[str, object] = {
        "time": trace.time and trace.time.isoformat(),
        "input_tokens": trace.usage and trace.usage.input_tokens,
        "output_tokens": trace.usage and trace.usage.output_tokens,
        "metadata": json.dumps(dict(trace.metadata), default=str) if trace.metadata else None,
        "seen_handled": seen and seen.handled,
        "seen_score": None if seen is None or math.isnan(seen.score) else seen.score,
    }
    values: dict[str, object] = {name: None if text is None else escaped(text) for name, text in texts.items()}
    values = {MARK: VERSION, **values, **others}
    return {name: values[name] for name in COLUMNS if values[name] is not None}


def is_exported(fields: Mapping[str, object]) -> bool:
    """Whether a record is one of ours."""
    return MARK in fields and fields[MARK] == VERSION


def exported_trace(fields: Mapping[str, object]) -> Trace:
    """The trace of a record. Raises FieldError for one that was changed into none."""
    policy = _text(fields, "seen_policy")
    seen = None
    if policy is not None:
        score = fields.get("seen_score")
        if score is not None and (not isinstance(score, int | float) or isinstance(score, bool)):
            raise FieldError("seen_score", score, f"must be a number, not {kind(score)}")
        handled = fields.get("seen_handled") is True
        seen = Seen(policy, _wanted(fields, "seen_label"), handled, math.nan if score is None else float(score))
    name, text = _wanted(fields, "id"), _wanted(fields, "input")
    if not text.strip():
        raise FieldError("input", text, "the input is empty")
    return Trace(
        id=name,
        text=text,
        label=_wanted(fields, "label"),
        teacher=_text(fields, "teacher_model"),
        time=optional_time("time", fields.get("time")),
        origin=origin(fields.get("origin")),
        group=_text(fields, "group"),
        truth=_text(fields, "ground_truth"),
        usage=optional_usage(fields),
        metadata=_metadata(fields.get("metadata")),
        prompt=_text(fields, "prompt_version"),
        seen=seen,
    )


def origin(value: object) -> Origin:
    """An origin; ``bootstrap`` where a record has none."""
    if value is None or value == "":
        return "bootstrap"
    for known in ORIGINS:
        if value == known:
            return known
    raise FieldError("origin", value, f"must be one of {', '.join(ORIGINS)}")


def _text(fields: Mapping[str, object], name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str):
        raise FieldError(name, value, f"must be a string, not {kind(value)}")
    return unescaped(value)


def _metadata(value: object) -> dict[str, object]:
    """Metadata are JSON within a string, which holds what no other field may."""
    if value is None:
        return {}
    try:
        found = parse_json(value) if isinstance(value, str) else value
    except ValueError as error:
        raise FieldError("metadata", value, f"invalid JSON: {error}") from error
    if not isinstance(found, dict):
        raise FieldError("metadata", value, f"must be an object, not {kind(found)}")
    return found


def _wanted(fields: Mapping[str, object], name: str) -> str:
    value = _text(fields, name)
    if not value:
        raise FieldError(name, value, "is missing")
    return value
