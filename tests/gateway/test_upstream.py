"""Against a stand-in on real sockets: what is asked again, what never is, and what is closed."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from tests.gateway.standin import Fault, Kind, Standin
from tracer.errors import ConfigError, UpstreamError
from tracer.gateway.breaker import BreakerSettings
from tracer.gateway.replies import Reply
from tracer.gateway.retrying import Retries
from tracer.gateway.upstream import Chain, Client, Timeouts, Upstream

CHAT = "/v1/chat/completions"
ASKED = b'{"model": "m", "messages": [{"role": "user", "content": "where is it"}]}'
STREAMED = ASKED.replace(b"{", b'{"stream": true, ', 1)
LABELS = {"where is it": "lost"}
SECRET = "sk-very-secret"


def upstream(api: Standin, name: str = "main", **given: Any) -> Upstream:
    return Upstream(name, api.url + "/v1", **given)


def run(test: Callable[[Chain], Awaitable[Any]], *upstreams: Upstream, waits: list[float] | None = None) -> Any:
    """The result of ``test`` with a chain; ``waits`` takes the pauses instead of waiting for them."""

    async def sleep(seconds: float) -> None:
        if waits is not None:
            waits.append(seconds)

    async def inside() -> Any:
        clients = [Client(one) for one in upstreams]
        try:
            return await test(Chain(clients, rng=random.Random(0), sleep=sleep))
        finally:
            for client in clients:
                await client.aclose()

    return asyncio.run(inside())


async def send(chain: Chain, body: bytes = ASKED, headers: Any = (), **given: Any) -> Reply:
    return await chain.send("POST", CHAT, [(b"content-type", b"application/json"), *headers], body, **given)


async def label(chain: Chain) -> tuple[int, str, int]:
    reply = await send(chain)
    content = json.loads(await reply.read())
    return reply.status, content["choices"][0]["message"]["content"] if reply.status == 200 else "", reply.attempts


def closed_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


def test_an_answer_comes_back_byte_by_byte_over_one_kept_connection() -> None:
    async def test(chain: Chain) -> None:
        for _ in range(3):
            reply = await send(chain)
            assert (reply.status, reply.upstream, reply.attempts) == (200, "main", 1)
            assert reply.header("x-request-id") == "req_standin"
            assert 0.0 < reply.first_byte_s < 5.0
            body = await reply.read()
            assert len(body) == int(reply.header("content-length") or 0)

    with Standin(LABELS) as api:
        run(test, upstream(api))
        assert [one.body for one in api.asked] == [ASKED] * 3
        assert api.n_connections == 1


@pytest.mark.parametrize("status", [429, 503, 529])
def test_a_request_that_was_turned_away_is_sent_again(status: int) -> None:
    waits: list[float] = []
    with Standin(LABELS) as api:
        api.misbehave(Fault("status", status=status), Fault("status", status=status))
        assert run(label, upstream(api), waits=waits) == (200, "lost", 3)
        assert len(api.asked) == 3
    draws = random.Random(0)
    assert waits == [0.25 * draws.random(), 0.5 * draws.random()], "full jitter"


@pytest.mark.parametrize("status", [400, 401, 404, 408, 500, 502, 504])
def test_other_errors_go_back_as_they_are(status: int) -> None:
    with Standin(LABELS) as api:
        api.misbehave(Fault("status", status=status))
        assert run(label, upstream(api)) == (status, "", 1)


@pytest.mark.parametrize(
    ("method", "path", "status", "n"),
    [
        ("POST", "/v1/batches", 503, 1),
        ("POST", "/v1/batches", 504, 1),
        ("POST", "/v1/embeddings", 429, 3),
        ("POST", "/v1/embeddings", 504, 1),
        ("GET", "/v1/files", 504, 3),
        ("DELETE", "/v1/files/x", 503, 1),
    ],
)
def test_how_often_is_a_matter_of_what_it_does(method: str, path: str, status: int, n: int) -> None:
    async def test(chain: Chain) -> int:
        reply = await chain.send(method, path, [], b"{}" if method == "POST" else b"")
        await reply.aclose()
        return reply.status

    with Standin() as api, Standin() as other:
        api.misbehave(*[Fault("status", status=status)] * n)
        falls_back = n > 1 or path == "/v1/embeddings"
        assert run(test, upstream(api), upstream(other, "other", key="k"), waits=[]) == (404 if falls_back else status)
        assert (len(api.asked), len(other.asked)) == (n, int(falls_back))


def test_an_upstream_may_say_whether_to_ask_again() -> None:
    async def test(chain: Chain) -> int:
        reply = await send(chain, headers=[(b"x-standin", b"status=429, should_retry=false")])
        await reply.aclose()
        return reply.attempts

    async def pieces() -> AsyncIterator[bytes]:
        yield ASKED[:9]
        yield ASKED[9:]

    async def streamed(chain: Chain) -> int:
        headers = [(b"content-length", str(len(ASKED)).encode())]
        reply = await chain.send("POST", CHAT, headers, pieces())
        await reply.aclose()
        return reply.attempts

    with Standin(LABELS) as api:
        assert run(test, upstream(api), waits=[]) == 1
        api.misbehave(Fault("status", status=429))
        assert run(streamed, upstream(api), upstream(api, "again", key="k"), waits=[]) == 1, "pieces come once"
        assert api.asked[-1].body == ASKED


def test_the_last_error_goes_back_as_it_is_with_its_retry_after() -> None:
    async def test(chain: Chain) -> None:
        reply = await send(chain)
        failure = reply.failure()
        assert failure is not None
        assert (failure.kind, failure.status, failure.retry_after) == ("status", 429, 2.0)
        assert json.loads(await reply.read())["error"]["type"] == "rate_limit_error"
        assert reply.attempts == 3

    waits: list[float] = []
    with Standin() as api:
        api.misbehave(*[Fault("status", status=429, retry_after="2")] * 3)
        run(test, upstream(api), waits=waits)
        assert waits == [2.0, 2.0]
        api.misbehave(Fault("status", status=429, retry_after="3600"))
        assert run(label, upstream(api), waits=waits) == (429, "", 1), "too long to wait for"


@pytest.mark.parametrize(("kind", "fault"), [("reset", "cut"), ("garbage", "cut"), ("hang", "timeout")])
def test_a_request_that_may_have_been_charged_is_not_sent_again(kind: Kind, fault: str) -> None:
    with Standin() as api:
        api.misbehave(Fault(kind))
        with pytest.raises(UpstreamError) as caught:
            run(send, upstream(api, timeouts=Timeouts(read_s=0.2)))
        assert caught.value.kind == fault
        assert len(api.asked) == 1


@pytest.mark.parametrize("body", [ASKED, STREAMED])
def test_an_answer_that_breaks_off_is_an_error_and_not_asked_for_again(body: bytes) -> None:
    async def test(chain: Chain) -> None:
        reply = await send(chain, body)
        got: list[bytes] = []

        async def relay() -> None:
            async for chunk in reply.chunks:
                got.append(chunk)  # noqa: PERF401 - what came before the end counts

        with pytest.raises(UpstreamError) as caught:
            await relay()
        assert caught.value.kind == "cut"
        assert got

    with Standin(LABELS) as api, Standin(LABELS) as other:
        api.misbehave(Fault("cut"))
        run(test, upstream(api), upstream(other, "other", auth="client"))
        assert (len(api.asked), len(other.asked)) == (1, 0)


def test_a_silence_within_an_answer_is_a_time_out_and_a_long_answer_none() -> None:
    async def test(chain: Chain) -> None:
        reply = await send(chain, STREAMED)
        with pytest.raises(UpstreamError) as caught:
            await reply.read()
        assert caught.value.kind == "timeout"

    with Standin(LABELS) as api:
        api.misbehave(Fault("slow_chunks", seconds=5.0))
        begun = time.monotonic()
        run(test, upstream(api, timeouts=Timeouts(read_s=0.2)))
        assert time.monotonic() - begun < 2.0
        api.misbehave(Fault("slow_chunks", seconds=0.15))

        async def whole(chain: Chain) -> bytes:
            return await (await send(chain, STREAMED)).read()

        assert b"[DONE]" in run(whole, upstream(api, timeouts=Timeouts(read_s=5.0, total_s=0.4)))
        assert time.monotonic() - begun > 0.6


def test_an_upstream_that_cannot_be_reached_is_tried_again_then_the_next_one() -> None:
    waits: list[float] = []
    with Standin(LABELS) as api:
        gone = Upstream("gone", f"http://127.0.0.1:{closed_port()}")
        assert run(label, gone, upstream(api, auth="client"), waits=waits) == (200, "lost", 4)
        assert len(waits) == 2
        with pytest.raises(UpstreamError) as caught:
            run(send, gone)
        assert caught.value.kind == "connect"


def test_fall_backs_are_asked_in_order_each_with_its_key_and_model() -> None:
    async def test(chain: Chain) -> Any:
        return await send(chain, headers=[(b"authorization", b"Bearer client")])

    once = Retries(attempts=1)
    with Standin() as a, Standin() as b, Standin() as c:
        for api in (a, b):
            api.misbehave(Fault("status", status=500))
        reply = run(
            test,
            upstream(a, "a", retries=once),
            upstream(b, "b", retries=once, key=SECRET, model="big"),
            upstream(c, "c", key="k", auth="x-api-key"),
        )
        assert (reply.upstream, reply.status, reply.attempts) == ("c", 200, 3)
        assert a.asked[0].headers["authorization"] == "Bearer client"
        assert b.asked[0].headers["authorization"] == f"Bearer {SECRET}"
        assert b.asked[0].body == ASKED.replace(b'"m"', b'"big"')
        assert c.asked[0].headers["x-api-key"] == "k"
        assert "authorization" not in c.asked[0].headers
        assert c.asked[0].body == ASKED


def test_a_clients_key_goes_to_no_other_host_unasked() -> None:
    one, two = Upstream("one", "https://a.example"), Upstream("two", "https://b.example/v1")
    with pytest.raises(ConfigError, match="'two': has no key"):
        Chain([Client(one), Client(two)])


def test_an_open_breaker_lets_nothing_through_and_half_open_one() -> None:
    now = [0.0]

    async def test() -> None:
        client = Client(
            upstream(api, retries=Retries(attempts=1), breaker=BreakerSettings(failures=2, open_s=5.0)),
            clock=lambda: now[0],
        )
        chain = Chain([client])
        for _ in range(2):
            await (await send(chain)).aclose()
        assert chain.breakers == {"main": "open"}
        with pytest.raises(UpstreamError) as caught:
            await send(chain)
        assert (caught.value.kind, caught.value.retry_after) == ("breaker_open", 5.0)
        assert len(api.asked) == 2
        now[0] = 5.0
        assert await label(chain) == (200, "lost", 1)
        assert chain.breakers == {"main": "closed"}
        await client.aclose()

    with Standin(LABELS) as api:
        api.misbehave(*[Fault("status", status=503)] * 2)
        asyncio.run(test())


def test_too_many_requests_do_not_open_the_breaker() -> None:
    async def test(chain: Chain) -> None:
        for _ in range(4):
            await (await send(chain)).aclose()
        assert chain.breakers == {"main": "closed"}

    with Standin() as api:
        api.misbehave(*[Fault("status", status=429)] * 4)
        run(test, upstream(api, retries=Retries(attempts=1), breaker=BreakerSettings(failures=2)))


@pytest.mark.parametrize("kind", ["hang", "slow_chunks"])
def test_cancelling_closes_the_upstreams_connection(kind: Kind) -> None:
    async def test(chain: Chain) -> None:
        async def relay() -> None:
            async with await send(chain, STREAMED) as reply:
                async for _ in reply.chunks:
                    pass

        task = asyncio.create_task(relay())
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: api.n_closed == 1)
        assert chain.breakers == {"main": "closed"}
        assert await label(chain) == (200, "lost", 1)

    with Standin(LABELS) as api:
        api.misbehave(Fault(kind, seconds=5.0))
        run(test, upstream(api))


async def until(true: Callable[[], bool]) -> None:
    for _ in range(200):
        if true():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to pass")


def test_nothing_is_read_ahead_of_a_slow_reader() -> None:
    async def test(chain: Chain) -> None:
        async with await send(chain) as reply:
            assert max([len(await anext(reply.chunks)) for _ in range(3)]) <= 65_536
            await asyncio.sleep(0.5)
            assert api.n_sent < size // 4, "what the sockets hold, and no more"
            rest = 0
            async for chunk in reply.chunks:
                rest += len(chunk)
            assert rest > size // 2

    size = 64 * 1024 * 1024
    with Standin() as api:
        api.misbehave(Fault("huge", size=size))
        run(test, upstream(api))
        assert api.n_sent == size


def test_a_body_may_come_compressed_and_reading_has_a_limit() -> None:
    async def test(chain: Chain) -> None:
        reply = await send(chain)
        assert reply.header("content-encoding") == "gzip"
        assert b"lost" in gzip.decompress(await reply.read())
        with pytest.raises(UpstreamError, match="more than 10 bytes"):
            await (await send(chain)).read(10)

    with Standin(LABELS) as api:
        api.misbehave(Fault("gzip"))
        run(test, upstream(api))
        assert api.asked[0].headers["accept-encoding"] == "identity"


def test_a_full_pool_is_no_fault_of_the_upstream() -> None:
    async def test(chain: Chain) -> None:
        async with await send(chain, STREAMED):
            with pytest.raises(UpstreamError, match=r"no connection was free within 0\.1 s"):
                await send(chain)
        assert chain.breakers == {"main": "closed"}

    with Standin(LABELS) as api:
        api.misbehave(Fault("slow_chunks"))
        once: dict[str, Any] = {"retries": Retries(attempts=1), "breaker": BreakerSettings(failures=1)}
        run(test, upstream(api, max_connections=1, timeouts=Timeouts(pool_s=0.1), **once))


def test_no_cookie_of_one_client_is_sent_for_another_and_paths_stay_as_they_are() -> None:
    async def test(chain: Chain) -> None:
        reply = await chain.send("GET", "/v1/models?after=%2Fx&limit=2", [], b"")
        assert reply.status == 404
        await reply.aclose()

    with Standin() as api:
        run(test, upstream(api))
        run(test, Upstream("bare", api.url))
        assert [one.path for one in api.asked] == ["/v1/models?after=%2Fx&limit=2"] * 2
        assert set(api.asked[0].headers) == {"host", "accept-encoding"}


def test_no_secret_and_no_content_in_logs_or_errors(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    said: list[str] = []
    with Standin() as api:
        api.misbehave(Fault("reset"), Fault("garbage"), Fault("hang"))
        given = upstream(api, key=SECRET, timeouts=Timeouts(read_s=0.2))
        for _ in range(3):
            with pytest.raises(UpstreamError) as caught:
                run(send, given)
            error = caught.value
            said += [str(error), repr(error), repr(error.__cause__), repr(error.__context__)]
    said += [record.getMessage() for record in caplog.records]
    assert not [line for line in said if SECRET in line or "where is it" in line]
    assert SECRET not in repr(given)
    assert said[0].startswith("upstream 'main': closed the connection before it answered")


@pytest.mark.parametrize(
    ("target", "header"),
    [
        (CHAT, (b"x-odd", b"s3cret\r\nx: y")),
        (CHAT, (b"x odd", b"s3cret")),
        (CHAT, (b"x-odd", b"s3cret\x00")),
        ("//s3cret", (b"x", b"y")),
        ("https://s3cret", (b"x", b"y")),
        ("/a b?s3cret", (b"x", b"y")),
    ],
)
def test_what_cannot_be_sent_is_refused_before_it_is_tried(
    target: str, header: tuple[bytes, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with Standin() as api:
        with pytest.raises(ValueError, match=r"^(the target|a header)") as caught:
            run(lambda chain: chain.send("POST", target, [header], b""), upstream(api))
        assert "s3cret" not in str(caught.value) + caplog.text
        assert api.n_connections == 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"base_url": "ftp://x"},
        {"base_url": "https://user:pw@x"},
        {"key": "a b"},
        {"key": ""},
        {"auth": "bearer"},
        {"key": "k", "auth": "client"},
        {"max_connections": 0},
    ],
)
def test_impossible_upstreams_are_refused_without_quoting_the_key(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="upstream 'x'") as caught:
        Upstream(**{"name": "x", "base_url": "https://a.example", **wrong})
    assert "a b" not in str(caught.value)
    assert "pw" not in str(caught.value)
