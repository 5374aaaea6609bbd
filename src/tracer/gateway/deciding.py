"""What becomes of a matched call: the surrogate's label, or the teacher, and for what reason."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Literal

from tracer.errors import RouteError
from tracer.gateway.calls import Call
from tracer.gateway.lines import TaskLine
from tracer.gateway.tasks import Match
from tracer.types import Answer, Float32, Origin, Reason, Seen

MODES = ("auto", "llm", "shadow")
UNANSWERED: Final = "passed"
"""The decision on a call that no surrogate can answer: its answer is no trace."""
Decision = Literal["handled", "deferred", "audit", "passed"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """``label`` is the surrogate's where it answers. ``answer.trace`` makes the record of the teacher's label else.

    ``best`` is the label to give where the upstream is down and the task allows it: the surrogate's, of a policy that
    is in service for this call.
    """

    decision: Decision
    reason: str
    answer: Answer
    label: str | None = None
    best: str | None = None

    def unwritten(self) -> Verdict:
        """The same where the surrogate's label cannot be written into an answer: the teacher is asked.

        Which calls these are depends on the label, so what the teacher says only trains.
        """
        answer = replace(self.answer, label=None, source="none", reason="error", origin="fallback")
        return Verdict("deferred", "unwritable", answer)


async def decide(line: TaskLine, match: Match, call: Call, mode: str) -> Verdict:
    """Decide a call of a task; ``mode`` is that of the request."""
    if call.unanswerable:
        return Verdict(UNANSWERED, "unanswerable", _teacher("requested", "requested"))
    if line.task.mode == "observe":
        return _left("observe", _teacher("no_policy", "bootstrap" if mode == "auto" else "requested"))
    if call.stored and not line.task.stateless:
        # A later call may refer to this answer, which no upstream would know: none of these calls is ever handled.
        return _left("stored", _teacher("requested", "requested"))
    if mode == "llm":
        return _left("requested", line.router.route(match.text, ask_teacher=True))
    if line.policy is not None and not match.known_prompt:
        return _other_task()
    return await (_shadowed(line, match.text) if mode == "shadow" else _routed(line, match.text))


async def _routed(line: TaskLine, text: str) -> Verdict:
    version = _version(line)
    try:
        answer = await asyncio.to_thread(line.router.route, text) if line.embeds else line.router.route(text)
    except RouteError:
        return _left("error", _teacher("error", "fallback"))
    if answer.policy != version:
        return _other_task()  # another policy was taken up in between, and the prompt was not held against it
    return verdict_of(answer)


def verdict_of(answer: Answer) -> Verdict:
    """What a router's answer amounts to."""
    best = answer.surrogate_label if answer.reason not in ("shadow", "canary") else None
    decision: Decision = "handled" if answer.handled else "audit" if answer.audited else "deferred"
    return Verdict(decision, answer.reason, answer, answer.label, best)


async def decide_many(
    line: TaskLine,
    texts: Sequence[str] | None,
    embeddings: Float32 | None,
    *,
    known_prompts: Sequence[bool] | None,
    mode: str,
    audited: bool,
) -> list[Verdict]:
    """Decide native calls of a task, on texts, on embeddings (n, d) or on both.

    ``known_prompts`` (n,) are those of the matches, None where no prompt is held against the policy. ``audited``:
    whether labels come back, so that the audit coin may be tossed. Raises RouteError for inputs that are none.
    """
    n = len(texts) if texts is not None else len(embeddings) if embeddings is not None else 0
    if line.task.mode == "observe":
        return [_left("observe", _teacher("no_policy", "bootstrap" if mode == "auto" else "requested"))] * n
    version = _version(line)
    if known_prompts is None or line.policy is None or mode != "auto":
        rows = list(range(n))
    else:
        rows = [i for i in range(n) if known_prompts[i]]
    some = None if texts is None else [texts[i] for i in rows]
    vectors = None if embeddings is None else embeddings[rows]
    routed = partial(line.router.route_many, some, embeddings=vectors, ask_teacher=mode != "auto", audited=audited)
    answers = await asyncio.to_thread(routed) if rows else []
    verdicts = [_other_task()] * n
    for i, answer in zip(rows, answers, strict=True):
        if known_prompts is None or answer.policy == version:
            verdicts[i] = verdict_of(answer)
    return verdicts


async def _shadowed(line: TaskLine, text: str) -> Verdict:
    """The teacher answers because the caller said so; what the policy would have said is told and recorded."""
    answer = line.router.route(text, ask_teacher=True)
    decisions = await asyncio.to_thread(line.router.decide, [text])
    if answer.policy != _version(line):
        return _left("shadow", answer)  # whose decision it is cannot be told
    label, score = decisions.labels[0], float(decisions.scores[0])
    seen = Seen(answer.policy or "", label, bool(decisions.handled[0]), score) if label else None
    return _left("shadow", replace(answer, surrogate_label=label or None, score=score, seen=seen))


def _left(reason: str, answer: Answer) -> Verdict:
    return Verdict("deferred", reason, answer)


def _other_task() -> Verdict:
    """A prompt that the policy does not imitate, or may not: all inputs under it, whatever they say."""
    return _left("other_task", _teacher("other_task", "bootstrap"))


def _version(line: TaskLine) -> str | None:
    return (line.policy.version or None) if line.policy is not None else None


def _teacher(reason: Reason, origin: Origin) -> Answer:
    return Answer(None, "none", reason, None, float("-inf"), float("inf"), None, 0.0, origin=origin)
