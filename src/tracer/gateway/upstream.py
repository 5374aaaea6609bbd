"""Upstreams: pooled connections to LLM endpoints, asked again only where nothing was charged, and in order."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias
from urllib.parse import urlsplit

import httpx2

from tracer.errors import ConfigError, UpstreamError, UpstreamFault
from tracer.gateway.breaker import Breaker, BreakerSettings, State
from tracer.gateway.headers import Auth, to_client, to_upstream, well_formed
from tracer.gateway.renaming import with_model
from tracer.gateway.replies import Chunks, Reply
from tracer.gateway.retrying import Retries, asks_a_model
from tracer.gateway.targets import Base, check
from tracer.serving.coins import Rng

Given: TypeAlias = list[tuple[bytes, bytes]]
Body: TypeAlias = bytes | AsyncIterator[bytes]
"""The bytes of a request, or its pieces as they come."""
_BROKEN = frozenset({500, 502, 503, 504, 529})


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to ``connect_s``; of the longest silence, before the answer and within it, ``read_s``; of all attempts
    until an answer begins, ``total_s``; to wait for a connection of a full pool, ``pool_s``. An answer that has begun
    may take as long as it speaks."""

    connect_s: float = 5.0
    read_s: float = 600.0
    total_s: float = 600.0
    pool_s: float = 5.0

    def __post_init__(self) -> None:
        for key in ("connect_s", "read_s", "total_s", "pool_s"):
            if not getattr(self, key) > 0.0:
                raise ConfigError(f"{key} = {getattr(self, key)!r}: must be positive")


@dataclass(frozen=True, slots=True)
class Upstream:
    """An endpoint. ``base_url``: with or without ``/v1`` at its end. ``key``: the secret itself, for `auth`;
    ``model``: the name it goes by here, put in place of the request's. ``proxy``: the URL of a forward proxy; the
    environment's is not looked up. ``keep_s``: how long an idle connection is kept. ``instead``: as `Base` has it.
    Raises ConfigError."""

    name: str
    base_url: str
    key: str | None = field(default=None, repr=False)
    auth: Auth | None = None
    model: str | None = None
    timeouts: Timeouts = field(default_factory=Timeouts)
    retries: Retries = field(default_factory=Retries)
    breaker: BreakerSettings = field(default_factory=BreakerSettings)
    max_connections: int = 200
    keep_s: float = 15.0
    proxy: str | None = field(default=None, repr=False)
    instead: bool | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
            raise ConfigError(f"upstream {self.name!r}: base_url must be an http or https address with a host alone")
        if self.key is not None and not (self.key and all("!" <= character <= "~" for character in self.key)):
            raise ConfigError(f"upstream {self.name!r}: its key is empty or holds what no HTTP header can carry")
        if (self.key is None) != (self.auth in (None, "client", "none")) and self.auth is not None:
            raise ConfigError(f"upstream {self.name!r}: auth = {self.auth!r} does not go with a key, or its absence")
        if self.max_connections < 1 or not self.keep_s >= 0.0:
            raise ConfigError(f"upstream {self.name!r}: max_connections must be at least 1, keep_s not negative")

    @property
    def origin(self) -> tuple[str, str]:
        """Scheme and host with its port: who sees what is sent."""
        parts = urlsplit(self.base_url)
        return parts.scheme, parts.netloc.lower()


class Watch(Protocol):
    """Who is told of attempts: each one's end, and that an upstream is asked again, or in place of another."""

    def asked(self, upstream: str, seconds: float, kind: UpstreamFault | None) -> None: ...

    def again(self, upstream: str) -> None: ...

    def fell_back(self, upstream: str) -> None: ...


