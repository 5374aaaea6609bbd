"""How many may ask an upstream, who waits, and what the others are told."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.gateway.conftest import Known
from tests.gateway.serving import CHAT, Served, asked, place, serve, settings
from tests.gateway.standin import Fault, Standin
from tracer.errors import UpstreamError
from tracer.gateway.admission import Slots
from tracer.policies.serving_settings import ServingSettings

FOREIGN = {"model": "gpt-x", "messages": [{"role": "user", "content": "hello"}]}


def until(check: Callable[[], bool], seconds: float = 5.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.01)
    return False


def measured(served: Served) -> dict[tuple[str, ...], float]:
    """Metrics of upstreams, by name and labels in the order of the labels' names."""
    text = served.client.get(served.url + "/metrics").text
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text) for sample in family.samples
        if sample.name.startswith("tracer_upstream")
    }  # fmt: skip


def test_places_are_given_in_order_and_come_back() -> None:
    async def run() -> list[str]:
        slots, seen = Slots("main", 2, 10, 5.0), []

        async def one(name: str) -> None:
            async with slots:
                seen.append(name)
                assert slots.n_held <= 2
                await asyncio.sleep(0.01)

        await asyncio.gather(*(one(str(i)) for i in range(8)))
        assert (slots.n_held, slots.n_waiting) == (0, 0)
        return seen

    assert asyncio.run(run()) == [str(i) for i in range(8)]


def test_the_line_is_bounded_in_length_and_time() -> None:
    async def run() -> None:
        slots = Slots("main", 1, 1, 0.05)
        async with slots:
            waiter = asyncio.ensure_future(slots.__aenter__())
            await asyncio.sleep(0)
            with pytest.raises(UpstreamError, match="1 requests wait for it already") as caught:
                await slots.__aenter__()
            assert (caught.value.kind, caught.value.retry_after) == ("busy", 1.0)
            with pytest.raises(UpstreamError, match=r"no place was free within 0\.05 s"):
                await waiter
            assert (slots.n_held, slots.n_waiting) == (1, 0)

    asyncio.run(run())


def test_a_waiter_that_is_cancelled_takes_no_place() -> None:
    async def run() -> None:
        slots = Slots("main", 1, 5, 5.0)
        for late in (False, True):  # before its turn comes, and in the very moment
            await slots.__aenter__()
            waiter = asyncio.ensure_future(slots.__aenter__())
            await asyncio.sleep(0)
            if late:
                await slots.__aexit__(None, None, None)
            waiter.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiter
            if not late:
                await slots.__aexit__(None, None, None)
            assert (slots.n_held, slots.n_waiting) == (0, 0)
            async with asyncio.timeout(1), slots:
                pass

    asyncio.run(run())


def test_what_finds_no_place_is_told_so_in_its_own_format(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=1.0))
    limits = "limits: {upstream_concurrency: 1, upstream_waiting: 1}"
    text = next(iter(known.handled))
    config = settings("URL", tmp_path, "on_upstream_down: error", limits)
    with Standin() as api, serve(config.replace("URL", api.url), tmp_path) as served, ThreadPoolExecutor(4) as pool:
        api.misbehave(Fault("slow_first_byte", seconds=1.0))
        first = pool.submit(served.post, FOREIGN)
        assert until(lambda: len(api.asked) == 1)
        second = pool.submit(served.post, FOREIGN)
        assert until(lambda: measured(served)["tracer_upstream_waiting", "main"] == 1)
        assert measured(served)["tracer_upstream_in_flight", "main"] == 1
        third = served.post(asked(text))
        assert (third.status_code, third.headers["retry-after"]) == (503, "2")
        assert third.json()["error"]["type"] == "server_error"
        assert "main" in third.json()["error"]["message"]
        fourth = served.post({**FOREIGN, "max_tokens": 5}, "/v1/messages", anthropic_version="2023-06-01")
        assert (fourth.status_code, fourth.json()["type"]) == (503, "error")
        assert [first.result().status_code, second.result().status_code] == [200, 200]
        assert len(api.asked) == 2
        assert served.traces() == [], "who was never asked failed nobody"
        told = measured(served)
        assert told["tracer_upstream_errors_total", "busy", "main"] == 2
        assert told["tracer_upstream_in_flight", "main"] == told["tracer_upstream_waiting", "main"] == 0
        assert told["tracer_upstream_seconds_count", "main"] == 2


