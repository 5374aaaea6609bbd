"""The data plane: one request from its bytes to its answer. The upstream's bytes are never changed.

A request is read by its format's codec and matched to a task. The task's router decides; where the surrogate answers,
the codec writes it in the client's shape. Everything else goes to the upstream as it came, comes back as it comes, and
its label is read afterwards from a copy.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from starlette.types import Receive, Scope, Send

from tracer.errors import CodecError, UpstreamError
from tracer.gateway.calls import Call
from tracer.gateway.codecs import CODECS, PATHS
from tracer.gateway.codecs.choices import ChoiceCodec
from tracer.gateway.codecs.sse import events_of
from tracer.gateway.deciding import UNANSWERED, decide, missing, with_field
from tracer.gateway.entering import MODE, RefusedError, admit, check_reach, take_body
from tracer.gateway.exchanges import Exchange
from tracer.gateway.reading import SlowBodyError, discard, gone
from tracer.gateway.relaying import ClientGoneError, Tee, while_connected
from tracer.gateway.replies import Reply
from tracer.gateway.serving import Gateway
from tracer.gateway.speaking import misdirects
from tracer.gateway.targets import TargetError
from tracer.gateway.translating import (
    STATUS,
    Said,
    Translation,
    filtered,
    fitted,
    heard,
    parts_of,
    translation,
    unanswered,
)
from tracer.gateway.upstream import Body, Chain
from tracer.types import Usage

log = logging.getLogger("tracer.gateway.requests")

_COPIED = 1 << 20
_ROUTE = "/v1/{path}"


class Plane:
    """An ASGI application for everything that is not the gateway's own."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway, serving = self._gateway, self._gateway.serving
        path = scope["path"].rstrip("/")
        codec = PATHS.get(path) if scope["method"] == "POST" else None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        anthropic = "anthropic-version" in headers or path.startswith("/v1/messages")
        shape = codec or CODECS["anthropic.messages" if anthropic else "openai.chat"]
        one = Exchange(scope, receive, send, serving, shape, path, headers, gateway.clock())
        if gateway.telemetry is not None:
            one.span = gateway.telemetry.begin(scope["method"], path if codec is not None else _ROUTE, headers)
        serving.running += 1
        try:
            await self._serve(one, known=codec is not None)
        except RefusedError as refused:
            if refused.reason is not None:
                one.decision, one.reason = "refused", refused.reason
            await self._refuse(one, refused.status, str(refused), refused.more)
        except SlowBodyError:
            if one.status:
                raise
            await self._refuse(one, 408, "the body did not come", {"connection": "close"})
        except ClientGoneError:
            one.status = 499
        finally:
            serving.running -= 1
            self._over(one)

    async def _serve(self, one: Exchange, *, known: bool) -> None:
        await admit(one)
        await take_body(one, known=known)
        if known:
            try:
                one.call = one.codec.read(one.body)
            except CodecError:
                one.reason = "unread"
        if one.call is not None:
            self._match(one, one.call)
        check_reach(one)
        _translate(one)
        if one.call is not None and one.match is not None and one.line is not None:
            mode = one.headers.get(MODE, "auto")
            verdict = await decide(one.line, one.match, one.call, mode, one.version, kept=one.kept)
            one.verdict, one.decision, one.reason = verdict, verdict.decision, verdict.reason
            if verdict.label is not None and await self._answered(one, verdict.label, "handled"):
                return
        work = self._upstream(one, _chain(one, known=known))
        if one.pieces is not None:
            await while_connected(work, one.pieces.client_gone())
        elif one.verdict is not None and one.verdict.answer.origin in ("audit", "bootstrap"):
            await work  # to its end, though the client may leave: who is slow to be answered is no matter of chance
        else:
            await while_connected(work, gone(one.receive))

    def _match(self, one: Exchange, call: Call) -> None:
        # Before the prompt is held against what it accepts: a policy that comes into force meanwhile does not answer.
        versions = {name: line.version for name, line in one.serving.lines.items()}
        match = one.serving.tasks.match(call, one.headers, one.serving.accepted)
        if match is not None:
            one.line, one.version, one.reason = one.serving.lines[match.task.name], versions[match.task.name], ""
            one.match = replace(match, text=one.line.masked(match.text)) if match.task.redact else match
            one.call = with_field(call, match.task.label_field)

    async def _answered(self, one: Exchange, label: str, decision: str) -> bool:
        """Answer with the surrogate's label; False where the request cannot carry it: then the teacher is asked."""
        call, line, match, verdict = one.call, one.line, one.match, one.verdict
        assert call is not None and line is not None and match is not None and verdict is not None  # noqa: PT018, S101
        like = line.like(call.wire, match.prompt)
        given: dict[str, Any] = {
            "id": one.id, "created": int(self._gateway.now()), "model": call.model, "like": like,
        }  # fmt: skip
        try:
            if like is None and match.task.label_field is not None and not call.schema:
                raise CodecError("what stands beside the label is not known before a first answer")
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
        copy: bytes | None = None
        left = False
        try:
            slots = self._gateway.admission.at(chain.name, one.serving.config.limits)
            async with slots, await self._sent(one, chain) as reply:
                if reply.status >= 500 and await self._degraded(one):
                    return
                if one.translation is not None and one.call is not None:
                    said = await self._interpreted(one, one.call, one.translation, reply)
                    label, usage = said.label, said.usage
                    return
                tee = Tee(reply.chunks, _COPIED if one.call is not None else 0, reply.header("content-encoding"))
                try:
                    await self._relay(one, reply, tee)
                finally:
                    if (copy := tee.so_far) is not None and reply.status < 300:
                        label, usage = self._read(one, reply, copy)
                    one.filtered = copy is not None and filtered(reply.status, copy)
                    one.whole = label is not None or (copy is not None and one.codec.reply(copy) is not None)
        except UpstreamError as error:
            one.asked = error.kind not in ("busy", "breaker_open")
            self._broke(one, error, counted=error.kind != "busy")
            if one.status == 0 and not await self._degraded(one):
                more = {} if error.retry_after is None else {"retry-after": str(int(error.retry_after) + 1)}
                await self._refuse(one, STATUS[error.kind], unanswered(error), more)
        except asyncio.CancelledError:
            left = True
            raise
        except ValueError as error:
            if one.status:
                raise
            given = error if isinstance(error, TargetError) else TargetError(400, "a header is malformed")
            await self._refuse(one, given.status, f"the request cannot be sent on: {given}")
        finally:
            if one.span is not None:
                one.span.over(None if copy is None else one.codec.reply(copy), usage, left=left)
            self._keep(one, label, usage)

    async def _interpreted(self, one: Exchange, call: Call, asked: Translation, reply: Reply) -> Said:
        """Answer in the client's format what was asked in the upstream's."""
        said = await heard(asked.call, reply)
        told, parts = parts_of(call, said, id=one.id, created=int(self._gateway.now()))
        one.filtered = said.refused
        if parts:
            one.facts = said.facts
            await self._write(one, call, parts, said.headers)
        elif told.status < 500 or not await self._degraded(one):
            wait = {key.decode(): value.decode("latin-1") for key, value in said.headers if key == b"retry-after"}
            await self._refuse(one, told.status, told.message, wait)
        return said

    async def _sent(self, one: Exchange, chain: Chain) -> Reply:
        scope, asked = one.scope, one.translation
        one.overhead = self._gateway.clock() - one.begun
        target = scope.get("raw_path", scope["path"].encode()).decode("latin-1")
        if scope["query_string"]:
            target += "?" + scope["query_string"].decode("latin-1")
        headers = scope["headers"]
        body: Body = one.body if one.pieces is None else one.pieces
        if one.span is not None:
            headers = one.span.ask(
                headers, one.call, one.match.task.teacher if one.match is not None else None, one.task
            )
        if asked is not None:
            target, headers, body = asked.path, fitted(asked.call, headers), asked.body
        reply = await chain.send(
            scope["method"], target, headers, body,
            readable=one.call is not None, withheld=one.caller.withheld,
        )  # fmt: skip
        one.answered_by = reply.upstream
        if reply.failure() is not None:
            one.failed = reply.upstream, "status"
        if one.pieces is not None:
            one.pieces.over.set()
        if one.span is not None:
            one.span.answered(one.serving.config.upstream(reply.upstream), reply.status, reply.attempts)
        return reply

    def _broke(self, one: Exchange, error: UpstreamError, *, counted: bool) -> None:
        one.failed = error.upstream, error.kind
        if not counted:
            self._gateway.metrics.upstreams.failed(error.upstream, error.kind)
        if one.span is not None:
            one.span.failed(one.serving.config.upstream(error.upstream), error.kind)

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
            self._broke(one, error, counted=False)
            # The head is out: a stream can still say what happened, where no event was cut; else the connection ends
            # early, as it did there.
            events = (reply.header("content-type") or "").startswith("text/event-stream")
            if events and tee.between_events and reply.header("content-length") is None:
                event = one.codec.error_event(STATUS[error.kind], f"upstream {error.upstream!r}: the answer broke off")
                await one.send({"type": "http.response.body", "body": event, "more_body": False})
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
        if call is None or not one.kept:
            return
        if one.status == 200 and (match is None or match.task.mode == "observe"):
            self._gateway.watch(call, label, usage, None if match is None else match.task)
        if match is None or line is None or verdict is None or verdict.decision == UNANSWERED:
            return
        if label is not None and usage is not None:
            line.learn(match.teacher, usage)
        status = 0 if 200 <= one.status < 300 and not one.whole else one.status  # cut on its way: no answer
        if not line.allowed(label):
            label = None
            if 200 <= status < 300:
                self._gateway.metrics.unread.labels(match.task.name).inc()
        answer, primary = verdict.answer, match.task.upstream
        if one.answered_by not in ("", primary):
            # Another endpoint's word is no evidence of this teacher's; whether it was asked is no matter of the input.
            answer = replace(answer, origin="fallback")
        if label is None and one.asked:
            label = missing(answer.origin, 200 if one.filtered else status)
        if label is None:
            return
        trace = partial(
            answer.trace, label=label, id=one.id, teacher=match.teacher, prompt=match.prompt,
            usage=usage, time=datetime.fromtimestamp(self._gateway.now(), UTC), metadata=one.facts,
        )  # fmt: skip
        line.record(trace, match.text)

    async def _refuse(self, one: Exchange, status: int, message: str, more: Mapping[str, str] | None = None) -> None:
        """An error in the shape of the client's format."""
        one.status = status
        if one.unread:
            await discard(one.scope, one.receive, one.headers)
        body = one.codec.error(status, message)
        head = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *self._told(one)]
        head += [(name.encode(), value.encode()) for name, value in (more or {}).items()]
        await one.send({"type": "http.response.start", "status": status, "headers": head})
        await one.send({"type": "http.response.body", "body": body})

    def _told(self, one: Exchange) -> list[tuple[bytes, bytes]]:
        overhead = one.overhead if one.overhead is not None else self._gateway.clock() - one.begun
        told = [
            (b"x-tracer-call-id", one.id), (b"x-tracer-decision", one.decision), (b"x-tracer-reason", one.reason),
            (b"x-tracer-overhead-ms", f"{overhead * 1e3:.3f}"),
        ]  # fmt: skip
        answer = one.verdict.answer if one.verdict is not None else None
        if answer is not None and answer.seen is not None:
            told.append((b"x-tracer-score", f"{answer.score:.6g}"))
            told.append((b"x-tracer-threshold", f"{answer.threshold:.6g}"))
        if answer is not None and answer.policy is not None:
            told.append((b"x-tracer-policy", answer.policy))
        if one.saved is not None:
            told.append((b"x-tracer-saved-usd", f"{one.saved:.8f}"))
        return [(name, value.encode("latin-1", "replace")) for name, value in told]

    def _over(self, one: Exchange) -> None:
        latency = self._gateway.clock() - one.begun
        overhead = one.overhead if one.overhead is not None else latency
        metrics = self._gateway.metrics
        metrics.count(one.task, one.decision, one.reason, one.status, overhead, latency)
        if one.saved is not None:
            metrics.saved.labels(one.task).inc(float(one.saved))
        if one.span is not None:
            answer = one.verdict.answer if one.verdict is not None else None
            one.span.end(
                one.status, id=one.id, task=one.task, decision=one.decision, reason=one.reason,
                call=one.call, answer=answer, saved=one.saved,
            )  # fmt: skip
        if log.isEnabledFor(logging.INFO):
            policy = one.verdict.answer.policy if one.verdict is not None else None
            line = {
                "event": "request", "id": one.id, "task": one.task, "decision": one.decision, "reason": one.reason,
                "policy": policy, "status": one.status, "ms": round(latency * 1e3, 3),
                "overhead_ms": round(overhead * 1e3, 3), "bytes": one.n_bytes, "key": one.caller.name,
            }  # fmt: skip
            if one.failed is not None:
                line["upstream"], line["error"] = one.failed
            log.info("%s", json.dumps(line))


def _translate(one: Exchange) -> None:
    """Put the call into the words of its task's upstream, where that speaks others. Raises RefusedError."""
    if one.call is None or one.match is None:
        return
    upstream = one.serving.config.upstream(one.match.task.upstream)
    try:
        one.translation = translation(one.call, one.match.task, upstream, one.match.teacher)
    except CodecError as error:
        one.reason = "untranslatable"
        problem = f"upstream {upstream.name!r} speaks another format, into which this cannot be translated: {error}"
        raise RefusedError(400, problem) from error


def _chain(one: Exchange, *, known: bool) -> Chain:
    """The upstreams to ask. Raises RefusedError where the client's own key is for none of them."""
    chains, task = one.serving.chains, one.match.task if one.match is not None else None
    chain = chains.default(one.codec.wire, known=known) if task is None else chains.of(task.upstream, task.teacher)
    first = one.serving.config.upstream(chain.name)
    if one.translation is None and misdirects(
        first, one.codec.wire, one.scope["headers"], one.caller.withheld, known=known
    ):
        raise RefusedError(400, f"upstream {first.name!r} speaks another format: your key is not shown there")
    return chain
