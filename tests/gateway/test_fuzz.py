"""Whatever comes over the wire has an answer or a clear error: never the gateway's own 5xx, never a hang."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.gateway import serving
from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, MODEL, SYSTEM, Served, asked, place, serve
from tests.gateway.standin import Standin
from tracer.policies.serving_settings import ServingSettings

PATHS = (CHAT, "/v1/responses", "/v1/messages", "/v1/decisions", "/v1/systemone", "/v1/classify", "/v1/classify/batch")
PRIVATE = "zebra-quagga-private"
FEW_AND_MANY = [20, pytest.param(400, marks=pytest.mark.slow)]
"""How many examples: by default, and among the slow tests."""


def eager(n: int) -> settings:
    return settings(
        max_examples=n, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@pytest.fixture(scope="module")
def api() -> Iterator[Standin]:
    with Standin(default="billing") as api:
        yield api


@pytest.fixture(scope="module")
def served(known: Known, api: Standin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("fuzz")
    place(known.home, home, ServingSettings(audit_rate=0.5))
    task = "teacher: gpt-4o-mini\ninput: {json: text, ignore: [about]}\nredact: ['[0-9]{6,}']"
    config = serving.settings(api.url, home, task, "limits: {body_bytes: 400000}")
    with serve(config, home) as served:
        yield served


def address(served: Served) -> tuple[str, int]:
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    return host, int(port)


def conversed(served: Served, sent: bytes, *, half: bool = False) -> bytes:
    """What comes back on one connection, until the gateway closes it or has nothing more to say."""
    with socket.create_connection(address(served), timeout=10.0) as connection:
        connection.sendall(sent)
        if half:
            connection.shutdown(socket.SHUT_WR)
        parts = []
        while True:
            try:
                part = connection.recv(65_536)
            except ConnectionResetError:
                break
            if not part:
                break
            parts.append(part)
    return b"".join(parts)


def statuses(answers: bytes) -> list[int]:
    """Status of each answer on a connection; bodies here hold no status lines."""
    return [int(found) for found in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def request(path: str, body: bytes, *headers: bytes, version: bytes = b"HTTP/1.1", method: bytes = b"POST") -> bytes:
    head = [method + b" " + path.encode() + b" " + version, b"host: localhost", *headers]
    if not any(one.lower().startswith((b"content-length", b"transfer-encoding")) for one in headers):
        head.append(b"content-length: %d" % len(body))
    return b"\r\n".join(head) + b"\r\n\r\n" + body


CLOSE = b"connection: close"

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.just(10**400), st.floats(), st.text(max_size=8),
    st.sampled_from(["user", "system", "assistant", "text", "json_schema", "function", "choice", "\x00", "\ud800",
                     MODEL, "desk", "enum", "input_text", "message", "content", "true"]),
)  # fmt: skip
KEYS = st.sampled_from(
    [
        "model",
        "messages",
        "role",
        "content",
        "text",
        "type",
        "input",
        "instructions",
        "system",
        "max_tokens",
        "max_completion_tokens",
        "n",
        "stop",
        "stream",
        "stream_options",
        "include_usage",
        "tools",
        "tool_choice",
        "function",
        "name",
        "parameters",
        "properties",
        "enum",
        "required",
        "response_format",
        "json_schema",
        "schema",
        "strict",
        "format",
        "output_config",
        "metadata",
        "questions",
        "choices",
        "value",
        "criteria",
        "state",
        "task",
        "texts",
        "embedding",
        "fallback",
        "logit_bias",
        "guided_choice",
        "temperature",
        "about",
        "data",
        "const",
        "anyOf",
        "$ref",
        "additionalProperties",
        "thinking",
        "seed",
        "user",
        "store",
        "modalities",
    ]
)
trees = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=12
)


def whole(path: str) -> dict[str, Any]:
    """A request of the task that is right, to be bent."""
    text = json.dumps({"text": "where is my order", "about": 5})
    by_path: dict[str, dict[str, Any]] = {
        "/v1/responses": {"model": MODEL, "instructions": SYSTEM, "input": [{"role": "user", "content": text}]},
        "/v1/messages": {"model": MODEL, "max_tokens": 50, "system": SYSTEM,
                         "messages": [{"role": "user", "content": text}]},
        "/v1/decisions": {"model": MODEL, "input": text, "questions": [
            {"type": "choice", "name": "desk", "choices": [{"value": "billing"}, {"value": "sales"}]}]},
        "/v1/systemone": {"model": MODEL, "state": text, "questions": {
            "desk": {"type": "choice", "criteria": {"billing": "b", "sales": "s"}}}},
        "/v1/classify": {"task": "desk", "text": "where is my order"},
        "/v1/classify/batch": {"task": "desk", "texts": ["where is my order"]},
    }  # fmt: skip
    return by_path.get(path, asked(text))


@st.composite
def bent(draw: st.DrawFn, given: dict[str, Any]) -> bytes:
    """A body with some values replaced, at any depth, and some fields added."""
    body = json.loads(json.dumps(given))
    for _ in range(draw(st.integers(1, 3))):
        here: Any = body
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            if not keys or (isinstance(here, dict) and draw(st.integers(0, 3)) == 0):
                if isinstance(here, dict):
                    here[draw(KEYS)] = draw(trees)
                break
            key = draw(st.sampled_from(keys))
            if not isinstance(here[key], dict | list) or draw(st.booleans()):
                here[key] = draw(trees)
                break
            here = here[key]
    return json.dumps(body, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("n_examples", FEW_AND_MANY)
@pytest.mark.parametrize("path", PATHS)
def test_requests_that_are_bent(served: Served, path: str, n_examples: int) -> None:
    @eager(n_examples)
    @given(
        body=bent(whole(path)),
        content=st.sampled_from(["application/json", "text/plain", "", "application/json; charset=utf-16"]),
    )
    def send(body: bytes, content: str) -> None:
        answer = served.client.post(served.url + path, content=body, headers={"content-type": content})
        assert answer.status_code < 500, (answer.status_code, answer.content)
        if answer.status_code >= 400:
            assert "error" in answer.json()

    send()
    check(served)


@pytest.mark.parametrize("n_examples", FEW_AND_MANY)
def test_bodies_of_any_bytes(served: Served, n_examples: int) -> None:
    deep = b"[" * 100_000 + b"]" * 100_000
    many = b'{"model": "desk-router", "messages": ' + b'{"a":' * 30_000 + b"1" + b"}" * 30_001

    @eager(n_examples)
    @given(path=st.sampled_from(PATHS), body=st.binary(max_size=200))
    @example(path=CHAT, body=deep)
    @example(path=CHAT, body=many)
    @example(path=CHAT, body=b'{"model": "desk-router", "messages": [], "n": ' + b"9" * 5_000 + b"}")
    @example(path=CHAT, body=b'{"model": "desk-router", "model": "x", "messages": [{"role": "user", "content": "a"}]}')
    @example(path=CHAT, body=b"\xef\xbb\xbf" + json.dumps(asked("bom")).encode())
    @example(path=CHAT, body=json.dumps(asked("sixteen")).encode("utf-16"))
    @example(path="/v1/classify", body=b'{"task": "desk", "embedding": [1e400, 1' + b"0" * 400 + b"]}")
    @example(path="/v1/classify", body=b'{"task": "desk", "text": 5, "embedding": [1.0]}')
    @example(path="/v1/classify", body=b'{"task": "desk", "text": "a\\u0000b"}')
    @example(path="/v1/classify/batch", body=b'{"task": "desk", "texts": ["a\\ud800b"]}')
    def send(path: str, body: bytes) -> None:
        answer = served.client.post(served.url + path, content=body)
        assert answer.status_code < 500, (answer.status_code, answer.content)

    send()
    check(served)


odd_bytes = st.binary(max_size=12).filter(lambda b: b"\r" not in b and b"\n" not in b)


@pytest.mark.parametrize("n_examples", FEW_AND_MANY)
def test_heads_that_are_odd(served: Served, n_examples: int) -> None:
    """Headers, methods and targets of any bytes, straight onto the socket."""
    body = json.dumps(asked(json.dumps({"text": PRIVATE}))).encode()
    tracer = st.tuples(
        st.sampled_from([b"x-tracer-mode", b"x-tracer-task", b"x-tracer-no-store", b"x-tracer-key", b"authorization",
                         b"content-type", b"accept-encoding", b"expect", b"connection", b"te", b"upgrade", b"host",
                         b"content-encoding", b"x-standin-none", b"range", b"transfer-encoding", b"content-length"]),
        st.one_of(odd_bytes, st.sampled_from([b"100-continue", b"chunked", b"gzip", b"keep-alive, x", b"desk", b"llm",
                                              b"\xb2", b"99999999999999999999", b"-1", b"+5", b"websocket", b"h2c"])),
    )  # fmt: skip

    @eager(n_examples)
    @given(
        headers=st.lists(tracer, max_size=4),
        path=st.sampled_from([CHAT, "/v1/classify", "/v1/files/x", "/health", "/admin/tasks", "/v1//a", "/v1/%00",
                              "/%ff", "*", "http://other/v1/models", "/v1/models?" + "a" * 9_000, "//v1/models",
                              "/v1/../admin", "/", "/login", "/tasks/desk", "/tasks/%00/promote", "/off", "/logout",
                              "/assets/x/y", "/openapi.json"]),
        method=st.sampled_from([b"POST", b"GET", b"HEAD", b"OPTIONS", b"PUT", b"TRACE", b"CONNECT", b"NONE", b"get"]),
        version=st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/2.0", b"HTTP/0.9"]),
    )  # fmt: skip
    def send(headers: list[tuple[bytes, bytes]], path: str, method: bytes, version: bytes) -> None:
        lines = [name + b": " + value for name, value in headers]
        answers = conversed(served, request(path, body, CLOSE, *lines, version=version, method=method))
        assert statuses(answers), answers
        assert all(status < 500 for status in statuses(answers)), answers[:500]

    send()
    check(served)


def test_http_as_others_speak_it(served: Served, api: Standin) -> None:
    text = json.dumps({"text": "where is my order"})
    body = json.dumps(asked(text)).encode()
    pieces = b"".join(b"%x\r\n%s\r\n" % (len(body[i : i + 7]), body[i : i + 7]) for i in range(0, len(body), 7))
    chunked = request(CHAT, pieces + b"0\r\nx-trailer: 1\r\n\r\n", b"transfer-encoding: chunked", CLOSE)
    assert statuses(conversed(served, chunked)) == [200]
    old = conversed(served, request(CHAT, body, version=b"HTTP/1.0"))
    assert statuses(old) == [200]
    stream = conversed(
        served, request(CHAT, json.dumps(asked("to the teacher", stream=True)).encode(), version=b"HTTP/1.0")
    )
    assert stream.rstrip().endswith(b"data: [DONE]"), "an old client has the end of a stream by that of the connection"
    two = request(CHAT, body) + request("/health", b"", method=b"GET") + request(CHAT, body, CLOSE)
    assert statuses(conversed(served, two)) == [200, 200, 200], "pipelined: each its answer, in order"
    assert statuses(conversed(served, request(CHAT, body, b"expect: 100-continue", CLOSE))) == [100, 200]
    assert statuses(conversed(served, request(CHAT, body), half=True)) in ([200], []), "half closed"
    assert statuses(conversed(served, request("/health", b"", method=b"GET")[:-2], half=True)) in ([400], [])
    assert statuses(conversed(served, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")) in ([400], []), (
        "TLS, by mistake"
    )
    assert statuses(conversed(served, b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 30_000 + b"\r\n")) in ([400], [431])
    broken = request(CHAT, b"zz\r\nnot a chunk\r\n", b"transfer-encoding: chunked")
    assert statuses(conversed(served, broken)) in ([400], [])
    short = request(CHAT, body[:10], b"content-length: %d" % len(body))
    n = len(api.asked)
    assert statuses(conversed(served, short, half=True)) in ([400], []), "half a request is none"
    assert len(api.asked) == n
    check(served)


def test_a_body_too_large_is_told_so(served: Served) -> None:
    for headers in ((b"content-length: 1000000",), (b"transfer-encoding: chunked",)):
        chunked = headers[0].startswith(b"transfer")
        part = (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 16 if chunked else b"x" * 1_000_000
        answer = conversed(served, request(CHAT, part + b"0\r\n\r\n" * chunked, *headers, CLOSE))
        assert statuses(answer) == [413]
        assert b"larger than this gateway takes" in answer
    assert served.post({"task": "desk", "text": "x" * 500_000}, "/v1/classify").status_code == 413
    check(served)


def check(served: Served) -> None:
    """It is all right afterwards: the task is answered, nothing runs, and what was recorded can be read."""
    assert served.client.get(served.url + "/health/readiness").status_code == 200
    assert served.post({"task": "desk", "text": "where is my order"}, "/v1/classify").status_code == 200
    served.traces()
    assert served.gateway.serving.running == 0
    assert served.gateway.serving.lines["desk"].recorder.counts["refused"] == 0


def test_logs_hold_no_content_whatever_came(known: Known, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    for name in ("tracer", "uvicorn"):
        caplog.set_level(logging.DEBUG, name)
    with Standin(default=PRIVATE) as api, serve(serving.settings(api.url, tmp_path), tmp_path) as served:
        for path in PATHS:
            for body in (whole(path), [PRIVATE], {PRIVATE: PRIVATE}, {**whole(path), "tools": PRIVATE, "n": PRIVATE}):
                content = json.dumps(body).replace("where is my order", PRIVATE).encode()
                for raw in (content, content[:-3], content + PRIVATE.encode()):
                    headers = {"x-tracer-mode": "shadow", "authorization": f"Bearer {PRIVATE}"}
                    assert served.client.post(served.url + path, content=raw, headers=headers).status_code < 500
        conversed(served, request(CHAT, b"", b"x-bad: \x00" + PRIVATE.encode(), CLOSE))
        conversed(served, b"GET /" + PRIVATE.encode() + b" HTTP/9.9\r\n\r\n")
        served.traces()
    ours = [r for r in caplog.records if not r.name.startswith(("httpcore", "httpx", "asyncio"))]
    assert ours
    assert PRIVATE not in "\n".join(logging.Formatter().format(record) for record in ours)
