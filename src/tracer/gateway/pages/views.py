"""From looks to what the templates say. Texts come in here only for eyes that may see them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from tracer import __version__
from tracer.gateway.discovery import stored
from tracer.gateway.lines import TaskLine
from tracer.gateway.pages import charts
from tracer.gateway.pages.access import Visitor
from tracer.gateway.pages.ledgers import Span, total
from tracer.gateway.pages.looks import RANGES, Look, Texts
from tracer.gateway.pages.rendering import render
from tracer.gateway.proposals import Proposal
from tracer.gateway.serving import Gateway
from tracer.policies.history import Event
from tracer.serving.states import KILL_SWITCH, switched_off
from tracer.traces.digests import n_digests
from tracer.types import FAILED, Trace

MODES = {
    "observe": "The teacher answers everything; what it says is recorded.",
    "shadow": "The teacher answers everything; what the policy would have said is recorded.",
    "canary": "The policy answers a random share of what it handles.",
    "live": "The policy answers what it handles; the teacher the rest, and the audits.",
}
DONE = {
    "promote": "The version is in force.",
    "rollback": "The version that was in force before is in force again.",
    "pause": "Everything of this task goes to the teacher until a version is promoted.",
    "off": "Switched off: everything goes to the teachers.",
    "on": "Switched on again.",
    "login": "You are logged in as the admin.",
    "logout": "You are logged out.",
}
_EVENTS = {
    "promote": "Promoted", "rollback": "Rolled back", "teacher": "Set aside", "demote": "Demoted by an alarm",
    "refused": "Refused by the gate", "warning": "Warning", "quiet": "Quiet again", "note": "Note",
    "dropped": "Challenger dropped", "remove": "Removed", "unrecorded": "Changed by hand, or by a crash",
    "fit": "Fitted", "renew": "Renewed", "keep": "Refitted, and kept as it was", "new line": "A new task line",
    "recovered": "Finished after a crash",
}  # fmt: skip
_WARNINGS = {
    "handled_rate": "the share handled has moved", "novelty": "many requests are unlike any trace",
    "label_mix": "the mix of labels has moved", "unknown_label": "the teacher gives labels that are not known",
    "teacher_failed": "the teacher often fails",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A trace as a page shows it."""

    time: datetime | None
    text: str
    kept: bool
    label: str
    predicted: str | None
    score: float | None
    threshold: float | None
    policy: str | None
    why: str


def overview(
    gateway: Gateway, looks: Sequence[Look], proposals: Sequence[Proposal], visitor: Visitor, done: str
) -> str:
    """The page of all tasks."""
    serving = gateway.serving
    lines = serving.lines
    tasks = [_task(lines[look.name], look) for look in looks if look.name in lines]
    today, month = total(look.today for look in looks), total(look.month for look in looks)
    known = {one.name: one for one in serving.config.upstreams}
    upstreams = [
        {"name": name, "state": state, "url": known[name].base_url, "kind": known[name].kind}
        for name, state in serving.chains.breakers.items()
    ]
    return render(
        "overview.html.j2", visitor=visitor, version=__version__, done=DONE.get(done, ""), now=gateway.now(),
        tasks=tasks, upstreams=upstreams, off=_off(looks), today=today, month=month,
        proposals=[_proposal(one) for one in proposals],
        running=serving.running, unwatched=gateway.unwatched,
    )  # fmt: skip


def task_page(
    gateway: Gateway, line: TaskLine, look: Look, texts: Texts | None, visitor: Visitor,
    *, span: str, done: str, problem: str = "",
) -> str:  # fmt: skip
    """The page of one task."""
    spans = look.ranges[span]
    certificate = look.active.certificate if look.active is not None else None
    agreement = look.agreement or look.past
    coverage = certificate.coverage if certificate is not None and certificate.n_shadow else None
    name = line.task.name
    thresholds = {v: c.threshold for v, c in look.versions if c is not None}
    return render(
        "task.html.j2", visitor=visitor, version=__version__, done=DONE.get(done, ""), problem=problem,
        now=gateway.now(), task=_task(line, look), spans=spans, shown=total(spans), span=span, ranges=tuple(RANGES),
        certificate=certificate, off=_off([look]),
        coverage_chart=charts.coverage_chart(name, spans, coverage, _marks(look)) if any(s.n for s in spans) else None,
        agreement_chart=charts.agreement_chart(name, agreement) if agreement and agreement.points else None,
        money_chart=charts.money_chart(name, spans) if spans else None,
        disagreed=[_row(trace, thresholds) for trace in texts.disagreed] if texts is not None else [],
        deferred=[_row(trace, thresholds) for trace in texts.deferred] if texts is not None else [],
        texts=texts, history=[_event(event, visitor) for event in reversed(look.events)],
        versions=[_version(version, one, look.policy) for version, one in look.versions],
        home=str(line.home) if visitor.texts else "", modes=MODES,
    )  # fmt: skip


def login_page(gateway: Gateway, visitor: Visitor, problem: str = "") -> str:
    """The form that takes the token."""
    return render("login.html.j2", visitor=visitor, version=__version__, problem=problem, now=gateway.now(), done="")


def message_page(gateway: Gateway, visitor: Visitor, title: str, words: str) -> str:
    """A page that says one thing."""
    return render(
        "message.html.j2", visitor=visitor, version=__version__, title=title, words=words, now=gateway.now(), done=""
    )


