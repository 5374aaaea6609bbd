"""What a fit gives: Certified or Refused. A refusal is a result with its evidence."""

from __future__ import annotations

from dataclasses import dataclass

from tracer.certification.certificate import Certificate, Refusal
from tracer.certification.report import FitReport
from tracer.pipeline.standing import Standing
from tracer.policies.policy import Policy


@dataclass(frozen=True, slots=True)
class Update:
    """What an update did beside its verdict.

    ``n_added`` traces were new and ``n_known`` known; ``action`` says what became of the challenger and of the policy
    in force, and ``reason`` why; ``active`` is the version in force now, None for the teacher. ``released``: the traces
    that certified before only train from now on.
    """

    n_added: int
    n_known: int
    action: str
    reason: str
    active: str | None
    standing: Standing | None
    released: bool = False


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Certified:
    """A policy that cleared the gate, with its certificate and the evidence behind the choice.

    ``update`` says what an update made of it: the policy in force may be better.
    """

    policy: Policy
    report: FitReport
    frontier: tuple[Certified | Refused, ...] = ()
    update: Update | None = None

    def __repr__(self) -> str:
        return f"Certified({self.policy.version or 'unsaved'}, {self.certificate.statement()!r})"

    @property
    def certificate(self) -> Certificate:
        """The promoted policy's certificate."""
        return self.policy.certificate


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Refused:
    """Nothing cleared the gate: a result with its evidence. ``best`` is the best rejected policy.

    ``challenger`` is the same policy at a threshold that should hold by its training traces, for audits to certify.
    """

    refusal: Refusal
    report: FitReport
    best: Policy | None = None
    frontier: tuple[Certified | Refused, ...] = ()
    challenger: Policy | None = None
    update: Update | None = None

    def __repr__(self) -> str:
        return f"Refused({self.refusal.statement()!r})"


Verdict = Certified | Refused
