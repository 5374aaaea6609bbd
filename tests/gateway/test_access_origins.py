"""A gateway without keys answers programs of its machine, and no web site."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, Served, asked, place, serve, settings
from tests.gateway.standin import Standin
from tests.gateway.test_app_operating import digest
from tracer.gateway.origins import foreign, own_name
from tracer.policies.serving_settings import ServingSettings

PLAIN = ServingSettings(audit_rate=0.0)


@pytest.fixture(scope="module")
def both(known: Known, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Standin]]:
    home = tmp_path_factory.mktemp("origins")
    place(known.home, home, PLAIN)
    with Standin() as api, serve(settings(api.url, home), home) as served:
        yield served, api


@pytest.mark.parametrize(
    "host", [b"localhost", b"LOCALHOST:4000", b"127.0.0.1:1", b"127.0.0.1", b"[::1]", b"[::1]:4000", b"a.localhost:80"]
)
def test_names_of_the_machine_itself(host: bytes) -> None:
    assert own_name(host)


@pytest.mark.parametrize(
    "host",
    [b"", b"rebind.example", b"rebind.example:4000", b"localhost.evil.example", b"127.0.0.1.evil.example", b"10.0.0.5",
     b"[", b"[::1", b"localhost:x", b"user@localhost", b"localhost/", b"evil.example#localhost", b"\xff", b"0.0.0.0",
     b"localhost:99999", b"x" * 10_000],
)  # fmt: skip
def test_names_of_others(host: bytes) -> None:
    assert not own_name(host)


@pytest.mark.parametrize("path", [CHAT, "/v1/files", "/v1/classify", "/v1/models", "/health", "/metrics", "/admin/off"])
@pytest.mark.parametrize(
    ("header", "value", "status"),
    [("host", "rebind.example:4000", 421), ("origin", "https://evil.example", 403), ("origin", "null", 403),
     ("sec-fetch-site", "cross-site", 403)],
)  # fmt: skip
def test_a_site_reaches_nothing(both: tuple[Served, Standin], path: str, header: str, value: str, status: int) -> None:
    served, api = both
    n = len(api.asked)
    for method in ("GET", "POST"):
        headers = {"content-type": "text/plain", header: value}
        answer = httpx2.request(method, served.url + path, content=b"{}", headers=headers)
        assert answer.status_code == status
        assert "keys" in answer.json()["error"]["message"]
    assert len(api.asked) == n


def test_the_page_reaches_no_site_either(both: tuple[Served, Standin]) -> None:
    served, _ = both
    html = {"accept": "text/html"}
    for path in ("/", "/tasks/desk", "/login"):
        answer = httpx2.get(served.url + path, headers=html | {"host": "rebind.example"})
        assert (answer.status_code, answer.headers["content-type"]) == (421, "text/plain; charset=utf-8")
    cross = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}
    assert httpx2.get(served.url + "/", headers=html | cross).status_code == 200, "a link that somebody follows"
    assert httpx2.post(served.url + "/off", headers=cross, data={"off": "1"}).status_code == 403
    assert httpx2.get(served.url + "/v1/files", headers=cross).status_code == 403


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "[::1]"])
def test_clients_of_the_machine_are_answered(both: tuple[Served, Standin], known: Known, name: str) -> None:
    served, _ = both
    port, text = served.url.rpartition(":")[2], next(iter(known.handled))
    for host in (name, f"{name}:{port}"):
        for more in ({}, {"origin": f"http://{name}:3000", "sec-fetch-site": "same-site"}, {"sec_fetch_site": "none"}):
            answer = served.post(asked(text), host=host, **more)
            assert (answer.status_code, answer.headers["x-tracer-decision"]) == (200, "handled")


def test_with_keys_any_name_will_do(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, PLAIN)
    keys = f"keys: {{one: {{hash: '{digest('k')}'}}}}"
    with Standin() as api, serve(settings(api.url, tmp_path, more=keys), tmp_path) as served:
        given: dict[str, Any] = {"host": "tracer.svc.cluster.local:4000", "origin": "https://app.example"}
        assert served.post(asked("hello"), authorization="Bearer k", **given).status_code == 200
        assert served.post(asked("hello"), **given).status_code == 401


def test_the_check_takes_microseconds() -> None:
    headers = [(b"host", b"127.0.0.1:4000"), *((b"x-header-%d" % i, b"value") for i in range(12))]
    scope = {"headers": headers, "method": "POST", "path": CHAT}
    foreign(scope)
    begun = time.perf_counter()
    for _ in range(2_000):
        foreign(scope)
    assert (time.perf_counter() - begun) / 2_000 < 50e-6