async def proposals_of(gateway: Gateway) -> tuple[Proposal, ...]:
    """What discovery has found, stored and since; none where the file cannot be read."""
    from tracer.errors import TracerError

    try:
        kept = await asyncio.to_thread(stored, gateway.serving.config.home)
    except (TracerError, OSError):
        kept = ()
    newer = await asyncio.to_thread(gateway.discovery.proposals)
    found = {one.fingerprint: one for one in newer} | {one.fingerprint: one for one in kept}
    declared = {known for task in gateway.serving.config.tasks for known in task.fingerprints}
    # Calls under a task's alias are the task's, whatever else is found in them while it observes.
    aliases = {model for task in gateway.serving.config.tasks for model in task.models}
    undeclared = (one for one in found.values() if one.fingerprint not in declared and one.model not in aliases)
    return tuple(sorted(undeclared, key=lambda one: -one.n_calls))[:20]


def _task(line: TaskLine, look: Look) -> dict[str, Any]:
    task, settings, counts = line.task, line.router.settings, line.recorder.counts
    mode = "observe" if task.mode == "observe" else settings.mode
    week = look.ranges["7d"]
    return {
        "name": task.name,
        "mode": mode,
        "share": settings.share,
        "audit_rate": settings.audit_rate,
        "capture": task.capture,
        "teacher": look.teacher,
        "upstream": task.upstream,
        "policy": look.policy,
        "guarantee": look.active.certificate.guarantee if look.active is not None else None,
        "broken": line.broken,
        "held": look.held,
        "off": look.off,
        "target": task.target,
        "look": look,
        "agreement": look.agreement,
        "past": look.past,
        "gauge": charts.gauge(task.name, look.agreement) if look.agreement and look.agreement.n_handled else None,
        "spark": charts.spark(task.name, week) if any(span.n for span in week) else None,
        "coverage": _recent_coverage(week, look.today),
        "today": look.today,
        "month": look.month,
        "call_usd": look.call_usd,
        "partial": look.partial,
        "n_traces": look.n_traces,
        "pending": line.recorder.pending,
        "lost": counts["dropped"] + counts["refused"],
        "alarms": _alarms(look),
        "trouble": look.trouble,
    }


def _recent_coverage(week: Iterable[Span], today: Span) -> float | None:
    return today.coverage if today.n >= 100 else total(week).coverage


def _alarms(look: Look) -> list[dict[str, str]]:
    """What stands now: the kind for all, the message, which may name labels, for those who may see texts."""
    out, found = _demoted(look), look.agreement
    if found is None:
        return out
    if found.status == "alarm":
        out.append({"kind": "alarm", "what": "audits say that the policy breaks its promise", "message": ""})
    elif found.status == "warn":
        out.append({"kind": "warning", "what": "audits disagree more often than promised", "message": ""})
    out += [
        {"kind": "warning", "what": _WARNINGS.get(kind, kind), "message": message} for kind, message in found.warnings
    ]
    return out


def _demoted(look: Look) -> list[dict[str, str]]:
    """A demotion that nothing has followed since."""
    event = look.demoted
    if event is None:
        return []
    now = f"{look.policy}, at a safer threshold, answers" if look.policy else "the teacher answers everything"
    what = f"audits said that {event.before} breaks its promise; {now}"
    return [{"kind": "demoted", "what": what, "message": event.note}]


def _marks(look: Look) -> list[tuple[float, str]]:
    """When which version came into force; the teacher, where none did."""
    return [(e.time.timestamp(), e.after or "teacher") for e in look.events if e.moved and e.time is not None]


def _off(looks: Sequence[Look]) -> dict[str, Any]:
    names = [look.name for look in looks if look.off]
    return {
        "all": switched_off() or (bool(looks) and len(names) == len(looks)),
        "some": names,
        "by_environment": KILL_SWITCH if switched_off() else "",
    }


def _proposal(found: Proposal) -> dict[str, Any]:
    saved: tuple[Decimal, Decimal] | None = found.saved_year()
    return {
        "name": found.name, "fingerprint": found.fingerprint, "model": found.model, "n_calls": found.n_calls,
        "n_labels": len(found.labels), "labels": found.labels[:12], "evidence": found.evidence,
        "per_day": found.calls_per_day, "call_usd": found.call_usd, "saved": saved, "yaml": found.yaml(),
        "last": found.last,
    }  # fmt: skip


def _row(trace: Trace, thresholds: dict[str, float]) -> Row:
    seen = trace.seen
    threshold = thresholds.get(seen.policy) if seen is not None else None
    score = None if seen is None or seen.score != seen.score else seen.score
    if seen is None:
        why = "no policy was asked"
    elif trace.origin == "audit":
        why = "audit"
    elif score is not None and score < 0.0:
        why = "unlike any trace"
    else:
        why = "below the threshold" if not seen.handled else "the teacher was asked all the same"
    return Row(
        trace.time, trace.text, not n_digests([trace.text]),
        "the call failed" if trace.label == FAILED else trace.label,
        seen.label if seen is not None else None, score, threshold, seen.policy if seen is not None else None, why,
    )  # fmt: skip


def _event(event: Event, visitor: Visitor) -> dict[str, Any]:
    facts = event.facts
    return {
        "time": event.time,
        "what": _EVENTS.get(event.event, event.event.replace("_", " ").capitalize()),
        "kind": event.event,
        "moved": event.moved,
        "before": event.before,
        "after": event.after,
        "version": str(facts.get("version") or "") if facts else "",
        # A note may quote a label, or be an operator's own words.
        "note": event.note if visitor.texts else "",
    }


def _version(version: str, certificate: Any, active: str | None) -> dict[str, Any]:
    return {"name": version, "active": version == active, "certificate": certificate}


def now_utc(at: float) -> datetime:
    """Seconds since the epoch as a time."""
    return datetime.fromtimestamp(at, UTC)
