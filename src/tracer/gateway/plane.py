"""The data plane: one request from its bytes to its answer. The upstream's bytes are never changed.

A request is read by its format's codec and matched to a task. The task's router decides; where the surrogate answers,
the codec writes it in the client's shape. Everything else goes to the upstream as it came, comes back as it comes, and
its label is read afterwards from a copy.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

from starlette.types import Message, Receive, Scope, Send

from tracer.errors import CodecError, UpstreamError
from tracer.gateway.auth import Caller
from tracer.gateway.calls import Call
from tracer.gateway.codecs import CODECS, PATHS
from tracer.gateway.codecs.base import Codec
from tracer.gateway.codecs.choices import ChoiceCodec
from tracer.gateway.codecs.sse import events_of
from tracer.gateway.deciding import MODES, UNANSWERED, Verdict, decide
from tracer.gateway.lines import TaskLine
from tracer.gateway.relaying import ClientGoneError, Tee, while_connected
from tracer.gateway.replies import Reply
from tracer.gateway.serving import Gateway, Serving
from tracer.gateway.tasks import Match
from tracer.gateway.translating import STATUS, Said, Translation, interpreted, translation
from tracer.gateway.upstream import Chain
from tracer.types import FAILED, Usage

log = logging.getLogger("tracer.gateway.requests")

MODE = "x-tracer-mode"
NO_STORE = "x-tracer-no-store"
_COPIED = 1 << 20


class TooLargeError(Exception):
    """A body has more bytes than a gateway takes."""


@dataclass(slots=True)
class Exchange:
    """What is known of one request while it lasts."""

    scope: Scope
    receive: Receive
    send: Send
    serving: Serving
    codec: Codec
    path: str
    headers: Mapping[str, str]
    begun: float
    id: str = field(default_factory=lambda: secrets.token_hex(16))
    caller: Caller = field(default_factory=lambda: Caller(None))
    body: bytes = b""
    call: Call | None = None
    match: Match | None = None
    line: TaskLine | None = None
    verdict: Verdict | None = None
    decision: str = "passed"
    reason: str = "no_task"
    status: int = 0
    translation: Translation | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    saved: Decimal | None = None
    overhead: float | None = None

    @property
    def task(self) -> str:
        """The task's name, empty for none."""
        return self.match.task.name if self.match is not None else ""


