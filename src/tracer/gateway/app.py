"""The gateway as an ASGI application, and its server."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tracer.gateway.admin import Admin
from tracer.gateway.auth import check_bind
from tracer.gateway.health import Health
from tracer.gateway.native import Native
from tracer.gateway.plane import Plane
from tracer.gateway.serving import Gateway

log = logging.getLogger("tracer.gateway")

DRAIN_S = 30


def application(gateway: Gateway) -> Starlette:
    """The application of one gateway, which starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await gateway.start()
        try:
            yield
        finally:
            await gateway.stop()

    async def other(_: Request) -> Response:
        return JSONResponse({"error": {"message": "there is nothing here", "type": "not_found_error"}}, status_code=404)

    native, plane = Native(gateway), Plane(gateway)
    routes = [
        *(Route(path, plane) for path in _DATA),
        Route("/v1/classify", native.classify, methods=["POST"]),
        Route("/v1/classify/batch", native.batch, methods=["POST"]),
        Route("/v1/classify/label", native.label, methods=["POST"]),
        Route("/v1/models", native.models, methods=["GET"]),
        Route("/v1/{rest:path}", plane),
        *Health(gateway).routes(),
        *Admin(gateway).routes(),
        Route("/{rest:path}", other),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


_DATA = ("/v1/chat/completions", "/v1/responses", "/v1/messages", "/v1/decisions", "/v1/systemone")
"""First, so that the busiest paths are found at once."""


def server(gateway: Gateway, host: str, port: int) -> uvicorn.Server:
    """A server of one process. On SIGTERM it takes no new request, ends those that run, and writes what waits.

    Raises ConfigError for an address that others can reach without a key.
    """
    check_bind(gateway.config, host)
    config = uvicorn.Config(
        application(gateway), host=host, port=port, log_config=None, access_log=False, lifespan="on", ws="none",
        server_header=False, date_header=False, proxy_headers=False, timeout_graceful_shutdown=DRAIN_S,
    )  # fmt: skip
    return uvicorn.Server(config)
