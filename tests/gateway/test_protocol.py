"""The bound on the head of a request, whatever parser reads it."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.gateway.serving import Served, serve, settings

pytest.importorskip("httptools")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serve(settings("http://127.0.0.1:9", tmp_path), tmp_path) as running:
        yield running


def answered(served: Served, start: bytes, more: bytes) -> tuple[bytes, int]:
    """The first line of the answer to ``start`` and endless ``more``, and how much of that was taken."""
    host, port = served.url.removeprefix("http://").split(":")
    sent, told = 0, b""
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(start)
        with suppress(ConnectionError):
            while sent < 1 << 24:
                connection.sendall(more)
                sent += len(more)
        with suppress(ConnectionError):
            told = connection.recv(4096)
    return told.split(b"\r\n")[0], sent


HEAD = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"
CHUNKED = HEAD + b"transfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("start", "more"),
    [
        (b"GET /", b"a" * 8192),
        (HEAD, b"a: b\r\n" * 1000),
        (HEAD + b"a: ", b"b" * 8192),
        (CHUNKED + b"1;", b"x=y;" * 2000),
        (CHUNKED + b"0\r\na: ", b"b" * 8192),
        (CHUNKED + b"0\r\n", b"a: b\r\n" * 1000),
    ],
    ids=["target", "headers", "a header", "a chunk's extension", "a trailer", "trailers"],
)
def test_what_has_no_end_is_cut(served: Served, start: bytes, more: bytes) -> None:
    line, sent = answered(served, start, more)
    assert sent < 1 << 24
    assert line in (b"", b"HTTP/1.1 400 Bad Request"), "a reset may overtake the answer"
    assert served.client.get(served.url + "/health/readiness").status_code == 200


def test_a_head_within_the_bound_is_read(served: Served) -> None:
    headers = {f"x-{i}": "v" * 1000 for i in range(50)}
    for _ in range(3):
        assert served.client.get(served.url + "/health", headers=headers).status_code == 200
    headers = {f"x-{i}": "v" * 1000 for i in range(70)}
    assert served.client.get(served.url + "/health", headers=headers).status_code == 400
