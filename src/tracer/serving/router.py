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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from tracer.errors import EmbedderError, FeatureError, PolicyError, RouteError
from tracer.features.dense import PROBE_TEXTS, Embedder, checked, same_embedder
from tracer.features.sources import embedder_from_name
from tracer.policies.policy import Inputs, Policy
from tracer.policies.registry import PolicyRegistry
from tracer.serving.teachers import AsyncTeacher, Teacher
from tracer.types import Answer, Decisions, Float32, Reason

log = logging.getLogger("tracer.router")

KILL_SWITCH = "TRACER_OFF"
"""Environment variable: ``1``, ``true``, ``yes`` or ``on`` sends everything to the teacher, at once."""

Fault = Literal["policy", "embedder"]
_PROBE_TOLERANCE = 1e-3
_NONE = ""


def switched_off() -> bool:
    """True while the kill switch is set."""
    return os.environ.get(KILL_SWITCH, "").strip().lower() in {"1", "true", "yes", "on"}


class Router:
    """Routes inputs between a policy's surrogate and a teacher.

    ``policy`` None sends everything to the teacher. ``teacher`` answers deferred inputs; without one the
    answer's label is None and the caller asks the teacher. Safe to use from several threads.
    """

    def __init__(
        self,
        policy: Policy | None,
        *,
        teacher: Teacher | None = None,
        async_teacher: AsyncTeacher | None = None,
        embedder: Embedder | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.policy = policy
        self.teacher, self.async_teacher = teacher, async_teacher
        self.embedder = embedder
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
        if version is None and registry.active_version() is None and registry.pointer.exists():
            # Set aside on purpose: a service that restarts must go on, with the teacher.
            return cls(None, teacher=teacher, async_teacher=async_teacher)
        policy = registry.load(version)
        made = embedder_from_name(embedder) if isinstance(embedder, str) else embedder
        remembered = policy.task.get("embedder")
        if made is None and policy.embedder is not None and remembered:
            made = embedder_from_name(str(remembered))
        if made is None and "dense" in policy.needs:
            log.warning("policy %s reads embeddings: route with embeddings, or give Router an embedder", policy.version)
        return cls(policy, teacher=teacher, async_teacher=async_teacher, embedder=made)

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
        return self.route_many(
            None if text is None else [text],
            embeddings=None if embedding is None else np.asarray(embedding, dtype=np.float32)[None, :],
        )[0]

    def route_many(
        self, texts: Sequence[str] | None = None, *, embeddings: NDArray[np.floating] | None = None
    ) -> list[Answer]:
        """Answer n inputs. The decisions are those that ``route`` makes one by one."""
        began = self._clock()
        drafts = self._draft(texts, embeddings)
        if self.teacher is None:
            return self._finish(drafts, began)
        labels: dict[int, str] = {}
        for i, draft in enumerate(drafts):
            if draft.label is None:
                labels[i] = self._ask(self.teacher, texts, i)
        return self._finish(drafts, began, labels)

    async def aroute(
        self, text: str | None = None, *, embedding: Sequence[float] | NDArray[np.floating] | None = None
    ) -> Answer:
        """``route`` with the async teacher."""
        began = self._clock()
        texts = None if text is None else [text]
        vectors = None if embedding is None else np.asarray(embedding, dtype=np.float32)[None, :]
        drafts = self._draft(texts, vectors)
        if drafts[0].label is not None or self.async_teacher is None:
            return self._finish(drafts, began)[0]
        shown = _text_for_teacher(texts, 0)
        try:
            label = await self.async_teacher(shown)
        except Exception as error:
            raise RouteError(f"the teacher failed: {type(error).__name__}: {error}") from error
        return self._finish(drafts, began, {0: label})[0]

    def decide(self, texts: Sequence[str] | None = None, embeddings: NDArray[np.floating] | None = None) -> Decisions:
        """Decisions for n inputs; a failure on the surrogate side defers and is counted.

        Raises RouteError where there is nothing to decide on, or texts and embeddings are not as many.
        """
        # What the caller got wrong is the caller's to hear; what fails inside goes to the teacher.
        try:
            n = Inputs.of(texts, embeddings).n
        except FeatureError as error:
            raise RouteError(str(error)) from error
        if switched_off():
            return self._defer_all(n, "kill_switch")
        if self.policy is None:
            return self._defer_all(n, "no_policy")
        try:
            decisions = self.policy.decide(texts, embeddings, self._embed if self.embedder is not None else None)
        except Exception as error:  # noqa: BLE001 - the one place where any failure goes to the teacher
            if n > 1:
                # One bad input must not defer its neighbours.
                return self._decide_one_by_one(texts, embeddings, n)
            fault: Fault = "embedder" if isinstance(error, EmbedderError) else "policy"
            log.warning("surrogate failed, deferring: %s: %s", type(error).__name__, error)
            self._count({f"fault:{fault}": 1})
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

    def _ask(self, teacher: Teacher, texts: Sequence[str] | None, i: int) -> str:
        shown = _text_for_teacher(texts, i)
        try:
            return teacher(shown)
        except RouteError:
            raise
        except Exception as error:
            raise RouteError(f"the teacher failed: {type(error).__name__}: {error}") from error

    def _finish(self, drafts: list[Answer], began: float, labels: dict[int, str] | None = None) -> list[Answer]:
        latency = (self._clock() - began) / max(len(drafts), 1)
        return [
            Answer(
                label=(labels or {}).get(i, draft.label),
                source="teacher" if labels and i in labels else draft.source,
                reason=draft.reason,
                surrogate_label=draft.surrogate_label,
                score=draft.score,
                threshold=draft.threshold,
                policy=draft.policy,
                latency_s=latency,
            )
            for i, draft in enumerate(drafts)
        ]

    def _count(self, outcomes: Counter[Reason] | dict[str, int]) -> None:
        with self._lock:
            for name, n in outcomes.items():
                self._counts[name] += n


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


def _text_for_teacher(texts: Sequence[str] | None, i: int) -> str:
    if texts is None:
        raise RouteError("this input was deferred, and a teacher reads text: route with the text as well")
    return texts[i]
