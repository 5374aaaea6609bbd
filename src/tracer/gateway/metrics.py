"""What Prometheus is told. A registry for each app, so that two apps in a process do not count together."""

from __future__ import annotations

import math
from collections.abc import Iterable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tracer.gateway.lines import TaskLine
from tracer.gateway.upstream_metrics import UpstreamMetrics

__all__ = ["CONTENT_TYPE_LATEST", "Metrics"]

_OVERHEAD = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5)
_LATENCY = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class Metrics:
    """Counters by task, decision and reason; seconds; and what the tasks' lines say when they are asked."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        told = self.registry
        names = ("task", "decision", "reason")
        self.requests = Counter("tracer_requests", "Requests by outcome; task is empty for none.", names, registry=told)
        self.errors = Counter(
            "tracer_errors", "Answers with status 400 and more, by status.", ("status",), registry=told
        )
        self.overhead = Histogram(
            "tracer_overhead_seconds", "Time in the gateway before an answer or the upstream.", ("task",),
            buckets=_OVERHEAD, registry=told,
        )  # fmt: skip
        self.latency = Histogram(
            "tracer_request_seconds",
            "Time to the end of the answer.",
            ("task", "decision"),
            buckets=_LATENCY,
            registry=told,
        )
        self.saved = Counter(
            "tracer_saved_usd", "Dollars of teacher calls that were not made.", ("task",), registry=told
        )
        self.unread = Counter("tracer_unread_answers", "Answers of teachers without a label.", ("task",), registry=told)
        self.coverage = Gauge(
            "tracer_coverage", "Share of a task's requests answered by its policy.", ("task",), registry=told
        )
        self.queue = Gauge("tracer_queue_depth", "Traces that wait to be written.", ("task",), registry=told)
        self.drops = Gauge("tracer_traces_dropped", "Traces dropped or refused so far.", ("task",), registry=told)
        self.written = Gauge("tracer_traces_written", "Traces written so far.", ("task",), registry=told)
        self.policy = Gauge(
            "tracer_policy_info", "1 for the policy in force.", ("task", "policy", "mode"), registry=told
        )
        self.upstreams = UpstreamMetrics(told)
        self.workers = Gauge("tracer_workers", "Processes that answer.", registry=told)
        self.missing = Gauge("tracer_workers_missing", "Processes that are to answer and do not.", registry=told)
        live = {
            "agreement": (
                "tracer_live_agreement",
                "Share of handled audits that the teacher agrees with.",
            ),
            "lower": ("tracer_live_agreement_lower", "Its lower bound, right at all times at once."),
            "upper": ("tracer_live_agreement_upper", "Its upper bound, right at all times at once."),
            "target": ("tracer_target", "The agreement that the policy in force promises."),
            "audits": ("tracer_audits_counted", "Handled audits of the policy in force."),
            "alarm": ("tracer_alarm", "1 while the audits say that the policy breaks its promise."),
            "warnings": ("tracer_warnings", "Early warnings that stand."),
        }
        self._live = {key: Gauge(name, told_of, ("task",), registry=told) for key, (name, told_of) in live.items()}
        self._told: dict[tuple[str, str, str], tuple[Counter, Histogram, Histogram]] = {}
        self._answered: dict[str, list[int]] = {}
        self._gone: dict[str, list[int]] = {}

    def count(self, task: str, decision: str, reason: str, status: int, overhead_s: float, latency_s: float) -> None:
        """One request that is over."""
        told = self._told.get((task, decision, reason))
        if told is None:
            # Looking a label up is dearer than counting. These are names of tasks and our own words: there are few.
            told = self._told[task, decision, reason] = (
                self.requests.labels(task, decision, reason),
                self.overhead.labels(task),
                self.latency.labels(task, decision),
            )
        told[0].inc()
        told[1].observe(overhead_s)
        told[2].observe(latency_s)
        if status >= 400:
            self.errors.labels(str(status)).inc()
        if task:
            counts = self._answered.setdefault(task, [0, 0])
            counts[0] += 1
            counts[1] += decision == "handled"

    def fleet(self, running: int, wanted: int) -> None:
        """How many workers answer, of how many."""
        self.workers.set(running)
        self.missing.set(wanted - running)

    def live(
        self, task: str, agreement: float | None, bounds: tuple[float, float] | None, target: float | None,
        audits: int, alarm: bool, warnings: int,
    ) -> None:  # fmt: skip
        """What is known of a task's promise; None is told as NaN, since a gauge that is gone keeps its last value."""
        low, high = bounds if bounds is not None else (None, None)
        values = {"agreement": agreement, "lower": low, "upper": high, "target": target}
        values |= {"audits": audits, "alarm": float(alarm), "warnings": warnings}
        for key, value in values.items():
            self._live[key].labels(task).set(math.nan if value is None else value)

    def retire(self, line: TaskLine) -> None:
        """Keep what a line counted whose place another one took at a reload: a sum goes back at a restart alone."""
        gone, counts = self._gone.setdefault(line.task.name, [0, 0]), line.recorder.counts
        gone[0] += counts["dropped"] + counts["refused"]
        gone[1] += counts["written"]

    def exposition(self, lines: Iterable[TaskLine]) -> bytes:
        """The text that Prometheus reads."""
        self.policy.clear()
        for line in lines:
            name, counts = line.task.name, line.recorder.counts
            n, n_handled = self._answered.get(name, (0, 0))
            self.coverage.labels(name).set(n_handled / n if n else 0.0)
            self.queue.labels(name).set(line.recorder.pending)
            dropped, written = self._gone.get(name, (0, 0))
            self.drops.labels(name).set(dropped + counts["dropped"] + counts["refused"])
            self.written.labels(name).set(written + counts["written"])
            mode = "observe" if line.task.mode == "observe" else line.router.settings.mode
            self.policy.labels(name, line.policy.version if line.policy is not None else "", mode).set(1)
        return generate_latest(self.registry)
