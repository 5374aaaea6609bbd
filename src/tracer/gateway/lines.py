"""A task as it is served: its router, the store its traces go to, and what an average call of its teacher costs."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

from tracer import storage
from tracer.cost import Price, call_usd, price_of
from tracer.errors import ConfigError, StoreError, TracerError
from tracer.features.dense import checked
from tracer.features.sources import embedder_from_name
from tracer.flywheel.goals import Goals
from tracer.flywheel.settings import Settings
from tracer.gateway import patterns
from tracer.gateway.opened import OpenCalls
from tracer.gateway.settings import GatewayConfig, TaskConfig
from tracer.gateway.switches import GatewaySwitch, TaskSwitch
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import SERVING, ServingSettings
from tracer.serving.coins import Rng
from tracer.serving.recorder import BatchRecorder
from tracer.serving.router import Router
from tracer.serving.tallies import Tally
from tracer.traces.digests import digest_of, n_digests
from tracer.traces.store import COPY, TraceStore
from tracer.types import FAILED, Trace, Usage

log = logging.getLogger("tracer.gateway")

_ANY: tuple[tuple[str | None, str | None], ...] = ((None, None),)
_LIKES = _TEACHERS = 16
_NAME = 256
"""Characters of a model's name, at most."""
_LIKE_BYTES = 64 * 1024
_LAST_S = 5.0
"""How long the last tallies may take."""
_PATIENCE_S = 10.0
"""How long a store is waited for; the recorder tries again, and longer waits would hold up a stop."""
_DECAY = 0.01
"""Weight of the newest call in the running means of tokens."""
_NEWEST = 1_000
"""Numbers of traces whose tokens the means begin with."""


@dataclass(slots=True)
class _Cost:
    price: Price | None
    n_in: float
    n_out: float


