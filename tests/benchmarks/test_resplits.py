"""The benchmark on real traces runs the product's own gate, and counts against the pool."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import common, resplits
from benchmarks.resplits import Bench, Population, Row, Setting, Source
from tracer import pipeline
from tracer.certification.proposals import ACCEPT_ALL
from tracer.pipeline import Certified
from tracer.types import Dataset


@pytest.mark.parametrize(("target", "intents"), [(0.7, False), (0.8, True)])
def test_the_gate_is_the_products(messages: Dataset, target: float, intents: bool) -> None:
    """The pool itself as the one shadow room gives the certificate that a fit on the same traces gives."""
    traces = messages.take(np.arange(1500))
    part = common.Part(traces, None, "")  # type: ignore[arg-type]
    bench = Bench(Source("northlight", "", (target,), intents=intents), part, 0)
    setting = Setting(target, 0.05, len(bench.pool))
    entrants, contenders = bench._entrants(setting)
    out = resplits._ours(entrants, contenders, setting, np.arange(len(bench.pool))[None, :])

    drawn = common.draw(traces, round(0.8 * len(traces)), 0)
    verdict = pipeline.fit(drawn, setting.config)
    assert isinstance(verdict, Certified)
    assert (out["promoted"], out["violations"], out["handled"]) == (1, 0, verdict.certificate.n_handled)
    if intents:
        cell = bench.measure(setting, 0, 3)
        assert cell["cache_certified"].keys() == out.keys()
        assert 0 <= cell["ours"]["handled"] <= 3 * len(bench.pool)


def test_counts_on_the_pool() -> None:
    """Handled 1, 3, 4 and none: agreement 1, 2/3, 3/4 and a refusal."""
    population = Population(np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, True, False, True]))
    thresholds = np.array([0.9, 0.5, ACCEPT_ALL, np.inf])
    assert population.tally(thresholds, 0.75) == {"promoted": 3, "violations": 1, "handled": 8}
    assert population.oracle(0.75) == 4
    assert population.oracle(0.76) == 1


def test_a_share_beyond_delta_is_found() -> None:
    """75 violations in 1,000 draws are too many at 0.05 and few at 0.10."""
    counts = {"n": 500, "ours": {"promoted": 1000, "violations": 75, "handled": 0}, "pool": 10}
    assert Row("x", counts | {"delta": 0.05}, 500, 2).p_value < 0.001
    assert Row("x", counts | {"delta": 0.10}, 500, 2).p_value > 0.99
