"""A home that has seen some days of traffic, told by its policy's own decisions on messages it never saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np

from tracer.policies.registry import PolicyRegistry
from tracer.traces.store import TraceStore
from tracer.types import Seen, Trace, Usage

TEACHER = "gpt-4o-mini"


def live_through(
    home: Path, labels: Mapping[str, str], *, until: datetime, days: float = 8.0, per_hour: float = 60.0,
    audit_rate: float = 0.05, served: bool = True, wrong: float = 0.0, seed: int = 0,
) -> int:  # fmt: skip
    """Give a fitted home audits, deferrals and tallies of ``days`` before ``until``; how many requests there were.

    ``labels``: the teacher's of each text. ``served``: whether the policy answered, as in ``live``, or not, as in
    ``shadow``. ``wrong``: share of audits in the last day on which the teacher says something else.
    """
    policy = PolicyRegistry(home).load()
    rng, texts, total = np.random.default_rng(seed), list(labels), 0
    names = sorted(set(labels.values()))
    with TraceStore.open(home) as store:
        for step in range(int(days * 24)):
            begin = until - timedelta(hours=days * 24 - step)
            swing = 1.0 + 0.7 * math.sin((begin.hour - 8) / 24 * 2 * math.pi)
            n = int(rng.poisson(per_hour * swing))
            if not n:
                continue
            chosen = [texts[i] for i in rng.integers(len(texts), size=n)]
            decisions = policy.decide(chosen)
            audited = rng.random(n) < audit_rate
            asked = audited | ~decisions.handled | (not served)
            traces = []
            for i in np.flatnonzero(asked).tolist():
                text, label = chosen[i], labels[chosen[i]]
                if audited[i] and rng.random() < wrong and (until - begin) < timedelta(days=1):
                    label = names[int(rng.integers(len(names)))]
                origin = "audit" if audited[i] else "deferred"
                seen = Seen(policy.version, decisions.labels[i], bool(decisions.handled[i]), float(decisions.scores[i]))
                usage = Usage(int(rng.integers(180, 420)), int(rng.integers(4, 12)))
                at = begin + timedelta(seconds=3600.0 * i / n)
                name = f"{step:04x}{i:04x}".rjust(32, "0")
                traces.append(
                    Trace(name, text, label, teacher=TEACHER, time=at, origin=origin, usage=usage, seen=seen)  # type: ignore[arg-type]
                )
            if traces:
                store.append(traces, recorded_at=begin)
            facts: dict[str, int | Mapping[str, int]] = {
                "handled": int(decisions.handled.sum()),
                "served": int((decisions.handled & ~asked).sum()),
                "novel": int((decisions.scores < 0).sum()),
                "errors": 0,
                "audits": int(audited.sum()),
                "labels": dict(Counter(decisions.labels)),
            }
            store.tally(policy.version, begin.timestamp(), 3600.0, n, facts)
            total += n
    return total


def at_noon() -> datetime:
    """A fixed present for homes that are made in advance."""
    return datetime(2026, 5, 20, 12, tzinfo=UTC)
