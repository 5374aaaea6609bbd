"""What becomes of a verdict: promote the challenger, renew or keep the policy in force, or leave all to the teacher."""

from __future__ import annotations

from typing import Literal, NamedTuple

from tracer.certification.certificate import Certificate
from tracer.errors import ConfigError
from tracer.pipeline import Certified, Standing, Verdict
from tracer.pipeline.standing import State

OnRefusal = Literal["keep", "teacher"]
Action = Literal["promote", "renew", "keep", "demote", "teacher"]

_SAME_COVERAGE = 0.005
"""Difference in coverage, as a share of requests, that nobody would notice."""


class Decision(NamedTuple):
    """What to do and why, in one sentence."""

    action: Action
    reason: str


def check_choice(on_refusal: str) -> None:
    """Raise ConfigError for a choice that does not exist."""
    if on_refusal not in ("keep", "teacher"):
        raise ConfigError(f"on_refusal = {on_refusal!r}: must be 'keep' or 'teacher'")


def decide(verdict: Verdict, standing: Standing | None, on_refusal: OnRefusal) -> Decision:
    """Which policy is in force after this attempt; ``standing`` is that of the policy in force, None where none is.

    A certified challenger takes over where it handles more on the very same shadow traces, or as much and agrees as
    often, or where the policy in force was not renewed and misses its target on them; so no update replaces better by
    worse. Too few fresh traces to renew the policy in force do not refute it.
    """
    if isinstance(verdict, Certified):
        return _certified(verdict.certificate, standing)
    if standing is None:
        return Decision("keep", "the gate refused and no policy was in force")
    if standing.state != "renewed" and on_refusal == "teacher":
        return Decision("teacher", "the gate refused, and on_refusal is 'teacher'")
    action: dict[State, Action] = {"renewed": "renew", "refuted": "demote", "not renewed": "keep"}
    return Decision(action[standing.state], standing.statement())


def _certified(certificate: Certificate, standing: Standing | None) -> Decision:
    if standing is None:
        return Decision("promote", "the gate certified it and no policy was in force")
    if standing.weaker or standing.state == "refuted":
        why = "promises less than is asked for now" if standing.weaker else "breaks its promise on fresh traces"
        return Decision("promote", f"policy {standing.version} {why}")
    if standing.coverage is None or standing.agreement is None:
        return Decision("promote", f"policy {standing.version} handles none of the new traces")
    if standing.state != "renewed" and _misses(certificate, standing.coverage, standing.agreement):
        return Decision(
            "promote",
            f"policy {standing.version} was not renewed, and agrees on {standing.agreement:.1%} of what it handles",
        )
    theirs = f"policy {standing.version} {standing.coverage:.1%} of the same traces"
    reason = f"it handles {certificate.coverage:.1%}, {theirs}"
    more = certificate.coverage - standing.coverage
    if more > _SAME_COVERAGE or (more >= -_SAME_COVERAGE and certificate.agreement >= standing.agreement):
        return Decision("promote", reason)
    return Decision("renew" if standing.state == "renewed" else "keep", reason)


def _misses(certificate: Certificate, coverage: float, agreement: float) -> bool:
    """Whether these rates break the promise. Any choice is sound here: the challenger is certified."""
    disagreeing = (1.0 - agreement) * (coverage if certificate.contract == "overall" else 1.0)
    return disagreeing > 1.0 - certificate.target
