"""Whatever an upstream answers goes back byte for byte, and breaks nothing here."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.gateway import serving, shapes
from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, Served, place, serve
from tests.gateway.test_fuzz import FEW_AND_MANY, bent, eager, whole
from tracer.policies.serving_settings import ServingSettings
from tracer.types import FAILED

HUGE = {
    "usage": {"prompt_tokens": 10**400, "completion_tokens": 10**30, "input_tokens": 10**400, "output_tokens": 2**63}
}


class Says:
    """An upstream that says ``content``, as JSON or as events."""

    def __init__(self) -> None:
        self.content, self.kind = b"", "application/json"
        says = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"]))
                self.send_response(200)
                self.send_header("content-type", says.kind)
                self.send_header("content-length", str(len(says.content)))
                self.end_headers()
                self.wfile.write(says.content)

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture(scope="module")
def says() -> Iterator[Says]:
    says = Says()
    yield says
    says.server.shutdown()
    says.server.server_close()


@pytest.fixture(scope="module")
def served(known: Known, says: Says, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    home = tmp_path_factory.mktemp("fuzz")
    place(known.home, home, ServingSettings(audit_rate=1.0))
    with serve(serving.settings(says.url, home, "teacher: gpt-4o-mini"), home) as served:
        yield served


def asked_of(path: str, *, stream: bool) -> dict[str, Any]:
    body = whole(path)
    more = {"stream_options": {"include_usage": True}} if path == CHAT else {}
    return body | {"stream": True, **more} if stream else body


@pytest.mark.parametrize("n_examples", FEW_AND_MANY)
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages"])
def test_answers_that_are_bent(served: Served, says: Says, path: str, n_examples: int) -> None:
    says.kind, asked = "application/json", asked_of(path, stream=False)
    answer = shapes.answer(path, asked, "billing", 1)
    n = [len(served.traces())]

    @eager(n_examples)
    @given(content=bent(answer))
    @example(content=json.dumps(answer | HUGE).encode())
    def send(content: bytes) -> None:
        says.content = content
        got = served.post(asked, path)
        assert (got.status_code, got.content) == (200, content)
        n[0] += 1

    send()
    traces = served.traces()
    assert len(traces) == n[0], "each was an audit, and each comes back"
    assert {trace.label for trace in traces} >= {"billing", FAILED}
    assert served.gateway.serving.lines["desk"].recorder.counts["refused"] == 0


@pytest.mark.parametrize("n_examples", FEW_AND_MANY)
@pytest.mark.parametrize("path", [CHAT, "/v1/responses", "/v1/messages"])
def test_streams_that_are_bent(served: Served, says: Says, path: str, n_examples: int) -> None:
    says.kind, asked = "text/event-stream", asked_of(path, stream=True)
    events = shapes.events(path, asked, shapes.answer(path, asked, "billing", 1))
    n = [len(served.traces())]

    @eager(n_examples)
    @given(data=st.data(), at=st.integers(0, len(events) - 1), drop=st.booleans())
    def send(data: st.DataObject, at: int, drop: bool) -> None:
        lines = events[at].split(b"\n")
        i = next(i for i, line in enumerate(lines) if line.startswith(b"data:"))
        try:
            inside = json.loads(lines[i][5:])
        except ValueError:
            inside = {}
        lines[i] = b"data: " + data.draw(bent(inside))
        says.content = b"".join([*events[:at], *([] if drop else [b"\n".join(lines)]), *events[at + 1 :]])
        got = served.post(asked, path)
        assert (got.status_code, got.content) == (200, says.content)
        n[0] += 1

    send()
    assert len(served.traces()) == n[0]
    assert served.gateway.serving.lines["desk"].recorder.counts["refused"] == 0


@pytest.mark.parametrize("n_examples", FEW_AND_MANY)
def test_answers_of_any_bytes(served: Served, says: Says, n_examples: int) -> None:
    n = [len(served.traces())]

    @eager(n_examples)
    @given(
        content=st.binary(max_size=300), kind=st.sampled_from(["application/json", "text/event-stream", "text/html"])
    )
    def send(content: bytes, kind: str) -> None:
        says.content, says.kind = content, kind
        got = served.post(whole(CHAT))
        assert (got.status_code, got.content) == (200, content)
        n[0] += 1

    send()
    assert len(served.traces()) == n[0]
    assert served.traces()[-1].label == FAILED


@pytest.mark.parametrize("n_examples", FEW_AND_MANY)
def test_a_surrogate_imitates_no_answer_that_is_odd(known: Known, says: Says, tmp_path: Path, n_examples: int) -> None:
    """What a teacher said before is the form of what is said here: an odd one must not spoil it."""
    place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    text, label = next(iter(known.handled.items()))
    asked = serving.asked
    answer = shapes.answer(CHAT, asked("x"), "billing", 1)
    says.kind = "application/json"
    with serve(serving.settings(says.url, tmp_path), tmp_path) as served:

        @eager(n_examples)
        @given(content=bent(answer))
        def send(content: bytes) -> None:
            says.content = content
            assert served.post(asked(known.left[0])).content == content
            got = served.post(asked(text))
            assert (got.status_code, got.headers["x-tracer-decision"]) == (200, "handled")
            body = got.json()
            assert body["choices"][0]["message"]["content"] == label
            assert (body["object"], body["choices"][0]["finish_reason"]) == ("chat.completion", "stop")

        send()
