"""Native calls of a task with a ``fallback``: the gateway asks the teacher as a client would, and keeps the label."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial

from tracer.errors import CodecError, UpstreamError
from tracer.gateway.calls import Call
from tracer.gateway.composing import asked
from tracer.gateway.deciding import Verdict, missing
from tracer.gateway.headers import CREDENTIALS
from tracer.gateway.lines import TaskLine
from tracer.gateway.replies import Reply
from tracer.gateway.serving import Gateway, Serving
from tracer.gateway.settings import Asking
from tracer.gateway.tasks import Match, matched
from tracer.gateway.translating import STATUS, Said, Translation, fitted, heard, native, unanswered


@dataclass(frozen=True, slots=True)
class Prepared:
    """A text as the teacher is asked for it: the chat completion that says so, and its match."""

    body: bytes = field(repr=False)
    call: Call = field(repr=False)
    match: Match = field(repr=False)


@dataclass(frozen=True, slots=True)
class Taught:
    """The teacher's label; or None, with the status and the words of an error."""

    label: str | None
    status: int = 200
    problem: str = ""


def prepared(line: TaskLine, asking: Asking, texts: Sequence[str]) -> list[Prepared]:
    """The calls of these texts. Raises CodecError for a text that the task's input does not find in its own call."""
    accepted = line.accepted
    out = []
    for text in texts:
        body, call = asked(line.task, asking, text)
        match = matched(line.task, call, accepted)
        if match is None:
            raise CodecError("the task's input finds no text in this one")
        out.append(Prepared(body, call, replace(match, text=line.masked(match.text))))
    return out


class Teaching:
    """The teacher of one task for one request: ``headers`` are the client's, ``withheld`` those that stay here."""

    def __init__(
        self,
        gateway: Gateway,
        serving: Serving,
        line: TaskLine,
        asking: Asking,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        withheld: tuple[bytes, ...],
        store: bool,
    ) -> None:
        task = line.task
        self._gateway, self._line, self._store, self._withheld = gateway, line, store, withheld
        self._upstream = serving.config.upstream(asking.upstream or task.upstream)
        self._chain = serving.chains.of(self._upstream.name, task.teacher)
        self._slots = gateway.admission.at(self._chain.name, serving.config.limits)
        # Of a native call's headers the credentials alone concern the upstream.
        self._headers = [(name, value) for name, value in headers if name.lower() in CREDENTIALS]
        self._free = asyncio.Semaphore(asking.at_once)

    async def many(self, calls: Sequence[tuple[str, Prepared, Verdict]]) -> list[Taught]:
        """The labels of calls, each with its id, asked for side by side."""
        return list(await asyncio.gather(*(self._one(*call) for call in calls)))

    async def _one(self, id: str, one: Prepared, verdict: Verdict) -> Taught:  # noqa: A002
        said: Said | None = None
        was_asked = True
        try:
            asked = native(one.body, one.call, self._line.task, self._upstream, one.match.teacher)
            async with self._free, self._slots, await self._sent(asked) as reply:
                said = await heard(asked.call, reply)
            if said.status >= 300:
                return Taught(None, self._status(said.status), f"the teacher's upstream says: {said.message}")
            return Taught(said.label) if said.label else Taught(None, 502, "the teacher's answer has no label")
        except UpstreamError as error:
            was_asked = error.kind not in ("busy", "breaker_open")
            if error.kind == "busy":
                self._gateway.metrics.upstreams.failed(error.upstream, error.kind)
            return Taught(None, STATUS[error.kind], unanswered(error))
        except ValueError as error:
            was_asked = False
            problem = str(error) if isinstance(error, CodecError) else "a header is malformed"
            return Taught(None, 400, f"the teacher cannot be asked: {problem}")
        finally:
            if self._store:
                self._keep(id, one.match, verdict, said, asked=was_asked)

    def _status(self, status: int) -> int:
        """That of an upstream's error; where the gateway's own key or request is at fault, the caller's is not."""
        return status if status in (408, 429) or status >= 500 or self._upstream.api_key is None else 502

    async def _sent(self, asked: Translation) -> Reply:
        headers = fitted(asked.call, self._headers)
        return await self._chain.send("POST", asked.path, headers, asked.body, withheld=self._withheld)

    def _keep(self, id: str, match: Match, verdict: Verdict, said: Said | None, *, asked: bool) -> None:  # noqa: A002
        """Record what was said, or that nothing was, where that counts."""
        answer, status = verdict.answer, 0
        label = said.label if said is not None and self._line.allowed(said.label) else None
        if said is not None:
            status = 200 if said.refused else said.status
            if said.upstream != self._upstream.name:
                answer = replace(answer, origin="fallback")  # another endpoint's word is none of this teacher's
        usage = said.usage if said is not None else None
        if label is None:
            self._gateway.metrics.unread.labels(match.task.name).inc()
            label = missing(answer.origin, status) if asked else None
        elif usage is not None:
            self._line.learn(match.teacher, usage)
        if label is None:
            return
        trace = partial(
            answer.trace, label=label, id=id, teacher=match.teacher, prompt=match.prompt, usage=usage,
            time=datetime.fromtimestamp(self._gateway.now(), UTC), metadata=said.facts if said is not None else None,
        )  # fmt: skip
        self._line.record(trace, match.text)
