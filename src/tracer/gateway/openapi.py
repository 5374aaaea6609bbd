"""The gateway's description for programs: ``GET /openapi.json``, from ``openapi.yaml`` beside this file."""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

import yaml
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


def description() -> dict[str, Any]:
    """The OpenAPI 3.1 document, a new one each time."""
    return dict(json.loads(_content()))


def routes() -> list[Route]:
    """What there is."""
    return [Route("/openapi.json", _openapi, methods=["GET"])]


@cache
def _content() -> bytes:
    text = resources.files("tracer.gateway").joinpath("openapi.yaml").read_text(encoding="utf-8")
    return json.dumps(yaml.safe_load(text)).encode()


def _openapi(_: Request) -> Response:  # in a thread: the first one reads the file
    return Response(_content(), media_type="application/json")
