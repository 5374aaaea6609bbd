"""From what a policy says to the answer that goes out: the coin's word first, then the policy's, then the teacher's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tracer.errors import RouteError
from tracer.serving.coins import final_reason, origin_of
from tracer.serving.states import State
from tracer.types import Answer, Decided, Origin, Reason, Seen


class Draft(NamedTuple):
    """An answer before the teacher's: ``label`` is the surrogate's where it answers."""

    label: str | None
    reason: Reason
    surrogate_label: str | None
    score: float
    origin: Origin | None
    seen: Seen | None


REQUESTED = Draft(None, "requested", None, float("-inf"), "requested", None)
"""Of an input for which the caller asked for the teacher."""


def drafts_of(state: State, rows: Sequence[Decided], plans: Sequence[Reason | None]) -> list[Draft]:
    """One draft an input, from what was decided of it and what the coins said of it before."""
    version = state.policy.version if state.policy is not None else ""
    out = []
    for (label, score, handled, decided, _), plan in zip(rows, plans, strict=True):
        reason = final_reason(plan, decided)
        seen = Seen(version, label, handled, score) if label else None
        out.append(Draft(label if reason == "handled" else None, reason, label or None, score, origin_of(reason), seen))
    return out


def answers_of(
    state: State, drafts: Sequence[Draft], latency_s: float, replies: Mapping[int, str | RouteError] | None
) -> list[Answer]:
    """The answers; ``replies`` are the teacher's, by place, where it was asked."""
    threshold = state.policy.threshold if state.policy is not None else float("inf")
    version = state.version
    out = []
    for i, (label, reason, surrogate_label, score, origin, seen) in enumerate(drafts):
        reply = replies.get(i) if replies else None
        error = reply if isinstance(reply, RouteError) else None
        out.append(
            Answer(
                reply if isinstance(reply, str) else label,
                "surrogate" if label is not None else "teacher" if isinstance(reply, str) else "none",
                reason if error is None else "teacher_error",
                surrogate_label,
                score,
                threshold,
                version,
                latency_s,
                error,
                origin == "audit",
                origin,
                seen,
            )
        )
    return out
