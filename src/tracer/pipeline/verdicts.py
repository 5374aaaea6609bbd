"""What a fit gives: Certified or Refused. A refusal is a result with its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.certification.certificate import Certificate, Refusal
from tracer.certification.report import FitReport
from tracer.policies.policy import Policy


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Certified:
    """A policy that cleared the gate, with its certificate and the evidence behind the choice."""

    policy: Policy
    report: FitReport
    frontier: tuple[Certified | Refused, ...] = ()

    def __repr__(self) -> str:
        return f"Certified({self.policy.version or 'unsaved'}, {self.certificate.statement()!r})"

    @property
    def certificate(self) -> Certificate:
        """The promoted policy's certificate."""
        return self.policy.certificate


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Refused:
    """Nothing cleared the gate: a result with its evidence. ``best`` is the best rejected policy."""

    refusal: Refusal
    report: FitReport
    best: Policy | None = None
    frontier: tuple[Certified | Refused, ...] = ()

    def __repr__(self) -> str:
        return f"Refused({self.refusal.statement()!r})"


Verdict = Certified | Refused
