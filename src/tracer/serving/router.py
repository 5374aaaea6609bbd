"""The router: h(x) = f(x) if a(x) >= tau else T(x), and the teacher whenever anything is wrong.

``Router.decide`` is the one named place that fails to the teacher: an embedder that is down, an input that
does not fit, a fault in the policy. Each failure is logged without the text and counted.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import CoroutineType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tracer.errors import EmbedderError, FeatureError, PolicyError, RouteError, TracerError
from tracer.features.dense import PROBE_TEXTS, Embedder, checked, same_embedder
from tracer.policies.policy import Inputs, Policy
from tracer.policies.registry import OFF, PolicyRegistry
from tracer.serving.teachers import AsyncTeacher, Teacher
from tracer.types import Answer, Decisions, Float32, Reason

log = logging.getLogger("tracer.router")

KILL_SWITCH = "TRACER_OFF"
"""Environment variable: ``1``, ``true``, ``yes`` or ``on`` sends everything to the teacher, at once."""

_PROBE_TOLERANCE = 1e-3
_NONE = ""


def switched_off() -> bool:
    """True while the kill switch is set."""
    return os.environ.get(KILL_SWITCH, "").strip().lower() in {"1", "true", "yes", "on"}


class Router:
    """Routes inputs between a policy's surrogate and a teacher.

    ``policy`` None sends everything to the teacher. ``teacher`` answers deferred inputs; without one the
    answer's label is None and the caller asks the teacher. While the file ``switch`` exists, or ``TRACER_OFF``
    is set, everything goes to the teacher. Safe to use from several threads.
    """

    def __init__(
        self,
        policy: Policy | None,
        *,
        teacher: Teacher | None = None,
        async_teacher: AsyncTeacher | None = None,
        embedder: Embedder | None = None,
        switch: Path | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.policy = policy
        self.teacher, self.async_teacher = teacher, async_teacher
        self.embedder = embedder
        self.switch = switch
        self._clock = clock
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()
        if policy is not None and embedder is not None and policy.embedder is not None:
            check_embedder(policy, embedder)

    @classmethod
    def load(
        cls,
        home: str | Path = ".tracer",
        *,
        version: str | None = None,
        teacher: Teacher | None = None,
        async_teacher: AsyncTeacher | None = None,
        embedder: Embedder | str | None = None,
    ) -> Self:
        """The active policy of a home folder, or another version of it.

        ``embedder``: an embedder, or the name of one; by default the one the policy names, where it can be
        made again from its name. Raises PolicyError, ArchiveError or EmbedderError.
        """
        registry = PolicyRegistry(home)
        switch = registry.home / OFF
        if version is None and registry.active_version() is None and registry.pointer.exists():
            # Set aside on purpose: a service that starts now must start, with the teacher.
            return cls(None, teacher=teacher, async_teacher=async_teacher, switch=switch)
        try:
            policy = registry.load(version)
            made = _made(policy, registry, embedder)
        except TracerError as error:
            if not (switched_off() or switch.exists()):
                raise
            log.warning("switched off, and the policy cannot be loaded: %s", error)
            return cls(None, teacher=teacher, async_teacher=async_teacher, switch=switch)
        return cls(policy, teacher=teacher, async_teacher=async_teacher, embedder=made, switch=switch)

    @property
    def counts(self) -> dict[str, int]:
        """Requests by outcome so far: each reason, and each ``fault:...``."""
        with self._lock:
            return dict(self._counts)

    def route(
        self, text: str | None = None, *, embedding: Sequence[float] | NDArray[np.floating] | None = None
    ) -> Answer:
        """Answer one input, given as text, as an embedding (d,), or as both.

        Raises RouteError where the teacher is asked and fails.
        """
        answers = self.route_many(
            None if text is None else [text],
            embeddings=None if embedding is None else np.asarray(embedding, dtype=np.float32)[None, :],
        )
        return _raised(answers[0])

    def route_many(
        self, texts: Sequence[str] | None = None, *, embeddings: NDArray[np.floating] | None = None
    ) -> list[Answer]:
        """Answer n inputs. The decisions are those that ``route`` makes one by one.

        Where the teacher fails on one, that answer has reason ``teacher_error`` and its ``error``; the others
        stand.
        """
        began = self._clock()
        drafts = self._draft(texts, embeddings)
        if self.teacher is None:
            return self._finish(drafts, began)
        replies = {i: self._ask(self.teacher, texts, i) for i, draft in enumerate(drafts) if draft.label is None}
        return self._finish(drafts, began, replies)

    async def aroute(
        self, text: str | None = None, *, embedding: Sequence[float] | NDArray[np.floating] | None = None
    ) -> Answer:
        """``route`` with the async teacher, or with the sync one in a thread."""
        answers = await self.aroute_many(
            None if text is None else [text],
            embeddings=None if embedding is None else np.asarray(embedding, dtype=np.float32)[None, :],
        )
        return _raised(answers[0])

    async def aroute_many(
        self, texts: Sequence[str] | None = None, *, embeddings: NDArray[np.floating] | None = None
    ) -> list[Answer]:
        """``route_many`` with the teacher's calls side by side; embedding runs outside the event loop."""
        import asyncio  # whoever awaits this has it already; whoever routes in threads need not load it

        began = self._clock()
        if self.embedder is not None and embeddings is None:
            drafts = await asyncio.to_thread(self._draft, texts, None)
        else:
            drafts = self._draft(texts, embeddings)
        deferred = [i for i, draft in enumerate(drafts) if draft.label is None]
        if not deferred or (self.teacher is None and self.async_teacher is None):
            return self._finish(drafts, began)
        replies = await asyncio.gather(*(self._ask_async(texts, i) for i in deferred))
        return self._finish(drafts, began, dict(zip(deferred, replies, strict=True)))

    def decide(self, texts: Sequence[str] | None = None, embeddings: NDArray[np.floating] | None = None) -> Decisions:
        """Decisions for n inputs; a failure on the surrogate side defers and is counted.

        Raises RouteError where there is nothing to decide on, or texts and embeddings are not as many.
        """
        # What the caller got wrong is the caller's to hear; what fails inside goes to the teacher.
        try:
            n = Inputs.of(texts, embeddings).n
        except FeatureError as error:
            raise RouteError(str(error)) from error
        if switched_off() or (self.switch is not None and self.switch.exists()):
            return self._defer_all(n, "kill_switch")
        if self.policy is None:
            return self._defer_all(n, "no_policy")
        try:
            decisions = self.policy.decide(texts, embeddings, self._embed if self.embedder is not None else None)
        except Exception as error:
            outage = isinstance(error, EmbedderError)
            if n > 1 and not outage:
                # One bad input must not defer its neighbours; an embedder that is down must not be asked again.
                return self._decide_one_by_one(texts, embeddings, n)
            # The message of a foreign exception may quote the input: only its kind is logged.
            log.warning("surrogate failed on %d inputs, deferring: %s", n, type(error).__name__)
            log.debug("the failure", exc_info=error)
            self._count({"fault:embedder" if outage else "fault:policy": 1})
            return self._defer_all(n, "error")
        self._count(Counter(decisions.reasons))
        return decisions

    def _decide_one_by_one(
        self, texts: Sequence[str] | None, embeddings: NDArray[np.floating] | None, n: int
    ) -> Decisions:
        ones = [
            self.decide(None if texts is None else [texts[i]], None if embeddings is None else embeddings[i : i + 1])
            for i in range(n)
        ]
        return Decisions(
            tuple(one.labels[0] for one in ones),
            np.concatenate([one.scores for one in ones]),
            np.concatenate([one.handled for one in ones]),
            tuple(one.reasons[0] for one in ones),
            np.concatenate([one.stage for one in ones]),
        )

    def _embed(self, texts: Sequence[str]) -> Float32:
        if self.embedder is None:
            raise EmbedderError("this policy reads embeddings and the router has no embedder")
        return checked(self.embedder, texts)

    def _defer_all(self, n: int, reason: Reason) -> Decisions:
        self._count({reason: n})
        nothing = np.full(n, -np.inf)
        return Decisions((_NONE,) * n, nothing, np.zeros(n, dtype=bool), (reason,) * n, np.full(n, 2, dtype=np.int8))

    def _draft(self, texts: Sequence[str] | None, embeddings: NDArray[np.floating] | None) -> list[Answer]:
        decisions = self.decide(texts, embeddings)
        policy = self.policy
        threshold = policy.threshold if policy else float("inf")
        version = policy.version or None if policy else None
        return [
            Answer(
                label=label if handled else None,
                source="surrogate" if handled else "none",
                reason=reason,
                surrogate_label=label or None,
                score=float(score),
                threshold=threshold,
                policy=version,
                latency_s=0.0,
            )
            for label, score, handled, reason in zip(
                decisions.labels, decisions.scores, decisions.handled.tolist(), decisions.reasons, strict=True
            )
        ]

    def _ask(self, teacher: Teacher, texts: Sequence[str] | None, i: int) -> str | RouteError:
        shown = _text_for_teacher(texts, i)
        try:
            return _label(teacher(shown))
        except Exception as error:  # noqa: BLE001 - the caller's function: its failure belongs to one answer
            return _teacher_failed(error)

    async def _ask_async(self, texts: Sequence[str] | None, i: int) -> str | RouteError:
        import asyncio

        if self.async_teacher is None:
            return await asyncio.to_thread(self._ask, self.teacher or _no_teacher, texts, i)
        shown = _text_for_teacher(texts, i)
        try:
            return _label(await self.async_teacher(shown))
        except Exception as error:  # noqa: BLE001 - as above
            return _teacher_failed(error)

    def _finish(
        self, drafts: list[Answer], began: float, replies: Mapping[int, str | RouteError] | None = None
    ) -> list[Answer]:
        latency = (self._clock() - began) / max(len(drafts), 1)
        out = []
        for i, draft in enumerate(drafts):
            reply = (replies or {}).get(i)
            if isinstance(reply, RouteError):
                self._count({"teacher_error": 1})
                out.append(replace(draft, reason="teacher_error", error=reply, latency_s=latency))
            elif reply is not None:
                out.append(replace(draft, label=reply, source="teacher", latency_s=latency))
            else:
                out.append(replace(draft, latency_s=latency))
        return out

    def _count(self, outcomes: Counter[Reason] | dict[str, int]) -> None:
        with self._lock:
            for name, n in outcomes.items():
                self._counts[name] += n


