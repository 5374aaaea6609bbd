"""``/v1/classify/label``: a caller that asked its own teacher hands the label in, and a trace is made of it.

What such a label may prove depends on a promise. A task with ``callers_label`` has callers who label every call that is
left to them: its audits are a plain sample, and one that does not come back in time is recorded as failed, since what
is left out is not left out at random. Without the promise no audit is drawn in native calls, and labels only train.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tracer.errors import CodecError, StoreError, TracerError
from tracer.gateway.codecs.bodies import mapping, objects, string
from tracer.gateway.codecs.schemas import usable
from tracer.gateway.deciding import Verdict
from tracer.gateway.lines import TaskLine
from tracer.gateway.opened import Opened, Status
from tracer.types import FAILED, Origin, Usage

log = logging.getLogger("tracer.gateway")

MOST = 1_000
_PLAIN: tuple[Origin, ...] = ("audit", "bootstrap")


@dataclass(frozen=True, slots=True)
class HandedIn:
    """A label for the call ``id``; None where the caller's teacher gave none."""

    id: str
    label: str | None
    teacher: str | None
    prompt: str | None
    usage: Usage | None


def read(asked: Mapping[str, Any]) -> list[HandedIn]:
    """The labels of a request: one, or a list of them as ``labels``. Raises CodecError."""
    if "labels" not in asked:
        return [_handed_in(asked)]
    many = [_handed_in(one) for one in objects(asked, "labels")]
    if not 0 < len(many) <= MOST:
        raise CodecError(f"labels must be 1 to {MOST}")
    return many


def open_calls(line: TaskLine, calls: Sequence[tuple[str, str, Verdict]], at: float, now: float) -> None:
    """Keep calls (id, text, verdict) that were left to their caller, so that a label can come for them.

    ``at`` is in seconds since the epoch, ``now`` in those of the steady clock, which says how long they wait.
    """
    promised = line.task.labelled
    kept = []
    for id, text, verdict in calls:  # noqa: A001
        origin, stored = verdict.answer.origin or "requested", line.kept(text)
        if stored is None:
            continue
        owed = promised and origin in _PLAIN
        if not promised and origin in _PLAIN:
            origin = "requested"  # which calls are labelled is the caller's choice
        kept.append(Opened(id, stored, at, origin, verdict.answer.seen, owed))
    try:
        line.calls.put(kept, now)
    except StoreError as error:
        log.warning("no label can be handed in for %d calls of task %s: %s", len(kept), line.task.name, error)


def take(line: TaskLine, one: HandedIn, now: float) -> Status | Literal["no_label"]:
    """Make a trace of a label; ``no_label`` is none of the task's, and its call still waits. ``now`` is that of the
    steady clock. Raises StoreError where open calls cannot be read."""
    if one.label is not None and not line.allowed(one.label):
        return "no_label"
    status, call = line.calls.take(one.id, one.label, now)
    if call is None or (one.label is None and not call.owed):
        return status
    try:
        teacher = one.teacher or line.task.teacher
        line.recorder(call.trace(one.label or FAILED, teacher=teacher, prompt=one.prompt, usage=one.usage))
    except TracerError as error:
        log.warning("a trace of task %s could not be made: %s", line.task.name, type(error).__name__)
    return status


def _handed_in(asked: Mapping[str, Any]) -> HandedIn:
    label = asked.get("label")
    if "label" not in asked or not (label is None or (isinstance(label, str) and usable(label))):
        raise CodecError("label must be a label, or null where the teacher gave none")
    if not string(asked, "id"):
        raise CodecError("id must be that of an answer of /v1/classify")
    used = mapping(asked, "usage")
    counts = [used.get(key, 0) for key in ("input_tokens", "output_tokens")]
    if not all(type(count) is int and 0 <= count < 1 << 53 for count in counts):
        raise CodecError("usage must have whole input_tokens and output_tokens")
    usage = Usage(*counts) if used else None
    return HandedIn(asked["id"], label, string(asked, "teacher") or None, string(asked, "prompt") or None, usage)