def test_a_full_line_is_an_upstream_that_is_down(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=1.0))
    text, label = next(iter(known.handled.items()))
    limits = "limits: {upstream_concurrency: 1, upstream_waiting: 0}"
    with Standin() as api:
        config = settings(api.url, tmp_path, "on_upstream_down: degraded", limits)
        with serve(config, tmp_path) as served, ThreadPoolExecutor(1) as pool:
            api.misbehave(Fault("slow_first_byte", seconds=0.5))
            first = pool.submit(served.post, FOREIGN)
            assert until(lambda: len(api.asked) == 1)
            response = served.post(asked(text))
            assert response.headers["x-tracer-decision"] == "degraded"
            assert response.json()["choices"][0]["message"]["content"] == label
            assert first.result().status_code == 200


def test_whoever_waits_and_leaves_is_never_asked_for(tmp_path: Path) -> None:
    limits = "limits: {upstream_concurrency: 1}"
    with Standin() as api, serve(settings(api.url, tmp_path, more=limits), tmp_path) as served:
        with ThreadPoolExecutor(1) as pool:
            api.misbehave(Fault("slow_first_byte", seconds=1.0))
            first = pool.submit(served.post, FOREIGN)
            assert until(lambda: len(api.asked) == 1)
            with pytest.raises(httpx2.ReadTimeout):
                httpx2.post(served.url + CHAT, content=json.dumps(FOREIGN).encode(), timeout=0.2)
            assert until(lambda: measured(served)["tracer_upstream_waiting", "main"] == 0, 0.7)
            assert first.result().status_code == 200
        assert until(lambda: not served.gateway.serving.running)
        assert len(api.asked) == 1


def test_all_requests_together_have_a_bound(known: Known, tmp_path: Path) -> None:
    place(known.home, tmp_path, ServingSettings(audit_rate=0.0))
    text = next(iter(known.handled))
    with Standin() as api, serve(settings(api.url, tmp_path, more="limits: {concurrency: 1}"), tmp_path) as served:
        api.misbehave(Fault("slow_first_byte", seconds=0.7))
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(served.post, FOREIGN)
            assert until(lambda: len(api.asked) == 1)
            for response in (served.post(asked(text)), served.post({"task": "desk", "text": text}, "/v1/classify")):
                assert (response.status_code, response.headers["retry-after"]) == (503, "1")
                assert response.json()["error"]["type"] == "server_error"
            assert served.client.get(served.url + "/health").status_code == 200
            assert first.result().status_code == 200
        assert until(lambda: not served.gateway.serving.running)
        assert served.post(asked(text)).status_code == 200
        assert served.post({"task": "desk", "text": text}, "/v1/classify").status_code == 200


def test_retries_fallbacks_and_breakers_are_counted(tmp_path: Path) -> None:
    with Standin() as api:
        config = f"""home: {tmp_path}
upstreams:
  down: {{base_url: {api.url}/v1, retries: 1, fallbacks: [main]}}
  main: {{base_url: {api.url}/v1}}
"""
        with serve(config, tmp_path) as served:
            api.misbehave(*[Fault("status", status=503, retry_after="0")] * 2)
            assert served.post(FOREIGN).status_code == 200
            told = measured(served)
    assert told["tracer_upstream_retries_total", "down"] == 1
    assert told["tracer_upstream_fallbacks_total", "main"] == 1
    assert told["tracer_upstream_errors_total", "status", "down"] == 2
    assert told["tracer_upstream_breaker", "closed", "main"] == 1
    assert told["tracer_upstream_breaker", "open", "down"] == 0
