"""Targets go on as they came, and stay below the base URL."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.serving import Served, serve, settings
from tests.gateway.standin import Standin
from tracer.gateway.targets import Base, TargetError, check, stands_for_v1


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Standin]]:
    home: Path = tmp_path_factory.mktemp("targets")
    with Standin() as api, serve(settings(api.url + "/team-a", home), home) as served:
        yield served, api


def status(served: Served, target: bytes) -> int:
    """What a bare target gets, that no client has touched."""
    host, _, port = served.url.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port)), timeout=10.0) as connection:
        connection.sendall(b"GET " + target + b" HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        return int(connection.makefile("rb").readline().split(b" ")[1])


@pytest.mark.parametrize(
    "target",
    [b"/v1/../../team-b/v1/files", b"/v1/%2e%2e/%2E./x", b"/v1/./files", b"/v1/files/..", b"/v1/..%2fteam-b",
     b"/v1/a%2Fb", b"/v1/a%5cb", b"/v1/a\\..\\b"],
)  # fmt: skip
def test_no_target_leaves_the_base_url(both: tuple[Served, Standin], target: bytes) -> None:
    served, api = both
    n = len(api.asked)
    assert status(served, target) == 400
    assert len(api.asked) == n


def test_what_is_sent_is_what_came(both: tuple[Served, Standin]) -> None:
    served, api = both
    for target in (b'/v1/files?q={%22a%22:1}&b="<>^`|', b"/v1/a%zz", b"/v1//x", b"/v1/..a/...?../x", b"/v1/%c3%a9?%2f"):
        n = len(api.asked)
        assert status(served, target) == 404
        assert api.asked[n].path.encode() == b"/team-a" + target
    n = len(api.asked)
    assert status(served, b"/v1/files?x=" + b"a" * 66_000) in (400, 414)
    assert len(api.asked) == n


@pytest.mark.parametrize("target", ["/v1/a#b", "/v1/files?a#b", "//v1/a", "v1/a", "/v1/\u00e9"])
def test_what_no_target_may_hold_is_refused(target: str) -> None:
    """A server may have left a fragment out before: then there is none to be sent on."""
    with pytest.raises(TargetError) as caught:
        check(target)
    assert caught.value.status == 400


def test_a_target_that_is_too_long_is_told_so() -> None:
    with pytest.raises(TargetError) as caught:
        check("/v1/files?x=" + "a" * 66_000)
    assert caught.value.status == 414


@pytest.mark.parametrize(
    ("base", "kind", "sent"),
    [
        ("https://api.openai.com/v1", "openai", b"/v1/chat"),
        ("https://api.openai.com", "openai", b"/v1/chat"),
        ("https://a.example/team-a/v1", "openai", b"/team-a/v1/chat"),
        ("https://a.example/team-a", "openai", b"/team-a/v1/chat"),
        ("https://generativelanguage.googleapis.com/v1beta/openai", "openai", b"/v1beta/openai/chat"),
        ("https://a.example/api/paas/v4", "openai", b"/api/paas/v4/chat"),
        ("https://api.anthropic.com", "anthropic", b"/v1/chat"),
        ("https://a.example/v1/account/anthropic", "anthropic", b"/v1/account/anthropic/v1/chat"),
    ],
)
def test_a_base_url_stands_for_the_clients_v1_where_it_has_a_version(base: str, kind: str, sent: bytes) -> None:
    assert Base(base, instead=stands_for_v1(base, kind)).target("/v1/chat") == sent
