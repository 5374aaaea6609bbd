"""OpenTelemetry, where ``telemetry.enabled`` says so: a span a request, one for its upstream call, and two metrics.

All of it goes by OTLP over HTTP to where the environment says (``OTEL_EXPORTER_OTLP_ENDPOINT`` and the like), in
batches, from threads: a request puts its span into a bounded queue and is done. A collector that is down costs spans.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

from starlette.requests import Request
from starlette.responses import Response

from tracer.errors import MissingExtraError
from tracer.gateway import genai
from tracer.gateway.calls import Call
from tracer.gateway.settings import TelemetrySettings, Upstream
from tracer.types import Answer, Usage

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import Span, SpanContext, TracerProvider

log = logging.getLogger("tracer.gateway")

Endpoint = Callable[[Request], Awaitable[Response]]

PACKAGES: Final = ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http")
PARENT, STATE = b"traceparent", b"tracestate"
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
_MODELS = 100
_OTHER = "_OTHER"
_CLOSE_S = 5.0


def require() -> None:
    """Raise MissingExtraError where OpenTelemetry is not installed."""
    for name in PACKAGES:
        try:
            found = importlib.util.find_spec(name) is not None
        except ImportError:
            found = False
        if not found:
            raise MissingExtraError("opentelemetry", "otel", "telemetry")


class Telemetry:
    """What makes spans and counts metrics. Give the providers themselves, or `start` those that export by OTLP."""

    def __init__(
        self,
        spans: TracerProvider,
        meters: MeterProvider,
        closing: Iterable[Callable[[], object]] = (),
        giving_up: Iterable[Callable[[], object]] = (),
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._tracer, meter = spans.get_tracer("tracer.gateway"), meters.get_meter("tracer.gateway")
        self._extract = TraceContextTextMapPropagator().extract
        self._seconds = meter.create_histogram(
            genai.DURATION, "s", "Duration of a call of the teacher.",
            explicit_bucket_boundaries_advisory=genai.DURATION_BUCKETS,
        )  # fmt: skip
        self._tokens = meter.create_histogram(
            genai.TOKENS, "{token}", "Tokens of a call of the teacher.",
            explicit_bucket_boundaries_advisory=genai.TOKEN_BUCKETS,
        )  # fmt: skip
        self._closing, self._giving_up, self._models = tuple(closing), tuple(giving_up), set[str]()
        self.clock = clock

    @classmethod
    def start(cls, settings: TelemetrySettings) -> Telemetry:
        """With exporters as the ``OTEL_*`` variables of the environment say. Raises MissingExtraError."""
        require()
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider

        resource = Resource.create({SERVICE_NAME: settings.service_name} if settings.service_name else {})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "tracer"}))
        spans = TracerProvider(resource=resource, shutdown_on_exit=False)
        readers, giving_up = [], []
        if os.environ.get("OTEL_TRACES_EXPORTER", "otlp") != "none":
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.trace.export import BatchSpanProcessor

            exporter = OTLPSpanExporter()
            giving_up.append(exporter.shutdown)
            spans.add_span_processor(BatchSpanProcessor(exporter))
        if os.environ.get("OTEL_METRICS_EXPORTER", "otlp") != "none":
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
            from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

            metrics = OTLPMetricExporter()
            giving_up.append(metrics.shutdown)
            readers.append(PeriodicExportingMetricReader(metrics))
        meters = MeterProvider(readers, resource, shutdown_on_exit=False)
        return cls(spans, meters, (spans.shutdown, meters.shutdown), giving_up)

    def begin(self, method: str, route: str, headers: Mapping[str, str]) -> RequestSpan:
        """The span of a request that came, under the trace that its ``traceparent`` names."""
        from opentelemetry.trace import SpanKind

        method = method if method in _METHODS else _OTHER
        facts = {genai.METHOD: method, genai.ROUTE: route, genai.SCHEME: "http"}
        parent = self._extract({name: headers[name] for name in ("traceparent", "tracestate") if name in headers})
        span = self._tracer.start_span(f"{method} {route}", parent, SpanKind.SERVER, facts)
        return RequestSpan(self, span)

    def close(self, timeout_s: float | None = None) -> None:
        """Send what waits; what a collector has not taken after ``timeout_s`` seconds, by default 5, is lost."""
        threads = [threading.Thread(target=work, name="tracer-telemetry", daemon=True) for work in self._closing]
        for thread in threads:
            thread.start()
        until = time.monotonic() + (_CLOSE_S if timeout_s is None else timeout_s)
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        if any(thread.is_alive() for thread in threads):
            log.warning("the collector of telemetry does not answer: the last spans are lost")
            for work in self._giving_up:
                work()  # ends the waiting between two attempts

    def asking(self, parent: Span, name: str, facts: Mapping[str, Any]) -> Span:
        """The span of a call of an upstream."""
        from opentelemetry.trace import SpanKind, set_span_in_context

        return self._tracer.start_span(name, set_span_in_context(parent), SpanKind.CLIENT, facts)

    def count(self, facts: Mapping[str, Any], seconds: float, usage: Usage | None) -> None:
        """A call of a teacher that is over, by the few facts that metrics are kept by."""
        kept = (genai.OPERATION, genai.PROVIDER, genai.SERVER_ADDRESS, genai.SERVER_PORT, genai.TASK, genai.ERROR_TYPE)
        by = {name: facts[name] for name in kept if name in facts}
        by |= {n: self._known(facts[n]) for n in (genai.REQUEST_MODEL, genai.RESPONSE_MODEL) if n in facts}
        self._seconds.record(seconds, by)
        if usage is not None:
            self._tokens.record(usage.input_tokens, {**by, genai.TOKEN_TYPE: "input"})
            self._tokens.record(usage.output_tokens, {**by, genai.TOKEN_TYPE: "output"})

    def _known(self, model: str) -> str:
        """A model's name, of the first hundred: clients write what they like, and each name is a row for good."""
        if model not in self._models and len(self._models) < _MODELS:
            self._models.add(model)
        return model if model in self._models else _OTHER


