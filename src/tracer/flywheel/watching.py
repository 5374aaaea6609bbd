"""Watching a policy in force: what audits and traffic say of it, and what follows.

Looking reads only. Acting demotes on an alarm, to the next safer certified threshold first and to the teacher after;
raises the audit rate on a warning and lowers it again when all is quiet; and certifies an estimate or a challenger once
audits suffice. A refit is asked for, not made: see ``running``.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tracer import storage
from tracer.certification.certificate import Certificate
from tracer.errors import ConfigError, TraceError
from tracer.features.dense import Embedder
from tracer.flywheel.committing import recertified
from tracer.flywheel.homes import locked, store_of, traces_of
from tracer.flywheel.settings import TEACHER, Challenger, Settings
from tracer.monitoring.alarms import Monitor, MonitorConfig, MonitorState, raised_rate
from tracer.monitoring.drift import Drift, DriftState
from tracer.monitoring.observations import Observation, observed
from tracer.monitoring.promotion import Promotion, promote
from tracer.monitoring.tallies import Tally
from tracer.policies.fingerprints import Fingerprint, belongs
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.traces.rooms import ids_digest
from tracer.traces.store import TraceStore
from tracer.types import FAILED, Trace

log = logging.getLogger("tracer.flywheel")

STATE = "monitor.json"
"""File in a home folder with what the monitor knows; it may be deleted at any time, then all audits are read again."""
_CALM = 0.25
"""Below this share of the warning's level all is quiet again: at the level itself it would come and go."""
_MOST_PLAIN = 20_000
"""Samples on which a challenger is looked at: one that these do not certify waits for a refit."""


@dataclass(frozen=True, slots=True)
class Notice:
    """Something that an operator should hear of: ``alarm``, ``warning``, ``promotion`` or ``quiet``."""

    kind: str
    message: str


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What is known of the policy in force. ``monitor`` and ``drift`` are None where no policy is."""

    settings: Settings
    active: Policy | None = field(repr=False)
    monitor: MonitorState | None
    drift: DriftState | None
    through: int

    @property
    def status(self) -> str:
        """``teacher`` where no policy is in force, else quiet, warn or alarm."""
        return "teacher" if self.monitor is None else self.monitor.status


def look(home: Path, config: MonitorConfig | None = None) -> View:
    """What audits and traffic say so far. Raises TraceError where nothing was fitted."""
    settings = Settings.read(home)
    if settings is None:
        raise TraceError(f"{home}: nothing was fitted here yet; run `tracer fit` first")
    with store_of(home, settings) as store:
        return _look(home, settings, store, config or MonitorConfig())


def watch(
    home: Path,
    *,
    config: MonitorConfig | None = None,
    embedder: Embedder | None = None,
    now: datetime | None = None,
) -> tuple[View, tuple[Notice, ...]]:
    """Look, and act on it, also while a refit is running: an alarm does not wait for it."""
    if Settings.read(home) is None:
        raise TraceError(f"{home}: nothing was fitted here yet; run `tracer fit` first")
    with locked(home):
        settings = Settings.read(home)
        if settings is None:
            raise TraceError(f"{home}: its settings went away")
        with store_of(home, settings) as store:
            view = _look(home, settings, store, config or MonitorConfig())
            _remember(home, view)
            late = (Notice("alarm", settings.untold),) if settings.untold else ()
            if late:  # the process that demoted died before it could tell
                replace(settings, untold="").write(home)
                view = replace(view, settings=replace(settings, untold=""))
            acting = _Acting(home, store, PolicyRegistry(home), view, embedder, now)
            acted = (acting.on_status(), acting.on_challenger())
            return view, (*late, *(notice for notice in acted if notice is not None))


def _look(home: Path, settings: Settings, store: TraceStore, config: MonitorConfig) -> View:
    registry = PolicyRegistry(home)
    version = registry.active_version()
    through = store.through()
    if version is None:
        return View(settings, None, None, None, through)
    policy = registry.load(version)
    monitor, drift = resumed(home, settings, policy, config)
    if store.facts().has_texts:
        audits = store.traces(origins={"audit"}, after=monitor.last)
        monitor = monitor.fold(counted(observed(audits), policy, settings.line.demoted))
        seen = labels_seen(home)
        drift = drift.fold_labels(
            store.traces(origins={"audit", "deferred"}, after=max(seen, settings.line.watched)), policy.space.names
        )
    clock = drift.clock if np.isfinite(drift.clock) else 0.0
    tallies = [
        Tally.of(t.policy, datetime.fromtimestamp(t.started, UTC), t.seconds, t.n, t.facts)
        for t in store.traffic(after=clock)
        if t.policy == version and t.started >= clock
    ]
    return View(settings, policy, monitor, drift.fold(tallies), through)


def resumed(home: Path, settings: Settings, policy: Policy, config: MonitorConfig) -> tuple[MonitorState, DriftState]:
    """Where the last look stopped; from the beginning of the watch where it cannot be known."""
    watched, n_classes, name = settings.line.watched, len(policy.space), _names(policy)[0]
    monitor = Monitor.of(name, policy.certificate, n_classes, config=config, restart=watched)
    predicted = policy.report.get("predicted") or {}
    labels = {name: int(predicted.get(name, 0)) for name in policy.space.names} if predicted else {}
    drift = Drift.of(policy.version, policy.certificate, labels)
    state, drifting = monitor.start(), drift.start()
    try:
        content = json.loads((home / STATE).read_text(encoding="utf-8"))
        earlier = MonitorState.from_dict(content["monitor"])
        if replace(earlier.monitor, policy=name) == monitor:
            state = earlier if earlier.monitor.policy == name else earlier.succeeded(name)
        past = DriftState.from_dict(content["drift"])
        if past.drift == drift:
            drifting = past
    except FileNotFoundError:
        pass
    except (ConfigError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is read anew: %s", home / STATE, error)
    return state, drifting


def _names(policy: Policy) -> tuple[str, ...]:
    """The version's name, and before it those that the same weights and threshold had until they were renewed."""
    return (*policy.task.get("renews", ()), policy.version)


