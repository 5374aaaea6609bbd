"""From a record of any format to a trace."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from tracer.errors import BadTraceError
from tracer.traces.readers.chat import message_list, user_text
from tracer.traces.readers.exported import exported_trace, is_exported, origin
from tracer.traces.readers.fields import (
    INPUT_NAMES,
    LABEL_NAMES,
    FieldError,
    input_text,
    label_text,
    optional_metadata,
    optional_text,
    optional_time,
    optional_usage,
    pick,
)
from tracer.types import GENERATED, Trace


@dataclass(frozen=True, slots=True)
class Record:
    """One record as its file holds it, and the line to name when it is bad."""

    line: int
    fields: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class FieldNames:
    """Where the caller says that the input and the label are; None leaves it to the accepted names."""

    input: str | None = None
    label: str | None = None


Source: TypeAlias = Callable[[Path, str], Iterator[Record | BadTraceError]]
"""Reads a file (path, name for messages): its records in order, a bad one as the error it makes."""

Shape: TypeAlias = Callable[[Mapping[str, object], FieldNames], Mapping[str, object]]
"""Brings a record of a format to the plain fields ``input``, ``label``, ``id``, ``time``, ..."""


def plain_shape(fields: Mapping[str, object], names: FieldNames) -> Mapping[str, object]:
    """The shape of tables and plain JSON lines: input and label under their accepted or wanted names."""
    _, text = pick(fields, "input", INPUT_NAMES, names.input)
    _, label = pick(fields, "label", LABEL_NAMES, names.label)
    return {**fields, "input": text, "label": label}


@dataclass(slots=True)
class TraceBuilder:
    """Makes the traces of one file, in order; it remembers what its made-up ids need."""

    source: str
    shape: Shape
    names: FieldNames
    _seen: Counter[str] = field(default_factory=Counter)

    def build(self, record: Record) -> Trace | BadTraceError:
        """The trace of a record, or why there is none."""
        try:
            return exported_trace(record.fields) if is_exported(record.fields) else self._trace(record.fields)
        except FieldError as error:
            return BadTraceError(self.source, record.line, error.key, error.value, error.problem)

    def _trace(self, raw: Mapping[str, object]) -> Trace:
        fields = self.shape(raw, self.names)
        # Messages name the key that the file has, not the plain one it was brought to.
        text = _input(self._named(raw, "input"), fields["input"])
        label = label_text(self._named(raw, "label"), fields["label"])
        moment = optional_time("time", fields.get("time"))
        truth = optional_text(fields, "ground_truth", "truth")
        return Trace(
            id=optional_text(fields, "id") or self._auto_id(text, label, moment),
            text=text,
            label=label,
            teacher=optional_text(fields, "teacher_model", "model"),
            time=moment,
            origin=origin(fields.get("origin")),
            group=optional_text(fields, "group"),
            truth=None if truth is None else truth.strip(),
            usage=optional_usage(fields),
            metadata=optional_metadata("metadata", fields.get("metadata")),
            prompt=optional_text(fields, "prompt_version"),
        )

    def _named(self, raw: Mapping[str, object], what: str) -> str:
        wanted = self.names.input if what == "input" else self.names.label
        accepted = INPUT_NAMES if what == "input" else LABEL_NAMES
        return wanted or next((name for name in accepted if name in raw), what)

    def _auto_id(self, text: str, label: str, moment: datetime | None) -> str:
        """An id for a record without one.

        It depends on the content, not on the position, so that it stays when the file is appended to and
        read again; the count keeps two requests with the same content two traces, since dropping repeated
        traffic would change what a certificate is about.
        """
        when = "" if moment is None else moment.astimezone(UTC).isoformat()
        digest = hashlib.sha256(json.dumps([text, label, when]).encode()).hexdigest()[:16]
        count = self._seen[digest]
        self._seen[digest] += 1
        return f"{GENERATED}{digest}-{count}"


def _input(key: str, value: object) -> str:
    return input_text(key, user_text(key, message_list(key, value)) if isinstance(value, list) else value)
