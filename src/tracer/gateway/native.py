"""The gateway's own calls: ``/v1/classify``, ``/v1/classify/batch`` and ``/v1/models``. They ask no teacher."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tracer.errors import CodecError, RouteError
from tracer.gateway.auth import Caller, UncheckedError, source_of
from tracer.gateway.codecs import CODECS
from tracer.gateway.codecs.bodies import read_object
from tracer.gateway.lines import TaskLine
from tracer.gateway.reading import TooLargeError, discard, read_body
from tracer.gateway.relaying import ClientGoneError
from tracer.gateway.serving import Gateway
from tracer.gateway.telemetry import Endpoint
from tracer.types import Answer

_MOST = 1_000
_GREATEST = float(np.finfo(np.float32).max)
_OPENAI = CODECS["openai.chat"]


class Native:
    """Endpoints of a gateway. An answer of ``classify`` has label null where the teacher is to be asked."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def classify(self, request: Request) -> Response:
        """``{"task", "text"}``, or ``embedding`` in place of the text or beside it; ``fallback`` is the label to give
        where the policy leaves the input."""
        try:
            asked, line, name = await self._asked(request)
            text, embedding = asked.get("text"), _vector(asked.get("embedding"))
            if not (isinstance(text, str) and text.strip()) and (embedding is None or text is not None):
                raise CodecError("text must be a text, or embedding a list of numbers")
            fallback = asked.get("fallback")
            if fallback is not None and not isinstance(fallback, str):
                raise CodecError("fallback must be a label")
            if line.task.mode == "observe":
                return JSONResponse({"id": secrets.token_hex(16), "label": fallback, "source": _source(fallback),
                                     "decision": "deferred", "reason": "observe"})  # fmt: skip
            answer = await asyncio.to_thread(line.router.route, text, embedding=embedding)
        except _Refusal as refusal:
            return refusal.response
        except (CodecError, RouteError) as error:
            return _error(400, str(error))
        self._count(name, [answer])
        return JSONResponse(_decision(answer, fallback))

    async def batch(self, request: Request) -> Response:
        """``{"task", "texts"}`` with up to 1,000 texts; ``{"results": [...]}`` in their order."""
        try:
            asked, line, name = await self._asked(request)
            texts = asked.get("texts")
            if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
                raise CodecError("texts must be a list of texts")
            if not 0 < len(texts) <= _MOST:
                raise CodecError(f"texts must be 1 to {_MOST}")
            if line.task.mode == "observe":
                left = {"label": None, "source": "none", "decision": "deferred", "reason": "observe"}
                return JSONResponse({"results": [{"id": secrets.token_hex(16), **left} for _ in texts]})
            answers = await asyncio.to_thread(line.router.route_many, texts)
        except _Refusal as refusal:
            return refusal.response
        except (CodecError, RouteError) as error:
            return _error(400, str(error))
        self._count(name, answers)
        return JSONResponse({"results": [_decision(answer, None) for answer in answers]})

    async def models(self, request: Request) -> Response:
        """The aliases of tasks that the caller may use, as OpenAI lists models."""
        try:
            caller = await self._caller(request)
        except _Refusal as refusal:
            return refusal.response
        names = {
            model: line.task.name
            for line in self._gateway.serving.lines.values() if caller.may(line.task.name)
            for model in line.task.models
        }  # fmt: skip
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "tracer"} for name in sorted(names)]
        return JSONResponse({"object": "list", "data": data})

    async def _caller(self, request: Request) -> Caller:
        try:
            caller = await self._gateway.serving.gate.check(dict(request.headers), source_of(request.scope))
        except UncheckedError as error:
            wait = {"retry-after": str(int(error.wait) + 1)}
            raise _Refusal(429, "too many unknown keys", wait) from None
        if caller is None:
            raise _Refusal(401, "no key of this gateway was shown")
        return caller

    async def _asked(self, request: Request) -> tuple[dict[str, Any], TaskLine, str]:
        serving, headers = self._gateway.serving, dict(request.headers)
        caller = await self._caller(request)
        if (wait := serving.gate.wait(caller)) > 0.0:
            raise _Refusal(429, "too many requests", {"retry-after": str(max(1, round(wait + 0.5)))})
        try:
            body = await read_body(request.receive, headers, serving.config.limits.body_bytes)
        except TooLargeError as error:
            if error.more:
                await discard(request.scope, request.receive, headers)
            raise _Refusal(413, "the body is larger than this gateway takes") from None
        except ClientGoneError:
            raise _Refusal(400, "the client left") from None
        asked = read_object(body)
        name = asked.get("task")
        if not isinstance(name, str):
            raise CodecError("task must be a name")
        if not caller.may(name):
            raise _Refusal(403, "this key does not reach this task")
        if name not in serving.lines:
            raise _Refusal(404, "there is no such task")
        return asked, serving.lines[name], name

    def _count(self, task: str, answers: list[Answer]) -> None:
        for answer in answers:
            decision = "handled" if answer.handled else "audit" if answer.audited else "deferred"
            seconds = answer.latency_s
            self._gateway.metrics.count(task, decision, answer.reason, 200, seconds, seconds)


def bounded(gateway: Gateway, endpoint: Endpoint) -> Endpoint:
    """An endpoint whose requests count towards ``limits.concurrency``, and are waited for by a reload."""

    async def counted(request: Request) -> Response:
        serving = gateway.serving
        serving.running += 1
        try:
            if serving.running > serving.config.limits.concurrency:
                return _error(503, "this gateway answers as many requests as it takes", {"retry-after": "1"})
            return await endpoint(request)
        finally:
            serving.running -= 1

    return counted


class _Refusal(Exception):  # noqa: N818 - it carries an answer
    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.response = _error(status, message, headers)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = json.loads(_OPENAI.error(status, message))
    return JSONResponse(body, status_code=status, headers=headers)


def _vector(value: object) -> list[float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(type(x) in (int, float) for x in value):
        raise CodecError("embedding must be a list of numbers")
    if not all(abs(x) <= _GREATEST for x in value):
        raise CodecError("embedding must be a list of finite numbers")
    return value


def _source(fallback: str | None) -> str:
    return "none" if fallback is None else "fallback"


def _decision(answer: Answer, fallback: str | None) -> dict[str, Any]:
    seen = answer.seen is not None
    return {
        "id": secrets.token_hex(16),
        "label": answer.label if answer.handled else fallback,
        "source": answer.source if answer.handled else _source(fallback),
        "decision": "handled" if answer.handled else "audit" if answer.audited else "deferred",
        "reason": answer.reason,
        "score": answer.score if seen else None,
        "threshold": answer.threshold if seen else None,
        "policy": answer.policy,
    }
