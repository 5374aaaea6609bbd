"""Asking the teacher, and keeping what it said."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from tracer.errors import RouteError
from tracer.serving.teachers import AsyncTeacher, Teacher, label_of, teacher_failed
from tracer.types import FAILED, Origin, Seen, Trace

log = logging.getLogger("tracer.router")

Reply = str | RouteError


class Desk:
    """The teachers of a router, and the ``record`` of their calls, whose failures are told to ``fault``.

    A call that failed leaves no trace, but for an audit: it is asked for once more, and recorded as ``FAILED`` where
    it fails again or the caller gives up. What fails is not drawn at random, so an audit that is left out would make
    the others no plain sample.
    """

    def __init__(
        self,
        teacher: Teacher | None,
        async_teacher: AsyncTeacher | None,
        *,
        record: Callable[[Trace], object] | None,
        teacher_name: str | None,
        prompt: str | None,
        new_id: Callable[[], str],
        clock_utc: Callable[[], datetime],
        fault: Callable[[], None],
    ) -> None:
        self.teacher, self.async_teacher = teacher, async_teacher
        self._record, self._teacher_name, self._prompt = record, teacher_name, prompt
        self._new_id, self._clock_utc, self._fault = new_id, clock_utc, fault

    def consult(self, texts: Sequence[str] | None, i: int, origin: Origin | None, seen: Seen | None) -> Reply:
        """The teacher's label of text i, or its error."""
        reply: Reply | None = None
        try:
            reply = self._ask(texts, i)
            if isinstance(reply, RouteError) and origin == "audit":
                reply = self._ask(texts, i)
            return reply
        finally:
            self._keep(texts, i, origin, seen, reply)

    async def aconsult(self, texts: Sequence[str] | None, i: int, origin: Origin | None, seen: Seen | None) -> Reply:
        """The same from the async teacher, or from the sync one in a thread. May be cancelled."""
        reply: Reply | None = None
        try:
            reply = await self._ask_async(texts, i)
            if isinstance(reply, RouteError) and origin == "audit":
                reply = await self._ask_async(texts, i)
            return reply
        finally:
            self._keep(texts, i, origin, seen, reply)

    def give_up(self, texts: Sequence[str] | None, audits: Mapping[int, Seen | None]) -> None:
        """Record audits whose request ended before the teacher was asked, with what was seen by then."""
        for i, seen in audits.items():
            self._keep(texts, i, "audit", seen, None)

    def _ask(self, texts: Sequence[str] | None, i: int) -> Reply:
        try:
            if self.teacher is None:
                raise RouteError("no teacher was given")
            return label_of(self.teacher(_shown(texts, i)))
        except Exception as error:  # noqa: BLE001 - the caller's function: its failure belongs to one answer
            return teacher_failed(error)

    async def _ask_async(self, texts: Sequence[str] | None, i: int) -> Reply:
        if self.async_teacher is None:
            import asyncio

            return await asyncio.to_thread(self._ask, texts, i)
        try:
            return label_of(await self.async_teacher(_shown(texts, i)))
        except Exception as error:  # noqa: BLE001 - as above
            return teacher_failed(error)

    def _keep(
        self, texts: Sequence[str] | None, i: int, origin: Origin | None, seen: Seen | None, reply: Reply | None
    ) -> None:
        if self._record is None or origin is None or texts is None:
            return
        if not isinstance(reply, str):
            if origin != "audit":
                return
            reply = FAILED
        try:
            trace = Trace(
                self._new_id(),
                texts[i],
                reply,
                teacher=self._teacher_name,
                time=self._clock_utc(),
                origin=origin,
                prompt=self._prompt,
                seen=seen,
            )
            self._record(trace)
        except Exception as error:
            # The caller's function, or a text that no trace can hold. The request has its answer all the same.
            log.warning("a trace could not be recorded: %s", type(error).__name__)
            log.debug("the failure", exc_info=error)
            self._fault()


def _shown(texts: Sequence[str] | None, i: int) -> str:
    if texts is None:
        raise RouteError("this input was deferred, and a teacher reads text: route with the text as well")
    return texts[i]