class TaskLine:
    """One task: ``router`` decides in caller-asks-the-teacher mode, ``recorder`` writes to ``store``.

    For one event loop; what reads or writes files (`look`, `tend`, `close`) runs in threads.
    """

    def __init__(
        self,
        config: GatewayConfig,
        task: TaskConfig,
        *,
        rng: Rng | None = None,
        switch: GatewaySwitch | None = None,
    ) -> None:
        self.task, self.home = task, config.task_home(task.name)
        self._config, self._rng = config, rng
        self.switch = TaskSwitch(switch or GatewaySwitch(), config.home, self.home)
        self.goals = goals_of(config, task)
        try:
            self.home.mkdir(parents=True, exist_ok=True)
            prepare(self.home, task, self.goals)
        except OSError as error:
            raise ConfigError(f"task {task.name}: {self.home} cannot be written ({error.strerror})") from error
        self.broken = False
        self._accepted: tuple[Policy | None, Collection[tuple[str | None, str | None]]] = (None, _ANY)
        self.router = self._router()
        self._embedder = embedder_from_name(task.embedder) if task.capture == "features" and task.embedder else None
        self._store: TraceStore | None = None
        self._opening, self._tending = threading.Lock(), threading.Lock()
        try:
            self._open(_PATIENCE_S)
        except StoreError as error:
            # Requests must go on without it: traces wait, and whoever writes them tries again.
            log.warning("the store of task %s cannot be opened yet: %s", task.name, error)
        self.recorder = BatchRecorder(self._write, max_queue=config.limits.queue)
        self._tally: Tally | None = None
        self._handed_on = False
        self.calls = OpenCalls(self.home, task.label_wait_s, on_disk=task.capture != "features")
        self._costs: OrderedDict[str, _Cost] = OrderedDict()
        self._likes: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        # Else nothing would be known to be saved until a teacher answers; no start is to wait for it.
        self._remembering = threading.Thread(target=self._remember, name="tracer-tokens", daemon=True)
        self._remembering.start()

    @property
    def store(self) -> TraceStore:
        """Where traces go; opened now where it could not be before. Raises StoreError where it still cannot."""
        return self._open(_PATIENCE_S)

    @property
    def policy(self) -> Policy | None:
        """The policy in force."""
        return self.router.policy

    @property
    def version(self) -> str | None:
        """The version of the policy in force, None for none."""
        policy = self.router.policy
        return (policy.version or None) if policy is not None else None

    @property
    def meets(self) -> bool:
        """Whether the policy in force promises what the task asks for."""
        policy = self.router.policy
        return policy is None or self.goals.met(policy.certificate)

    @property
    def embeds(self) -> bool:
        """Whether a decision computes embeddings, and so belongs off the event loop."""
        policy = self.router.policy
        return policy is not None and "dense" in policy.needs

    @property
    def accepted(self) -> Collection[tuple[str | None, str | None]]:
        """The (teacher, prompt) pairs that the policy in force was fitted under; any, where it names none or there is
        none."""
        policy = self.policy
        if self._accepted[0] is not policy:
            known = policy.task.get("fingerprints", ()) if policy is not None else ()
            self._accepted = policy, [(teacher, prompt) for teacher, prompt in known] or _ANY
        return self._accepted[1]

    def masked(self, text: str) -> str:
        """The text as the policy reads it and the store keeps it: without what ``redact`` masks. Both see the same, or
        a certificate for masked texts would be held against others."""
        return patterns.masked(text, self.task.redact) if self.task.redact else text

    def allowed(self, label: str | None) -> bool:
        """Whether a teacher's answer is one of the declared labels."""
        return label is not None and (self.task.labels is None or label in self.task.labels)

    def record(self, trace: Callable[[str], Trace], text: str) -> None:
        """Queue a trace of a masked text, as the task's ``capture`` allows; never waits."""
        kept = self.kept(text)
        if kept is None:
            return
        try:
            self.recorder(trace(kept))
        except TracerError as error:
            log.warning("a trace of task %s could not be made: %s", self.task.name, type(error).__name__)

    def kept(self, text: str) -> str | None:
        """A masked text as it may be stored; None where the task keeps nothing."""
        if self.task.capture == "off":
            return None
        if self.task.capture == "hash":
            return f"sha256:{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"
        return text

    def settle(self, now: float) -> None:
        """Record calls of which the label is overdue as failed, where one was promised; ``now`` is that of the steady
        clock. Raises StoreError."""
        for call in self.calls.expired(now):
            self.recorder(call.trace(FAILED, teacher=self.task.teacher))

    def learn(self, teacher: str, usage: Usage) -> None:
        """Take a call of the teacher into the mean of its tokens."""
        if len(teacher) > _NAME:
            return  # the price list would be searched for it, on the loop
        new = (float(usage.input_tokens), float(usage.output_tokens))
        known = self._costs.get(teacher)
        if known is None:
            known = self._costs[teacher] = _Cost(price_of(teacher), *new)
            if len(self._costs) > _TEACHERS:
                self._costs.popitem(last=False)
        known.n_in += _DECAY * (new[0] - known.n_in)
        known.n_out += _DECAY * (new[1] - known.n_out)

    def _remember(self) -> None:
        """Begin the means of tokens with those of the newest traces; what was learned meanwhile stays."""
        if self._store is None:
            return
        try:
            with self._store.recent() as recent:
                found = recent.tokens(_NEWEST)
        except (TracerError, OSError) as error:
            log.warning("what calls of task %s cost is not known yet: %s", self.task.name, type(error).__name__)
            return
        for one in found[-_TEACHERS:]:
            if one.teacher is not None and len(one.teacher) <= _NAME:
                price = price_of(one.teacher)
                self._costs.setdefault(
                    one.teacher, _Cost(price, one.input_tokens / one.n_usage, one.output_tokens / one.n_usage)
                )

    def saved_usd(self, teacher: str) -> Decimal | None:
        """Dollars of an average call of a teacher at list prices; None before its tokens and price are known."""
        known = self._costs.get(teacher)
        if known is None or known.price is None:
            return None
        return call_usd(known.price, Usage(round(known.n_in), round(known.n_out)))

    def like(self, wire: str, prompt: str) -> bytes | None:
        """An answer of the teacher whose shape a surrogate's answer imitates."""
        return self._likes.get((wire, prompt))

    def keep_like(self, wire: str, prompt: str, body: bytes) -> None:
        """Keep the newest such answer."""
        if len(body) <= _LIKE_BYTES:
            self._likes[wire, prompt] = body
            self._likes.move_to_end((wire, prompt))
            if len(self._likes) > _LIKES:
                self._likes.popitem(last=False)

    def look(self) -> None:
        """Take up another policy or other settings where they are in force; no request waits for that."""
        self.router.refresh()

    def tend(self) -> None:
        """Write the tallies; load the policy again where it could not be loaded. Raises StoreError."""
        if self.broken:
            self.router = self._router()
        with self._tending:
            self._write_tallies()

    def succeed(self, before: TaskLine) -> None:
        """Go on with the open calls of the task as it was before a reload: their texts may be in memory alone."""
        before.calls.renew(self.task.label_wait_s, on_disk=self.task.capture != "features")
        self.calls, before._handed_on = before.calls, True

    def close(self, timeout_s: float = 10.0) -> bool:
        """Write what waits, and let go of the store; False where time ran out.

        Traces first, then tallies; a store that is locked does not hold the process up for longer than this.
        """
        self._remembering.join(_LAST_S)
        done = self.recorder.close(timeout_s)
        if not self._handed_on:
            self.calls.close()
        last = threading.Thread(target=self._last, name="tracer-tallies", daemon=True)
        last.start()
        last.join(min(timeout_s, _LAST_S))
        if last.is_alive():
            log.warning("tallies of task %s are lost: the store takes none", self.task.name)
            return False  # the thread lets go of the store, where it still comes to that
        if self._store is not None:
            self._store.close()
        return done

    def _last(self) -> None:
        try:
            self.tend()
        except TracerError as error:
            log.warning("tallies of task %s are lost: %s", self.task.name, type(error).__name__)

    def _write_tallies(self) -> None:
        while (tally := self._tally or self.router.take_tally()) is not None:
            self._tally = tally  # until it is written
            facts = cast(dict[str, Any], tally.facts)
            self.store.tally(tally.policy, tally.started.timestamp(), tally.seconds, tally.n, facts)
            self._tally = None

    def _open(self, wait_s: float) -> TraceStore:
        with self._opening:
            if self._store is None:
                self._store = _store(self._config, self.task, self.home, wait_s)
            return self._store

    def _router(self) -> Router:
        try:
            router = Router.load(self.home, rng=self._rng, reload_s=None)
        except (TracerError, OSError) as error:
            # The teacher answers meanwhile: a policy that cannot be loaded must not take the service down.
            log.warning("the policy of task %s cannot be loaded: %s", self.task.name, type(error).__name__)
            self.broken = True
            return Router(None, switch=self.switch)
        self.broken = False
        router.switch = self.switch
        return router

    def _write(self, batch: Sequence[Trace]) -> None:
        if self._embedder is None:
            self.store.append(batch)
            return
        if digests := [trace for trace in batch if n_digests([trace.text])]:
            self.store.append(digests)  # calls that were left before a reload, when the task kept no more of them
            batch = [trace for trace in batch if not n_digests([trace.text])]
        if not batch:
            return
        # Here, in the recorder's thread, texts become vectors and digests: they go no further.
        dense = checked(self._embedder, [trace.text for trace in batch])
        kept = [replace(trace, text=digest_of(trace.text)) for trace in batch]
        self.store.append(kept, dense=dense, embedder=self._embedder.identity)


