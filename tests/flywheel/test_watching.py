"""What audits make of a policy in force: alarms step down, warnings audit more, evidence promotes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from tracer import flywheel
from tracer.certification.certificate import Rung
from tracer.config import FitConfig
from tracer.flywheel.settings import Settings
from tracer.flywheel.watching import STATE, look, watch
from tracer.monitoring.promotion import log_evidence
from tracer.pipeline import Certified
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.traces.rooms import ids_digest
from tracer.traces.store import TraceStore
from tracer.types import FAILED, Dataset, Origin, Seen, Trace

AUDIT: tuple[Origin, ...] = ("audit",)


def read(home: Path) -> Settings:
    found = Settings.read(home)
    assert found is not None
    return found


def audits(home: Path, agreed: Sequence[bool], name: str, version: str | None = None, score: float = 0.9) -> None:
    """Audits of handled inputs, recorded as the policy in force saw them."""
    seen = Seen(version or PolicyRegistry(home).active_version() or "", "orders", handled=True, score=score)
    with TraceStore.open(home) as store:
        store.append(
            [
                Trace(f"{name}-{i}", f"a message {name} {i}", "orders" if right else "sales", origin="audit", seen=seen)
                for i, right in enumerate(agreed)
            ]
        )


@pytest.fixture
def laddered(home: Path) -> Path:
    """A home whose policy has one safer threshold to fall back on."""
    registry = PolicyRegistry(home)
    policy = registry.load()
    certificate = policy.certificate
    rung = Rung(certificate.threshold + 0.01, certificate.n_handled - 20, certificate.n_agreed - 20)
    ServingSettings(audit_rate=0.02).write(home)
    registry.activate(registry.save(replace(policy, certificate=replace(certificate, ladder=(rung,)))).version)
    return home


def test_an_alarm_steps_down_the_ladder_and_then_to_the_teacher(laddered: Path, now: datetime) -> None:
    registry = PolicyRegistry(laddered)
    before = registry.load()
    audits(laddered, [False] * 60, "bad", score=before.threshold)
    view, notices = watch(laddered, now=now)
    assert view.status == "alarm"
    assert [notice.kind for notice in notices] == ["alarm"]
    safer = registry.load()
    assert (safer.parent, safer.threshold) == (before.version, before.certificate.ladder[0].threshold)
    assert (read(laddered).refit, read(laddered).line.watched, read(laddered).pending) == (
        "an alarm at trace 660",
        660,
        None,
    )
    assert watch(laddered, now=now)[1] == (), "the watch starts anew: what rang once does not ring again"
    audits(laddered, [False] * 60, "worse")
    assert "The teacher answers everything" in watch(laddered, now=now)[1][0].message
    assert registry.active_version() is None
    assert look(laddered).status == "teacher"
    assert [e.event for e in registry.history() if e.event == "demote"] == ["demote", "demote"]


def test_an_alarm_passes_over_thresholds_that_its_own_audits_speak_against(laddered: Path, now: datetime) -> None:
    audits(laddered, [False] * 60, "bad", score=0.99)
    assert "The teacher answers everything" in watch(laddered, now=now)[1][0].message
    line = read(laddered).line
    assert (line.decided, line.released) == (660, 660), "what came before the alarm certifies no more"


def test_an_outage_of_the_teacher_demotes_nobody(laddered: Path, now: datetime) -> None:
    seen = Seen("v0002", "orders", handled=True, score=0.9)
    with TraceStore.open(laddered) as store:
        failed = [Trace(f"f{i}", f"a message {i}", FAILED, origin="audit", seen=seen) for i in range(100)]
        store.append(failed)
    view, notices = watch(laddered, now=now)
    assert (view.status, notices) == ("quiet", ())
    assert view.drift is not None
    assert [warning.kind for warning in view.drift.warnings()] == ["teacher_failed"]


def test_late_audits_of_a_demoted_version_say_nothing_of_its_successor(laddered: Path, now: datetime) -> None:
    registry = PolicyRegistry(laddered)
    before = registry.load()
    audits(laddered, [False] * 60, "bad", score=before.threshold)
    watch(laddered, now=now)
    safer = registry.active_version()
    audits(laddered, [False] * 60, "late", version=before.version)
    assert watch(laddered, now=now)[1] == ()
    assert registry.active_version() == safer


def test_a_warning_audits_more_until_all_is_quiet(laddered: Path, now: datetime) -> None:
    audits(laddered, [True] * 300, "first")
    n = 0
    while look(laddered).status == "quiet":
        audits(laddered, [False], f"bad{n}")
        n += 1
    view, notices = watch(laddered, now=now)
    assert view.status == "warn"
    assert [notice.kind for notice in notices] == ["warning"]
    assert ServingSettings.read(laddered).audit_rate == 0.04
    assert (read(laddered).calm_rate, read(laddered).refit) == (0.02, "a warning at trace 907")
    assert watch(laddered, now=now)[1] == (), "it is said once"
    audits(laddered, [True] * 300, "good")
    assert [notice.kind for notice in watch(laddered, now=now)[1]] == ["quiet"]
    assert (ServingSettings.read(laddered).audit_rate, read(laddered).calm_rate) == (0.02, None)


@pytest.mark.parametrize("damage", [None, b"", b"{", b'{"monitor": 3}', b"\xff"])
def test_a_lost_state_gives_the_same_view(damage: bytes | None, home: Path, now: datetime) -> None:
    agreed = (np.random.default_rng(1).random(200) < 0.9).tolist()
    audits(home, agreed[:80], "first")
    watch(home, now=now)
    audits(home, agreed[80:], "second")
    whole = look(home)
    assert whole.monitor is not None
    assert (whole.monitor.n_audits, whole.monitor.n_agreed) == (200, sum(agreed))
    if damage is None:
        (home / STATE).unlink()
    else:
        (home / STATE).write_bytes(damage)
    again = look(home)
    assert again.monitor is not None
    assert again.monitor.as_dict() == whole.monitor.as_dict()


def test_the_detector_goes_on_through_another_version(laddered: Path, now: datetime) -> None:
    audits(laddered, [True] * 30 + [False] * 3, "old")
    watch(laddered, now=now)
    registry = PolicyRegistry(laddered)
    registry.activate(registry.save(registry.load()).version)
    audits(laddered, [True] * 10, "new")
    view = look(laddered)
    assert view.monitor is not None
    assert (view.monitor.n_line, view.monitor.n_audits) == (43, 10)


def test_an_estimate_is_certified_by_audits(messages: Dataset, tmp_path: Path, now: datetime) -> None:
    config = FitConfig(targets=(0.6,), features="lexical", guarantee="estimated")
    texts = replace(messages, dense=None, embedder=None)
    assert isinstance(flywheel.fit(texts.take(np.arange(600)), home=tmp_path, config=config), Certified)
    challenger = read(tmp_path).challenger
    assert challenger is not None
    later = texts.take(np.arange(600, 1600))
    with TraceStore.open(tmp_path) as store:
        store.append(replace(later, origins=AUDIT * len(later)))
    _, notices = watch(tmp_path, now=now)
    assert [notice.kind for notice in notices] == ["promotion"]
    policy = PolicyRegistry(tmp_path).load()
    certificate = policy.certificate
    assert (certificate.guarantee, certificate.evidence) == ("certified", "e-process")
    assert certificate.level == challenger.level
    # Anyone can count again: the first audits, decided by this policy.
    counted = later.take(np.arange(certificate.n_shadow))
    decided = policy.decide(list(counted.texts or ()))
    agreed = np.array(decided.labels) == np.array(counted.labels)
    assert int(decided.handled.sum()) == certificate.n_handled
    assert int((decided.handled & agreed).sum()) == certificate.n_agreed
    assert certificate.split_digest == ids_digest(counted.ids)
    evidence = log_evidence(
        0.6, "agreement", None, certificate.n_disagreed, certificate.n_handled, certificate.n_shadow
    )
    assert float(evidence) >= -math.log(challenger.level)
    after = read(tmp_path)
    assert (after.challenger, after.line.decided) == (None, 600 + certificate.n_shadow)


def test_traffic_of_another_kind_is_told_and_never_demotes(home: Path, now: datetime) -> None:
    """Hardly anything is handled any more: a warning to read, and no step down."""
    with TraceStore.open(home) as store:
        facts: dict[str, int | dict[str, int]] = {
            "handled": 2,
            "audits": 0,
            "reasons": {"handled": 2, "low_score": 998},
            "predicted": {},
        }
        store.tally("v0001", now.timestamp(), 3600.0, 1000, facts)
    view, notices = watch(home, now=now)
    assert view.drift is not None
    assert notices == ()
    assert PolicyRegistry(home).active_version() == "v0001"