class RequestSpan:
    """The span of one request, and of the call of the upstream within it."""

    def __init__(self, telemetry: Telemetry, span: Span) -> None:
        self._telemetry, self._span = telemetry, span
        self._asking: Span | None = None
        self._facts: dict[str, Any] = {}
        self._begun = 0.0

    def ask(
        self, headers: Iterable[tuple[bytes, bytes]], call: Call | None, model: str | None, task: str
    ) -> list[tuple[bytes, bytes]]:
        """The upstream is asked now: the client's headers, with the trace context of this call in place of its own."""
        self._begun = self._telemetry.clock()
        name = "upstream"
        if call is not None:
            name = genai.CHAT
            self._facts = {genai.OPERATION: genai.CHAT, genai.REQUEST_STREAM: call.stream}
            if (asked := genai.short(model or call.model)) is not None:
                self._facts[genai.REQUEST_MODEL] = asked
                name = f"{genai.CHAT} {asked}"
        if task:
            self._facts[genai.TASK] = task
        self._asking = self._telemetry.asking(self._span, name, self._facts)
        return injected(headers, self._asking.get_span_context())

    def answered(self, upstream: Upstream, status: int, attempts: int) -> None:
        """The head of an answer came."""
        self._of(upstream)
        self._facts |= {genai.STATUS: status, genai.ATTEMPTS: attempts}
        if status >= 400:
            self._facts[genai.ERROR_TYPE] = str(status)

    def failed(self, upstream: Upstream, kind: str) -> None:
        """Nobody answered, or not to the end."""
        self._of(upstream)
        self._facts[genai.ERROR_TYPE] = kind

    def over(self, reply: Mapping[str, Any] | None, usage: Usage | None, *, left: bool) -> None:
        """The call of the upstream is over: what its answer says of itself. ``left``: the client did not wait."""
        span, facts = self._asking, self._facts
        if span is None:
            return
        self._asking = None
        if reply is not None:
            facts |= genai.of_reply(reply)
        if usage is not None:
            facts |= {genai.INPUT_TOKENS: usage.input_tokens, genai.OUTPUT_TOKENS: usage.output_tokens}
        if left:
            facts.setdefault(genai.ERROR_TYPE, "client_left")
        if span.is_recording():
            span.set_attributes(facts)
            _mark(span, genai.ERROR_TYPE in facts)
        span.end()
        if genai.OPERATION in facts:
            self._telemetry.count(facts, self._telemetry.clock() - self._begun, usage)

    def end(
        self,
        status: int,
        *,
        id: str = "",  # noqa: A002
        task: str = "",
        decision: str = "",
        reason: str = "",
        call: Call | None = None,
        answer: Answer | None = None,
        saved: Decimal | None = None,
    ) -> None:
        """The request is over; ``status`` 499 is a client that left."""
        span = self._span
        if span.is_recording():
            told = {genai.CALL_ID: id, genai.DECISION: decision, genai.REASON: reason, genai.TASK: task}
            facts: dict[str, Any] = {name: value for name, value in told.items() if value}
            facts |= {genai.STATUS: status} if status else {}
            facts |= _of_call(call, decision) | _of_answer(answer)
            if saved is not None:
                facts[genai.SAVED_USD] = float(saved)
            if status in (0, 499) or status >= 500:
                facts[genai.ERROR_TYPE] = "client_left" if status == 499 else str(status or 500)
            span.set_attributes(facts)
            _mark(span, status == 0 or status >= 500)
        span.end()

    def _of(self, upstream: Upstream) -> None:
        self._facts |= {genai.UPSTREAM: upstream.name} | genai.server(upstream)
        if genai.OPERATION in self._facts:
            self._facts[genai.PROVIDER] = genai.provider(upstream)