def goals_of(config: GatewayConfig, task: TaskConfig) -> Goals:
    """What a task asks of its policies."""
    name = task.name if config.database is not None else "default"
    return Goals(task.target, task.delta, task.embedder, task.labels, name, task.mode == "observe")


def prepare(home: Path, task: TaskConfig, goals: Goals) -> None:
    """What a home needs: a pointer, serving settings, and what is asked of its policies, which alone changes."""
    goals.write(home)
    registry = PolicyRegistry(home)
    if not registry.pointer.exists():
        storage.write_atomic(registry.pointer, b"\n")  # the teacher answers until a policy is promoted
    if task.mode != "observe" and not (home / SERVING).exists():
        ServingSettings(task.mode, task.share, task.audit_rate).write(home)


def _store(config: GatewayConfig, task: TaskConfig, home: Path, wait_s: float) -> TraceStore:
    """Where the home's settings say; else where the config does. Raises ConfigError where the two are at odds."""
    try:
        settings = Settings.read(home)
    except (ConfigError, OSError) as error:
        raise StoreError(f"where traces of {home} go cannot be told: {error}") from error
    if config.database is None and settings is not None and settings.store == "postgresql":
        raise ConfigError(f"task {task.name}: the traces of {home} are in PostgreSQL: set database")
    if config.database is None or (settings is not None and settings.store == "sqlite"):
        store = TraceStore.open(home, task=settings.task if settings is not None else "default", wait_s=wait_s)
    else:
        name = settings.task if settings is not None else task.name
        store = TraceStore.open(config.database.reveal(), task=name, copy=home / COPY, wait_s=wait_s)
    if settings is not None and settings.store_id not in ("", store.store_id):
        store.close()
        raise StoreError(f"{store.url}: is another trace store than the one that {home} was fitted on")
    return store