class Plane:
    """An ASGI application for everything that is not the gateway's own."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway, serving = self._gateway, self._gateway.serving
        path = scope["path"].rstrip("/")
        codec = PATHS.get(path) if scope["method"] == "POST" else None
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        anthropic = "anthropic-version" in headers or path.startswith("/v1/messages")
        shape = codec or CODECS["anthropic.messages" if anthropic else "openai.chat"]
        one = Exchange(scope, receive, send, serving, shape, path, headers, gateway.clock())
        serving.running += 1
        try:
            await self._serve(one, known=codec is not None, anthropic=anthropic)
        except ClientGoneError:
            one.status = 499
        finally:
            serving.running -= 1
            self._over(one)

    async def _serve(self, one: Exchange, *, known: bool, anthropic: bool) -> None:
        if not await self._admitted(one):
            return
        try:
            one.body = await read_body(one.receive, one.headers, one.serving.config.limits.body_bytes)
        except TooLargeError:
            await self._refuse(one, 413, "the body is larger than this gateway takes")
            return
        if known:
            try:
                one.call = one.codec.read(one.body)
            except CodecError:
                one.reason = "unread"
        if one.call is not None:
            self._match(one, one.call)
        if not one.caller.may(one.task or None):
            await self._refuse(one, 403, "this key does not reach this task", None)
            return
        if one.call is not None and one.match is not None and one.line is not None:
            if not await self._translatable(one, one.call, one.match):
                return
            verdict = await decide(one.line, one.match, one.call, one.headers.get(MODE, "auto"))
            one.verdict, one.decision, one.reason = verdict, verdict.decision, verdict.reason
            if verdict.label is not None and await self._answered(one, verdict.label, "handled"):
                return
        await while_connected(self._upstream(one, self._chain(one, anthropic)), gone(one.receive))

    async def _admitted(self, one: Exchange) -> bool:
        gate = one.serving.gate
        caller = gate.caller(one.headers)
        if caller is None:
            await self._refuse(one, 401, "no key of this gateway was shown")
            return False
        one.caller = caller
        if (wait := gate.wait(caller)) > 0.0:
            await self._refuse(one, 429, "too many requests", {"retry-after": str(max(1, round(wait + 0.5)))})
            return False
        if one.headers.get(MODE, "auto") not in MODES:
            await self._refuse(one, 400, f"{MODE} must be one of {', '.join(MODES)}")
            return False
        return True

    def _match(self, one: Exchange, call: Call) -> None:
        lines = one.serving.lines
        accepted = {name: line.accepted(line.policy) for name, line in lines.items()}
        one.match = one.serving.tasks.match(call, one.headers, accepted)
        if one.match is not None:
            one.line = lines[one.match.task.name]
            one.reason = ""

    async def _translatable(self, one: Exchange, call: Call, match: Match) -> bool:
        """Whether the task's upstream can be asked; what it needs is made ready."""
        upstream = one.serving.config.upstream(match.task.upstream)
        try:
            one.translation = translation(call, match.task, upstream, match.teacher)
        except CodecError as error:
            problem = f"upstream {upstream.name!r} speaks another format, into which this cannot be translated: {error}"
            one.reason = "untranslatable"
            await self._refuse(one, 400, problem)
            return False
        return True

    def _chain(self, one: Exchange, anthropic: bool) -> Chain:
        if one.match is not None:
            return one.serving.chains.of(one.match.task.upstream, one.match.task.teacher)
        return one.serving.chains.default(anthropic=anthropic)

    async def _answered(self, one: Exchange, label: str, decision: str) -> bool:
        """Answer with the surrogate's label; False where the request cannot carry it: then the teacher is asked."""
        call, line, match, verdict = one.call, one.line, one.match, one.verdict
        assert call is not None and line is not None and match is not None and verdict is not None  # noqa: PT018, S101
        given: dict[str, Any] = {
            "id": one.id, "created": int(self._gateway.now()), "model": call.model,
            "like": line.like(call.wire, match.prompt),
        }  # fmt: skip
        try:
            if call.stream:
                parts = one.codec.stream(call, label, **given)
            else:
                score = verdict.answer.score
                parts = [one.codec.answer(call, label, confidence=score if 0.0 <= score <= 1.0 else None, **given)]
        except CodecError:
            if decision == "handled":
                one.verdict = verdict.unwritten()
                one.decision, one.reason = one.verdict.decision, one.verdict.reason
            return False
        one.decision = decision
        one.saved = line.saved_usd(match.teacher) if decision == "handled" else None
        one.overhead = self._gateway.clock() - one.begun
        await self._write(one, call, parts)
        return True

    async def _write(
        self, one: Exchange, call: Call, parts: list[bytes], more: Iterable[tuple[bytes, bytes]] = ()
    ) -> None:
        """An answer that was made here."""
        one.status = 200
        content = b"text/event-stream; charset=utf-8" if call.stream else b"application/json"
        head = [(b"content-type", content), *more, *self._told(one)]
        if call.stream:
            head.append((b"cache-control", b"no-cache"))
        else:
            head.append((b"content-length", str(len(parts[0])).encode()))
        await one.send({"type": "http.response.start", "status": 200, "headers": head})
        await one.send({"type": "http.response.body", "body": b"".join(parts)})

    async def _upstream(self, one: Exchange, chain: Chain) -> None:
        """Ask the upstream and hand its answer on. An audit whose label does not come back is recorded as failed."""
        label: str | None = None
        usage: Usage | None = None
        one.overhead = self._gateway.clock() - one.begun
        readable = one.call is not None
        try:
            if one.translation is not None and one.call is not None:
                said = await self._translated(one, one.call, one.translation, chain)
                label, usage = said.label, said.usage
                return
            scope = one.scope
            target = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
            if scope["query_string"]:
                target += "?" + scope["query_string"].decode("latin-1")
            reply = await chain.send(
                scope["method"], target, scope["headers"], one.body,
                readable=readable, withheld=one.caller.withheld,
            )  # fmt: skip
            async with reply:
                if reply.status >= 500 and await self._degraded(one):
                    return
                tee = Tee(reply.chunks, _COPIED if one.call is not None else 0, reply.header("content-encoding"))
                try:
                    await self._relay(one, reply, tee)
                finally:
                    if reply.status < 300 and (copy := tee.so_far) is not None:
                        label, usage = self._read(one, reply, copy)
        except UpstreamError as error:
            if one.status == 0 and not await self._degraded(one):
                more = {} if error.retry_after is None else {"retry-after": str(int(error.retry_after) + 1)}
                await self._refuse(one, STATUS[error.kind], f"upstream {error.upstream!r} did not answer", more)
        except ValueError:
            if one.status:
                raise
            await self._refuse(one, 400, "the request cannot be sent on: its target or a header is malformed")
        finally:
            self._keep(one, label, usage)

    async def _translated(self, one: Exchange, call: Call, asked: Translation, chain: Chain) -> Said:
        """Ask in the upstream's format, and answer in the client's."""
        given: dict[str, Any] = {"id": one.id, "created": int(self._gateway.now())}
        said, parts = await interpreted(chain, call, asked, one.scope["headers"], one.caller.withheld, **given)
        if parts:
            one.facts = said.facts
            await self._write(one, call, parts, said.headers)
        elif said.status < 500 or not await self._degraded(one):
            wait = {key.decode(): value.decode("latin-1") for key, value in said.headers if key == b"retry-after"}
            await self._refuse(one, said.status, said.message, wait)
        return said

    async def _degraded(self, one: Exchange) -> bool:
        """Answer with the surrogate's best label where the task says so, and the policy is in service."""
        verdict, match = one.verdict, one.match
        if verdict is None or match is None or match.task.on_upstream_down != "degraded" or verdict.best is None:
            return False
        return await self._answered(one, verdict.best, "degraded")

    async def _relay(self, one: Exchange, reply: Reply, tee: Tee) -> None:
        one.status = reply.status
        await one.send({"type": "http.response.start", "status": reply.status,
                        "headers": [*reply.headers, *self._told(one)]})  # fmt: skip
        try:
            async for chunk in tee:
                await one.send({"type": "http.response.body", "body": chunk, "more_body": True})
        except UpstreamError as error:
            # The head is out: a stream can still say what happened; else the connection ends early, as it did there.
            if (reply.header("content-type") or "").startswith("text/event-stream"):
                event = one.codec.error_event(STATUS[error.kind], f"upstream {error.upstream!r}: the answer broke off")
                await one.send({"type": "http.response.body", "body": b"\n\n" + event, "more_body": False})
                return
            raise
        await one.send({"type": "http.response.body", "body": b"", "more_body": False})

    def _read(self, one: Exchange, reply: Reply, copy: bytes) -> tuple[str | None, Usage | None]:
        call, codec = one.call, one.codec
        if call is None:
            return None, None
        try:
            if (reply.header("content-type") or "").startswith("text/event-stream"):
                events = events_of(copy)
                return codec.label_of_stream(call, events), codec.usage_of_stream(events)
            label, usage = codec.label(call, copy), codec.usage(copy)
            if isinstance(codec, ChoiceCodec):
                one.facts = codec.facts(call, copy)
            if one.line is not None and one.match is not None and codec.reproduces(call, copy, copy):
                one.line.keep_like(call.wire, one.match.prompt, copy)
            return label, usage
        except CodecError:
            return None, None

    def _keep(self, one: Exchange, label: str | None, usage: Usage | None) -> None:
        """Record what the teacher said."""
        call, line, match, verdict = one.call, one.line, one.match, one.verdict
        if call is None or one.headers.get(NO_STORE, "").lower() in ("1", "true", "yes", "on"):
            return
        if one.status == 200 and (match is None or match.task.mode == "observe"):
            self._gateway.watch(call, label, usage)
        if match is None or line is None or verdict is None or verdict.decision == UNANSWERED:
            return
        if not label:
            self._gateway.metrics.unread.labels(match.task.name).inc()
            if verdict.answer.origin != "audit":
                return
        elif usage is not None:
            line.learn(match.teacher, usage)
        trace = partial(
            verdict.answer.trace, label=label or FAILED, id=one.id, teacher=match.teacher, prompt=match.prompt,
            usage=usage, time=datetime.fromtimestamp(self._gateway.now(), UTC), metadata=one.facts,
        )  # fmt: skip
        line.record(trace, match.text)

    async def _refuse(self, one: Exchange, status: int, message: str, more: Mapping[str, str] | None = None) -> None:
        """An error in the shape of the client's format."""
        one.status = status
        body = one.codec.error(status, message)
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *self._told(one)]
        head += [(name.encode(), value.encode()) for name, value in (more or {}).items()]
        await one.send({"type": "http.response.start", "status": status, "headers": head})
        await one.send({"type": "http.response.body", "body": body})

    def _told(self, one: Exchange) -> list[tuple[bytes, bytes]]:
        overhead = one.overhead if one.overhead is not None else self._gateway.clock() - one.begun
        told = {
            "call-id": one.id,
            "decision": one.decision,
            "reason": one.reason,
            "overhead-ms": f"{overhead * 1e3:.3f}",
        }
        answer = one.verdict.answer if one.verdict is not None else None
        if answer is not None and answer.seen is not None:
            told |= {"score": f"{answer.score:.6g}", "threshold": f"{answer.threshold:.6g}"}
        if answer is not None and answer.policy is not None:
            told["policy"] = answer.policy
        if one.saved is not None:
            told["saved-usd"] = f"{one.saved:.8f}"
        return [(f"x-tracer-{name}".encode(), value.encode("latin-1", "replace")) for name, value in told.items()]

    def _over(self, one: Exchange) -> None:
        latency = self._gateway.clock() - one.begun
        overhead = one.overhead if one.overhead is not None else latency
        metrics = self._gateway.metrics
        metrics.count(one.task, one.decision, one.reason, one.status, overhead, latency)
        if one.saved is not None:
            metrics.saved.labels(one.task).inc(float(one.saved))
        if log.isEnabledFor(logging.INFO):
            policy = one.verdict.answer.policy if one.verdict is not None else None
            line = {
                "event": "request", "id": one.id, "task": one.task, "decision": one.decision, "reason": one.reason,
                "policy": policy, "status": one.status, "ms": round(latency * 1e3, 3),
                "overhead_ms": round(overhead * 1e3, 3), "bytes": len(one.body), "key": one.caller.name,
            }  # fmt: skip
            log.info("%s", json.dumps(line))


async def read_body(receive: Receive, headers: Mapping[str, str], limit: int) -> bytes:
    """A whole body. Raises TooLargeError as soon as that is known, ClientGoneError where the client left."""
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > limit:
        raise TooLargeError
    parts, size = [], 0
    while True:
        message: Message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise TooLargeError
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def gone(receive: Receive) -> None:
    """Returns when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
