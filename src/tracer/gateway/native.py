"""The gateway's own calls: ``/v1/classify``, ``.../batch``, ``.../label``, and ``/v1/models``."""

from __future__ import annotations

import asyncio
import json
import secrets
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tracer.errors import CodecError, RouteError, StoreError
from tracer.gateway import labelling
from tracer.gateway.auth import Caller, UncheckedError, source_of, told_unknown
from tracer.gateway.codecs import CODECS
from tracer.gateway.codecs.bodies import read_object
from tracer.gateway.deciding import MODES, Verdict, decide_many
from tracer.gateway.entering import MODE
from tracer.gateway.exchanges import NO_STORE
from tracer.gateway.lines import TaskLine
from tracer.gateway.noting import Note
from tracer.gateway.opened import Status
from tracer.gateway.reading import TooLargeError, discard, read_body
from tracer.gateway.relaying import ClientGoneError
from tracer.gateway.serving import Gateway, Serving
from tracer.gateway.teaching import Prepared, Taught, Teaching, prepared
from tracer.gateway.telemetry import Endpoint
from tracer.types import Float32

_MOST = 1_000
_GREATEST = float(np.finfo(np.float32).max)
_OPENAI = CODECS["openai.chat"]
_WITHOUT_TEXT = "an embedding alone cannot be shown to the teacher: send the text beside it"


@dataclass(frozen=True, slots=True)
class _Asked:
    """A native request: what it says, by whom, and of which task."""

    body: dict[str, Any]
    headers: dict[str, str]
    raw: list[tuple[bytes, bytes]]
    serving: Serving
    caller: Caller
    line: TaskLine
    note: Note

    @property
    def store(self) -> bool:
        return self.headers.get(NO_STORE, "").lower() not in ("1", "true", "yes", "on")


