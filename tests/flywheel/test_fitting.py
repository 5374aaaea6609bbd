"""fit and update on disk: nothing is lost, whatever raises."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracer import flywheel, storage
from tracer.config import FitConfig
from tracer.errors import BadTraceError, ConfigError, EmbedderError, FeatureError, StoreError, TraceError, TracerError
from tracer.explanations import artefacts
from tracer.explanations.artefacts import Artefacts
from tracer.features.dense import PROBE_TEXTS, CallableEmbedder
from tracer.pipeline import Certified, Refused
from tracer.policies import archive
from tracer.policies.registry import PolicyRegistry
from tracer.serving.router import Router
from tracer.traces.store import TraceStore
from tracer.types import Dataset, Trace

LEXICAL = FitConfig(targets=(0.8,), features="lexical")
Contents = Callable[[Path], dict[str, bytes]]


@pytest.fixture(scope="module")
def more(messages: Dataset) -> Dataset:
    """150 further messages, and the last 50 of those already fitted."""
    return replace(messages.take(np.arange(550, 750)), dense=None, embedder=None)


def nonsense(dataset: Dataset) -> Dataset:
    """The same texts under new ids and labels that mean nothing."""
    labels = list(np.random.default_rng(0).permutation(np.array(dataset.labels, dtype=object)))
    return Dataset.from_columns(labels, texts=dataset.texts, ids=[f"bad-{i}" for i in dataset.ids])


def written(path: Path, dataset: Dataset, extra: str = "") -> Path:
    assert dataset.texts is not None
    lines = [
        json.dumps({"id": i, "input": t, "teacher": label})
        for i, t, label in zip(dataset.ids, dataset.texts, dataset.labels, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n" + extra, encoding="utf-8")
    return path


def test_a_fit_leaves_a_version_the_traces_and_the_settings(
    fitted: tuple[Path, Certified], small_texts: Dataset
) -> None:
    folder, verdict = fitted
    registry = PolicyRegistry(folder)
    assert registry.versions() == ("v0001",) == (registry.active_version(),)
    assert verdict.policy.version == "v0001"
    assert archive.dump(registry.load()) == archive.dump(verdict.policy)
    stored = TraceStore.open(folder).load()
    assert (stored.ids, stored.texts, stored.labels) == (small_texts.ids, small_texts.texts, small_texts.labels)
    settings = flywheel.Settings.read(folder)
    assert settings is not None
    assert settings.config == replace(LEXICAL, shadow_share=0.3), "the share is kept, so no trace changes room"
    assert (settings.embedder, settings.attempts) == (None, 1)
    there = {
        ".fit.lock", ".lock", "ACTIVE", "artefacts", "columns", "history.jsonl", "policies", "serving.json",
        "settings.json", "traces.sqlite", "training.safetensors",
    }  # fmt: skip
    assert {p.name for p in folder.iterdir()} - {"traces.sqlite-wal", "traces.sqlite-shm"} == there


def test_without_a_home_nothing_is_written(
    small_texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fitted: tuple[Path, Certified], now: datetime
) -> None:
    monkeypatch.chdir(tmp_path)
    verdict = flywheel.fit(small_texts, home=None, config=LEXICAL, now=now)
    assert list(tmp_path.iterdir()) == []
    assert isinstance(verdict, Certified)
    assert verdict.policy.version == ""
    assert verdict.certificate == fitted[1].certificate


def test_an_update_merges_by_id(home: Path, more: Dataset, now: datetime) -> None:
    verdict = flywheel.update(more, home=home, now=now)
    assert isinstance(verdict, Certified)
    assert (verdict.policy.version, verdict.policy.parent) == ("v0002", "v0001")
    stored = TraceStore.open(home).load()
    assert len(stored) == 750 == len(set(stored.ids))
    assert verdict.report.n_traces == 750
    settings = flywheel.Settings.read(home)
    assert settings is not None
    assert (settings.attempts, settings.line.decided) == (2, 750)
    assert Router.load(home, version="v0001").policy is not None, "the old version is still there to roll back to"


def test_an_update_promotes_what_handles_more(small_texts: Dataset, more: Dataset, tmp_path: Path) -> None:
    flywheel.fit(small_texts, home=tmp_path, config=replace(LEXICAL, ledger="promotion"))
    verdict = flywheel.update(more, home=tmp_path)
    assert isinstance(verdict, Certified)
    assert verdict.update is not None
    standing = verdict.update.standing
    assert standing is not None
    assert standing.coverage is not None
    assert verdict.certificate.coverage > standing.coverage
    assert PolicyRegistry(tmp_path).active_version() == verdict.policy.version == verdict.update.active == "v0002"


def test_an_update_is_the_fit_of_all_traces(
    small_texts: Dataset, more: Dataset, messages: Dataset, tmp_path: Path, now: datetime
) -> None:
    """With a policy in force that cannot be tested on so few fresh traces, the challenger has all of the level."""
    config = replace(LEXICAL, ledger="promotion")
    flywheel.fit(small_texts, home=tmp_path, config=config)
    updated = flywheel.update(more, home=tmp_path, now=now)
    whole = replace(messages.take(np.arange(750)), dense=None, embedder=None)
    anew = flywheel.fit(whole, home=None, config=config, now=now)
    assert isinstance(updated, Certified)
    assert isinstance(anew, Certified)
    assert updated.certificate.n_reused == 174
    assert replace(updated.certificate, attempt=1, n_reused=0) == replace(anew.certificate, n_reused=0)
    assert archive.dump(updated.policy)[archive.ARRAYS] == archive.dump(anew.policy)[archive.ARRAYS]


@pytest.mark.parametrize("way", ["keep", "teacher"])
def test_a_refusal_keeps_the_policy_or_falls_back(way: Any, home: Path, small_texts: Dataset) -> None:
    biased = nonsense(small_texts)
    verdict = flywheel.update(replace(biased, origins=("deferred",) * 600), home=home, on_refusal=way)
    assert isinstance(verdict, Refused)
    assert PolicyRegistry(home).active_version() == ("v0001" if way == "keep" else None)
    assert PolicyRegistry(home).versions() == ("v0001",)
    assert len(TraceStore.open(home).load()) == 1200, "the traces are kept: they are true"


def test_a_first_fit_that_is_refused_leaves_the_teacher(small_texts: Dataset, tmp_path: Path) -> None:
    verdict = flywheel.fit(nonsense(small_texts), home=tmp_path / "h", config=LEXICAL)
    assert isinstance(verdict, Refused)
    assert PolicyRegistry(tmp_path / "h").active_version() is None
    assert len(TraceStore.open(tmp_path / "h").load()) == 600


BAD: dict[str, tuple[Callable[[Dataset, Path], Any], type[TracerError], str]] = {
    "a log with a bad line": (
        lambda d, p: written(p / "bad.jsonl", d.take(np.arange(5)), '{"id": "z"}\n'), BadTraceError, "bad.jsonl:6",
    ),
    "a log that is not there": (lambda d, p: p / "none.jsonl", TraceError, "none.jsonl"),
    "an empty list": (lambda d, p: [], TraceError, "there are no traces"),
    "embeddings that the old ones lack": (
        lambda d, p: replace(d, dense=np.ones((len(d), 3), dtype=np.float32)), TraceError, "only the new traces",
    ),
    "no texts": (
        lambda d, p: replace(d, texts=None, dense=np.ones((len(d), 3), dtype=np.float32)), TraceError, "has texts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_an_update_that_raises_changes_nothing(
    name: str, home: Path, more: Dataset, tmp_path: Path, contents: Contents
) -> None:
    make, error, message = BAD[name]
    before = contents(home)
    with pytest.raises(error, match=message):
        flywheel.update(make(more, tmp_path), home=home)
    assert contents(home) == before


def test_a_fit_that_raises_changes_nothing(home: Path, contents: Contents) -> None:
    before = contents(home)
    one = Dataset.from_columns(["x"] * 30, texts=[f"text {i}" for i in range(30)])
    with pytest.raises(TraceError, match="all traces carry one label"):
        flywheel.fit(one, home=home)
    assert contents(home) == before


@pytest.mark.parametrize(("method", "n"), [("append", 600), ("load", 750)])
def test_a_store_that_fails_keeps_the_policy_in_force(
    method: str, n: int, home: Path, more: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(TraceStore, method, crash)
        with pytest.raises(OSError, match="no space left"):
            flywheel.update(more, home=home)
    assert PolicyRegistry(home).active_version() == "v0001"
    assert len(TraceStore.open(home).load()) == n, "what was stored stays stored"
    assert Router.load(home).policy is not None
    arguments = () if n == 750 else (more,)
    assert isinstance(flywheel.update(*arguments, home=home), Certified), "and the next update works"


def test_labels_that_mean_nothing_refute_the_policy(home: Path, small_texts: Dataset) -> None:
    verdict = flywheel.update(nonsense(small_texts), home=home)
    assert verdict.update is not None
    assert verdict.update.standing is not None
    assert (verdict.update.action, verdict.update.standing.state) == ("demote", "refuted")
    assert PolicyRegistry(home).active_version() == verdict.update.active != "v0001"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"3", b"\xff", b'{"config": {}}', b'{"config": null, "embedder": null, "attempts": 1}',
        b'{"config": {"targt": 1}, "embedder": null, "attempts": 1}',
        b'{"config": {"delta": 2}, "embedder": null, "attempts": 1}',
        b'{"config": {"delta": "x"}, "embedder": null, "attempts": 1}',
        b'{"config": {"teacher_usd": "x"}, "embedder": null, "attempts": 1}',
        b'{"config": {"error_costs": 3}, "embedder": null, "attempts": 1}',
        b'{"config": {}, "embedder": null, "attempts": "many"}',
    ],
)  # fmt: skip
def test_damaged_settings_are_a_config_error(content: bytes, home: Path, more: Dataset) -> None:
    (home / "settings.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"settings\.json"):
        flywheel.update(more, home=home)


def test_an_update_needs_a_fit(tmp_path: Path, more: Dataset) -> None:
    with pytest.raises(TraceError, match="nothing was fitted here yet"):
        flywheel.update(more, home=tmp_path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="on_refusal = 'panic': must be 'keep' or 'teacher'"):
        flywheel.update(more, home=tmp_path, on_refusal="panic")  # type: ignore[arg-type]


def test_a_fit_of_nothing_says_so_and_leaves_nothing(tmp_path: Path) -> None:
    for home in (tmp_path, tmp_path / "none"):
        with pytest.raises(TraceError, match="no traces are stored here: give a log"):
            flywheel.fit(home=home)
    assert list(tmp_path.iterdir()) == []


def test_every_way_to_give_traces_gives_the_same_policy(
    small_texts: Dataset, fitted: tuple[Path, Certified], tmp_path: Path, now: datetime
) -> None:
    assert small_texts.texts is not None
    columns = zip(small_texts.ids, small_texts.texts, small_texts.labels, strict=True)
    given: list[dict[str, Any]] = [
        {"traces": [Trace(i, t, label) for i, t, label in columns]},
        {"traces": written(tmp_path / "log.jsonl", small_texts)},
        {"texts": small_texts.texts, "labels": small_texts.labels},
    ]
    for arguments in given:
        dataset = flywheel.read(arguments.pop("traces", None), **arguments)[0]
        assert (dataset.texts, dataset.labels) == (small_texts.texts, small_texts.labels)
    verdict = flywheel.fit(
        texts=small_texts.texts, labels=small_texts.labels, home=None, target=0.8, features="lexical", now=now
    )
    assert isinstance(verdict, Certified)
    assert (verdict.certificate.n_handled, verdict.certificate.threshold) == (
        fitted[1].certificate.n_handled, fitted[1].certificate.threshold,
    )  # fmt: skip


def test_arguments_that_contradict_are_refused(small_texts: Dataset, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="give traces, or texts and labels"):
        flywheel.read(None)
    with pytest.raises(TraceError, match="not both"):
        flywheel.read(small_texts, labels=["x"])
    with pytest.raises(ConfigError, match="unknown settings: alpha"):
        flywheel.fit(small_texts, home=None, alpha=0.05)
    with pytest.raises(FeatureError, match=r"not a readable \.npy file"):
        flywheel.read(small_texts, embeddings=tmp_path / "none.npy")
    with pytest.raises(FeatureError, match=r"two-dimensional \(n, d\), not \(3,\)"):
        flywheel.read(small_texts, embeddings=np.ones(3))
    with pytest.raises(FeatureError, match="embeddings has 3 rows, labels has 600"):
        flywheel.read(small_texts, embeddings=np.ones((3, 2)))
    log = written(tmp_path / "log.jsonl", small_texts)
    with pytest.raises(FeatureError, match="3 embeddings, 600 records"):
        flywheel.read(log, embeddings=np.ones((3, 2)))


def test_settings_and_target_reach_the_config(small_texts: Dataset) -> None:
    verdict = flywheel.fit(
        small_texts, home=None, config=LEXICAL, target=0.7, delta=0.1, teacher_usd="0.01",
        error_costs={small_texts.space.names[0]: 0.0},
    )  # fmt: skip
    config = FitConfig.from_dict(verdict.report.config)
    assert (config.targets, config.delta, config.features) == ((0.7,), 0.1, "lexical")
    assert config.teacher_usd == Decimal("0.01")


def test_declared_labels_are_kept_through_updates(small_texts: Dataset, more: Dataset, tmp_path: Path) -> None:
    names = [*small_texts.space.names, "never seen"]
    verdict = flywheel.fit(small_texts, home=tmp_path / "h", config=LEXICAL, label_set=names)
    assert isinstance(verdict, Certified)
    assert verdict.policy.space.names == tuple(names)
    again = flywheel.update(more, home=tmp_path / "h")
    assert isinstance(again, Certified)
    assert (again.policy.space.names, again.policy.space.declared) == (tuple(names), True)


def test_a_lifetime_ledger_counts_attempts_across_updates(small_texts: Dataset, more: Dataset, tmp_path: Path) -> None:
    config = replace(LEXICAL, ledger="lifetime", targets=(0.7,))
    first = flywheel.fit(small_texts, home=tmp_path / "h", config=config)
    second = flywheel.update(more, home=tmp_path / "h")
    assert isinstance(first, Certified)
    assert isinstance(second, Certified)
    assert (first.certificate.attempt, second.certificate.attempt) == (1, 2)
    assert second.certificate.level < first.certificate.level / 2


# With an embedder.


def test_a_fit_with_an_embedder_serves_with_it_and_with_no_other(
    messages: Dataset, embedder: CallableEmbedder, tmp_path: Path
) -> None:
    folder = tmp_path / "h"
    past = replace(messages.take(np.arange(700)), dense=None, embedder=None)
    verdict = flywheel.fit(past, home=folder, embedder=embedder, target=0.75, features="dense")
    assert isinstance(verdict, Certified)
    assert verdict.policy.embedder == embedder.identity
    assert verdict.policy.probes is not None
    assert np.array_equal(verdict.policy.probes, embedder.embed(PROBE_TEXTS))
    stored = TraceStore.open(folder).load()
    assert stored.embedder == embedder.identity
    assert messages.texts is not None
    live = messages.texts[700:720]
    answers = Router.load(folder, embedder=embedder).route_many(live)
    assert "error" not in {a.reason for a in answers}
    other = CallableEmbedder(lambda texts: np.ones((len(texts), 384)), "other", digest="o")
    with pytest.raises(EmbedderError, match="expected embedder 'table'"):
        Router.load(folder, embedder=other)
    new = replace(messages.take(np.arange(700, 720)), dense=None, embedder=None)
    before = PolicyRegistry(folder).versions()
    with pytest.raises(TraceError, match="made by 'table', the new ones by 'other'"):
        flywheel.update(new, home=folder, embedder=other)
    with pytest.raises(TraceError, match="only the stored traces have embeddings"):
        flywheel.update(new, home=folder)
    assert PolicyRegistry(folder).versions() == before
    assert len(TraceStore.open(folder).load()) == 700


def test_given_embeddings_must_be_those_of_the_embedder(small: Dataset, embedder: CallableEmbedder) -> None:
    assert small.dense is not None
    config = FitConfig()
    silent: Callable[[str, int, int], None] = lambda _what, _done, _total: None  # noqa: E731
    dataset, encodings = flywheel.embed_dataset(small, embedder, config, silent)
    assert dataset.embedder == embedder.identity
    assert encodings is not None
    assert encodings.labels.shape == (len(small.space), 384)
    turned = replace(small, dense=np.ascontiguousarray(small.dense[::-1]))
    with pytest.raises(EmbedderError, match="the given embeddings are not those of embedder 'table'"):
        flywheel.embed_dataset(turned, embedder, config, silent)
    narrow = replace(small, dense=small.dense[:, :5], embedder=None)
    with pytest.raises(EmbedderError, match="embeddings have 5 columns, embedder 'table' gives 384"):
        flywheel.embed_dataset(narrow, embedder, config, silent)


def test_a_text_with_a_lone_surrogate_is_fitted_and_kept(small_texts: Dataset, tmp_path: Path) -> None:
    """``json.loads`` gives one for an emoji cut in half, and a log of one such line must not stop a fit."""
    assert small_texts.texts is not None
    texts = ("cut \ud83d emoji", *small_texts.texts[1:])
    verdict = flywheel.fit(replace(small_texts, texts=texts), home=tmp_path / "h", config=LEXICAL)
    assert isinstance(verdict, Certified)
    assert TraceStore.open(tmp_path / "h").load().texts == texts


def test_equal_texts_without_ids_are_new_requests_in_another_log(small_texts: Dataset, tmp_path: Path) -> None:
    texts, labels = list(small_texts.texts or ())[:400], list(small_texts.labels)[:400]
    flywheel.fit(texts=texts, labels=labels, target=0.6, features="lexical", home=tmp_path)
    more = flywheel.update(
        texts=[*texts[:50], "something that nobody said before"], labels=[*labels[:50], labels[0]], home=tmp_path
    )
    assert more.report.n_traces == 451
    with pytest.raises(TraceError, match="known here already"):
        flywheel.update(texts=texts, labels=labels, home=tmp_path)


def test_a_refused_fit_leaves_what_stands(small_texts: Dataset, tmp_path: Path) -> None:
    flywheel.fit(small_texts, target=0.6, features="lexical", home=tmp_path)
    before = (tmp_path / "ACTIVE").read_text(), TraceStore.open(tmp_path).load().ids
    verdict = flywheel.fit(small_texts.take(np.arange(60)), target=0.99, features="lexical", home=tmp_path)
    assert isinstance(verdict, Refused)
    assert ((tmp_path / "ACTIVE").read_text(), TraceStore.open(tmp_path).load().ids) == before
    settings = flywheel.Settings.read(tmp_path)
    assert settings is not None
    assert (settings.config.target, settings.attempts) == (0.6, 2)


def test_two_fits_at_once_in_one_home(small_texts: Dataset, tmp_path: Path) -> None:
    with storage.locked(tmp_path, ".fit.lock"), pytest.raises(TracerError, match="another process is fitting here"):
        flywheel.fit(small_texts, target=0.6, features="lexical", home=tmp_path)


def test_each_refit_leaves_its_artefacts(
    small_texts: Dataset, messages: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = replace(messages, dense=None, embedder=None)
    folder = tmp_path / flywheel.ARTEFACTS
    first = flywheel.fit(small_texts, home=tmp_path, config=LEXICAL)
    assert isinstance(first, Certified)
    one = Artefacts.from_dict(json.loads((folder / "v0001.json").read_text(encoding="utf-8")))
    certificate = first.certificate
    assert (one.n_rows, one.n_handled, one.n_agreed) == (
        certificate.n_shadow, certificate.n_handled, certificate.n_agreed,
    )  # fmt: skip
    assert one.deltas is None
    second = flywheel.update(texts.take(np.arange(600, 1200)), home=tmp_path)
    assert isinstance(second, Certified)
    two = Artefacts.from_dict(json.loads((folder / "v0002.json").read_text(encoding="utf-8")))
    assert two.certified
    assert two.deltas is not None, "against the policy in force before, on rows that neither trained on"
    assert caplog.text == ""


def test_a_refusal_leaves_the_artefacts_of_its_best_candidate(small_texts: Dataset, tmp_path: Path) -> None:
    flywheel.fit(small_texts, home=tmp_path, config=replace(LEXICAL, targets=(0.99,)))
    refused = Artefacts.from_dict(json.loads((tmp_path / flywheel.ARTEFACTS / "refused.json").read_text("utf-8")))
    assert not refused.certified
    assert refused.disagreements.n > 0


def test_artefacts_that_cannot_be_made_cost_no_fit(
    small_texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("my secret text")

    monkeypatch.setattr(artefacts, "build", broken)
    verdict = flywheel.fit(small_texts, home=tmp_path, config=LEXICAL)
    assert isinstance(verdict, Certified)
    assert (tmp_path / "ACTIVE").read_text().strip() == verdict.policy.version
    assert "ZeroDivisionError" in caplog.text
    assert "secret" not in caplog.text


# From the store, and what a fit may not lose.


def records(dataset: Dataset, origin: Any) -> list[Trace]:
    columns = zip(dataset.ids, dataset.texts or (), dataset.labels, strict=True)
    return [Trace(i, t, label, origin=origin) for i, t, label in columns]


def test_a_log_that_holds_all_stored_traces_adds_its_new_ones(home: Path, messages: Dataset) -> None:
    longer = replace(messages.take(np.arange(700)), dense=None, embedder=None)
    flywheel.fit(longer, home=home, config=LEXICAL)
    settings = flywheel.Settings.read(home)
    assert settings is not None
    assert TraceStore.open(home).load().ids == longer.ids
    assert (settings.attempts, settings.line.decided) == (2, 700)


def test_a_relabelled_log_takes_the_old_ones_place_and_the_ledger_goes_on(home: Path, small_texts: Dataset) -> None:
    labels = list(small_texts.labels)
    labels[0] = next(name for name in small_texts.space.names if name != labels[0])
    new = Dataset.from_columns(labels, texts=small_texts.texts, ids=small_texts.ids)
    flywheel.fit(new, home=home, config=replace(LEXICAL, targets=(0.6,)))
    settings = flywheel.Settings.read(home)
    assert settings is not None
    with TraceStore.open(home) as store:
        assert store.load().labels == tuple(labels)
        assert (settings.attempts, settings.line.decided) == (2, store.through())


def test_traces_recorded_while_routing_are_not_dropped_unasked(home: Path, more: Dataset) -> None:
    with TraceStore.open(home) as store:
        store.append(records(more.take(np.arange(100, 110)), "audit"))
    with pytest.raises(StoreError, match="10 of 610 traces were recorded while routing"):
        flywheel.fit(more, home=home, config=LEXICAL)
    assert len(TraceStore.open(home).load()) == 610
    verdict = flywheel.fit(more, home=home, config=replace(LEXICAL, targets=(0.3,)), discard=True)
    assert isinstance(verdict, Certified)
    assert TraceStore.open(home).load().ids == more.ids


def test_a_fit_without_a_log_fits_what_is_stored(small_texts: Dataset, tmp_path: Path) -> None:
    with TraceStore.open(tmp_path) as store:
        store.append(small_texts)
    verdict = flywheel.fit(home=tmp_path, config=LEXICAL)
    assert isinstance(verdict, Certified)
    assert verdict.report.n_traces == 600


def test_tasks_in_one_database_do_not_see_each_other(
    postgres: str, messages: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = replace(messages, dense=None, embedder=None)
    monkeypatch.setenv(flywheel.DATABASE_URL, postgres)
    easy = replace(LEXICAL, targets=(0.5,))
    for task, rows in (("a", np.arange(300)), ("b", np.arange(300, 700))):
        flywheel.fit(texts.take(rows), home=tmp_path / task, config=easy, task=task)
        settings = flywheel.Settings.read(tmp_path / task)
        assert settings is not None
        assert (settings.store, settings.task) == ("postgresql", task)
    assert flywheel.update(texts.take(np.arange(700, 720)), home=tmp_path / "a").report.n_traces == 320
    with TraceStore.open(postgres, task="b") as store:
        assert store.count() == 400
    monkeypatch.delenv(flywheel.DATABASE_URL)
    with pytest.raises(ConfigError, match="set DATABASE_URL"):
        flywheel.update(texts.take(np.arange(720, 740)), home=tmp_path / "a")


def test_another_store_than_the_one_fitted_on_is_refused(home: Path, more: Dataset) -> None:
    for path in home.glob("traces.sqlite*"):
        path.unlink()
    with pytest.raises(StoreError, match="is another trace store"):
        flywheel.update(more, home=home)


def test_only_a_postgres_url_moves_the_traces(
    small_texts: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(flywheel.DATABASE_URL, "mysql://somebody@somewhere/app")
    flywheel.fit(small_texts, home=tmp_path, config=LEXICAL)
    assert (tmp_path / "traces.sqlite").exists()
