"""Whether the gateway lives, and whether it can take requests."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tracer.gateway.auth import UncheckedError, source_of
from tracer.gateway.metrics import CONTENT_TYPE_LATEST
from tracer.gateway.serving import Gateway


class Health:
    """``/health``, ``/health/liveliness``, ``/health/readiness`` and ``/metrics``: counts and states, no content."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    def routes(self) -> list[Route]:
        """What there is."""
        return [
            Route("/health", self._health, methods=["GET"]),
            Route("/health/liveliness", self._live, methods=["GET"]),
            Route("/health/readiness", self._ready, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
        ]

    async def _live(self, _: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def _ready(self, _: Request) -> Response:
        ready = self._gateway.ready
        return JSONResponse({"status": "ready" if ready else "not ready"}, status_code=200 if ready else 503)

    async def _health(self, _: Request) -> Response:
        serving = self._gateway.serving
        tasks = {
            name: {"policy": line.policy.version if line.policy is not None else None, "broken": line.broken}
            for name, line in serving.lines.items()
        }
        # An upstream that is down is reported, and is no reason to restart this process.
        config = "outdated" if self._gateway.outdated else "in force"
        running, wanted = self._gateway.workers
        told = {"status": "ok", "config": config, "off": self._gateway.switch.is_off(serving.config.home)}
        told |= {"tasks": tasks, "upstreams": serving.chains.breakers, "workers": {"running": running, "of": wanted}}
        return JSONResponse(told)

    async def _metrics(self, request: Request) -> Response:
        gate = self._gateway.serving.gate
        try:
            shown = await gate.token("metrics", dict(request.headers), source_of(request.scope))
        except UncheckedError:
            return JSONResponse({"error": {"message": "too many unknown tokens"}}, status_code=429)
        if shown is False:
            return JSONResponse({"error": {"message": "the token of metrics was not shown"}}, status_code=401)
        return Response(await self._gateway.exposition(), media_type=CONTENT_TYPE_LATEST)
