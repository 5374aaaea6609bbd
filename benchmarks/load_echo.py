"""What Starlette and the gateway's server cost alone: ``python load_echo.py PORT ANSWER`` reads a body, parses it as
JSON and answers with the JSON in the file ANSWER.

The server is the gateway's own (`tracer.gateway.app.server`: same loop, parser and settings) with another application
in it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tracer.gateway import app
from tracer.gateway.config import parse
from tracer.gateway.serving import Gateway

_NOTHING = "upstreams: {main: {base_url: 'http://127.0.0.1:9'}}"


def echo(answer: dict[str, Any]) -> Starlette:
    """The application."""

    async def completions(request: Request) -> Response:
        model = json.loads(await request.body())["model"]
        return JSONResponse({**answer, "model": model})

    async def health(_: Request) -> Response:
        return JSONResponse({})

    return Starlette(routes=[Route("/v1/chat/completions", completions, methods=["POST"]), Route("/health", health)])


if __name__ == "__main__":
    server = app.server(Gateway(parse(_NOTHING, {})), "127.0.0.1", int(sys.argv[1]))
    server.config.app = echo(json.loads(Path(sys.argv[2]).read_text(encoding="utf-8")))
    server.run()
