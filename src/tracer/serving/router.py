"""The router: h(x) = f(x) if a(x) >= tau else T(x), and the teacher whenever anything is wrong.

The audit coin is tossed before the policy is asked (see ``coins``); ``deciding.decide`` is the one named place that
fails to the teacher.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from random import SystemRandom
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tracer.errors import FeatureError, RouteError
from tracer.features.dense import Embedder
from tracer.policies.fingerprints import Fingerprint
from tracer.policies.policy import Inputs, Policy
from tracer.policies.serving_settings import Mode, ServingSettings
from tracer.serving.batching import Encoding
from tracer.serving.coins import NOT_ASKED, Rng, toss
from tracer.serving.consulting import Desk, Reply
from tracer.serving.deciding import adecide, decide
from tracer.serving.drafting import REQUESTED, Draft, answers_of, drafts_of
from tracer.serving.states import KILL_SWITCH, HomeSource, State, Switch, check_embedder, switched_off
from tracer.serving.tallies import Tallies, Tally
from tracer.serving.teachers import AsyncTeacher, Teacher
from tracer.types import Answer, Decided, Decisions, Float32, Reason, Trace

__all__ = ["KILL_SWITCH", "Router", "check_embedder", "switched_off"]


class Router:
    """Routes inputs between a policy's surrogate and a teacher.

    ``policy`` None sends everything to the teacher. ``teacher`` answers deferred inputs; without one the
    answer's label is None and the caller asks the teacher. While the file ``switch`` exists, or ``TRACER_OFF``
    is set, everything goes to the teacher. Safe to use from several threads.

    ``audit_rate``, ``mode`` and ``share`` are those of ``ServingSettings``; ``rng`` draws the coins. ``record`` is
    given the trace of each teacher call made here, with ``teacher_name``, ``prompt``, an id of ``new_id`` and the time
    of ``clock_utc``; it must be quick (see ``BatchRecorder``), and its failures are logged and counted only. A policy
    that imitates another teacher or prompt than these two name is not asked (``other_task``).
    """

    def __init__(
        self,
        policy: Policy | None,
        *,
        teacher: Teacher | None = None,
        async_teacher: AsyncTeacher | None = None,
        embedder: Embedder | None = None,
        switch: Switch | None = None,
        audit_rate: float = 0.0,
        mode: Mode = "live",
        share: float = 1.0,
        rng: Rng | None = None,
        record: Callable[[Trace], object] | None = None,
        teacher_name: str | None = None,
        prompt: str | None = None,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
        clock: Callable[[], float] = time.perf_counter,
        clock_utc: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        if policy is not None and embedder is not None and policy.embedder is not None:
            check_embedder(policy, embedder)
        self._state = State(
            policy, embedder, ServingSettings(mode, share, audit_rate), Fingerprint(teacher_name, prompt)
        )
        self._source: HomeSource | None = None
        self.switch = switch
        self._rng = rng if rng is not None else SystemRandom()
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._tallies = Tallies(clock_utc)
        self._lock = threading.Lock()
        self._encoding = Encoding()
        self._desk = Desk(
            teacher,
            async_teacher,
            record=record,
            teacher_name=teacher_name,
            prompt=prompt,
            new_id=new_id,
            clock_utc=clock_utc,
            fault=lambda: self._fault("fault:record"),
        )

    @classmethod
    def load(
        cls,
        home: str | Path = ".tracer",
        *,
        version: str | None = None,
        teacher: Teacher | None = None,
        async_teacher: AsyncTeacher | None = None,
        embedder: Embedder | str | None = None,
        settings: ServingSettings | None = None,
        reload_s: float | None = 1.0,
        rng: Rng | None = None,
        record: Callable[[Trace], object] | None = None,
        teacher_name: str | None = None,
        prompt: str | None = None,
    ) -> Self:
        """The active policy of a home folder, or another version of it.

        ``embedder``: an embedder, or the name of one; by default the one the policy names, where it can be
        made again from its name. ``settings``: instead of the home's ``serving.json``, which audits 2% by default.
        Every ``reload_s`` seconds (None: never) one request looks whether another policy or other settings are in
        force, and takes them up before it is decided; one that cannot be used is logged and counted, and the old
        goes on. Raises PolicyError, ArchiveError or EmbedderError.
        """
        asked = Fingerprint(teacher_name, prompt)
        source = HomeSource(home, version=version, embedder=embedder, settings=settings, asked=asked, reload_s=reload_s)
        router = cls(
            None,
            teacher=teacher,
            async_teacher=async_teacher,
            switch=source.switch,
            rng=rng,
            record=record,
            teacher_name=teacher_name,
            prompt=prompt,
        )
        router._state, router._source = source.start(), source
        return router

    @property
    def policy(self) -> Policy | None:
        """The policy in force here."""
        return self._state.policy

    @property
    def embedder(self) -> Embedder | None:
        """The embedder that goes with it."""
        return self._state.embedder

    @property
    def teacher(self) -> Teacher | None:
        """The teacher given."""
        return self._desk.teacher

    @property
    def async_teacher(self) -> AsyncTeacher | None:
        """The async teacher given."""
        return self._desk.async_teacher

    @property
    def settings(self) -> ServingSettings:
        """The serving settings in force here."""
        return self._state.settings

    @property
    def counts(self) -> dict[str, int]:
        """Requests by outcome so far: each reason, and each ``fault:...``."""
        with self._lock:
            return dict(self._counts)

    def take_tally(self) -> Tally | None:
        """What one version decided since it was last taken, which starts anew; None where there is no more to take."""
        return self._tallies.take()

    def tallies(self) -> tuple[Tally, ...]:
        """What was decided since tallies were last taken, by version; taken from nobody."""
        return self._tallies.peek()

    def route(
        self,
        text: str | None = None,
        *,
        embedding: Sequence[float] | NDArray[np.floating] | None = None,
        ask_teacher: bool = False,
        audited: bool = True,
    ) -> Answer:
        """Answer one input, given as text, as an embedding (d,), or as both; ``ask_teacher`` leaves the policy out.

        ``audited`` False tosses no audit coin: for callers who will not bring back what the teacher says.
        Raises RouteError where the teacher is asked and fails.
        """
        texts, embeddings = _one(text, embedding)
        return _raised(self.route_many(texts, embeddings=embeddings, ask_teacher=ask_teacher, audited=audited)[0])

    def route_many(
        self,
        texts: Sequence[str] | None = None,
        *,
        embeddings: NDArray[np.floating] | None = None,
        ask_teacher: bool = False,
        audited: bool = True,
    ) -> list[Answer]:
        """Answer n inputs. The decisions are those that ``route`` makes one by one, with the same draws of the coins.

        Where the teacher fails on one, that answer has reason ``teacher_error`` and its ``error``; the others
        stand.
        """
        began = self._clock()
        if self._source is not None and self._source.due():
            self._refresh()
        state, n = self._state, _count(texts, embeddings)
        drafts = self._draft(state, texts, embeddings, n, self._plan(state, texts, n, ask_teacher, audited))
        if self.teacher is None:
            return self._finish(state, drafts, began)
        left = [i for i, draft in enumerate(drafts) if draft.label is None]
        replies = {i: self._desk.consult(texts, i, drafts[i].origin, drafts[i].seen) for i in left}
        return self._finish(state, drafts, began, replies)

    async def aroute(
        self,
        text: str | None = None,
        *,
        embedding: Sequence[float] | NDArray[np.floating] | None = None,
        ask_teacher: bool = False,
    ) -> Answer:
        """``route`` with the async teacher, or with the sync one in a thread."""
        texts, embeddings = _one(text, embedding)
        return _raised((await self.aroute_many(texts, embeddings=embeddings, ask_teacher=ask_teacher))[0])

    async def aroute_many(
        self,
        texts: Sequence[str] | None = None,
        *,
        embeddings: NDArray[np.floating] | None = None,
        ask_teacher: bool = False,
    ) -> list[Answer]:
        """``route_many`` with the teacher's calls side by side; embedding and loading run outside the event loop.

        Single texts of requests that run side by side are embedded together.
        """
        import asyncio  # whoever awaits this has it already; whoever routes in threads need not load it

        began = self._clock()
        if self._source is not None and self._source.due():
            await asyncio.to_thread(self._refresh)
        state, n = self._state, _count(texts, embeddings)
        plans = self._plan(state, texts, n, ask_teacher)
        if state.embedder is not None and embeddings is None and texts is not None and not ask_teacher:
            try:
                drafts = await self._adraft(state, texts, plans)
            except asyncio.CancelledError:
                # Who waits may hang up, on a slow input sooner: the audits among them are not lost.
                self._desk.give_up(texts, {i: None for i, plan in enumerate(plans) if plan == "audit"})
                raise
        else:
            drafts = self._draft(state, texts, embeddings, n, plans)
        left = [i for i, draft in enumerate(drafts) if draft.label is None]
        if not left or (self.teacher is None and self.async_teacher is None):
            return self._finish(state, drafts, began)
        begun: set[int] = set()

        async def consult(i: int) -> Reply:
            begun.add(i)
            return await self._desk.aconsult(texts, i, drafts[i].origin, drafts[i].seen)

        try:
            replies = await asyncio.gather(*map(consult, left))
        except asyncio.CancelledError:
            never = [i for i in left if i not in begun and drafts[i].origin == "audit"]
            self._desk.give_up(texts, {i: drafts[i].seen for i in never})
            raise
        return self._finish(state, drafts, began, dict(zip(left, replies, strict=True)))

    def decide(self, texts: Sequence[str] | None = None, embeddings: NDArray[np.floating] | None = None) -> Decisions:
        """Decisions for n inputs, without coins or mode; a failure on the surrogate side defers and is counted.

        Raises RouteError where there is nothing to decide on, or texts and embeddings are not as many.
        """
        rows = decide(self._state, texts, embeddings, _count(texts, embeddings), self.switch, self._fault)
        self._count(Counter(row.reason for row in rows))
        return Decisions.of(rows)

    def _plan(
        self, state: State, texts: Sequence[str] | None, n: int, ask_teacher: bool, audited: bool = True
    ) -> Sequence[Reason | None]:
        """Why each input goes to the teacher regardless, drawn before the policy is asked."""
        if ask_teacher:
            return (REQUESTED.reason,) * n
        settings = state.settings
        if settings.mode == "live" and settings.audit_rate == 0.0:
            return (None,) * n
        if not audited or (texts is None and (self.teacher is not None or self.async_teacher is not None)):
            # No teacher's label can come back: they are no part of the traffic that is audited.
            settings = replace(settings, audit_rate=0.0)
        return toss(settings, self._rng, n)

    def _draft(
        self,
        state: State,
        texts: Sequence[str] | None,
        embeddings: NDArray[np.floating] | None,
        n: int,
        plans: Sequence[Reason | None],
    ) -> list[Draft]:
        if n and plans[0] == REQUESTED.reason:
            self._count({REQUESTED.reason: n})
            return [REQUESTED] * n
        return self._counted(state, decide(state, texts, embeddings, n, self.switch, self._fault), plans)

    async def _adraft(self, state: State, texts: Sequence[str], plans: Sequence[Reason | None]) -> list[Draft]:
        import asyncio

        if len(texts) != 1:
            return await asyncio.to_thread(self._draft, state, texts, None, len(texts), plans)
        decided = await adecide(state, texts[0], self.switch, self._fault, self._encoding)
        return self._counted(state, [decided], plans)

    def _counted(self, state: State, rows: Sequence[Decided], plans: Sequence[Reason | None]) -> list[Draft]:
        """The drafts of n inputs, tallied and counted."""
        drafts = drafts_of(state, rows, plans)
        if rows:
            policy = state.policy if rows[0].reason not in NOT_ASKED else None
            self._tallies.add(policy.version if policy is not None else None, rows, plans)
            self._count({drafts[0].reason: 1} if len(rows) == 1 else Counter(draft.reason for draft in drafts))
        return drafts

    def _finish(
        self,
        state: State,
        drafts: Sequence[Draft],
        began: float,
        replies: Mapping[int, str | RouteError] | None = None,
    ) -> list[Answer]:
        if replies and (n := sum(isinstance(reply, RouteError) for reply in replies.values())):
            self._count({"teacher_error": n})
        return answers_of(state, drafts, (self._clock() - began) / max(len(drafts), 1), replies)

    def _fault(self, name: str) -> None:
        self._count({name: 1})

    def refresh(self) -> None:
        """Look now whether another policy or other settings are in force, and take them up: for callers who load with
        ``reload_s`` None, so that no request waits for the files. What cannot be used is logged and counted."""
        self._refresh(now=True)

    def _refresh(self, *, now: bool = False) -> None:
        if self._source is not None:
            self._source.refresh(lambda: self._state, self._swap, lambda: self._fault("fault:reload"), now=now)

    def _swap(self, state: State) -> None:
        self._state = state  # one reference: a request has the old or the new

    def _count(self, outcomes: Mapping[Reason, int] | Mapping[str, int]) -> None:
        with self._lock:
            for name, n in outcomes.items():
                self._counts[name] += n


def _one(
    text: str | None, embedding: Sequence[float] | NDArray[np.floating] | None
) -> tuple[list[str] | None, Float32 | None]:
    return (
        None if text is None else [text],
        None if embedding is None else np.asarray(embedding, dtype=np.float32)[None, :],
    )


def _count(texts: Sequence[str] | None, embeddings: NDArray[np.floating] | None) -> int:
    # What the caller got wrong is the caller's to hear; what fails inside goes to the teacher.
    try:
        return Inputs.of(texts, embeddings).n
    except FeatureError as error:
        raise RouteError(str(error)) from error


def _raised(answer: Answer) -> Answer:
    if answer.error is not None:
        raise answer.error
    return answer
