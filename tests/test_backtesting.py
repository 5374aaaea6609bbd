"""The backtest: each batch is routed by the policy in force before it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from tracer import pipeline
from tracer.backtesting import Day, backtest
from tracer.config import FitConfig
from tracer.errors import ConfigError
from tracer.pipeline import Certified
from tracer.types import Dataset

LEXICAL = FitConfig(targets=(0.7,), features="lexical")
START = datetime(2026, 3, 1, 9, tzinfo=UTC)


@pytest.fixture(scope="module")
def dataset(messages: Dataset) -> Dataset:
    return replace(messages.take(np.arange(1000)), dense=None, embedder=None)


@pytest.fixture(scope="module")
def days(dataset: Dataset) -> tuple[Day, ...]:
    return backtest(dataset, LEXICAL, batches=2)


def test_the_first_batch_goes_to_the_teacher_whole(days: tuple[Day, ...]) -> None:
    first = days[0]
    assert (first.name, first.n, first.n_handled, first.n_agreed) == ("batch 1", 500, 0, 0)
    assert (first.coverage, first.agreement) == (0.0, None)
    assert first.interval() == (0.0, 1.0)


def test_a_batch_is_routed_by_the_policy_fitted_before_it(dataset: Dataset, days: tuple[Day, ...]) -> None:
    verdict = pipeline.fit(dataset.take(np.arange(500)), LEXICAL)
    assert isinstance(verdict, Certified)
    assert days[0].promoted
    second, last = days[1], dataset.take(np.arange(500, 1000))
    decisions = verdict.policy.decide(last.texts)
    agreed = [h and a == b for h, a, b in zip(decisions.handled, decisions.labels, last.labels, strict=True)]
    assert (second.n, second.n_handled, second.n_agreed) == (500, int(decisions.handled.sum()), sum(agreed))
    assert second.certified_coverage == days[0].certified_coverage == verdict.certificate.coverage
    assert second.coverage == second.n_handled / 500
    assert second.agreement == second.n_agreed / second.n_handled
    low, high = second.interval()
    assert low < second.agreement < high
    assert not second.promoted, "nothing is fitted after the last batch"


def test_days_are_calendar_days_in_order_of_time(dataset: Dataset) -> None:
    rng = np.random.default_rng(0)
    hours = rng.permutation(np.linspace(0, 47.9, len(dataset)))
    times = np.array([(START + timedelta(hours=float(h))).timestamp() for h in hours])
    seen: list[Day] = []
    days = backtest(replace(dataset, times=times), LEXICAL, on_day=seen.append)
    assert tuple(seen) == days
    assert [d.name for d in days] == ["2026-03-01", "2026-03-02", "2026-03-03"]
    dates = [datetime.fromtimestamp(t, UTC).date().isoformat() for t in times]
    assert [d.n for d in days] == [dates.count(d.name) for d in days]
    assert sum(d.n for d in days) == len(dataset)
    assert days[0].n_handled == 0
    assert days[2].n_handled > 0


def test_no_label_of_a_batch_is_seen_before_it_is_routed(dataset: Dataset, days: tuple[Day, ...]) -> None:
    labels = np.array(dataset.labels, dtype=object)
    labels[500:] = labels[500:][::-1]
    shuffled = replace(dataset, labels=tuple(labels), y=dataset.space.encode(list(labels)))
    other = backtest(shuffled, LEXICAL, batches=2)
    assert other[0] == days[0]
    assert (other[1].n_handled, other[1].certified_coverage) == (days[1].n_handled, days[1].certified_coverage)
    assert other[1].n_agreed < days[1].n_agreed


def test_a_log_of_one_day_falls_back_to_batches(dataset: Dataset, days: tuple[Day, ...]) -> None:
    times = np.array([(START + timedelta(seconds=i)).timestamp() for i in range(len(dataset))])
    turned = replace(dataset, times=times).take(np.arange(len(dataset))[::-1])
    assert backtest(turned, LEXICAL, batches=2) == days


def test_random_labels_promote_nothing(dataset: Dataset) -> None:
    few = dataset.take(np.arange(500))
    labels = np.random.default_rng(0).permutation(np.array(few.labels, dtype=object))
    random = Dataset.from_columns(list(labels), texts=few.texts)
    days = backtest(random, LEXICAL, batches=2)
    assert [(d.n_handled, d.promoted, d.certified_coverage) for d in days] == [(0, False, None)] * 2


def test_small_batches_wait_until_there_is_enough_to_fit(messages: Dataset) -> None:
    days = backtest(replace(messages.take(np.arange(300)), dense=None, embedder=None), LEXICAL, batches=3)
    assert [d.n for d in days] == [100, 100, 100]
    assert (days[0].promoted, days[1].n_handled) == (False, 0)


@pytest.mark.parametrize("batches", [0, 1, 1001])
def test_too_few_or_too_many_batches_are_refused(batches: int, dataset: Dataset) -> None:
    with pytest.raises(ConfigError, match=f"batches = {batches}: must lie between 2 and the 1000 traces"):
        backtest(dataset, LEXICAL, batches=batches)
