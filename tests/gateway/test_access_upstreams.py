"""What goes to an upstream, to which one, and what comes of its faults, for other traffic than a task's."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, MODEL, SYSTEM, asked, place, serve, settings
from tests.gateway.standin import Fault, Standin
from tracer.policies.serving_settings import ServingSettings

PLAIN = ServingSettings(audit_rate=0.0)
HELLO = [{"role": "user", "content": "hello"}]


def two(first: str, second: str, home: Path, more: str = "") -> str:
    return f"home: {home}\nupstreams:\n  {first}\n  {second}\n{more}\n"


def test_a_clients_key_goes_to_its_own_provider_or_to_none(tmp_path: Path) -> None:
    with Standin() as api, Standin() as ant:
        task = f"tasks:\n  desk: {{upstream: main, match: {{models: [{MODEL}]}}}}"
        upstreams = (f"ant: {{base_url: {ant.url}/v1, kind: anthropic}}", f"main: {{base_url: {api.url}/v1}}")
        with serve(two(*upstreams, tmp_path, task), tmp_path) as served:
            keyed: dict[str, Any] = {"x_api_key": "sk-ant", "anthropic_version": "2023-06-01"}
            message = {"model": MODEL, "max_tokens": 5, "system": SYSTEM, "messages": HELLO}
            answer = served.post(message, "/v1/messages", **keyed)
            assert (answer.status_code, answer.json()["type"]) == (400, "error")
            assert api.asked == []
            assert served.post({**message, "model": "claude"}, "/v1/messages", **keyed).status_code == 200
            assert served.post({}, "/v1/messages/batches", **keyed).status_code == 404
            assert [one.headers["x-api-key"] for one in ant.asked] == ["sk-ant"] * 2
            for path in (CHAT, "/v1/responses"):
                body = {"model": "gpt-x", "messages": HELLO, "input": HELLO}
                assert served.post(body, path, authorization="Bearer sk-openai").status_code == 200
            assert served.post({}, "/v1/batches", authorization="Bearer sk-openai").status_code == 404
            assert len(ant.asked) == 2, "the first upstream is Anthropic's, and sees no key of OpenAI's"
            assert [one.headers["authorization"] for one in api.asked] == ["Bearer sk-openai"] * 3


def test_with_one_upstream_a_foreign_key_is_refused_and_none_is_not(tmp_path: Path) -> None:
    with Standin() as ant:
        config = f"home: {tmp_path}\nupstreams:\n  ant: {{base_url: {ant.url}/v1, kind: anthropic}}\n"
        with serve(config, tmp_path) as served:
            body = {"model": "gpt-x", "messages": HELLO}
            for path in (CHAT, "/v1/files"):
                assert served.post(body, path, authorization="Bearer sk-openai").status_code == 400
            assert ant.asked == []
            assert served.post(body).status_code == 200


def test_cookies_and_googles_keys_are_credentials(tmp_path: Path) -> None:
    cookies = {"cookie": "session=abc", "x_goog_api_key": "AIza"}
    with Standin() as api:
        config = settings(api.url, tmp_path).replace("retries: 0", "retries: 0, api_key: '${K}'")
        with serve(config, tmp_path, environ={"K": "sk-gateway"}) as served:
            assert served.post(asked("hello"), **cookies).status_code == 200
        (sent,) = api.asked
        assert not {"cookie", "x-goog-api-key"} & set(sent.headers)
        assert sent.headers["authorization"] == "Bearer sk-gateway"


def test_other_traffic_opens_no_breaker_of_a_task(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    with Standin(default="office") as api, serve(settings(api.url, tmp_path), tmp_path) as served:

        def junk(path: str, status: int) -> list[int]:
            body = b'{"model": "x", "messages": []}'
            headers = {"x-standin": f"status={status}"}
            return [served.client.post(served.url + path, content=body, headers=headers).status_code for _ in range(6)]

        assert junk("/v1/anything", 500) == [500] * 6
        assert junk(CHAT, 501) == [501] * 6
        assert served.client.get(served.url + "/health").json()["upstreams"] == {"main": "closed"}
        assert junk(CHAT, 500) == [500] * 5 + [503]
        assert served.client.get(served.url + "/health").json()["upstreams"] == {"main": "open"}, "the worst is told"
        answer = served.post(asked(known.left[0]))
        assert (answer.status_code, answer.headers["x-tracer-decision"]) == (200, "deferred")


def test_what_changes_something_is_sent_once(tmp_path: Path) -> None:
    with Standin() as api:
        config = settings(api.url, tmp_path).replace("retries: 0", "retries: 2")
        with serve(config, tmp_path) as served:
            for path in ("/v1/batches", "/v1/files"):
                for status in (429, 503, 504):
                    n, headers = len(api.asked), {"x-standin": f"status={status}"}
                    answer = served.client.post(served.url + path, content=b"{}", headers=headers)
                    assert (answer.status_code, len(api.asked) - n) == (status, 1)


@contextmanager
def slow_reader() -> Iterator[tuple[int, threading.Event, list[int]]]:
    """A server that reads a head, and the body only once it is told to; then it says how many bytes came."""
    go, sizes = threading.Event(), [0]
    listening = socket.create_server(("127.0.0.1", 0))

    def serve_one() -> None:
        with listening.accept()[0] as connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(1)
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
            go.wait(20)
            while sizes[0] < length and (part := connection.recv(1 << 20)):
                sizes[0] += len(part)
            connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")

    thread = threading.Thread(target=serve_one, daemon=True)
    thread.start()
    try:
        yield listening.getsockname()[1], go, sizes
    finally:
        go.set()
        thread.join(10)
        listening.close()


def test_a_large_file_passes_piece_by_piece_as_fast_as_it_is_taken(tmp_path: Path) -> None:
    n, sent = 100 << 20, [0]

    def pieces() -> Iterator[bytes]:
        for _ in range(n >> 16):
            sent[0] += 1 << 16
            yield b"x" * (1 << 16)

    with slow_reader() as (port, go, sizes), serve(settings(f"http://127.0.0.1:{port}", tmp_path), tmp_path) as served:
        answers: list[httpx2.Response] = []
        headers = {"content-length": str(n), "content-type": "application/octet-stream"}
        url = served.url + "/v1/files"
        post = lambda: answers.append(httpx2.post(url, content=pieces(), headers=headers, timeout=60.0))  # noqa: E731
        thread = threading.Thread(target=post, daemon=True)
        thread.start()
        time.sleep(1.5)
        assert 0 < sent[0] < n / 2, "what nobody takes is not read"
        go.set()
        thread.join(60)
        assert (answers[0].status_code, answers[0].content, sizes[0]) == (200, b"ok", n)


def test_a_client_that_leaves_amidst_its_body_ends_the_upstreams_request(tmp_path: Path) -> None:
    with slow_reader() as (port, go, sizes), serve(settings(f"http://127.0.0.1:{port}", tmp_path), tmp_path) as served:
        host, _, own = served.url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(own))) as connection:
            connection.sendall(b"POST /v1/files HTTP/1.1\r\nhost: localhost\r\ncontent-length: 1000\r\n\r\nhalf")
            time.sleep(0.3)
        go.set()
        until = time.monotonic() + 5.0
        while served.gateway.serving.running and time.monotonic() < until:
            time.sleep(0.01)
        assert served.gateway.serving.running == 0
        assert sizes[0] <= 4


def test_large_bodies_of_known_formats_are_read(tmp_path: Path) -> None:
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        assert served.post(asked("x" * (5 << 20))).status_code == 200
        assert served.post(asked("x" * (33 << 20))).status_code == 413


@contextmanager
def raw_upstream(answer: bytes) -> Iterator[str]:
    """An upstream that says this and closes, whatever it is asked."""
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        while True:
            try:
                connection = listening.accept()[0]
            except OSError:
                return
            with connection:
                connection.recv(65_536)
                connection.sendall(answer)

    threading.Thread(target=run, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


EVENT = b'data: {"id": 1}\n\n'
SSE = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)


@pytest.mark.parametrize(
    ("answer", "whole"),
    [
        (SSE + b"transfer-encoding: chunked\r\n\r\n" + chunked(EVENT), True),
        (SSE + b"transfer-encoding: chunked\r\n\r\n" + chunked(EVENT[:-1], b"\n"), True),
        (SSE + b"transfer-encoding: chunked\r\n\r\n" + chunked(EVENT, b'data: {"id'), False),
        (SSE + b"transfer-encoding: chunked\r\ncontent-encoding: gzip\r\n\r\n" + chunked(b"\x1f\x8b\n\n"), False),
        (SSE + b"content-length: 1000\r\n\r\n" + EVENT, False),
    ],
)
def test_an_error_event_is_told_between_events_alone(tmp_path: Path, answer: bytes, whole: bool) -> None:
    with raw_upstream(answer) as url, serve(settings(url, tmp_path), tmp_path) as served:
        got = b""
        try:
            content = json.dumps(asked("hi", stream=True)).encode()
            with httpx2.stream("POST", served.url + CHAT, content=content) as reply:
                for part in reply.iter_raw():
                    got += part
        except httpx2.RemoteProtocolError:
            assert not whole
            assert b"broke off" not in got
        else:
            assert whole
            assert got.startswith(EVENT)
            event = json.loads(got[len(EVENT) :].removeprefix(b"data: ").split(b"\n")[0])
            assert "broke off" in event["error"]["message"]


def test_a_stream_may_last_longer_than_the_wait_for_its_start(tmp_path: Path) -> None:
    with Standin() as api:
        config = settings(api.url, tmp_path).replace("retries: 0", "retries: 0, timeout_s: 0.5")
        with serve(config, tmp_path) as served:
            served.gateway.serving.chains.default("openai.chat", known=True)
            api.misbehave(Fault("slow_chunks", seconds=0.3))
            begun = time.monotonic()
            assert b"[DONE]" in served.post(asked("hello", stream=True)).content
            assert time.monotonic() - begun > 0.6
