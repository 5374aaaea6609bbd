"""A changed file is taken up, a broken one is not, and whoever looks is told."""

from __future__ import annotations

import asyncio
import logging
import signal
from pathlib import Path

import httpx2
import pytest

from tests.gateway.conftest import Known
from tests.gateway.serving import asked, place, settings
from tests.gateway.standin import Standin
from tests.gateway.test_app_operating import digest, until
from tests.gateway.test_logs import running
from tracer.errors import ConfigError
from tracer.gateway.reloading import reload_logged, watched
from tracer.policies.serving_settings import ServingSettings


def test_hangup_and_a_changed_file(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    text = next(iter(known.handled))
    config = tmp_path / "tracer.yaml"
    with Standin() as api:
        good = settings(api.url, tmp_path, more="reload: true")
        config.write_text(good)
        with running(config) as (url, one):

            def reason() -> str:
                body = asked(text)
                return str(httpx2.post(url + "/v1/chat/completions", json=body).headers["x-tracer-reason"])

            def state() -> str:
                return str(httpx2.get(url + "/health").json()["config"])

            assert (reason(), state()) == ("handled", "in force")
            config.write_text(good.replace("mode: live", "mode: observe"))
            assert until(lambda: reason() == "observe", 10.0)
            config.write_text(good + "nonsense: 1\n")
            assert until(lambda: state() == "outdated", 10.0)
            assert reason() == "observe"
            config.write_text(good)
            one.send_signal(signal.SIGHUP)
            assert until(lambda: reason() == "handled", 10.0)
            assert state() == "in force"
            one.send_signal(signal.SIGTERM)
            logged = one.communicate(timeout=60)[1]
    assert "nonsense" in logged
    assert "is no setting of the gateway" in logged


def test_a_file_is_read_once_it_stays_as_it_is(tmp_path: Path) -> None:
    path, n = tmp_path / "tracer.yaml", 0
    path.write_text("a")

    async def reload() -> None:
        nonlocal n
        n += 1

    async def run() -> None:
        watch = asyncio.ensure_future(watched(path, reload, 0.02))
        await asyncio.sleep(0.1)
        assert n == 0
        for i in range(20):
            path.write_text("b" * i)  # it grows all the time
            await asyncio.sleep(0.005)
        before = n
        await asyncio.sleep(0.2)
        assert before <= 2
        assert n == before + 1
        path.unlink()
        await asyncio.sleep(0.1)
        assert n == before + 1
        path.write_text("c")
        await asyncio.sleep(0.2)
        assert n == before + 2
        watch.cancel()

    asyncio.run(run())


def test_what_cannot_be_used_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def bad() -> None:
        raise ConfigError("tracer.yaml:3: nonsense")

    async def worse() -> None:
        raise OSError("disk")

    with caplog.at_level(logging.WARNING, "tracer"):
        asyncio.run(reload_logged(bad, "SIGHUP"))
        asyncio.run(reload_logged(worse, "SIGHUP"))
    assert "tracer.yaml:3: nonsense" in caplog.text
    assert "disk" not in caplog.text


def test_metrics_may_ask_for_a_token(tmp_path: Path) -> None:
    from tests.gateway.serving import serve

    more = f"metrics: {{token_hash: '{digest('scrape')}'}}"
    with serve(settings("http://127.0.0.1:9", tmp_path, more=more), tmp_path) as served:
        statuses = [
            httpx2.get(served.url + "/metrics", headers=headers).status_code
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer scrape"})
        ]
        assert statuses == [401, 401, 200]
        assert httpx2.get(served.url + "/health").status_code == 200
