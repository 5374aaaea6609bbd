"""The audit coin: its rate, its seed, its independence of everything else."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tracer.errors import ConfigError
from tracer.monitoring.audit import AuditCoin
from tracer.stats import binomial


def coin(rate: float, seed: int = 0) -> AuditCoin:
    return AuditCoin(rate, np.random.default_rng(seed))


def test_heads_come_at_the_rate() -> None:
    tosses = coin(0.02)
    heads = sum(tosses.toss() for _ in range(50_000))
    lower, upper = binomial.agreement_interval(heads, 50_000, 0.001)
    assert lower <= 0.02 <= upper


def test_the_seed_decides() -> None:
    one, same, other = coin(0.3, 1), coin(0.3, 1), coin(0.3, 2)
    tosses = [one.toss() for _ in range(200)]
    assert tosses == [same.toss() for _ in range(200)]
    assert tosses != [other.toss() for _ in range(200)]


def test_never_and_always() -> None:
    assert not any(coin(0.0).toss() for _ in range(1000))
    assert all(coin(1.0).toss() for _ in range(1000))


def test_the_rate_can_change_and_spends_the_same_numbers() -> None:
    changed, plain = coin(0.0, 5), coin(0.5, 5)
    for _ in range(10):
        changed.toss()
        plain.toss()
    changed.rate = 0.5
    assert changed.rate == 0.5
    assert [changed.toss() for _ in range(50)] == [plain.toss() for _ in range(50)]


def test_threads_share_one_stream() -> None:
    shared = coin(0.25, 9)
    with ThreadPoolExecutor(8) as threads:
        heads = sum(threads.map(lambda _: sum(shared.toss() for _ in range(500)), range(16)))
    alone = coin(0.25, 9)
    assert heads == sum(alone.toss() for _ in range(8000))


@pytest.mark.parametrize("rate", [-0.1, 1.5, float("nan")])
def test_impossible_rates_are_refused(rate: float) -> None:
    with pytest.raises(ConfigError, match="audit rate"):
        coin(rate)
    with pytest.raises(ConfigError, match="audit rate"):
        coin(0.5).rate = rate


def test_it_loads_numpy_alone() -> None:
    heavy = "('scipy', 'sklearn', 'sqlalchemy')"
    code = f"import sys, tracer.monitoring.audit; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
