"""The gateway's own calls: their rates, their paths and their numbers; and heads that do not come."""

from __future__ import annotations

import asyncio
import socket
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from tests.gateway.conftest import Known
from tests.gateway.serving import place, serve, settings
from tests.gateway.standin import Standin
from tests.gateway.test_app_operating import digest
from tracer.gateway.config import parse
from tracer.gateway.heads import timed
from tracer.gateway.lines import TaskLine
from tracer.policies.serving_settings import ServingSettings
from tracer.types import Usage


def test_a_batch_costs_as_many_as_its_texts_and_the_models_one(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    keys = f"keys: {{bob: {{hash: '{digest('k')}', requests_per_s: 10}}}}"
    shown: dict[str, Any] = {"authorization": "Bearer k"}
    with serve(settings("http://127.0.0.1:9", tmp_path, more=keys), tmp_path) as served:
        batch = {"task": "desk", "texts": ["hello"] * 100}
        assert served.post(batch, "/v1/classify/batch", **shown).status_code == 200
        answer = served.post(batch, "/v1/classify/batch", **shown)
        assert (answer.status_code, 5 <= int(answer.headers["retry-after"]) <= 12) == (429, True)
        answer = httpx2.get(served.url + "/v1/models", headers=shown)
        assert (answer.status_code, "retry-after" in answer.headers) == (429, True)


def test_a_text_for_the_gateway_goes_nowhere_else(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    text, label = next(iter(known.handled.items()))
    with Standin() as api, serve(settings(api.url, tmp_path), tmp_path) as served:
        assert served.post({"task": "desk", "text": text}, "/v1/classify/").json()["label"] == label
        assert served.post({"task": "desk", "texts": [text]}, "/v1/classify/batch/").status_code == 200
        assert served.client.get(served.url + "/v1/models/").json()["data"][0]["id"] == "desk-router"
        assert served.post({"task": "desk", "text": text}, "/v1/classify/other").status_code == 404
        assert served.client.get(served.url + "/v1/classify/").status_code == 405
        assert api.asked == []


def test_a_number_that_no_vector_holds_is_refused(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path)
    with serve(settings("http://127.0.0.1:9", tmp_path), tmp_path) as served:
        for number in ("1" + "0" * 400, "-1" + "0" * 400, "1e400"):
            body = f'{{"task": "desk", "embedding": [{number}]}}'.encode()
            assert served.client.post(served.url + "/v1/classify", content=body).status_code == 400


def test_the_price_of_no_endless_name_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = parse(settings("http://127.0.0.1:9", tmp_path), {})
    line = TaskLine(config, config.tasks[0])
    looked_up: list[str] = []
    monkeypatch.setattr("tracer.gateway.lines.price_of", looked_up.append)
    for name in ("x" * 400_000, "gpt-4o-mini"):
        line.learn(name, Usage(1, 1))
    line.close()
    assert looked_up == ["gpt-4o-mini"]


@pytest.mark.parametrize("said", [b"", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\nhost: x\r\n\r\nGET / HT"])
def test_a_head_that_does_not_come_closes_the_connection(said: bytes) -> None:
    """Drop by drop is no way around it; what was asked whole is answered."""

    async def app(scope: Any, _: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await asyncio.sleep(0.4)  # an answer may take longer than a head
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def test() -> tuple[bytes, float]:
        config = uvicorn.Config(app, port=0, lifespan="off", log_config=None, http=timed(H11Protocol, 0.3))
        server = uvicorn.Server(config)
        running = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_connection(*server.servers[0].sockets[0].getsockname()[:2])
        begun, got = time.monotonic(), b""
        writer.write(said)
        while True:
            try:
                part = await asyncio.wait_for(reader.read(1000), 0.1)
            except TimeoutError:
                writer.write(b"a" if said else b"")
                continue
            except ConnectionError:
                break
            if not part:
                break
            got += part
        writer.close()
        server.should_exit = True
        await running
        return got, time.monotonic() - begun

    got, seconds = asyncio.run(test())
    assert seconds < 3.0
    assert got.startswith(b"HTTP/1.1 200") == (b"\r\n\r\n" in said)


def test_a_body_that_does_not_come_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("tracer.gateway.reading", fromlist=["x"]).read_body.__kwdefaults__, "silence_s", 0.2)
    with serve(settings("http://127.0.0.1:9", tmp_path), tmp_path) as served:
        host, _, port = served.url.removeprefix("http://").rpartition(":")
        with socket.create_connection((host, int(port)), timeout=5.0) as connection:
            connection.sendall(b"POST /v1/messages HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100\r\n\r\n{")
            answer = b""
            while part := connection.recv(65_536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"type":"error"' in answer.replace(b" ", b"")