def traced(telemetry: Callable[[], Telemetry | None], endpoint: Endpoint) -> Endpoint:
    """An endpoint with a span around it, where there is telemetry when a request comes."""

    async def spanned(request: Request) -> Response:
        if (now := telemetry()) is None:
            return await endpoint(request)
        span, status = now.begin(request.method, request.url.path, request.headers), 0
        try:
            response = await endpoint(request)
            status = response.status_code
        finally:
            note = getattr(request.state, "note", None)
            span.end(status, **({} if note is None else note.span()))
        return response

    return spanned


def injected(headers: Iterable[tuple[bytes, bytes]], context: SpanContext) -> list[tuple[bytes, bytes]]:
    """Headers with a W3C trace context (level 1) in place of the one that they had."""
    out = [(name, value) for name, value in headers if name.lower() not in (PARENT, STATE)]
    if context.is_valid:
        parent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        out.append((PARENT, parent.encode()))
        if state := context.trace_state.to_header():
            out.append((STATE, state.encode("latin-1", "replace")))
    return out


def _of_call(call: Call | None, decision: str) -> dict[str, Any]:
    """What was asked; and who answered, where no upstream did."""
    if call is None:
        return {}
    facts: dict[str, Any] = {genai.OPERATION: genai.CHAT, genai.REQUEST_STREAM: call.stream}
    model = genai.short(call.model)
    if model is not None:
        facts[genai.REQUEST_MODEL] = model
    if decision in ("handled", "degraded"):
        facts |= {genai.PROVIDER: genai.TRACER, genai.FINISH_REASONS: ("stop",)}
        facts |= {genai.RESPONSE_MODEL: model} if model is not None else {}
    return facts


def _of_answer(answer: Answer | None) -> dict[str, Any]:
    if answer is None:
        return {}
    facts: dict[str, Any] = {} if answer.policy is None else {genai.POLICY: answer.policy}
    if answer.seen is not None:
        facts |= {genai.SCORE: float(answer.score), genai.THRESHOLD: float(answer.threshold)}
    return facts


def _mark(span: Span, failed: bool) -> None:
    if failed:
        from opentelemetry.trace import StatusCode

        span.set_status(StatusCode.ERROR)
