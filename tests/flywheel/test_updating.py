"""update: fresh audits certify and train afterwards, the ledger is spent, and nothing is refitted on nothing."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from tracer import flywheel, pipeline
from tracer.config import FitConfig
from tracer.errors import NothingNewError
from tracer.explanations.rows import Stored
from tracer.features.dense import CallableEmbedder
from tracer.flywheel.updating import ShadowRoom
from tracer.pipeline import Certified
from tracer.policies import archive
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.policies.serving_settings import ServingSettings
from tracer.serving.router import Router
from tracer.stats import testing
from tracer.traces.rooms import assign_rooms
from tracer.traces.store import TraceStore
from tracer.types import FAILED, Dataset, Seen, Trace, Usage

CONFIG = FitConfig(targets=(0.8,), features="lexical")


def read(home: Path) -> flywheel.Settings:
    found = flywheel.Settings.read(home)
    assert found is not None
    return found


def rows(messages: Dataset, low: int, high: int, origin: Any = "audit") -> Dataset:
    some = replace(messages.take(np.arange(low, high)), dense=None, embedder=None)
    return replace(some, origins=(origin,) * len(some))


@pytest.fixture(scope="module")
def audited(fitted: tuple[Path, Certified], messages: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The fitted home after an update with 500 audits, and its verdict."""
    home = Path(shutil.copytree(fitted[0], tmp_path_factory.mktemp("audited") / "home"))
    return home, flywheel.update(rows(messages, 600, 1100), home=home)


