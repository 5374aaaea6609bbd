"""OpenTelemetry, read by a collector on loopback: what is told, what is not, and what it costs when nobody listens."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.collecting import Collected, collector, facts
from tests.gateway.conftest import Known
from tests.gateway.serving import SYSTEM, Served, asked, place, serve, settings
from tests.gateway.standin import Fault, Standin
from tracer.errors import MissingExtraError
from tracer.gateway import genai, telemetry
from tracer.gateway.settings import TelemetrySettings
from tracer.policies.serving_settings import ServingSettings

PLAIN = ServingSettings(audit_rate=0.0)
ON = "telemetry: {enabled: true}"
TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"
SERVER, CLIENT = 2, 3


@pytest.fixture
def sent_to(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    return lambda url: monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)


def spans(told: Collected, n: int) -> list[Any]:
    until = time.monotonic() + 10.0
    while len(told.spans) < n and time.monotonic() < until:
        time.sleep(0.01)
    assert len(told.spans) == n
    return sorted(told.spans, key=lambda span: span.start_time_unix_nano)


def settle(served: Served) -> None:
    assert served.traces() is not None


def test_a_native_call_is_a_span_with_its_decision(known: Known, tmp_path: Path, sent_to: Any) -> None:
    place(known.home, tmp_path, PLAIN)
    text = next(iter(known.handled))
    with collector() as told:
        sent_to(told.url)
        with serve(settings("http://127.0.0.1:9", tmp_path, more=ON), tmp_path) as served:
            answer = served.post({"task": "desk", "text": text}, "/v1/classify", traceparent=PARENT).json()
            served.post({"task": "desk"}, "/v1/classify")
            whole, refused = spans(told, 2)
    assert whole.trace_id.hex() == TRACE
    found = facts(whole)
    assert (found["tracer.decision"], found["tracer.reason"], found["tracer.task"]) == ("handled", "handled", "desk")
    assert (found["tracer.policy"], found["http.response.status_code"]) == ("v0001", 200)
    assert found["tracer.score"] == pytest.approx(answer["score"])
    assert "tracer.decision" not in facts(refused)
    assert facts(refused)["http.response.status_code"] == 400


def test_a_call_of_the_teacher_is_two_spans_of_the_clients_trace(known: Known, tmp_path: Path, sent_to: Any) -> None:
    place(known.home, tmp_path, PLAIN)
    text = known.left[0]
    body = asked(text)
    with collector() as told, Standin({text: "billing"}) as api:
        sent_to(told.url)
        with serve(settings(api.url, tmp_path, "teacher: gpt-4o-mini", ON), tmp_path) as served:
            response = served.post(
                body, traceparent=PARENT, tracestate="vendor=1", authorization="Bearer sk-very-secret"
            )
            assert response.status_code == 200
            request, call = spans(told, 2)
    assert (request.kind, call.kind) == (SERVER, CLIENT)
    assert {request.trace_id.hex(), call.trace_id.hex()} == {TRACE}
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    assert call.parent_span_id == request.span_id
    (sent,) = api.asked
    assert sent.headers["traceparent"] == f"00-{TRACE}-{call.span_id.hex()}-01"
    assert sent.headers["tracestate"] == "vendor=1"
    assert sent.body == json.dumps(body).replace("desk-router", "gpt-4o-mini").encode()

    answer, port = response.json(), int(api.url.rpartition(":")[2])
    assert call.name == "chat gpt-4o-mini"
    assert facts(call) == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "gpt-4o-mini",
        "gen_ai.request.stream": False, "gen_ai.response.model": answer["model"], "gen_ai.response.id": answer["id"],
        "gen_ai.response.finish_reasons": ["stop"], "gen_ai.usage.input_tokens": answer["usage"]["prompt_tokens"],
        "gen_ai.usage.output_tokens": answer["usage"]["completion_tokens"], "server.address": "127.0.0.1",
        "server.port": port, "http.response.status_code": 200, "tracer.task": "desk", "tracer.upstream": "main",
        "tracer.upstream.attempts": 1,
    }  # fmt: skip
    assert request.name == "POST /v1/chat/completions"
    told_of = facts(request)
    assert told_of.pop("tracer.score") == pytest.approx(float(response.headers["x-tracer-score"]), rel=1e-5)
    assert told_of.pop("tracer.threshold") == pytest.approx(float(response.headers["x-tracer-threshold"]), rel=1e-5)
    assert told_of == {
        "http.request.method": "POST", "http.route": "/v1/chat/completions", "url.scheme": "http",
        "http.response.status_code": 200, "gen_ai.operation.name": "chat", "gen_ai.request.model": "desk-router",
        "gen_ai.request.stream": False, "tracer.call_id": response.headers["x-tracer-call-id"],
        "tracer.task": "desk", "tracer.decision": "deferred", "tracer.policy": "v0001",
        "tracer.reason": response.headers["x-tracer-reason"],
    }  # fmt: skip
    assert told.services == {"tracer"}


def test_handled_streamed_failed_and_foreign_calls(known: Known, tmp_path: Path, sent_to: Any) -> None:
    place(known.home, tmp_path, PLAIN)
    text = next(iter(known.handled))
    with collector() as told, Standin({known.left[1]: "billing"}) as api:
        sent_to(told.url)
        with serve(settings(api.url, tmp_path, more=ON), tmp_path) as served:
            served.post(asked(text))
            (handled,) = spans(told, 1)
            served.post(asked(known.left[1], stream=True, stream_options={"include_usage": True}))
            _, stream = spans(told, 3)[1:]
            api.misbehave(Fault("status", status=500))
            served.post(asked(known.left[2]))
            failed, refused = spans(told, 5)[3:]
            api.misbehave(Fault("reset"))
            served.post(asked(known.left[3]))
            down, cut = spans(told, 7)[5:]
            served.client.get(served.url + "/v1/files/file-of-somebody")
            foreign, passed = spans(told, 9)[7:]
            served.post({"task": "desk", "text": text}, "/v1/classify")
            native = spans(told, 10)[9]
            messages = {**asked(known.left[4]), "model": "claude-x", "max_tokens": 5}
            served.post(messages, "/v1/messages")
            claude = spans(told, 12)[11]
    assert (facts(handled)["tracer.decision"], facts(handled)["gen_ai.provider.name"]) == ("handled", "tracer")
    assert facts(handled)["gen_ai.response.model"] == "desk-router"
    assert not handled.parent_span_id
    assert facts(stream)["gen_ai.request.stream"] is True
    assert facts(stream)["gen_ai.response.finish_reasons"] == ["stop"]
    assert facts(stream)["gen_ai.usage.input_tokens"] > 0
    assert (facts(refused)["error.type"], facts(refused)["http.response.status_code"]) == ("500", 500)
    assert failed.status.code == refused.status.code == cut.status.code == down.status.code == 2
    assert (facts(cut)["error.type"], facts(down)["http.response.status_code"]) == ("cut", 502)
    assert not refused.events
    assert not cut.status.message, "no message: it might quote somebody"
    assert (foreign.name, passed.name) == ("GET /v1/{path}", "upstream")
    assert not [name for name in facts(passed) if name.startswith("gen_ai")]
    assert (native.name, facts(native)["http.response.status_code"]) == ("POST /v1/classify", 200)
    assert facts(claude)["gen_ai.response.finish_reasons"] == ["end_turn"]


def test_metrics_of_calls_of_teachers(known: Known, tmp_path: Path, sent_to: Any) -> None:
    place(known.home, tmp_path, PLAIN)
    with collector() as told, Standin() as api:
        sent_to(told.url)
        with serve(settings(api.url, tmp_path, "teacher: gpt-4o-mini", ON), tmp_path) as served:
            for text in (*known.left[:3], *list(known.handled)[:2]):
                served.post(asked(text))
            settle(served)
    (seconds,) = told.points[genai.DURATION]
    assert (seconds.count, list(seconds.explicit_bounds)) == (3, list(genai.DURATION_BUCKETS))
    assert facts(seconds)["gen_ai.request.model"] == "gpt-4o-mini"
    tokens = {facts(point)["gen_ai.token.type"]: point for point in told.points[genai.TOKENS]}
    assert {name: point.count for name, point in tokens.items()} == {"input": 3, "output": 3}
    assert tokens["input"].sum > 0


def test_no_content_and_no_key_is_told(known: Known, tmp_path: Path, sent_to: Any) -> None:
    place(known.home, tmp_path, PLAIN)
    with collector() as told, Standin(default="private-label") as api:
        sent_to(told.url)
        with serve(settings(api.url, tmp_path, more=ON), tmp_path) as served:
            for fault in (None, Fault("status", status=500), Fault("reset"), Fault("malformed")):
                api.misbehave(fault)
                served.post(asked("a private text"), authorization="Bearer sk-private-key", x_other="private-header")
                served.client.get(served.url + "/v1/private-path?private=query")
            spans(told, 16)
    raw = b"".join(told.raw)
    assert b"desk-router" in raw
    assert b"private" not in raw
    assert SYSTEM.encode() not in raw


def test_without_telemetry_the_clients_context_passes(tmp_path: Path) -> None:
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        served.post(asked("hello"), traceparent=PARENT)
        served.post(asked("hello"))
        assert served.gateway.telemetry is None
    assert [one.headers.get("traceparent") for one in api.asked] == [PARENT, None]


def test_nothing_of_it_is_imported_unless_it_is_on() -> None:
    code = "import sys, tracer.gateway.app; assert not [m for m in sys.modules if m.startswith('opentelemetry')]"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": "src"}, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("status", [None, 503])
def test_a_collector_that_is_down_costs_spans_alone(
    known: Known, tmp_path: Path, sent_to: Any, monkeypatch: pytest.MonkeyPatch, status: int | None
) -> None:
    place(known.home, tmp_path, PLAIN)
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setattr(telemetry, "_CLOSE_S", 0.5)
    text = next(iter(known.handled))
    with collector(status or 200) as told:
        sent_to(told.url if status else "http://127.0.0.1:9")
        with serve(settings("http://127.0.0.1:9", tmp_path, more=ON), tmp_path) as served:
            for _ in range(40):
                assert served.post(asked(text)).headers["x-tracer-decision"] == "handled"
            begun = time.monotonic()
        assert time.monotonic() - begun < 5.0


def test_names_of_models_are_bounded_in_metrics() -> None:
    kept: list[dict[str, Any]] = []

    class Meter:
        def create_histogram(self, *_: object, **__: object) -> Any:
            return self

        def record(self, _: float, by: dict[str, Any]) -> None:
            kept.append(by)

    class Meters:
        def get_meter(self, _: str) -> Any:
            return Meter()

    from opentelemetry.trace import NoOpTracerProvider

    one = telemetry.Telemetry(NoOpTracerProvider(), Meters())  # type: ignore[arg-type]
    for i in range(150):
        one.count({genai.REQUEST_MODEL: f"model-{i}"}, 0.1, None)
    assert len({by[genai.REQUEST_MODEL] for by in kept}) == 101
    assert kept[-1] == {genai.REQUEST_MODEL: "_OTHER"}


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtraError, match=r"telemetry needs opentelemetry: pip install 'tracer-router\[otel\]'"):
        telemetry.Telemetry.start(TelemetrySettings(True))


@pytest.mark.parametrize(
    ("reply", "found"),
    [
        ({"object": "response", "status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}},
         ("max_output_tokens",)),
        ({"object": "response", "status": "completed"}, ("completed",)),
        ({"stop_reason": "end_turn"}, ("end_turn",)),
        ({"choices": [{"finish_reason": "stop"}, {"finish_reason": "length"}]}, ("stop", "length")),
        ({"choices": [{"finish_reason": None}, 3], "id": 5, "model": "m" * 300}, None),
    ],
)  # fmt: skip
def test_finish_reasons_of_all_formats(reply: dict[str, Any], found: tuple[str, ...] | None) -> None:
    assert genai.of_reply(reply) == ({} if found is None else {genai.FINISH_REASONS: found})
