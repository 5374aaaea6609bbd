"""Which inputs go to the teacher whatever the policy thinks, drawn before it is asked, and what a label may prove.

The teacher's labels can only certify where the choice to ask did not depend on the input. So:

- ``audit``: the coin said so. A plain sample of all traffic, whatever else held: a policy that failed on the input, or
  a kill switch, does not undo the draw.
- ``bootstrap``: no policy was asked (none is active, the one that is imitates another teacher or prompt, or the kill
  switch is on), or the mode sent the input to the
  teacher (``shadow``, or the teacher's side of ``canary``). All inputs of that time, or a random part of them: a
  plain sample too, without the part that the audit coin took, which it took at random. A fault of the policy changes
  nothing here: these inputs would have gone to the teacher anyway.
- ``deferred``: the policy left it. Chosen by the input, hence biased: it only ever trains.
- ``fallback``: the policy or the embedder failed on it, and it was to be served. What fails depends on the input.
- ``requested``: the caller asked for the teacher. Chosen by someone who saw the input: no coin is tossed, and the
  policy is not asked.
"""

from __future__ import annotations

from typing import Protocol

from tracer.policies.serving_settings import ServingSettings
from tracer.types import Origin, Reason

_ORIGINS: dict[Reason, Origin] = {
    "audit": "audit",
    "shadow": "bootstrap",
    "canary": "bootstrap",
    "kill_switch": "bootstrap",
    "no_policy": "bootstrap",
    "other_task": "bootstrap",
    "error": "fallback",
    "requested": "requested",
}
NOT_ASKED: tuple[Reason, ...] = ("kill_switch", "no_policy", "other_task")
"""Reasons of decisions that no policy made."""


class Rng(Protocol):
    """Draws: a ``random.Random``, or ``random.SystemRandom``, which also survives a fork."""

    def random(self) -> float:
        """A number drawn uniformly from [0, 1)."""
        ...


def toss(settings: ServingSettings, rng: Rng, n: int) -> list[Reason | None]:
    """Why each of n inputs goes to the teacher regardless: ``audit``, ``shadow`` or ``canary``; else None.

    An input draws one number for the audit where the rate is not 0, then one for the canary where that is the mode,
    whatever the first was. A batch draws for its inputs in their order: the same numbers as one by one.
    """
    out: list[Reason | None] = []
    rate, mode, share = settings.audit_rate, settings.mode, settings.share
    for _ in range(n):
        audit = rate > 0.0 and rng.random() < rate
        apart = mode == "shadow" or (mode == "canary" and rng.random() >= share)
        side: Reason | None = ("shadow" if mode == "shadow" else "canary") if apart else None
        out.append("audit" if audit else side)
    return out


def final_reason(plan: Reason | None, decided: Reason) -> Reason:
    """The reason of the answer: the plan's, but that no policy was asked says more than the mode does."""
    if plan is None or (plan != "audit" and decided in NOT_ASKED):
        return decided
    return plan


def origin_of(reason: Reason) -> Origin | None:
    """The origin of a teacher's label for an input routed for this reason; None where the surrogate answers."""
    return None if reason == "handled" else _ORIGINS.get(reason, "deferred")