def _made(policy: Policy, registry: PolicyRegistry, embedder: Embedder | str | None) -> Embedder | None:
    """The embedder given, or the one that the home's settings name where the policy reads embeddings."""
    if embedder is None and "dense" in policy.needs:
        embedder = registry.embedder_name()
    if isinstance(embedder, str):
        from tracer.features.sources import embedder_from_name  # reads no embedder where none is named

        embedder = embedder_from_name(embedder)
    if "dense" not in policy.needs:
        return embedder
    if embedder is None:
        log.warning("policy %s reads embeddings: route with them, or give an embedder", policy.version)
    elif policy.probes is None:
        log.warning("policy %s was fitted on given embeddings: the embedder cannot be checked", policy.version)
    return embedder


def check_embedder(policy: Policy, embedder: Embedder) -> None:
    """Raise EmbedderError unless the embedder is the one that the policy was certified with.

    Vectors of fixed texts are compared where the policy stored them; they catch what a name cannot.
    """
    if policy.embedder is None:
        raise PolicyError("this policy reads no embeddings")
    if policy.embedder.digest != "precomputed" or embedder.identity.dimension != policy.embedder.dimension:
        same_embedder(policy.embedder, embedder.identity)
    if policy.probes is not None:
        vectors = checked(embedder, PROBE_TEXTS)
        worst = float(np.abs(vectors - policy.probes).max())
        if worst > _PROBE_TOLERANCE:
            raise EmbedderError(
                f"embedder {embedder.identity.name!r} gives other vectors than when the policy was certified: "
                f"probe texts differ by up to {worst:.3g}, {_PROBE_TOLERANCE:g} is allowed"
            )


def _raised(answer: Answer) -> Answer:
    if answer.error is not None:
        raise answer.error
    return answer


def _teacher_failed(error: Exception) -> RouteError:
    if isinstance(error, RouteError):
        return error
    failure = RouteError(f"the teacher failed: {type(error).__name__}: {error}")
    failure.__cause__ = error
    return failure


def _label(reply: object) -> str:
    if isinstance(reply, CoroutineType):
        reply.close()
        raise RouteError("the teacher is async: give it as async_teacher, and use aroute")
    if not isinstance(reply, str) or not reply:
        raise RouteError(f"the teacher answered {reply!r}, which is no label")
    return reply


def _no_teacher(_text: str) -> str:
    raise RouteError("no teacher was given")


def _text_for_teacher(texts: Sequence[str] | None, i: int) -> str:
    if texts is None:
        raise RouteError("this input was deferred, and a teacher reads text: route with the text as well")
    return texts[i]
