"""Policy lines: whose labels the traces carry, and what a change of that means.

A policy imitates one teacher under one prompt. Labels of another are another task: they start a line of their own, with
its own ledger, and are not mixed with the old ones unless somebody says that they may.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from tracer.flywheel.settings import Line, Settings
from tracer.policies.fingerprints import Fingerprint, belongs
from tracer.types import Dataset

_NEWEST = 100
"""Traces that say which task is asked now: of more, the old ones would hide a change for long."""


def fingerprints_of(dataset: Dataset) -> Counter[Fingerprint]:
    """How many traces each teacher and prompt labelled."""
    return Counter(map(Fingerprint, dataset.teachers, dataset.prompts))


def news(everything: Dataset, settings: Settings) -> Counter[Fingerprint]:
    """Fingerprints of the newest stored traces that came after the last decision of any line."""
    decided = max(line.decided for line in settings.lines)
    return fingerprints_of(everything.take(np.flatnonzero(everything.numbers > decided)[-_NEWEST:]))


def line_for_fit(before: Settings | None, found: Iterable[Fingerprint], labels: Sequence[str] | None) -> Line:
    """The line of a fit: the one in force where teachers, prompts and declared labels are the same, else a new one."""
    fingerprints, declared = tuple(dict.fromkeys(found)), None if labels is None else tuple(labels)
    if before is None:
        return Line(1, fingerprints, declared)
    line = before.line
    if any(belongs(line.fingerprints, f) for f in fingerprints) and declared == line.labels:
        return replace(line, fingerprints=tuple(dict.fromkeys((*line.fingerprints, *fingerprints))))
    return Line(max(known.number for known in before.lines) + 1, fingerprints, declared)


def line_for_update(
    settings: Settings, new: Counter[Fingerprint], labels: Sequence[str] | None, *, accept: bool
) -> Line:
    """The line that an update continues, by the new traces: the one in force, an earlier one, or a new one.

    Where most new traces come from teachers or prompts that the line in force does not know, the task has changed:
    their line begins, or is taken up again. A few that trail behind are left out. With ``accept`` all lines become one,
    which goes on with the ledger of the one that has spent most.
    """
    line, declared = settings.line, settings.line.labels if labels is None else tuple(labels)
    foreign = Counter({f: n for f, n in new.items() if not belongs(line.fingerprints, f)})
    if accept:
        all_known = (f for other in (line, *settings.lines) for f in other.fingerprints)
        return replace(
            line,
            fingerprints=tuple(dict.fromkeys((*all_known, *foreign))),
            labels=declared,
            attempts=max(other.attempts for other in settings.lines),
            decided=max(other.decided for other in settings.lines),
        )
    if declared == line.labels and not is_foreign(line, new):
        joined = (f for f in new if f not in foreign)
        return replace(line, fingerprints=tuple(dict.fromkeys((*line.fingerprints, *joined))))
    fingerprints = tuple(foreign) if foreign else line.fingerprints
    for known in reversed(settings.lines):
        if known.labels == declared and set(fingerprints) & set(known.fingerprints):
            return replace(known, fingerprints=tuple(dict.fromkeys((*known.fingerprints, *fingerprints))))
    return Line(max(known.number for known in settings.lines) + 1, fingerprints, declared)


def is_foreign(line: Line, new: Counter[Fingerprint]) -> bool:
    """Whether most of these traces are labelled by teachers or prompts that a line does not know."""
    return sum(n for f, n in new.items() if not belongs(line.fingerprints, f)) * 2 > new.total()


def change_statement(old: Line, new: Line) -> str:
    """Why another line begins, in one sentence."""
    if old.labels != new.labels and set(new.fingerprints) & set(old.fingerprints):
        return "The declared labels changed: a new policy line begins, and the teacher answers until it is certified."
    names = ", ".join(map(str, new.fingerprints[:3]))
    return (
        f"Most new traces come from {names}, which policy line {old.number} does not imitate: line {new.number} "
        f"begins, and the teacher answers until it is certified. --accept-fingerprint learns from both together."
    )
