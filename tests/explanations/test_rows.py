"""The rows a policy never trained on: recomputed, checked against its certificate, and refused where that fails."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracer import flywheel
from tracer.certification.certificate import Certificate
from tracer.config import FitConfig
from tracer.errors import EmbedderError, PolicyError, TraceError
from tracer.explanations.rows import failed_at, table_of, trained_on, unseen
from tracer.pipeline import Certified, Refused, fit
from tracer.policies.policy import Policy
from tracer.policies.registry import PolicyRegistry
from tracer.traces.rooms import Rooms, assign_rooms, ids_digest, traces_digest
from tracer.traces.store import TraceStore
from tracer.types import Dataset, EmbedderIdentity, LabelSpace

Fitted = tuple[Path, Certified]


def settings(home: Path) -> FitConfig:
    found = flywheel.Settings.read(home)
    assert found is not None
    return found.config


def pretend(policy: Policy, dataset: Dataset, n: int, config: FitConfig) -> Policy:
    """The policy, as if it had been fitted on the first n rows of a dataset."""
    digest = rooms_of(dataset, n, config).digest
    certificate: Certificate = replace(policy.certificate, split_digest=digest)
    report: dict[str, Any] = {
        "config": config.as_dict(), "n_traces": n, "traces_digest": traces_digest(dataset, n),
        "shadow_digest": digest,
    }  # fmt: skip
    return replace(policy, version="v0007", certificate=certificate, report=report)


def rooms_of(dataset: Dataset, n: int, config: FitConfig) -> Rooms:
    share = config.shadow_share_for(dataset.n_units)
    return assign_rooms(dataset.take(np.arange(n)), shadow_share=share, split=config.split)


def test_the_rows_are_those_that_certified_and_the_counts_come_out_again(fitted: Fitted) -> None:
    home, verdict = fitted
    dataset, policy = TraceStore.open(home).load(), PolicyRegistry(home).load()
    table = table_of(policy, dataset, settings(home))
    certificate = policy.certificate
    assert ids_digest(table.ids) == certificate.split_digest
    assert (len(table), int(table.handled.sum())) == (certificate.n_shadow, certificate.n_handled)
    assert int((table.handled & table.agree).sum()) == certificate.n_agreed
    assert table.certified
    assert table.policy == verdict.policy.version == "v0001"
    assert table.stands_on == (
        f"{certificate.n_shadow} shadow traces (by hash, share 0.3); policy v0001 trained on none of them; "
        f"they are the rows that certified policy v0001"
    )


def test_after_an_update_no_version_meets_a_row_it_trained_on(home: Path, messages: Dataset) -> None:
    new = replace(messages.take(np.arange(600, 900)), dense=None, embedder=None)
    flywheel.update(new, home=home)
    dataset, registry = TraceStore.open(home).load(), PolicyRegistry(home)
    assert len(dataset) == 900
    first, last = registry.load("v0001"), registry.load(registry.versions()[-1])
    found = unseen(dataset, settings(home), first, last)
    rooms = rooms_of(dataset, 900, settings(home))
    assert set(found.rows.ids) == {dataset.ids[i] for i in rooms.shadow}
    assert trained_on(first, dataset).sum() == len(rooms_of(dataset, 600, settings(home)).train)
    assert "policy v0001 and policy v0002 trained on none of them" in found.stands_on
    assert "certified policy v0002" in found.stands_on
    assert "certified policy v0001" not in found.stands_on


def test_foreign_traces_are_refused(home: Path, messages: Dataset) -> None:
    policy, config = PolicyRegistry(home).load(), settings(home)
    for rows in (np.arange(100, 900), np.arange(500), np.arange(1)):
        with pytest.raises(PolicyError, match="v0001 was fitted on other traces than those stored now"):
            unseen(replace(messages.take(rows), dense=None, embedder=None), config, policy)


def test_a_report_that_says_nothing_is_refused(tiny_policy: Policy, small_texts: Dataset) -> None:
    with pytest.raises(PolicyError, match="does not say what it was fitted on"):
        unseen(small_texts, FitConfig(), tiny_policy)
    with pytest.raises(PolicyError, match="does not say where its chain failed"):
        failed_at(tiny_policy)


def test_groups_that_trained_take_their_rows_along(tiny_policy: Policy) -> None:
    """An audit row may bring a trained group into the shadow room: the policy knows the group."""
    config = FitConfig(shadow_share=0.3)
    old = Dataset.from_columns(
        ["a", "b"] * 50, texts=[f"text {i}" for i in range(100)], groups=[f"g{i // 2}" for i in range(100)]
    )
    rooms = rooms_of(old, 100, config)
    trained, free = old.groups[rooms.train[0]], "new"
    both = Dataset.from_columns(
        [*old.labels, "a", "a"], texts=[*(old.texts or ()), "x", "y"], groups=[*old.groups, trained, free],
        ids=[*old.ids, "audit-1", "audit-2"], origins=[*old.origins, "audit", "audit"],
    )  # fmt: skip
    policy = pretend(tiny_policy, both, 100, config)
    assert "audit-1" in {both.ids[i] for i in rooms_of(both, 102, config).shadow}
    found = unseen(both, config, policy).rows
    assert "audit-1" not in found.ids
    assert "audit-2" in found.ids
    assert not {both.groups[i] for i in np.flatnonzero(trained_on(policy, both))} & set(found.groups)


def test_a_recent_split_that_moves_back_leaves_out_what_trained(tiny_policy: Policy) -> None:
    config = FitConfig(shadow_share=0.5, split="recent")
    labels, texts = ["a", "b"] * 20, [f"text {i}" for i in range(40)]
    # The ten rows that come later are older than all: the cut moves back into the old train room.
    times = np.concatenate([np.arange(30.0) + 100.0, np.arange(10.0)])
    dataset = Dataset.from_columns(labels, texts=texts, times=times)
    policy = pretend(tiny_policy, dataset, 30, config)
    shadow = set(rooms_of(dataset, 40, config).shadow.tolist())
    trained = set(rooms_of(dataset, 30, config).train.tolist())
    assert shadow & trained
    found = {int(i[5:]) for i in unseen(dataset, config, policy).rows.texts or ()}
    assert found == shadow - trained


def test_an_estimate_that_trained_on_everything_leaves_no_row(tiny_policy: Policy, small_texts: Dataset) -> None:
    config = FitConfig(guarantee="estimated")
    with pytest.raises(TraceError, match="v0007 trained on all 600 stored traces: none is left"):
        unseen(small_texts, config, pretend(tiny_policy, small_texts, 600, config))
    later = unseen(small_texts, config, pretend(tiny_policy, small_texts, 400, config)).rows
    assert set(later.ids) <= set(small_texts.ids[400:])


def test_the_best_candidate_of_a_refusal_is_shown_where_its_chain_failed(small_texts: Dataset) -> None:
    config = FitConfig(targets=(0.995,), features="lexical")
    verdict = fit(small_texts, config)
    assert isinstance(verdict, Refused)
    assert verdict.best is not None
    table = table_of(verdict.best, small_texts, config)
    attempt = verdict.report.attempts[0]
    assert not table.certified
    assert table.threshold == attempt.threshold
    assert int(table.handled.sum()) == attempt.n_handled
    assert int((table.handled & table.agree).sum()) == attempt.n_agreed
    assert "the candidate trained on none of them" in table.stands_on
    with pytest.raises(PolicyError, match="other traces"):
        table_of(verdict.best, small_texts.take(np.arange(599)), config)


def test_the_papers_rooms_are_found(small: Dataset) -> None:
    config = FitConfig(targets=(0.7,), mode="paper")
    verdict = fit(small, config)
    assert isinstance(verdict, Certified)
    table = table_of(verdict.policy, small, config)
    assert len(table) == verdict.certificate.n_shadow
    assert int(table.handled.sum()) == verdict.certificate.n_handled


def test_vectors_of_another_embedder_are_refused(policies: dict[str, Policy], small: Dataset) -> None:
    config = FitConfig(targets=(0.8,))
    policy = replace(
        pretend(policies["dense"], small, 600, config), embedder=EmbedderIdentity("one", small_width(small), "one")
    )
    other = small.with_dense(small.dense, EmbedderIdentity("other", small_width(small), "other"))  # type: ignore[arg-type]
    with pytest.raises(EmbedderError, match="expected embedder 'one'"):
        table_of(policy, other, config)


def small_width(small: Dataset) -> int:
    assert small.dense is not None
    return int(small.dense.shape[1])


def test_labels_of_the_policy_count_not_those_of_the_log(home: Path) -> None:
    """A label that came later is not learned: it never agrees."""
    dataset, policy = TraceStore.open(home).load(), PolicyRegistry(home).load()
    table = table_of(policy, dataset, settings(home))
    assert table.space == policy.space
    wider = dataset.with_space(LabelSpace((*dataset.space.names, "zebra")))
    again = table_of(policy, wider, settings(home))
    assert (again.y == table.y).all()


@pytest.mark.parametrize("features", ["lexical", "dense"])
def test_the_same_ids_in_another_order_are_other_traces(features: str, messages: Dataset) -> None:
    """A log that numbers its rows, read again in another order: ids and rooms of embeddings alone do not tell."""
    rows = messages.take(np.arange(600))
    numbered = replace(rows, ids=tuple(map(str, range(600))))
    dense = features == "dense"
    numbered = replace(numbered, texts=None) if dense else replace(numbered, dense=None, embedder=None)
    config = FitConfig(targets=(0.6,), shadow_share=0.3)
    verdict = fit(numbered, config)
    assert isinstance(verdict, Certified)
    policy = replace(verdict.policy, version="v0001")
    assert len(unseen(numbered, config, policy).rows) == verdict.certificate.n_shadow
    turned = replace(numbered.take(np.arange(600)[::-1]), ids=numbered.ids)
    with pytest.raises(PolicyError, match="other traces than those stored now"):
        unseen(turned, config, policy)