@pytest.fixture(scope="module")
def easy(messages: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home of 1,000 messages at a target that every refit clears. Do not write to it."""
    home = tmp_path_factory.mktemp("easy") / "home"
    config = FitConfig(targets=(0.6,), features="lexical")
    flywheel.fit(rows(messages, 0, 1000, "bootstrap"), home=home, config=config)
    return home


@pytest.fixture
def after(audited: Any, tmp_path: Path) -> Path:
    return Path(shutil.copytree(audited[0], tmp_path / "home"))


def test_enough_fresh_audits_certify_alone_and_the_old_rows_train(audited: Any) -> None:
    home, verdict = audited
    line, dataset = read(home).line, TraceStore.open(home).load()
    room = ShadowRoom.of(dataset, CONFIG, replace(line, attempts=1, decided=600, released=0))
    assert (room.n_fresh, room.renewed, room.hopeless) == (500, True, False)
    assert room.n_needed >= room.n_older > 100, "never fewer than they replace"
    assert (line.attempts, line.decided, line.released) == (2, 1100, 600)
    assert (verdict.certificate.n_shadow, verdict.certificate.n_reused) == (500, 0)
    assert verdict.update.released
    shadow = assign_rooms(dataset, shadow_share=0.3, split="hash", released=600).shadow
    assert set(shadow.tolist()) == set(range(600, 1100))
    policy = PolicyRegistry(home).load(verdict.policy.version)
    trained = Stored(dataset, read(home).config).trained_on(policy)
    assert trained[:600].all()
    assert not trained[600:].any()


def test_no_row_both_trained_and_certified_a_version(after: Path, messages: Dataset) -> None:
    flywheel.update(rows(messages, 1100, 1900), home=after)
    assert read(after).line.released == 1100, "the audits of the update before are spent: they train"
    dataset, registry = TraceStore.open(after).load(), PolicyRegistry(after)
    assert len(registry.versions()) >= 3
    for version in registry.versions():
        report = registry.load(version).report
        n, released = int(report["n_traces"]), int(report["released"])
        rooms = assign_rooms(dataset.take(np.arange(n)), shadow_share=0.3, split="hash", released=released)
        assert rooms.digest == report["shadow_digest"]
        assert not set(rooms.shadow.tolist()) & set(rooms.train.tolist())
        assert not Stored(dataset, read(after).config).trained_on(registry.load(version))[rooms.shadow].any()


def test_few_audits_certify_together_with_old_rows_and_it_is_said(
    easy: Path, messages: Dataset, tmp_path: Path
) -> None:
    home = Path(shutil.copytree(easy, tmp_path / "home"))
    before = PolicyRegistry(home).load().certificate.n_shadow
    verdict = flywheel.update(rows(messages, 1000, 1020), home=home)
    assert isinstance(verdict, Certified)
    assert (verdict.certificate.n_shadow, verdict.certificate.n_reused) == (before + 20, before)
    assert verdict.update is not None
    assert not verdict.update.released
    assert read(home).line.released == 0


@pytest.mark.parametrize("origin", ["deferred", "requested", "fallback", "imported"])
def test_biased_traces_never_certify(origin: str, home: Path, messages: Dataset) -> None:
    verdict = flywheel.update(rows(messages, 600, 800, origin), home=home)
    assert verdict.report.n_shadow == 174
    assert verdict.report.n_train == 626
    assert verdict.update is not None
    assert verdict.update.standing is not None
    assert verdict.update.standing.n_fresh == 0


def test_each_attempt_spends_its_share(audited: Any, fitted: tuple[Path, Certified]) -> None:
    verdict = audited[1]
    first = fitted[1].certificate
    assert first.level <= testing.spending(0.05, 1) == pytest.approx(0.6 * 0.05, rel=0.02)
    standing = verdict.update.standing
    spent = testing.spending(0.05, 2)
    assert standing.level == pytest.approx(spent / 10)
    assert max(a.level for a in verdict.report.attempts) <= spent - standing.level + 1e-12
    certificate = verdict.certificate
    assert (certificate.attempt, certificate.ledger) == (2, "lifetime")
    p = stats.binom.cdf(certificate.n_disagreed, certificate.n_handled, 1 - certificate.target)
    assert p <= certificate.level


def test_the_policy_in_force_is_renewed_on_fresh_audits_alone(messages: Dataset, tmp_path: Path) -> None:
    """One that is far above its target, with a challenger that cannot handle more."""
    config = FitConfig(targets=(0.4,), features="lexical")
    flywheel.fit(rows(messages, 0, 600, "bootstrap"), home=tmp_path, config=config)
    verdict = flywheel.update(rows(messages, 600, 1000), home=tmp_path)
    assert verdict.update is not None
    standing = verdict.update.standing
    assert standing is not None
    assert (standing.state, standing.n_fresh) == ("renewed", 400)
    assert standing.certificate is not None
    p = stats.binom.cdf(standing.n_handled - standing.n_agreed, standing.n_handled, 0.6)
    assert p <= standing.level
    active = PolicyRegistry(tmp_path).load()
    if verdict.update.action == "renew":
        assert (active.parent, active.certificate) == ("v0001", standing.certificate)
    else:
        assert active.certificate.coverage >= 0.995 * (standing.coverage or 0.0)


def test_failed_audits_count_as_disagreements(home: Path, messages: Dataset) -> None:
    policy = PolicyRegistry(home).load()
    fresh = rows(messages, 600, 800)
    handled = policy.decide(list(fresh.texts or ())).handled
    failed = [Trace(i, t, FAILED, origin="audit") for i, t in zip(fresh.ids, fresh.texts or (), strict=True)]
    with TraceStore.open(home) as store:
        store.append(failed)
    verdict = flywheel.update(home=home)
    assert verdict.update is not None
    standing = verdict.update.standing
    assert standing is not None
    assert (standing.n_handled, standing.n_agreed) == (int(handled.sum()), 0)
    assert standing.state == "refuted"
    assert PolicyRegistry(home).active_version() != "v0001"


def test_nothing_new_is_no_attempt(after: Path, messages: Dataset) -> None:
    for arguments in ((), (rows(messages, 700, 800),)):
        with pytest.raises(NothingNewError, match="are known here already"):
            flywheel.update(*arguments, home=after)
    assert (read(after).attempts, len(PolicyRegistry(after).history())) == (2, 2)


def test_what_a_router_recorded_is_learned_without_a_log(home: Path, messages: Dataset) -> None:
    truth = dict(zip(messages.texts or (), messages.labels, strict=True))
    ServingSettings(audit_rate=0.3).write(home)
    recorded: list[Trace] = []
    router = Router.load(
        home, teacher=lambda text: truth[text], record=recorded.append, rng=np.random.default_rng(5)
    )  # fmt: skip
    router.route_many(list(messages.texts or ())[600:1400])
    with TraceStore.open(home) as store:
        store.append([replace(recorded[0], usage=Usage(7, 1), metadata={"k": "v"}), *recorded[1:]])
    verdict = flywheel.update(home=home)
    audits = sum(trace.origin == "audit" for trace in recorded)
    assert {trace.origin for trace in recorded} == {"audit", "deferred"}
    assert (verdict.report.n_shadow, verdict.report.n_traces) == (audits, 600 + len(recorded))
    with TraceStore.open(home) as store:
        first = next(trace for _, trace in store.traces(after=600))
    assert (first.usage, dict(first.metadata), first.seen) == (Usage(7, 1), {"k": "v"}, recorded[0].seen)
    assert isinstance(first.seen, Seen)
    assert first.seen.policy == "v0001"


def test_missing_vectors_are_embedded(messages: Dataset, embedder: CallableEmbedder, tmp_path: Path) -> None:
    config = FitConfig(targets=(0.7,), features="dense")
    flywheel.fit(rows(messages, 0, 600, "bootstrap"), home=tmp_path, config=config, embedder=embedder)
    columns = rows(messages, 600, 700)
    assert columns.texts is not None
    traces = [
        Trace(i, t, y, origin="audit") for i, t, y in zip(columns.ids, columns.texts, columns.labels, strict=True)
    ]
    with TraceStore.open(tmp_path) as store:
        store.append(traces)
        assert store.facts().n_embedded == 600
    verdict = flywheel.update(home=tmp_path, embedder=embedder)
    assert verdict.report.n_traces == 700
    with TraceStore.open(tmp_path) as store:
        assert store.facts().n_embedded == 700
        dense = store.load().dense
    assert dense is not None
    assert messages.dense is not None
    assert np.allclose(dense[600:], messages.dense[600:700], atol=1e-6)


def test_a_warm_update_decides_as_a_fit_from_scratch(messages: Dataset, tmp_path: Path, now: datetime) -> None:
    """Same traces, same rooms: 99.5% of unseen messages are decided equally. A replay is the same to the byte."""
    home = tmp_path / "home"
    config = FitConfig(targets=(0.7,), features="lexical")
    flywheel.fit(rows(messages, 0, 2000, "bootstrap"), home=home, config=config)
    incumbent = PolicyRegistry(home).load()
    updated = flywheel.update(rows(messages, 2000, 2020), home=home, now=now)
    dataset, config = TraceStore.open(home).load(), read(home).config
    assert isinstance(updated, Certified)

    def anew() -> Policy:
        found = pipeline.refit(dataset, config, attempt=2, decided=2000, parent="v0001", incumbent=incumbent, now=now)
        assert isinstance(found.verdict, Certified)
        report = {key: value for key, value in found.verdict.policy.report.items() if key != "seconds"}
        return replace(found.verdict.policy, report=report)

    theirs = anew()
    assert archive.dump(theirs) == archive.dump(anew())
    texts = list(messages.texts or ())[2020:]
    one, two = updated.policy.decide(texts), theirs.decide(texts)
    equal = (one.handled == two.handled) & (~one.handled | (np.array(one.labels) == np.array(two.labels)))
    assert equal.mean() >= 0.995


def test_an_estimate_waits_for_audits_as_a_challenger(messages: Dataset, tmp_path: Path) -> None:
    config = FitConfig(targets=(0.7,), features="lexical", guarantee="estimated")
    verdict = flywheel.fit(rows(messages, 0, 600, "bootstrap"), home=tmp_path, config=config)
    assert isinstance(verdict, Certified)
    challenger = read(tmp_path).challenger
    assert challenger is not None
    assert (challenger.version, challenger.attempt, challenger.since) == (verdict.policy.version, 1, 600)
    assert challenger.level == testing.spending(0.05, 1)