def counted(audits: Iterable[Observation], policy: Policy, demoted: Sequence[str]) -> Iterator[Observation]:
    """What counts for the alarm. Audits of a demoted version may come late: they say nothing of its successor."""
    names = _names(policy)
    for observation in audits:
        if observation.policy in names:
            yield replace(observation, policy=names[0])
        elif observation.policy not in demoted:
            yield observation


def labels_seen(home: Path) -> int:
    """Up to which number the last look that was remembered has read the teacher's labels."""
    try:
        return int(json.loads((home / STATE).read_text(encoding="utf-8"))["through"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _remember(home: Path, view: View) -> None:
    if view.monitor is None or view.drift is None:
        (home / STATE).unlink(missing_ok=True)
        return
    content = {"monitor": view.monitor.as_dict(), "drift": view.drift.as_dict(), "through": view.through}
    storage.write_atomic(home / STATE, json.dumps(content, allow_nan=False).encode())


@dataclass(frozen=True, slots=True, eq=False)
class _Acting:
    """What follows from a view, in a locked home."""

    home: Path
    store: TraceStore
    registry: PolicyRegistry
    view: View
    embedder: Embedder | None
    now: datetime | None

    def on_status(self) -> Notice | None:
        monitor, policy, settings = self.view.monitor, self.view.active, self.view.settings
        if monitor is None or policy is None:
            return None
        if monitor.status == "alarm":
            return self._demote(monitor, policy)
        serving = ServingSettings.read(self.home)
        if monitor.status == "warn" and not self._warned(settings):
            calm = serving.audit_rate if settings.calm_rate is None else settings.calm_rate
            rate = raised_rate(calm)
            message = f"policy {policy.version} may break its promise: {_told(monitor)}. {rate:.1%} is audited now"
            refit = settings.refit or f"a warning at trace {self.view.through:,}"
            replace(settings, calm_rate=calm, refit=refit).write(self.home)
            storage.step("warning.decided")
            replace(serving, audit_rate=rate).write(self.home)
            storage.step("warning.rate-raised")
            self.registry.record("warning", note=message, now=self.now, version=policy.version)
            return Notice("warning", f"{message}.")
        settled = monitor.detector_value < _CALM * monitor.monitor.config.warn_share * monitor.monitor.config.arl
        if monitor.status == "quiet" and settled and settings.calm_rate is not None:
            message = f"policy {policy.version} is quiet again: {_told(monitor)}"
            if serving.audit_rate == raised_rate(settings.calm_rate):  # else an operator has set another since
                replace(serving, audit_rate=settings.calm_rate).write(self.home)
            storage.step("quiet.rate-lowered")
            replace(settings, calm_rate=None).write(self.home)
            storage.step("quiet.decided")
            self.registry.record("quiet", note=message, now=self.now, version=policy.version)
            return Notice("quiet", f"{message}. The audit rate goes back to {settings.calm_rate:.1%}.")
        return None

    def _warned(self, settings: Settings) -> bool:
        """Whether the rate was raised; the line in the history comes last, so without it a crash came between."""
        if settings.calm_rate is None:
            return False
        told = [event.event for event in self.registry.history() if event.event in ("warning", "quiet")]
        return bool(told) and told[-1] == "warning"

    def _demote(self, monitor: MonitorState, policy: Policy) -> Notice:
        """One step down: the next safer threshold that was certified, else the teacher alone. The watch starts anew."""
        safer = self._next_rung(policy)
        target = None if safer is None else recertified(self.registry, policy, safer, self.now).version
        storage.step("demote.saved")
        message = f"policy {policy.version} breaks its promise: {_told(monitor)}. {_now_answers(target)}"
        settings = self.view.settings.tainting(policy.version, target)
        gone = tuple(dict.fromkeys((*settings.line.demoted, *_names(policy))))
        # What came before speaks of a world in which this policy kept its promise: it trains, and certifies no more.
        now = self.view.through
        line = replace(settings.line, watched=now, demoted=gone, decided=max(settings.line.decided, now), released=now)
        refit = f"an alarm at trace {self.view.through:,}"
        pending = target or TEACHER
        after = replace(settings.with_line(line), pending=pending, event="demote", note=message, refit=refit)
        after.write(self.home)
        storage.step("demote.decided")
        (self.home / STATE).unlink(missing_ok=True)
        self.registry.activate(target, event="demote", note=message, now=self.now)
        storage.step("demote.activated")
        replace(after, pending=None).write(self.home)
        return Notice("alarm", message)

    def _next_rung(self, policy: Policy) -> Certificate | None:
        """The next safer threshold that the audits which rang do not speak against; None where there is none.

        Their scores are on record. In a cascade a shown score does not tell the stage: there the next one is taken.
        """
        step = policy.certificate.safer()
        if policy.first_stage is not None:
            return step
        names = _names(policy)
        audits = [
            (trace.seen.score, trace.seen.label == trace.label)
            for _, trace in self.store.traces(origins={"audit"}, after=self.view.settings.line.watched)
            if trace.seen is not None and trace.seen.policy in names and trace.label != FAILED
        ]
        while step is not None:
            answered = [agreed for score, agreed in audits if score >= step.threshold]
            if sum(not agreed for agreed in answered) <= (1.0 - step.target) * len(answered):
                return step
            step = step.safer()
        return None

    def on_challenger(self) -> Notice | None:
        """Certify an estimate or a challenger where audits after it suffice, at the share of delta it was given."""
        settings = Settings.read(self.home)
        challenger = settings.challenger if settings is not None else None
        if (
            settings is None
            or settings.held
            or challenger is None
            or challenger.version not in self.registry.versions()
        ):
            return None
        policy = self.registry.load(challenger.version)
        audits = _plain(self.store, settings, challenger.since)
        if not audits:
            return None
        handled, agreed = self._decided(policy, audits)
        found = promote(policy.certificate, agreed.tolist(), challenger.level, handled=handled.tolist())
        if found is None:
            return None
        certificate = _by_audits(policy, found, challenger, [trace for _, trace in audits[: found.n_audits]])
        version = self.registry.active_version()  # what was in force at the look may have been demoted since
        if version is not None and version != policy.version:
            theirs = float(self._decided(self.registry.load(version), audits)[0].mean())
            if handled.mean() < theirs:
                replace(settings, challenger=None).write(self.home)
                note = f"policy {policy.version} is certified by audits, and handles less than {version}"
                self.registry.record("dropped", note=note, now=self.now, version=policy.version)
                return None
        version = recertified(self.registry, policy, certificate, self.now).version
        storage.step("promotion.saved")
        message = f"policy {policy.version} is certified by audits as {version}: {certificate.statement()}"
        line = replace(settings.line, decided=max(settings.line.decided, audits[found.index][0]))
        after = replace(settings.with_line(line), challenger=None, pending=version, event="promote", note=message)
        after.write(self.home)
        storage.step("promotion.decided")
        self.registry.activate(version, event="promote", note=message, now=self.now)
        storage.step("promotion.activated")
        replace(after, pending=None).write(self.home)
        return Notice("promotion", message)

    def _decided(self, policy: Policy, audits: Sequence[tuple[int, Trace]]) -> tuple[Any, Any]:
        """Handled (n,) and agreed (n,) of these audits under a policy: as it decided then, else as it decides now."""
        traces = [trace for _, trace in audits]
        if all(trace.seen is not None and trace.seen.policy == policy.version for trace in traces):
            handled = np.array([trace.seen is not None and trace.seen.handled for trace in traces])
            labels = [trace.seen.label if trace.seen is not None else "" for trace in traces]
        else:
            embed = self.embedder.embed if self.embedder is not None else None
            decisions = policy.decide([trace.text for trace in traces], None, embed)
            handled, labels = decisions.handled, list(decisions.labels)
        agreed = np.array([mine == trace.label for mine, trace in zip(labels, traces, strict=True)])
        return handled, agreed


def _plain(store: TraceStore, settings: Settings, after: int) -> list[tuple[int, Trace]]:
    """Plain samples of the task's traffic after a number: audits, and all that came without a policy.

    The first of each group, and none of a group that was there before: it may have trained what is judged.
    """
    line = settings.line
    dataset = traces_of(store, line)
    before = dataset.numbers <= after
    groups = {group for group, old in zip(dataset.groups, before.tolist(), strict=True) if old and group is not None}
    found = []
    for number, trace in store.traces(origins={"audit", "bootstrap"}, after=after):
        if not belongs(line.fingerprints, Fingerprint(trace.teacher, trace.prompt)) or trace.group in groups:
            continue
        found.append((number, trace))
        if trace.group is not None:
            groups.add(trace.group)
        if len(found) == _MOST_PLAIN:
            break
    return found


def _by_audits(policy: Policy, found: Promotion, challenger: Challenger, audits: Sequence[Trace]) -> Certificate:
    return replace(
        policy.certificate, guarantee="certified", level=challenger.level, attempt=challenger.attempt,
        n_shadow=found.n_audits, n_handled=found.n_handled, n_agreed=found.n_agreed, evidence="e-process",
        rank=1, n_candidates=1, n_tested=1, split_digest=ids_digest(trace.id for trace in audits), ladder=(),
        assumption="", n_reused=0, one_a_group=any(trace.group is not None for trace in audits),
        split=f"{found.n_audits} fresh audits, looked at after each",
    )  # fmt: skip


def _told(monitor: MonitorState) -> str:
    low, high = monitor.interval
    return (
        f"{monitor.n_agreed:,} of {monitor.n_handled:,} audits of what it handles agree "
        f"({low:.1%} to {high:.1%}, target {monitor.monitor.target:.1%})"
    )


def _now_answers(version: str | None) -> str:
    if version is None:
        return "The teacher answers everything; a refit is wanted."
    return f"Policy {version}, at the next safer threshold that was certified, answers in its place; a refit is wanted."
