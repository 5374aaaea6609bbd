"""What Prometheus is told of upstreams."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tracer.errors import UpstreamFault
from tracer.gateway.breaker import State

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_STATES: tuple[State, ...] = ("closed", "open", "half_open")


class UpstreamMetrics:
    """Requests under way and waiting, seconds to the head of an answer, errors, retries, fall-backs, breakers."""

    def __init__(self, registry: CollectorRegistry) -> None:
        name = ("upstream",)
        self._held = Gauge(
            "tracer_upstream_in_flight", "Requests that ask it, or its fall-backs.", name, registry=registry
        )
        self._waiting = Gauge("tracer_upstream_waiting", "Requests that wait to ask it.", name, registry=registry)
        self._seconds = Histogram(
            "tracer_upstream_seconds", "Time to the head of an answer.", name, buckets=_SECONDS, registry=registry
        )
        self._errors = Counter(
            "tracer_upstream_errors", "Attempts that failed, by kind.", ("upstream", "kind"), registry=registry
        )
        self._retries = Counter("tracer_upstream_retries", "Requests sent to it once more.", name, registry=registry)
        self._fallbacks = Counter(
            "tracer_upstream_fallbacks", "Requests sent to it as one before it failed.", name, registry=registry
        )
        self._breaker = Gauge(
            "tracer_upstream_breaker", "1 for the state that its breaker is in.", ("upstream", "state"),
            registry=registry,
        )  # fmt: skip

    def asked(self, upstream: str, seconds: float, kind: UpstreamFault | None) -> None:
        """An attempt is over: its answer began, or it failed with this kind of fault."""
        if kind in (None, "status"):
            self._seconds.labels(upstream).observe(seconds)
        if kind is not None:
            self.failed(upstream, kind)

    def failed(self, upstream: str, kind: UpstreamFault) -> None:
        """A fault."""
        self._errors.labels(upstream, kind).inc()

    def again(self, upstream: str) -> None:
        """The same upstream is asked again."""
        self._retries.labels(upstream).inc()

    def fell_back(self, upstream: str) -> None:
        """This upstream is asked because the one before failed."""
        self._fallbacks.labels(upstream).inc()

    def measure(self, upstream: str, held: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Where the numbers of requests under way and waiting are read."""
        self._held.labels(upstream).set_function(held)
        self._waiting.labels(upstream).set_function(waiting)

    def states(self, breakers: Mapping[str, str]) -> None:
        """The state of each breaker now."""
        self._breaker.clear()
        for upstream, state in breakers.items():
            for one in _STATES:
                self._breaker.labels(upstream, one).set(state == one)
