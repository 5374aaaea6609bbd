"""Months of traffic with real feedback, through the real store, router, watch and update: what `flywheel_*` share.

A life is a stream of requests drawn from labelled traces. The router answers or asks the teacher, what it asks is
recorded, and at each tick of the clock the home is watched and refitted when that is due, as `tracer flywheel run` does
it, but in this process. What the teacher would have said of the rest is known here and nowhere else.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import Part, encoder, load_part
from tracer import flywheel
from tracer.config import FitConfig
from tracer.errors import NothingNewError, TracerError
from tracer.flywheel import running, updating, watching
from tracer.monitoring import budgets
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import Mode, ServingSettings
from tracer.serving.router import Router
from tracer.types import Dataset, EmbedderIdentity, Float32, Trace

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
TEACHER = "teacher"
_DAY_S = 86_400.0


class Known:
    """The encoder, with the vectors of a pool at hand: a request costs a look-up."""

    def __init__(self, pool: Dataset) -> None:
        assert pool.texts is not None
        assert pool.dense is not None
        assert pool.embedder is not None
        self._vectors = dict(zip(pool.texts, pool.dense, strict=True))
        self._identity = pool.embedder

    @property
    def identity(self) -> EmbedderIdentity:
        """That of the encoder."""
        return self._identity

    def embed(self, texts: Sequence[str]) -> Float32:
        """Vectors (n, d); texts from elsewhere (probes, names of labels) go to the encoder."""
        missing = [text for text in texts if text not in self._vectors]
        if missing:
            self._vectors.update(zip(missing, encoder().embed(missing), strict=True))
        return np.stack([self._vectors[text] for text in texts])


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """All traces of a data set, one a text: what traffic is drawn from, and what the truth is counted on."""

    name: str
    traces: Dataset
    digest: str
    known: Known

    @property
    def texts(self) -> tuple[str, ...]:
        """Texts (n,)."""
        assert self.traces.texts is not None
        return self.traces.texts


def load_pool(folder: Path, name: str, files: Sequence[str], limit: int | None = None) -> Pool:
    """All files of a data set together. A text that repeats is left out: its teacher is asked once."""
    parts = [load_part(folder / name / f"{file}.jsonl", limit=limit) for file in files]
    return pool_of(name, parts)


def pool_of(name: str, parts: Sequence[Part]) -> Pool:
    """Parts together, one trace a text."""
    texts = [text for part in parts for text in part.dataset.texts or ()]
    labels = [label for part in parts for label in part.dataset.labels]
    dense = np.concatenate([part.dataset.dense for part in parts if part.dataset.dense is not None])
    first = {text: i for i, text in reversed(list(enumerate(texts)))}
    rows = np.array(sorted(first.values()), dtype=np.intp)
    traces = Dataset.from_columns(
        [labels[i] for i in rows], texts=[texts[i] for i in rows], dense=dense[rows],
        embedder=parts[0].dataset.embedder, teachers=[TEACHER] * len(rows), prompts=["1"] * len(rows),
    )  # fmt: skip
    return Pool(name, traces, "".join(part.digest[:8] for part in parts), Known(traces))


@dataclass(frozen=True, slots=True)
class Arm:
    """How the labels that come back are used. ``pooled``: all as plain samples. ``advise_days``: the audit rate is the
    one that `tracer status` advises for so many days after the first fit, 0.2 at most."""

    name: str
    mode: Mode = "live"
    audit_rate: float = 0.02
    pooled: bool = False
    advise_days: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Stream:
    """A life's rows in the pool: the log it starts with, the requests of each day, and the rows of the truth.

    ``labels`` (k,): what the teacher says of each row of the pool, by day: from ``turns[d]`` on it is ``labels[d]``.
    ``prompts`` name the prompt in the same way. ``truths`` are rows of the truth by the same days.
    """

    bootstrap: NDArray[np.intp]
    days: tuple[NDArray[np.intp], ...]
    truths: Mapping[int, NDArray[np.intp]]
    labels: Mapping[int, Sequence[str]]
    prompts: Mapping[int, str] = field(default_factory=lambda: {0: "1"})

    def at(self, of: Mapping[int, Any], day: int) -> Any:
        """What holds on a day, counted from 1."""
        return of[max(turn for turn in of if turn <= day)]


@dataclass(slots=True)
class Life:
    """What became of one life, by day: counts of the truth for the policy in force, and of the traffic."""

    days: dict[str, list[Any]] = field(default_factory=dict)
    versions: dict[str, list[int]] = field(default_factory=dict)
    events: list[list[Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    def note(self, **values: object) -> None:
        """Another day."""
        for name, value in values.items():
            self.days.setdefault(name, []).append(value)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        # Messages name labels and versions, and are long: who reads the results needs the counts.
        events = [event[:-1] for event in self.events]
        return {"days": self.days, "versions": self.versions, "events": events, **self.facts}


def live(
    pool: Pool, stream: Stream, arm: Arm, config: FitConfig, seed: int, *, ticks: int = 2, fresh: float | None = None
) -> dict[str, Any]:
    """One life of an arm. ``fresh`` takes the place of ``updating.FRESH_ENOUGH``."""
    before = updating.FRESH_ENOUGH
    updating.FRESH_ENOUGH = before if fresh is None else fresh
    try:
        with tempfile.TemporaryDirectory() as home:
            return _Living(pool, stream, arm, Path(home), Random(seed), ticks).run(config).as_dict()
    finally:
        updating.FRESH_ENOUGH = before


@dataclass(slots=True, eq=False)
class _Living:
    pool: Pool
    stream: Stream
    arm: Arm
    home: Path
    rng: Random
    ticks: int
    life: Life = field(default_factory=Life)
    judged: dict[tuple[str, int], list[int]] = field(default_factory=dict)
    n_recorded: int = 0
    n_audits: int = 0
    n_handled_audits: int = 0
    n_wrong: int = 0
    n_requests: int = 0

    def run(self, config: FitConfig) -> Life:
        log = self.pool.traces.take(self.stream.bootstrap)
        log = log.with_space(type(log.space).observed(log.labels))
        flywheel.fit(log, home=self.home, config=config, embedder=self.pool.known, now=BEGAN)
        rate = self._audit_rate(config)
        ServingSettings(self.arm.mode, 1.0, rate).write(self.home)
        self.life.facts |= {"audit_rate": rate}
        self._judge(0)
        for day, rows in enumerate(self.stream.days, 1):
            counts = np.zeros(4, dtype=int)
            for tick, part in enumerate(np.array_split(rows, self.ticks)):
                now = BEGAN + timedelta(days=day - 1, seconds=(tick + 1) * _DAY_S / self.ticks)
                counts += self._serve(part, day, now)
                self._turn(day, now)
            n_handled, n_agreed, n_truth = self._judge(day)
            asked, audited, served, wrong = counts.tolist()
            self.life.note(
                asked=asked, audited=audited, served=served, wrong=wrong,
                n_handled=n_handled, n_agreed=n_agreed, n_truth=n_truth,
            )  # fmt: skip
        return self.life

    def _audit_rate(self, config: FitConfig) -> float:
        registry = PolicyRegistry(self.home)
        if self.arm.advise_days is None or registry.active_version() is None:
            return self.arm.audit_rate
        certificate = registry.load().certificate
        plan = budgets.rate_for(
            self.arm.advise_days, len(self.stream.days[0]), target=config.target,
            level=flywheel.fitting.level_of(config, 2), agreement=budgets.expected_agreement(certificate),
            coverage=certificate.coverage,
        )  # fmt: skip
        self.life.facts["advised"] = plan.rate
        return min(max(plan.rate, 0.02), 0.2)

    def _serve(self, rows: NDArray[np.intp], day: int, now: datetime) -> NDArray[np.int_]:
        """Route these requests and store what comes back: how many asked, audited, served, and served wrong."""
        labels, prompt = self.stream.at(self.stream.labels, day), self.stream.at(self.stream.prompts, day)
        texts = [self.pool.texts[i] for i in rows]
        said = dict(zip(texts, (labels[i] for i in rows), strict=True))
        recorded: list[Trace] = []
        router = self._router(said.__getitem__, recorded.append, prompt)
        answers = router.route_many(texts)
        kept = [self._kept(trace, now) for trace in recorded]
        settings = flywheel.Settings.read(self.home)
        with flywheel.store_of(self.home, settings) as store:
            if kept:
                store.append(kept, recorded_at=now)
            while (tally := router.take_tally()) is not None:
                seconds = _DAY_S / self.ticks
                facts: Any = tally.facts
                store.tally(tally.policy, now.timestamp() - seconds, seconds, tally.n, facts)
        served = np.array([answer.source == "surrogate" for answer in answers])
        right = np.array([answer.label == said[text] for answer, text in zip(answers, texts, strict=True)])
        audited = sum(answer.audited for answer in answers)
        self.n_requests += len(rows)
        self.n_wrong += int((served & ~right).sum())
        self.n_audits += audited
        self.n_handled_audits += sum(a.audited and a.seen is not None and a.seen.handled for a in answers)
        return np.array([int((~served).sum()), audited, int(served.sum()), int((served & ~right).sum())])

    def _router(self, teacher: Callable[[str], str], record: Callable[[Trace], object], prompt: str) -> Router:
        registry = PolicyRegistry(self.home)
        if registry.active_version() is None and not registry.pointer.exists():
            # Nothing was certified yet: the teacher answers, and all its labels are plain samples.
            rate = ServingSettings.read(self.home).audit_rate
            return Router(
                None, teacher=teacher, audit_rate=rate, rng=self.rng, record=record, teacher_name=TEACHER, prompt=prompt
            )
        return Router.load(
            self.home, teacher=teacher, embedder=self.pool.known, reload_s=None, rng=self.rng, record=record,
            teacher_name=TEACHER, prompt=prompt,
        )  # fmt: skip

    def _kept(self, trace: Trace, now: datetime) -> Trace:
        self.n_recorded += 1
        trace = replace(trace, id=f"r{self.n_recorded}", time=now)
        return replace(trace, origin="bootstrap") if self.arm.pooled else trace

    def _turn(self, day: int, now: datetime) -> None:
        """Watch, and refit when it is due."""
        view, notices = watching.watch(self.home, embedder=self.pool.known, now=now)
        for notice in notices:
            self._event(day, notice.kind, notice.message)
        if view.drift is not None:
            for warning in view.drift.warnings():
                if f"drift:{warning.kind}" not in {event[1] for event in self.life.events}:
                    self._event(day, f"drift:{warning.kind}", warning.message)
        self._judge(day)
        settings = flywheel.Settings.read(self.home)
        assert settings is not None
        wanted = running.due(self.home, settings)
        if not wanted.now:
            return
        try:
            verdict = flywheel.update(home=self.home, embedder=self.pool.known, now=now)
        except NothingNewError:
            return
        except TracerError as error:
            self._event(day, "failed", str(error))
            return
        assert verdict.update is not None
        self._event(day, f"update:{verdict.update.action}", f"({wanted.reason}) {verdict.update.reason}")
        self.life.facts["n_released"] = self.life.facts.get("n_released", 0) + verdict.update.released
        self._judge(day)

    def _event(self, day: int, kind: str, message: str) -> None:
        """With the counts so far: requests, wrong answers served, audits, and handled ones."""
        active = PolicyRegistry(self.home).active_version()
        counts = [self.n_requests, self.n_wrong, self.n_audits, self.n_handled_audits]
        self.life.events.append([day, kind, active, *counts, message])

    def _judge(self, day: int) -> tuple[int, int, int]:
        """Handled, agreed and all rows of the truth for the policy in force; nothing is handled without one."""
        truth, labels = self.stream.at(self.stream.truths, day), self.stream.at(self.stream.labels, day)
        version = PolicyRegistry(self.home).active_version()
        if version is None:
            return 0, 0, len(truth)
        turn = max(t for t in self.stream.truths if t <= day)
        key = (version, turn)
        if key not in self.judged:
            self.judged[key] = on_rows(PolicyRegistry(self.home).load(version), self.pool, truth, labels)
            self.life.versions[f"{version} {turn}"] = [day, *self.judged[key]]
        n_handled, n_agreed = self.judged[key]
        return n_handled, n_agreed, len(truth)


def on_rows(policy: Policy, pool: Pool, rows: NDArray[np.intp], labels: Sequence[str]) -> list[int]:
    """How many of these rows a policy handles, and on how many of those it agrees with ``labels`` of the pool."""
    assert pool.traces.dense is not None
    decisions = policy.decide([pool.texts[i] for i in rows], pool.traces.dense[rows])
    agree = np.array([mine == labels[i] for mine, i in zip(decisions.labels, rows, strict=True)])
    return [int(decisions.handled.sum()), int((decisions.handled & agree).sum())]
