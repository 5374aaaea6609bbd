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
from tracer.types import FAILED, Answer, Decided, Float32, Origin, Reason, Seen

MODES = ("auto", "llm", "shadow")
UNANSWERED: Final = "passed"
"""The decision on a call that no surrogate can answer: its answer is no trace."""
_LONG = 32 * 1024
"""Characters of a text that takes the event loop too long."""
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


async def decide(
    line: TaskLine, match: Match, call: Call, mode: str, version: str | None, *, kept: bool = True
) -> Verdict:
    """Decide a call of a task; ``mode`` is that of the request.

    ``version`` is the policy that was in force when the prompt was held against it: no other one answers. A call that
    is not ``kept`` takes no coin, for an audit that is not recorded would be missing among the others.
    """
    if call.unanswerable:
        return Verdict(UNANSWERED, "unanswerable", _teacher("requested", "requested"))
    if line.task.mode == "observe":
        return _left("observe", _teacher("no_policy", "bootstrap" if mode == "auto" else "requested"))
    if call.stored and not line.task.stateless:
        # A later call may refer to this answer, which no upstream would know: none of these calls is ever handled.
        return _left("stored", _teacher("requested", "requested"))
    if mode == "llm":
        return _left("requested", line.router.route(match.text, ask_teacher=True))
    if line.policy is not None and not (match.known_prompt and line.meets):
        return _other_task() if line.meets else _left("below_target", _teacher("other_task", "bootstrap"))
    ask = _shadowed if mode == "shadow" else _routed if kept else _unkept
    return await ask(line, match.text, version)


async def _routed(line: TaskLine, text: str, version: str | None) -> Verdict:
    try:
        if line.embeds:
            answer = await line.router.aroute(text)
        elif len(text) > _LONG:
            answer = await asyncio.to_thread(line.router.route, text)
        else:
            answer = line.router.route(text)
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
    version: str | None,
    known_prompts: Sequence[bool] | None,
    mode: str,
    audited: bool,
) -> list[Verdict]:
    """Decide native calls of a task, on texts, on embeddings (n, d) or on both.

    ``version`` is the policy that was in force when the prompts were held against it, and ``known_prompts`` (n,) say
    for each whether it accepts it; None where there is no prompt. ``audited``: whether labels come back, so that the
    audit coin may be tossed. Raises RouteError for inputs that are none.
    """
    n = len(texts) if texts is not None else len(embeddings) if embeddings is not None else 0
    if line.task.mode == "observe":
        return [_left("observe", _teacher("no_policy", "bootstrap" if mode == "auto" else "requested"))] * n
    if line.policy is not None and not line.meets and mode != "llm":
        return [_left("below_target", _teacher("other_task", "bootstrap"))] * n
    if known_prompts is None or line.policy is None or mode == "llm":
        rows = list(range(n))
    else:
        rows = [i for i in range(n) if known_prompts[i]]
    some = None if texts is None else [texts[i] for i in rows]
    vectors = None if embeddings is None else embeddings[rows]
    routed = partial(line.router.route_many, some, embeddings=vectors, ask_teacher=mode != "auto", audited=audited)
    answers = await asyncio.to_thread(routed) if rows else []
    verdicts = [_other_task()] * n
    if mode == "shadow" and rows:
        decisions = await asyncio.to_thread(line.router.decide, some, vectors)
        for i, answer, row in zip(rows, answers, decisions.rows(), strict=True):
            verdicts[i] = _beside(line, answer, row, version)
        return verdicts
    for i, answer in zip(rows, answers, strict=True):
        if answer.policy == version or mode != "auto":
            verdicts[i] = verdict_of(answer)
    return verdicts


async def _unkept(line: TaskLine, text: str, version: str | None) -> Verdict:
    """Without coins, and not tallied. Where not everything is served, such calls are the teacher's."""
    policy = line.policy
    if policy is None or line.router.settings.mode != "live":
        return _left(
            line.router.settings.mode if policy is not None else "no_policy", _teacher("requested", "requested")
        )
    decisions = await asyncio.to_thread(line.router.decide, [text])
    if line.policy is not policy or policy.version != version:
        return _other_task()
    (label, score, handled, reason, _), *_rest = decisions.rows()
    seen = Seen(policy.version, label, handled, score) if label else None
    answer = Answer(
        label if handled else None, "surrogate" if handled else "none", reason, label or None, score,
        policy.threshold, policy.version, 0.0, origin=None if handled else "requested", seen=seen,
    )  # fmt: skip
    return Verdict("handled" if handled else "deferred", reason, answer, answer.label, answer.surrogate_label)


async def _shadowed(line: TaskLine, text: str, version: str | None) -> Verdict:
    """The teacher answers because the caller said so; what the policy would have said is told and recorded."""
    answer = line.router.route(text, ask_teacher=True)
    decisions = await asyncio.to_thread(line.router.decide, [text])
    return _beside(line, answer, decisions.rows()[0], version)


def _beside(line: TaskLine, answer: Answer, decided: Decided, version: str | None) -> Verdict:
    """The teacher's answer, and beside it what the policy ``version`` decided."""
    if not answer.policy == version == line.version:
        return _left("shadow", answer)  # whose decision it is cannot be told
    label, score, handled, _, _ = decided
    seen = Seen(answer.policy or "", label, handled, score) if label else None
    return _left("shadow", replace(answer, surrogate_label=label or None, score=score, seen=seen))


def _left(reason: str, answer: Answer) -> Verdict:
    return Verdict("deferred", reason, answer)


def _other_task() -> Verdict:
    """A prompt that the policy does not imitate, or may not: all inputs under it, whatever they say."""
    return _left("other_task", _teacher("other_task", "bootstrap"))


def _teacher(reason: Reason, origin: Origin) -> Answer:
    return Answer(None, "none", reason, None, float("-inf"), float("inf"), None, 0.0, origin=origin)


def with_field(call: Call, path: tuple[str, ...] | None) -> Call:
    """The call with its label at a path of a JSON answer, where the request itself does not say where it stands."""
    if not path or call.slot.kind == "tool" or call.slot.fields:
        return call
    return replace(call, slot=replace(call.slot, kind="json", path=path[:-1], fields=path[-1:]))


def missing(origin: Origin | None, status: int) -> str | None:
    """The label of a trace whose teacher gave none; None for no trace. ``status`` 0 is no answer at all.

    An answer without a label (a refusal, another tool, other words) is as much of the teacher as one with it: left out
    of a plain sample, the sample would hold only what teachers label, and certify for all. What failed for another
    reason than the input is no evidence: the caller's credentials, quotas and mistakes. An outage counts against an
    audit alone, whose coin was tossed before.
    """
    plain = origin in ("audit", "bootstrap")
    if plain and 200 <= status < 300:
        return FAILED
    return FAILED if origin == "audit" and (status in (0, 408) or status >= 500) else None
