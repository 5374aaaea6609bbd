"""Answers where no other part has one: a path or a method that is none, and a fault of the gateway itself."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from tracer.gateway.codecs import CODECS, PATHS

_OPENAI = CODECS["openai.chat"]


async def refused(_: Request, error: Exception) -> Response:
    """404 and 405 in the shape of an error of OpenAI's; with ``allow`` where the method is the fault."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = {404: "there is nothing here", 405: "this method is none of this path"}.get(status, "refused")
    headers = error.headers if isinstance(error, HTTPException) else None
    body = _OPENAI.error(status, message)
    return Response(body, status_code=status, headers=headers, media_type="application/json")


async def broken(request: Request, _: Exception) -> Response:
    """500 in the client's format. What went wrong is logged by its kind, and not told: it may quote a request."""
    codec = PATHS.get(request.url.path.rstrip("/"), _OPENAI)
    return Response(codec.error(500, "an error of the gateway's own"), status_code=500, media_type="application/json")


def turned_away(scope: Scope, status: int, message: str) -> Response:
    """A refusal in the client's format; in plain words for a browser that wanted a page. The connection ends."""
    headers, path = {"connection": "close"}, scope["path"]
    if path.startswith(("/v1", "/admin")) or not any(b"text/html" in value for _, value in scope["headers"]):
        body = PATHS.get(path.rstrip("/"), _OPENAI).error(status, message)
        return Response(body, status_code=status, headers=headers, media_type="application/json")
    return Response(message, status_code=status, headers=headers, media_type="text/plain")


class OtherMethod:
    """405 on a path of the gateway's own, which would pass to the upstream else."""

    def __init__(self, allowed: str) -> None:
        self._allowed = allowed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        raise HTTPException(405, headers={"allow": self._allowed})