class Client:
    """The connections to one upstream, HTTP/1.1 and kept alive, and its `breaker`. For one event loop.

    It keeps no cookies, follows no redirect and adds no header of its own.
    """

    def __init__(self, upstream: Upstream, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.upstream, self.breaker = upstream, Breaker(upstream.breaker, clock, upstream.name)
        self.clock = clock
        self._base = Base(upstream.base_url, instead=upstream.instead)
        limits = httpx2.Limits(
            max_connections=upstream.max_connections,
            max_keepalive_connections=upstream.max_connections,
            keepalive_expiry=upstream.keep_s,
        )
        self._transport = httpx2.AsyncHTTPTransport(limits=limits, proxy=upstream.proxy)

    async def ask(
        self, method: str, target: str, headers: list[tuple[bytes, bytes]], body: Body, begun: float, attempts: int
    ) -> Reply:
        """One request; the ``attempts``-th. ``begun``: when the first of them began. Raises UpstreamError."""
        name, times = self.upstream.name, self.upstream.timeouts
        # How long it takes to send what comes in pieces is the client's matter.
        deadline = begun + times.total_s if isinstance(body, bytes) else float("inf")
        if self.clock() >= deadline:
            raise UpstreamError(name, "timeout", "no time was left to ask it")
        permit = self.breaker.admit()
        if permit is None:
            wait = self.breaker.retry_after
            raise UpstreamError(name, "breaker_open", f"failed of late, left alone for {wait:.1f} s", retry_after=wait)
        limits = {"connect": times.connect_s, "read": times.read_s, "write": times.read_s, "pool": times.pool_s}
        # As an extension, a target goes as it is: in a URL it would be quoted anew.
        extensions = {"timeout": limits, "target": self._base.target(target)}
        request = httpx2.Request(method, self._base.url, headers=headers, content=body, extensions=extensions)
        fault: UpstreamFault
        blamed = True
        try:
            async with asyncio.timeout(max(0.0, deadline - self.clock()) if isinstance(body, bytes) else None):
                response = await self._transport.handle_async_request(request)
        except httpx2.PoolTimeout:
            fault, problem, blamed = "connect", f"no connection was free within {times.pool_s:g} s", False
        except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
            fault, problem = "connect", f"cannot be reached ({type(error).__name__})"
        except (TimeoutError, httpx2.TimeoutException):
            fault, problem = "timeout", "did not answer in time"
        except (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol):
            fault, problem, blamed = "connect", "the request cannot be sent: a header is malformed", False
        except httpx2.TransportError as error:
            fault, problem = "cut", f"closed the connection before it answered ({type(error).__name__})"
        except BaseException:
            permit.given_up()
            raise
        else:
            broken = response.status_code in _BROKEN and asks_a_model(target)
            permit.failed() if broken else permit.succeeded()
            chunks = Chunks(response, name, permit)
            first = self.clock() - begun
            return Reply(response.status_code, to_client(response.headers.raw), first, chunks, name, attempts)
        # Outside of the handlers: the HTTP layer's message may quote a header.
        permit.failed() if blamed else permit.given_up()
        raise UpstreamError(name, fault, problem)

    async def aclose(self) -> None:
        """Close all connections; answers that are being read break off."""
        await self._transport.aclose()


class Chain:
    """Upstreams in the order in which they are asked; ``rng`` draws the jitter, ``sleep`` waits.

    One upstream is asked again where it could not be reached, or turned the request away (`Retries.again`), unless it
    says ``x-should-retry: false``: there is no charge for such requests. The next one is asked where that is of no use,
    and also where one took too long, or closed the connection, before its answer began: that request may have been
    charged. What may change something, as a new batch does, is asked again or elsewhere only where nothing was sent.
    Once an answer has begun it is the answer. Where all fail, the last error answer goes back as it is, or the last
    UpstreamError is raised.

    Raises ConfigError for a chain that would show the client's own credentials to another host than the first one,
    unless that upstream says ``auth: client``.
    """

    def __init__(
        self,
        clients: Sequence[Client],
        *,
        rng: Rng | None = None,
        watch: Watch | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        if not clients:
            raise ConfigError("upstreams: there must be at least one")
        self._clients, self._sleep, self._watch = tuple(clients), sleep, watch
        # The jitter keeps many gateways apart, so its default differs from process to process.
        self._rng: Rng = random.SystemRandom() if rng is None else rng
        first = clients[0].upstream
        self._auths: list[Auth] = []
        for upstream in (client.upstream for client in clients):
            auth: Auth = upstream.auth or ("client" if upstream.key is None else "bearer")
            if upstream.auth is None and auth == "client" and upstream.origin != first.origin:
                raise ConfigError(
                    f"upstream {upstream.name!r}: has no key, and would get the one that clients send for "
                    f"{first.name!r}: name its key, or say auth: client or auth: none"
                )
            self._auths.append(auth)

    @property
    def name(self) -> str:
        """The upstream that is asked first."""
        return self._clients[0].upstream.name

    @property
    def breakers(self) -> dict[str, State]:
        """State of each upstream's breaker now, by name."""
        return {client.upstream.name: client.breaker.state for client in self._clients}

    async def send(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[bytes, bytes]],
        body: Body,
        *,
        readable: bool = True,
        withheld: Collection[bytes] = (),
    ) -> Reply:
        """The answer of the first upstream that gives one. ``target``: path and query as the client sent them.

        A body in pieces is sent as they come, once: then no other upstream is asked, and none again. ``readable`` and
        ``withheld`` are those of `headers.to_upstream`. Raises UpstreamError where nobody answered.
        Cancelling it ends the request that is under way. Raises TargetError for a target that is not sent on, and
        ValueError for a header that HTTP cannot carry.
        """
        check(target)
        given, begun = list(headers), self._clients[0].clock()
        if not all(well_formed(name, value) for name, value in given):
            # The HTTP layer would quote it in its log.
            raise ValueError("a header holds what HTTP cannot carry")
        held: Reply | None = None
        attempts = 0
        try:
            for client, auth in zip(self._clients, self._auths, strict=True):
                key = client.upstream.key
                sent = to_upstream(given, auth=auth, key=key, readable=readable, withheld=withheld)
                content, length = _sendable(body, client.upstream.model, given)
                sent += length
                for k in range(client.upstream.retries.attempts):
                    attempts += 1
                    at, told = client.clock(), None
                    self._begun(client, k, attempts)
                    try:
                        reply = await client.ask(method, target, sent, content, begun, attempts)
                    except UpstreamError as error:
                        last = error
                        self._told(client, at, error)
                    else:
                        held, before = reply, held
                        if before is not None:
                            await before.aclose()
                        refusal, told = reply.failure(), reply.header("x-should-retry")
                        self._told(client, at, refusal)
                        if refusal is None:
                            held = None
                            return reply
                        last = refusal
                    again = client.upstream.retries.again(method, target)
                    wait = _wait(client, k, last, again, self._rng, begun, told)
                    if wait is None or not isinstance(body, bytes):
                        break
                    await self._sleep(wait)
                if not _goes_on(method, target, body, last):
                    break
            if held is None:
                raise last
            answer, held = held, None
            return answer
        finally:
            if held is not None:
                await held.aclose()

    def _begun(self, client: Client, k: int, attempts: int) -> None:
        if self._watch is not None and attempts > 1:
            (self._watch.again if k else self._watch.fell_back)(client.upstream.name)

    def _told(self, client: Client, begun: float, failed: UpstreamError | None) -> None:
        if self._watch is not None:
            kind = None if failed is None else failed.kind
            self._watch.asked(client.upstream.name, client.clock() - begun, kind)


def _sendable(body: Body, model: str | None, given: Given) -> tuple[Body, Given]:
    """A body under the upstream's name of the model; and the length that the client gave, where it comes in pieces."""
    if not isinstance(body, bytes):
        return body, [(name, value) for name, value in given if name.lower() == b"content-length"]
    if model is None:
        return body, []
    try:
        return with_model(body, model), []
    except ValueError:
        return body, []  # what is no JSON object with a model gets the upstream's own error


def _goes_on(method: str, target: str, body: Body, failed: UpstreamError) -> bool:
    """Whether another upstream may be asked: what changes something is never done twice."""
    if not isinstance(body, bytes):
        return False
    return failed.kind in ("connect", "breaker_open") or asks_a_model(target) or method in ("GET", "HEAD", "OPTIONS")


def _wait(
    client: Client,
    k: int,
    failed: UpstreamError,
    again: Collection[int],
    rng: Rng,
    begun: float,
    told: str | None,
) -> float | None:
    """Seconds before the same upstream is asked again; None where it is not. ``told``: its ``x-should-retry``."""
    settings = client.upstream.retries
    passing = failed.kind == "connect"
    if failed.kind == "status":
        passing = told != "false" and bool(again) and (told == "true" or failed.status in again)
    wait = settings.wait(k, failed.retry_after, rng) if passing else None
    left = begun + client.upstream.timeouts.total_s - client.clock()
    return wait if wait is not None and wait < left else None
