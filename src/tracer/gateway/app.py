"""The gateway as an ASGI application, and its server."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from tracer.gateway import openapi, problems
from tracer.gateway.admin import Admin
from tracer.gateway.auth import check_bind
from tracer.gateway.codecs import PATHS
from tracer.gateway.heads import timed
from tracer.gateway.health import Health
from tracer.gateway.native import Native, bounded
from tracer.gateway.origins import foreign
from tracer.gateway.pages.routes import Pages
from tracer.gateway.plane import Plane
from tracer.gateway.serving import Gateway
from tracer.gateway.telemetry import Telemetry, traced

log = logging.getLogger("tracer.gateway")

DRAIN_S = 30


class Application(Starlette):
    """Starlette, but that the busiest paths go to the data plane at once, past its middleware and routes."""

    plane: ASGIApp
    gateway: Gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            if not self.gateway.config.keys and (why := foreign(scope)) is not None:
                await problems.turned_away(scope, *why)(scope, receive, send)
                return
            if scope["http_version"] == "1.0":
                send = _whole(send)
            if scope["path"] in PATHS:
                await self.plane(scope, receive, send)
                return
            if scope["path"].endswith("/") and (path := scope["path"].rstrip("/")) in _NATIVE:
                scope = {**scope, "path": path}
        await super().__call__(scope, receive, send)


def _whole(send: Send) -> Send:
    """For a client of HTTP/1.0, which knows no chunks: an answer of unknown length is held until its length is known.

    Not every server that stands below ends such an answer with the connection, as it should.
    """
    start: Message | None = None
    parts: list[bytes] = []

    async def held(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start" and b"content-length" not in dict(message["headers"]):
            start = message
        elif start is None:
            await send(message)
        else:
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                body = b"".join(parts)
                length = (b"content-length", str(len(body)).encode())
                await send({**start, "headers": [*start["headers"], length]})
                await send({"type": "http.response.body", "body": body})

    return held


def application(gateway: Gateway) -> Application:
    """The application of one gateway, which starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    async def other(_: Request) -> Response:
        raise HTTPException(404)

    def telemetry() -> Telemetry | None:
        return gateway.telemetry

    native, plane = Native(gateway), Plane(gateway)
    routes = [
        Route("/v1/classify", traced(telemetry, bounded(gateway, native.classify)), methods=["POST"]),
        Route("/v1/classify/batch", traced(telemetry, bounded(gateway, native.batch)), methods=["POST"]),
        Route("/v1/classify/label", traced(telemetry, bounded(gateway, native.label)), methods=["POST"]),
        Route("/v1/models", native.models, methods=["GET"]),
        *(Route(path, problems.OtherMethod(allowed)) for path, allowed in _OWN),
        Route("/v1/{rest:path}", plane),
        *Health(gateway).routes(),
        *Admin(gateway).routes(),
        *openapi.routes(),
        *Pages(gateway).routes(),
        Route("/{rest:path}", other),
    ]
    handlers = {HTTPException: problems.refused, Exception: problems.broken}
    app = Application(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.plane = ServerErrorMiddleware(plane, handler=problems.broken)
    app.gateway = gateway
    return app


_OWN = (
    ("/v1/classify", "POST"),
    ("/v1/classify/batch", "POST"),
    ("/v1/classify/label", "POST"),
    ("/v1/models", "GET, HEAD"),
)
_NATIVE = frozenset(path for path, _ in _OWN)


def server(gateway: Gateway, host: str, port: int) -> Server:
    """A server of one process. On SIGTERM it takes no new request, ends those that run, and writes what waits.

    Raises ConfigError for an address that others can reach without a key.
    """
    check_bind(gateway.config, host)
    gateway.bound = host
    config = uvicorn.Config(
        application(gateway), host=host, port=port, http=timed(_protocol()), log_config=None, access_log=False,
        lifespan="on", ws="none", server_header=False, date_header=False, proxy_headers=False,
        timeout_graceful_shutdown=DRAIN_S,
    )  # fmt: skip
    return Server(config)


class Server(uvicorn.Server):
    """As uvicorn's, but that a SIGTERM after which all ended in order is no end by a signal: the exit status is 0."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Take signals until the server ends; those that are left are raised then."""
        with super().capture_signals():
            yield
            if self.started and not self.force_exit:
                self._captured_signals[:] = [one for one in self._captured_signals if one != signal.SIGTERM]


def _protocol() -> type[asyncio.Protocol]:
    """HTTP by httptools, which is several times as fast; by h11 where it is not installed."""
    try:
        from tracer.gateway.protocol import Protocol
    except ImportError:
        return H11Protocol
    return Protocol
