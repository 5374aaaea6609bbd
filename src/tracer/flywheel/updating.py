"""update: new traces, or those that routing recorded, to a verdict, and to what becomes of the policy in force.

What is new is stored first, so that nothing is lost whatever comes after. Then the attempt counts, challenger and
policy in force are tested, and the decision is written before ``ACTIVE`` moves: after a crash, who comes next finishes
it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tracer import pipeline, storage
from tracer.config import FitConfig
from tracer.errors import EmbedderError, NothingNewError, TraceError
from tracer.features.dense import Embedder
from tracer.flywheel.committing import explain, leave, recertified, save, saved, warm_start
from tracer.flywheel.deciding import Decision, OnRefusal, check_choice, decide
from tracer.flywheel.fitting import attempting, embed_stored, level_of, records_of, silent
from tracer.flywheel.homes import CACHE, HOME, clear_tainted, fitting, locked, opened, traces_of
from tracer.flywheel.lines import change_statement, line_for_update, news
from tracer.flywheel.reading import Traces, embed_dataset, encoder_of, read
from tracer.flywheel.settings import TEACHER, Challenger, Line, Settings
from tracer.learning.crossfit import Progress
from tracer.pipeline import Certified, Encodings, Outcome, Refused, Verdict
from tracer.pipeline.verdicts import Update
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.stats import binomial
from tracer.traces.rooms import assign_rooms
from tracer.traces.store import Appended, TraceStore, check_fits
from tracer.types import Dataset, Trace

log = logging.getLogger("tracer.flywheel")

FRESH_ENOUGH = 5.0
"""Fresh shadow traces that certify alone, as a multiple of the fewest with which the exact test could ever pass; and
never fewer than the older ones that they replace."""
WORTH_TRYING = 2.0
"""Shadow traces from which on the loop makes an attempt at all, as a multiple of the same."""


def update(
    traces: Traces | None = None,
    *,
    texts: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    embeddings: str | Path | NDArray[np.floating] | None = None,
    embedder: Embedder | str | None = None,
    label_set: Sequence[str] | None = None,
    home: str | Path = HOME,
    on_refusal: OnRefusal = "keep",
    accept_fingerprint: bool = False,
    reader: Mapping[str, Any] | None = None,
    records: Sequence[Trace] | None = None,
    progress: Progress = silent,
    now: datetime | None = None,
) -> Verdict:
    """Store new traces, refit with the settings of the last fit, and gate again; without any, learn from what was
    recorded since.

    The challenger is tested on fresh shadow traces where there are enough of them (see `ShadowRoom`); those that
    certified before then train. Otherwise it is tested on older ones too, which its certificate says. The policy in
    force is tested again on fresh ones alone, and stays where the challenger handles no more, and where it is neither
    renewed nor refuted. A refusal keeps it (``on_refusal="keep"``) or falls back to the teacher (``"teacher"``).

    Where most new traces come from another teacher or prompt, or ``label_set`` declares other labels, a new policy line
    begins and the teacher answers; ``accept_fingerprint`` learns from both together.

    ``Verdict.update`` says what became of it. Raises NothingNewError where there is no trace that the last attempt
    did not see; TracerError subclasses for bad input. Stored traces stay stored.
    """
    check_choice(on_refusal)
    folder = Path(home)
    if Settings.read(folder) is None:
        raise TraceError(f"{folder}: nothing was fitted here yet; run `tracer fit` first")
    with fitting(folder):
        before = Settings.read(folder)
        if before is None:
            raise TraceError(f"{folder}: its settings went away")
        encoder, spec = encoder_of(embedder if embedder is not None else before.embedder, folder / CACHE)
        with opened(folder, before) as (store, held):
            appended = None
            if any(given is not None for given in (traces, texts, labels, embeddings)):
                new, trace_log = read(traces, texts=texts, labels=labels, embeddings=embeddings, reader=reader)
                appended = _append(
                    store, new, records_of(traces, trace_log, records), encoder, before.config, progress, now
                )
                storage.step("update.traces-stored")
            settings = _on_its_line(folder, store, before, label_set, now, accept=accept_fingerprint)
            merged = accept_fingerprint and set(settings.line.fingerprints) != set(before.line.fingerprints)
            named = replace(settings, embedder=spec or settings.embedder)
            job = _Job(folder, store, held, named, encoder, progress, now)
            return job.run(appended, on_refusal, merged=merged)


@dataclass(frozen=True, slots=True)
class ShadowRoom:
    """Shadow traces of the next attempt of a line: ``n_fresh`` after its last decision, ``n_older`` others that did not
    train yet. ``n_needed`` fresh ones certify alone; below ``n_least`` in all an attempt would only spend delta."""

    n_fresh: int
    n_older: int
    n_needed: int
    n_least: int

    @property
    def renewed(self) -> bool:
        """The fresh ones certify alone, and the older ones train from now on."""
        return self.n_fresh >= self.n_needed

    @property
    def hopeless(self) -> bool:
        """There are so few that an attempt would hardly ever pass."""
        return self.n_fresh + self.n_older < self.n_least

    @classmethod
    def of(cls, dataset: Dataset, config: FitConfig, line: Line) -> ShadowRoom:
        """Counts alone: no label plays a part."""
        level = level_of(config, line.attempts + 1) / len(config.targets)
        least = binomial.n_min(config.target, level)
        n_fresh = fresh_shadow(dataset, config, line.decided)
        n_older = fresh_shadow(dataset, config, line.released) - n_fresh if line.released < line.decided else 0
        needed = max(int(FRESH_ENOUGH * least), n_older)
        return cls(n_fresh, n_older, needed, int(WORTH_TRYING * least))


def fresh_shadow(dataset: Dataset, config: FitConfig, decided: int) -> int:
    """Shadow traces after number ``decided``: one a group, audits and hashed ones."""
    if not len(dataset) or dataset.numbers[-1] <= decided:
        return 0
    try:
        share = config.shadow_share_for(dataset.n_units)
        return len(assign_rooms(dataset, shadow_share=share, split=config.split, released=decided).shadow)
    except TraceError:  # one of the rooms is empty
        return 0


def _append(
    store: TraceStore,
    new: Dataset,
    records: Sequence[Trace] | None,
    encoder: Embedder | None,
    config: FitConfig,
    progress: Progress,
    now: datetime | None,
) -> Appended:
    facts = store.facts()
    wanted = bool(facts.embedders)
    if wanted or new.dense is None:
        new, _ = embed_dataset(new, encoder, config, progress, wanted=wanted)
    if wanted and new.dense is None:
        raise TraceError("only the stored traces have embeddings: give them for both, or for neither")
    check_fits(facts, new)
    return store.append(new, records=records, recorded_at=now)


def _on_its_line(
    home: Path,
    store: TraceStore,
    settings: Settings,
    label_set: Sequence[str] | None,
    now: datetime | None,
    *,
    accept: bool,
) -> Settings:
    """The settings on the policy line that the new traces belong to; on another one, the teacher takes over."""
    line = line_for_update(settings, news(store.load(), settings), label_set, accept=accept)
    if line == settings.line:
        return settings
    with locked(home):
        current = Settings.read(home) or settings
        if line.number == settings.line.number:
            changed = replace(current.with_line(replace(line, watched=current.line.watched)), challenger=None)
            changed.write(home)
            return changed
        statement = change_statement(settings.line, line)
        log.warning("%s", statement)
        line = replace(line, watched=store.through())
        changed = replace(current.with_line(line), challenger=None, pending=TEACHER, event="new line", note=statement)
        changed.write(home)
        storage.step("update.line-decided")
        registry = PolicyRegistry(home)
        if registry.active_version() is not None:
            registry.activate(None, event="new line", note=statement, now=now)
        storage.step("update.line-begun")
        changed = replace(changed, pending=None)
        changed.write(home)
        return changed


def _after_all(decision: Decision, held: bool, registry: PolicyRegistry, incumbent: Policy | None) -> Decision:
    """The decision where another policy came into force during the training, or an operator holds the teacher."""
    if held:
        return Decision("keep", "an operator sent everything to the teacher, and has promoted nothing since")
    if registry.active_version() == (incumbent.version if incumbent is not None else None):
        return decision
    moved = [event for event in registry.history() if event.moved]
    event = moved[-1].event if moved else "unrecorded"
    # After an alarm the shadow traces of this attempt are those of before it: the refit that it asked for decides.
    return Decision("keep", f"another policy came into force meanwhile ({event})")


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    """One attempt in a home where nobody else fits."""

    home: Path
    store: TraceStore
    held: Callable[[], None]
    settings: Settings
    encoder: Embedder | None
    progress: Progress
    now: datetime | None

    def run(self, appended: Appended | None, on_refusal: OnRefusal, *, merged: bool) -> Verdict:
        """Attempt, decide, commit. ``merged``: traces of other teachers or prompts joined, so old ones are news too."""
        config, line = self.settings.config, self.settings.line
        dataset = traces_of(self.store, line)
        wanted = merged or bool(self.settings.tainted)  # what was forgotten is news too
        if not len(dataset) or (dataset.numbers[-1] <= line.decided and not wanted):
            known = appended.n_known if appended is not None else len(dataset)
            raise NothingNewError(f"all {known:,} traces are known here already: there is nothing to learn from them")
        dataset, encodings = self._embedded(dataset)
        attempt = line.attempts + 1
        released, decided = line.released, line.decided
        if ShadowRoom.of(dataset, config, line).renewed:
            released = decided
        registry = PolicyRegistry(self.home)
        incumbent = self._incumbent(registry)
        line = replace(line, attempts=attempt)
        with attempting(self.home, line):
            outcome = pipeline.refit(
                dataset, config, warm=warm_start(self.home), progress=self.progress, now=self.now, attempt=attempt,
                parent=incumbent.version if incumbent else None, encodings=encodings, released=released,
                decided=decided, incumbent=incumbent,
            )  # fmt: skip
        decision = self._decision(outcome, incumbent, on_refusal)
        line = replace(line, decided=int(dataset.numbers[-1]), released=released)
        with locked(self.home):
            self.held()
            now_set = Settings.read(self.home) or self.settings
            decision = _after_all(decision, now_set.held, registry, incumbent)
            verdict = self._commit(registry, outcome, decision, line, incumbent)
        active = registry.active_version()
        added, known = (appended.n_added, appended.n_known) if appended is not None else (0, 0)
        done = Update(
            added, known, *decision, active, outcome.standing, released=released > self.settings.line.released
        )
        verdict = replace(verdict, update=done)
        leave(self.home, outcome.warm)
        explain(self.home, verdict, dataset, config, incumbent.version if incumbent else None)
        return verdict

    def _embedded(self, dataset: Dataset) -> tuple[Dataset, Encodings | None]:
        facts = self.store.facts()
        if not facts.embedders:
            return dataset, None
        if self.encoder is None:
            if dataset.dense is None:
                missing = facts.n - facts.n_embedded
                raise EmbedderError(f"{missing:,} stored traces have no embedding: name the embedder of the others")
            return dataset, None
        return embed_stored(self.store, dataset, self.encoder, self.settings.config, self.progress)

    def _incumbent(self, registry: PolicyRegistry) -> Policy | None:
        return registry.load() if registry.active_version() is not None else None

    def _decision(self, outcome: Outcome, incumbent: Policy | None, on_refusal: OnRefusal) -> Decision:
        verdict = outcome.verdict
        if incumbent is not None and incumbent.version in self.settings.tainted and isinstance(verdict, Certified):
            return Decision("promote", f"policy {incumbent.version} learned from traces that were forgotten")
        weaker = isinstance(verdict, Certified) and verdict.certificate.guarantee == "estimated"
        if weaker and incumbent is not None and incumbent.certificate.guarantee == "certified":
            return Decision(
                "keep", f"policy {incumbent.version} is certified, and this one an estimate until audits are in"
            )
        return decide(verdict, outcome.standing, on_refusal)

    def _commit(
        self, registry: PolicyRegistry, outcome: Outcome, decision: Decision, line: Line, incumbent: Policy | None
    ) -> Verdict:
        """Versions, then the decision, then the pointer; what was watched and set meanwhile stays."""
        current, spec, through = Settings.read(self.home) or self.settings, self.settings.embedder, self.store.through()
        verdict = saved(registry, outcome.verdict, spec, line.fingerprints)
        target = registry.active_version()
        if decision.action == "promote" and isinstance(verdict, Certified):
            target = verdict.policy.version
        elif decision.action == "renew" and outcome.standing is not None and incumbent is not None:
            renewed = outcome.standing.certificate or incumbent.certificate
            target = recertified(registry, incumbent, renewed, self.now).version
        elif decision.action == "demote" and incumbent is not None:
            fallback = outcome.standing.fallback if outcome.standing is not None else None
            target = None if fallback is None else recertified(registry, incumbent, fallback, self.now).version
        elif decision.action == "teacher":
            target = None
        line, challenger = self._challenger(registry, verdict, line, target, through, current)
        line = replace(line, watched=current.line.watched, demoted=current.line.demoted)
        if incumbent is not None and decision.action in ("renew", "demote"):
            current = current.tainting(incumbent.version, target)
        if incumbent is not None and decision.action == "demote":
            # What came before speaks of a world in which this policy kept its promise: it only trains from now on.
            demoted = (*line.demoted, incumbent.version)
            line = replace(line, watched=through, demoted=demoted, released=line.decided)
        storage.step("update.policies-saved")
        after = replace(
            current.with_line(line), embedder=spec, pending=target or TEACHER, challenger=challenger,
            event=decision.action, note=decision.reason,
            refit="" if current.refit == self.settings.refit else current.refit,
        )  # fmt: skip
        after.write(self.home)
        storage.step("update.decided")
        self._activate(registry, decision, target, line)
        storage.step("update.activated")
        clear_tainted(self.home, replace(after, pending=None), registry)
        return verdict

    def _challenger(
        self,
        registry: PolicyRegistry,
        verdict: Verdict,
        line: Line,
        target: str | None,
        through: int,
        current: Settings,
    ) -> tuple[Line, Challenger | None]:
        """A version that waits for audits: a refused candidate where the teacher is alone, or an estimate in its turn.

        What certifies it later spends its share of delta now: after a refusal it is an attempt of its own, an estimate
        has tested nothing yet.
        """
        policy: Policy | None = None
        attempt = line.attempts
        if isinstance(verdict, Certified) and verdict.certificate.guarantee == "estimated":
            policy = verdict.policy
        elif isinstance(verdict, Refused) and verdict.challenger is not None and target is None:
            policy, attempt = save(registry, verdict.challenger, self.settings.embedder, line.fingerprints), attempt + 1
        if policy is None:
            keep = current.challenger if isinstance(verdict, Refused) else None
            return line, keep
        level = level_of(self.settings.config, attempt)
        return replace(line, attempts=attempt), Challenger(policy.version, attempt, level, through)

    def _activate(self, registry: PolicyRegistry, decision: Decision, target: str | None, line: Line) -> None:
        if target != registry.active_version():
            registry.activate(target, event=decision.action, note=decision.reason, now=self.now)
        else:
            registry.record(
                decision.action,
                note=decision.reason,
                now=self.now,
                attempt=line.attempts,
                line=line.number,
                version=target,
            )
