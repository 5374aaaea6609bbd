from __future__ import annotations

import json
import re
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

from tracer.errors import ConfigError, EmbedderError, MissingExtraError
from tracer.features.remote import OpenAIEmbedder

KEY = "sk-very-secret-0123456789"


@dataclass
class Reply:
    """What the server answers instead of vectors. ``hang`` waits for the end of the test."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False


@dataclass
class Server:
    """A loopback embedding server: it follows ``script`` first, then behaves."""

    url: str = ""
    script: list[Reply] = field(default_factory=list)
    requests: list[dict[str, Any]] = field(default_factory=list)
    authorizations: list[str | None] = field(default_factory=list)
    released: threading.Event = field(default_factory=threading.Event)

    def reply(self, request: dict[str, Any], authorization: str | None) -> Reply:
        self.requests.append(request)
        self.authorizations.append(authorization)
        if self.script:
            reply = self.script.pop(0)
            if reply.hang:
                self.released.wait(10)
            return reply
        rows = [
            {"index": i, "embedding": [len(text), i, 0.5, 1][: request.get("dimensions", 4)]}
            for i, text in enumerate(request["input"])
        ]
        return Reply(body=json.dumps({"data": rows[::-1]}).encode())  # the order is not promised


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            request = {"path": self.path, **json.loads(body)}
            reply = state.reply(request, self.headers.get("authorization"))
            if reply.hang:
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in {"content-length": str(len(reply.body)), **reply.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(reply.body)

        def log_message(self, *_: object, **__: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    yield state
    state.released.set()
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def make(
    server: Server, waits: list[float], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., OpenAIEmbedder]]:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    made: list[OpenAIEmbedder] = []

    def build(**settings: Any) -> OpenAIEmbedder:
        defaults = {"base_url": server.url, "api_key": KEY, "rng": np.random.default_rng(0)}
        made.append(OpenAIEmbedder("embed-1", **{**defaults, "sleep": waits.append, **settings}))
        return made[-1]

    yield build
    for embedder in made:
        embedder.close()


def shown(error: pytest.ExceptionInfo[EmbedderError]) -> str:
    """All that a log would show of an error, causes included."""
    return "".join(traceback.format_exception(error.value)) + repr(error.value)


def test_batches_are_put_in_order(make: Callable[..., OpenAIEmbedder], server: Server) -> None:
    vectors = make(batch_size=2).embed(["a", "bbb", "cc", "dddd", "e"])
    assert vectors.dtype == np.float32
    assert vectors[:, 0].tolist() == [1, 3, 2, 4, 1]
    assert vectors[:, 1].tolist() == [0, 1, 0, 1, 0]
    assert [len(request["input"]) for request in server.requests] == [2, 2, 1]
    assert server.requests[0] == {
        "path": "/v1/embeddings",
        "model": "embed-1",
        "input": ["a", "bbb"],
        "encoding_format": "float",
    }
    assert set(server.authorizations) == {f"Bearer {KEY}"}


def test_the_dimension_costs_one_call_at_most(make: Callable[..., OpenAIEmbedder], server: Server) -> None:
    embedder = make()
    assert server.requests == []
    assert embedder.identity.dimension == 4
    assert embedder.embed([]).shape == (0, 4)
    assert len(server.requests) == 1
    learned = make()
    learned.embed(["a"])
    assert learned.identity == embedder.identity
    assert len(server.requests) == 2


def test_requested_dimensions(make: Callable[..., OpenAIEmbedder], server: Server) -> None:
    embedder = make(dimensions=2)
    assert embedder.embed([]).shape == (0, 2)
    assert server.requests == []
    assert embedder.embed(["a"]).shape == (1, 2)
    assert server.requests[0]["dimensions"] == 2
    assert embedder.identity.digest != make().identity.digest
    with pytest.raises(EmbedderError, match="answered 4 columns, expected 9"):
        make(dimensions=9).embed(["a"])


def test_settings_come_from_the_environment(
    make: Callable[..., OpenAIEmbedder], server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url + "/")
    monkeypatch.setenv("OPENAI_API_KEY", "from-the-environment\n")
    make(base_url=None, api_key=None).embed(["a"])
    monkeypatch.delenv("OPENAI_API_KEY")
    make(api_key=None).embed(["a"])
    assert server.authorizations == ["Bearer from-the-environment", None]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "9000"}, 60.0),
        ({"retry-after": "Wed, 01 Jan 2070 00:00:00 GMT"}, 60.0),
        ({"retry-after": "Wed, 01 Jan 2020 00:00:00 GMT"}, 0.0),
    ],
)
def test_retry_after_is_honoured(
    make: Callable[..., OpenAIEmbedder],
    server: Server,
    waits: list[float],
    headers: dict[str, str],
    expected: float,
) -> None:
    server.script = [Reply(429, headers=headers)]
    assert make().embed(["abc"])[0, 0] == 3
    assert waits == [expected]


def test_backoff_grows_and_jitters(make: Callable[..., OpenAIEmbedder], server: Server, waits: list[float]) -> None:
    server.script = [Reply(500), Reply(503, headers={"retry-after": "soon"}), Reply(429)]
    assert make().embed(["abc"]).shape == (1, 4)
    assert all(0.25 * 2**i <= wait < 0.5 * 2**i for i, wait in enumerate(waits))
    assert len(set(waits)) == len(waits) == 3


def test_retries_end(make: Callable[..., OpenAIEmbedder], server: Server, waits: list[float]) -> None:
    server.script = [Reply(500, b"overloaded")] * 9
    with pytest.raises(EmbedderError, match=r"status 500: overloaded \(attempt 3\)") as caught:
        make(retries=2).embed(["a"])
    assert (len(server.requests), len(waits)) == (3, 2)
    assert KEY not in shown(caught)


def test_other_4xx_fail_at_once_without_the_key(
    make: Callable[..., OpenAIEmbedder], server: Server, waits: list[float]
) -> None:
    message = f"Incorrect API key provided: {KEY}. " + "x" * 400
    server.script = [Reply(401, json.dumps({"error": {"message": message}}).encode())]
    with pytest.raises(EmbedderError, match=r"at 127\.0\.0\.1: status 401: Incorrect") as caught:
        make().embed(["a"])
    assert waits == []
    assert KEY not in shown(caught)
    assert len(str(caught.value)) < 300


def data(*indices: int) -> bytes:
    return json.dumps({"data": [{"index": i, "embedding": [1, 2]} for i in indices]}).encode()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"data": [', "no embedding response"),
        (b"[]", "no list under 'data'"),
        (b'{"data": [{"index": 0}, {"index": 1}]}', "no embedding response: 'embedding'"),
        (b'{"data": [1, 2]}', "no embedding response"),
        (data(0), "1 vectors for 2 texts"),
        (data(0, 1, 2), "3 vectors for 2 texts"),
        (data(0, 0), "the indices are not 0 to 1"),
        (data(0, 1).replace(b"2", b"NaN"), "NaN or infinity in row 0"),
        (data(0, 1).replace(b"2", b"null"), "object values"),
        (data(0, 1).replace(b", 2", b"", 1), "no array"),
    ],
)
def test_malformed_answers_are_errors_and_not_retried(
    make: Callable[..., OpenAIEmbedder], server: Server, waits: list[float], body: bytes, message: str
) -> None:
    server.script = [Reply(body=body)]
    with pytest.raises(EmbedderError, match=re.escape(message)) as caught:
        make().embed(["a", "b"])
    assert waits == []
    assert KEY not in shown(caught)


def test_a_hanging_server_times_out_and_is_asked_again(
    make: Callable[..., OpenAIEmbedder], server: Server, waits: list[float]
) -> None:
    server.script = [Reply(hang=True)]
    assert make(timeout_s=0.2).embed(["abc"])[0, 0] == 3
    server.script = [Reply(hang=True)] * 2
    with pytest.raises(EmbedderError, match=r"ReadTimeout: .*\(attempt 2\)") as caught:
        make(timeout_s=0.2, retries=1).embed(["a"])
    assert len(waits) == 2
    assert KEY not in shown(caught)


def test_a_dead_port_is_an_error_after_retries(make: Callable[..., OpenAIEmbedder], waits: list[float]) -> None:
    with pytest.raises(EmbedderError, match=r"ConnectError: .*\(attempt 2\)"):
        make(base_url="http://127.0.0.1:9", retries=1).embed(["a"])
    assert len(waits) == 1


def test_the_key_is_not_in_any_repr(make: Callable[..., OpenAIEmbedder]) -> None:
    embedder = make()
    assert repr(embedder) == "OpenAIEmbedder('embed-1', host='127.0.0.1')"
    assert KEY not in f"{embedder} {embedder.identity!r}"


def test_impossible_settings(make: Callable[..., OpenAIEmbedder]) -> None:
    with pytest.raises(ConfigError, match="characters") as caught:
        make(api_key="sk-1\nsk-2")
    assert "sk-1" not in str(caught.value)
    for settings in ({"batch_size": 0}, {"retries": -1}, {"timeout_s": 0}, {"dimensions": 0}):
        with pytest.raises(ConfigError, match="must"):
            make(**settings)
    for url in ("ftp://example.org", "example.org/v1", "http://", "http://[::1"):
        with pytest.raises(ConfigError, match="base_url"):
            make(base_url=url)


def test_without_httpx2_the_message_says_what_to_install(
    make: Callable[..., OpenAIEmbedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtraError, match=r"needs httpx2: pip install 'tracer-router\[remote\]'"):
        make()


def test_a_context_manager_closes(make: Callable[..., OpenAIEmbedder]) -> None:
    with make() as embedder:
        assert embedder.embed(["a"]).shape == (1, 4)
    with pytest.raises(RuntimeError, match="closed"):
        embedder.embed(["a"])