class Native:
    """Endpoints of a gateway. An answer has label null where the caller's own teacher is to be asked."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def classify(self, request: Request) -> Response:
        """``{"task", "text"}``, or ``embedding`` in place of the text or beside it; ``fallback`` is the label to give
        where neither the policy nor a teacher does."""
        try:
            one = await self._asked(request)
            text, embedding = one.body.get("text"), _vector(one.body.get("embedding"))
            if text is not None and not (isinstance(text, str) and text.strip()):
                raise CodecError("text must be a text")
            if text is None and embedding is None:
                raise CodecError("there must be a text, or an embedding")
            fallback = one.body.get("fallback")
            if fallback is not None and not isinstance(fallback, str):
                raise CodecError("fallback must be a label")
            texts = None if text is None else [text]
            ((told, status),) = await self._answers(one, texts, embedding, fallback)
        except _Refusal as refusal:
            return refusal.response
        except (CodecError, RouteError) as error:
            return _error(400, str(error))
        return JSONResponse(told) if status < 400 else _error(status, told["error"])

    async def batch(self, request: Request) -> Response:
        """``{"task", "texts"}`` with up to 1,000 texts; ``{"results": [...]}`` in their order."""
        try:
            one = await self._asked(request)
            texts = one.body.get("texts")
            if not isinstance(texts, list) or not all(isinstance(text, str) and text.strip() for text in texts):
                raise CodecError("texts must be a list of texts")
            if not 0 < len(texts) <= _MOST:
                raise CodecError(f"texts must be 1 to {_MOST}")
            one.serving.gate.charge(one.caller, len(texts) - 1)
            results = await self._answers(one, texts, None, None)
        except _Refusal as refusal:
            return refusal.response
        except (CodecError, RouteError) as error:
            return _error(400, str(error))
        return JSONResponse({"results": [told for told, _ in results]})

    async def label(self, request: Request) -> Response:
        """``{"task", "id", "label"}`` with the label that the caller's own teacher gave to an answer without one, null
        where it gave none; ``teacher``, ``prompt`` and ``usage`` say more. Or ``{"task", "labels": [...]}``."""
        try:
            one = await self._asked(request)
            handed_in = labelling.read(one.body)
            now = self._gateway.clock()
            statuses = await asyncio.to_thread(lambda: [labelling.take(one.line, label, now) for label in handed_in])
            teacher = one.line.task.teacher
            for label, status in zip(handed_in, statuses, strict=True):
                # What a call of the teacher that would have been asked costs, by its caller's word.
                if status == "recorded" and label.usage is not None and teacher and label.teacher in (None, teacher):
                    one.line.learn(teacher, label.usage)
            results = [{"id": label.id, "status": status} for label, status in zip(handed_in, statuses, strict=True)]
            if "labels" in one.body:
                return JSONResponse({"results": results})
            _check(statuses[0])
        except _Refusal as refusal:
            return refusal.response
        except CodecError as error:
            return _error(400, str(error))
        except StoreError:
            return _error(503, "labels cannot be taken in now: try again", {"retry-after": "1"})
        return JSONResponse(results[0])

    async def models(self, request: Request) -> Response:
        """The aliases of tasks that the caller may use, as OpenAI lists models."""
        try:
            caller = await self._caller(request)
            self._paced(caller)
        except _Refusal as refusal:
            return refusal.response
        names = {
            model: line.task.name
            for line in self._gateway.serving.lines.values() if caller.may(line.task.name)
            for model in line.task.models
        }  # fmt: skip
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "tracer"} for name in sorted(names)]
        return JSONResponse({"object": "list", "data": data})

    async def _answers(
        self, one: _Asked, texts: list[str] | None, embedding: Float32 | None, fallback: str | None
    ) -> list[tuple[dict[str, Any], int]]:
        """The answers, each with the status of an error where a teacher that was to answer did not."""
        line, clock, begun = one.line, self._gateway.clock, self._gateway.clock()
        asking = line.task.fallback if texts is not None else None
        calls: list[Prepared] | None = None
        version = line.version
        if asking is not None and texts is not None:
            calls = await asyncio.to_thread(prepared, line, asking, texts)
            texts = [call.match.text for call in calls]
        elif texts is not None and line.task.redact:
            texts = [line.masked(text) for text in texts]
        known = None if calls is None else [call.match.known_prompt for call in calls]
        audited = texts is not None and one.store and (asking is not None or line.task.labelled)
        mode = one.headers.get(MODE, "auto")
        verdicts = await decide_many(
            line, texts, embedding, version=version, known_prompts=known, mode=mode, audited=audited
        )
        decided = clock() - begun
        ids = [secrets.token_hex(16) for _ in verdicts]
        left = [i for i, verdict in enumerate(verdicts) if verdict.label is None]
        taught: dict[int, Taught] = {}
        if left and asking is not None and calls is not None:
            teaching = Teaching(
                self._gateway, one.serving, line, asking, one.raw, withheld=one.caller.withheld, store=one.store
            )
            said = await teaching.many([(ids[i], calls[i], verdicts[i]) for i in left])
            taught = dict(zip(left, said, strict=True))
        elif left and texts is not None and one.store:
            opened = [(ids[i], texts[i], verdicts[i]) for i in left]
            await asyncio.to_thread(labelling.open_calls, line, opened, self._gateway.now(), clock())
        elif left and texts is None and line.task.fallback is not None:
            taught = {i: Taught(None, 200, _WITHOUT_TEXT) for i in left}
        out = []
        for i, verdict in enumerate(verdicts):
            told, status = _told(line, ids[i], verdict, taught.get(i), fallback)
            self._gateway.metrics.count(
                line.task.name, told["decision"], told["reason"], status, decided / len(verdicts), clock() - begun
            )
            out.append((told, status))
        teacher, note = line.task.teacher, one.note
        note.decided([told for told, _ in out], verdicts, None if teacher is None else line.saved_usd(teacher))
        note.overhead = decided
        if note.saved is not None:
            self._gateway.metrics.saved.labels(line.task.name).inc(float(note.saved))
        return out

    async def _caller(self, request: Request) -> Caller:
        try:
            caller = await self._gateway.serving.gate.check(dict(request.headers), source_of(request.scope))
        except UncheckedError as error:
            wait = {"retry-after": str(int(error.wait) + 1)}
            raise _Refusal(429, "too many unknown keys", wait) from None
        if caller is None:
            raise _Refusal(401, told_unknown(request.headers))
        return caller

    def _paced(self, caller: Caller) -> None:
        if (wait := self._gateway.serving.gate.wait(caller)) > 0.0:
            raise _Refusal(429, "too many requests", {"retry-after": str(max(1, round(wait + 0.5)))})

    async def _asked(self, request: Request) -> _Asked:
        serving, headers = self._gateway.serving, dict(request.headers)
        note: Note = request.state.note
        caller = await self._caller(request)
        note.key = caller.name
        self._paced(caller)
        if headers.get(MODE, "auto") not in MODES:
            raise _Refusal(400, f"{MODE} must be one of {', '.join(MODES)}")
        try:
            body = await read_body(request.receive, headers, serving.config.limits.body_bytes)
        except TooLargeError as error:
            if error.more:
                await discard(request.scope, request.receive, headers)
            raise _Refusal(413, "the body is larger than this gateway takes") from None
        except ClientGoneError:
            raise _Refusal(400, "the client left") from None
        note.n_bytes = len(body)
        asked = read_object(body)
        name = asked.get("task")
        if not isinstance(name, str):
            raise CodecError("task must be a name")
        if not caller.may(name):
            raise _Refusal(403, "this key does not reach this task")
        if name not in serving.lines:
            raise _Refusal(404, "there is no such task")
        note.task = name
        return _Asked(asked, headers, list(request.scope["headers"]), serving, caller, serving.lines[name], note)


def bounded(gateway: Gateway, endpoint: Endpoint) -> Endpoint:
    """An endpoint whose requests count towards ``limits.concurrency``, are waited for by a reload, and are logged."""

    async def counted(request: Request) -> Response:
        serving, begun, status = gateway.serving, gateway.clock(), 0
        note = request.state.note = Note()
        serving.running += 1
        try:
            if serving.running > serving.config.limits.concurrency:
                response = _error(503, "this gateway answers as many requests as it takes", {"retry-after": "1"})
            else:
                response = await endpoint(request)
            status = response.status_code
        finally:
            serving.running -= 1
            note.write(status, gateway.clock() - begun)
        return response

    return counted


class _Refusal(Exception):  # noqa: N818 - it carries an answer
    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.response = _error(status, message, headers)


def _error(status: int, message: str, headers: dict[str, str] | None = None) -> Response:
    body = json.loads(_OPENAI.error(status, message))
    return JSONResponse(body, status_code=status, headers=headers)


def _vector(value: object) -> Float32 | None:
    if value is None:
        return None
    if not isinstance(value, list) or not value or not all(type(x) in (int, float) for x in value):
        raise CodecError("embedding must be a list of numbers")
    if not all(abs(x) <= _GREATEST for x in value):
        raise CodecError("embedding must be a list of finite numbers")
    return np.asarray(value, dtype=np.float32)[None, :]


def _check(status: Status | Literal["no_label"]) -> None:
    if status == "no_label":
        raise _Refusal(422, "not a label of this task: the call still waits for one")
    if status == "unknown":
        raise _Refusal(
            404, "no such call waits for a label: the policy answered it, its time is over, or it is unknown"
        )
    if status == "conflict":
        raise _Refusal(409, "this call has another label already")


def _told(
    line: TaskLine,
    id: str,  # noqa: A002
    verdict: Verdict,
    taught: Taught | None,
    fallback: str | None,
) -> tuple[dict[str, Any], int]:
    """What the caller is told, and with which status."""
    answer, status = verdict.answer, 200
    label, source, decision = verdict.label, str(answer.source), str(verdict.decision)
    if label is None and taught is not None and taught.label is not None:
        label, source = taught.label, "teacher"
    elif label is None and fallback is not None:
        label, source = fallback, "fallback"
    elif label is None and taught is not None:
        status = taught.status
        if status >= 500 and line.task.on_upstream_down == "degraded" and verdict.best is not None:
            label, source, decision, status = verdict.best, "surrogate", "degraded", 200
    seen = answer.seen is not None
    told = {
        "id": id,
        "label": label,
        "source": source,
        "decision": decision,
        "reason": verdict.reason,
        "score": answer.score if seen else None,
        "threshold": answer.threshold if seen else None,
        "policy": answer.policy,
    }
    return told | ({"error": taught.problem} if taught is not None and taught.problem else {}), status
