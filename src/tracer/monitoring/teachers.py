"""Labels of the teacher that the policy cannot answer: outside its label space, or none because the call failed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Self

from tracer.monitoring.warnings import Warning_
from tracer.stats import binomial
from tracer.types import FAILED, Trace

MOST_UNKNOWN = 100
"""Distinct unknown labels that are counted by name; a teacher that rambles makes up new ones for ever."""
FAILURES = 0.01
"""A warning comes where more of the teacher's calls fail than this, beyond noise."""
_LEVEL = 0.001


@dataclass(frozen=True, slots=True)
class Unknown:
    """A label outside the policy's space: how often the teacher gave it, and where first."""

    n: int
    number: int
    time: str | None


@dataclass(frozen=True, slots=True)
class TeacherLabels:
    """Counts of ``n`` teacher's labels; ``n_unknown`` counts unknown ones with and without a place in ``unknown``."""

    n: int = 0
    n_failed: int = 0
    n_unknown: int = 0
    first_failed: str | None = None
    unknown: Mapping[str, Unknown] = field(default_factory=dict)

    def fold(self, numbered: Iterable[tuple[int, Trace]], names: Sequence[str]) -> TeacherLabels:
        """The counts after more traces, given with their numbers; ``names``: the label space."""
        space = set(names)
        n, n_failed, n_unknown, first_failed = self.n, self.n_failed, self.n_unknown, self.first_failed
        unknown = dict(self.unknown)
        for number, trace in numbered:
            n += 1
            time = trace.time.isoformat() if trace.time else None
            if trace.label == FAILED:
                n_failed += 1
                first_failed = first_failed or time
            elif trace.label not in space:
                n_unknown += 1
                before = unknown.get(trace.label)
                if before is not None:
                    unknown[trace.label] = Unknown(before.n + 1, before.number, before.time)
                elif len(unknown) < MOST_UNKNOWN:
                    unknown[trace.label] = Unknown(1, number, time)
        return TeacherLabels(n, n_failed, n_unknown, first_failed, unknown)

    def plus(self, counts: Iterable[tuple[str, int, int, datetime | None]], names: Sequence[str]) -> TeacherLabels:
        """The counts after labels that were counted elsewhere: label, how often, number and time of the first."""
        space, unknown = set(names), dict(self.unknown)
        n, n_failed, n_unknown, first_failed = self.n, self.n_failed, self.n_unknown, self.first_failed
        for label, count, number, moment in sorted(counts, key=lambda row: row[2]):
            n += count
            time = moment.isoformat() if moment else None
            if label == FAILED:
                n_failed += count
                first_failed = first_failed or time
            elif label not in space:
                n_unknown += count
                before = unknown.get(label)
                if before is not None:
                    unknown[label] = Unknown(before.n + count, before.number, before.time)
                elif len(unknown) < MOST_UNKNOWN:
                    unknown[label] = Unknown(count, number, time)
        return TeacherLabels(n, n_failed, n_unknown, first_failed, unknown)

    def warnings(self) -> Iterator[Warning_]:
        """One for unknown labels, as soon as there is one, and one for failed calls."""
        if self.unknown:
            often = sorted(self.unknown, key=lambda label: (-self.unknown[label].n, label))
            named = ", ".join(f"{label!r} ({self.unknown[label].n:,})" for label in often[:5])
            more = f" and {len(often) - 5} more" if len(often) > 5 else ""
            earliest = min(self.unknown.values(), key=lambda u: u.number)
            text = (
                f"The teacher gave labels that the policy does not know {self.n_unknown:,} times in {self.n:,}: "
                f"{named}{more}; first in trace {earliest.number:,}."
            )
            yield Warning_("unknown_label", _read(earliest.time), text, self.n_unknown / self.n, 0.0)
        if self.n and binomial.agreement_lower(self.n_failed, self.n, _LEVEL) > FAILURES:
            share = self.n_failed / self.n
            text = f"{share:.1%} of {self.n:,} teacher calls failed."
            yield Warning_("teacher_failed", _read(self.first_failed), text, share, 0.0)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """Read a mapping of the fields."""
        unknown = {label: Unknown(**u) for label, u in values["unknown"].items()}
        return cls(**(dict(values) | {"unknown": unknown}))


def _read(time: str | None) -> datetime | None:
    return None if time is None else datetime.fromisoformat(time)
