"""What an audit says of the policy that saw it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from tracer.types import FAILED, Trace


@dataclass(frozen=True, slots=True)
class Observation:
    """One audit: its place in the store, the policy in force, its label, and whether the teacher agreed with it.

    ``handled``: the policy would have answered. A teacher call that failed never agrees.
    """

    number: int
    policy: str
    label: str
    agreed: bool
    handled: bool
    time: datetime | None = None

    @classmethod
    def of(cls, trace: Trace, number: int) -> Self | None:
        """The observation in a stored trace; None where it is no audit, or no policy saw it."""
        if trace.origin != "audit" or trace.seen is None:
            return None
        agreed = trace.label != FAILED and trace.seen.label == trace.label
        return cls(number, trace.seen.policy, trace.seen.label, agreed, trace.seen.handled, trace.time)


def observed(numbered: Iterable[tuple[int, Trace]]) -> Iterator[Observation]:
    """The observations among numbered traces, in their order, for the live monitor.

    Audits whose teacher call failed are left out: they count against a policy where it is certified, but an outage of
    the teacher must not demote a policy to the teacher that is down. `TeacherLabels` warns of them.
    """
    for number, trace in numbered:
        observation = Observation.of(trace, number)
        if observation is not None and trace.label != FAILED:
            yield observation
