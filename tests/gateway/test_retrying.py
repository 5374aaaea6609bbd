from __future__ import annotations

import random

import pytest

from tracer.errors import ConfigError
from tracer.gateway.retrying import Retries, retry_after


def test_waits_are_uniform_below_a_doubling_cap() -> None:
    retries, rng = Retries(attempts=9, base_s=0.5, cap_s=3.0), random.Random(1)
    for k, most in enumerate((0.5, 1.0, 2.0, 3.0, 3.0)):
        waits = [retries.wait(k, None, rng) or 0.0 for _ in range(2000)]
        assert 0.0 <= min(waits) < 0.02 * most
        assert 0.98 * most < max(waits) <= most
        assert sum(waits) / 2000 == pytest.approx(most / 2, rel=0.05)
    assert retries.wait(8, None, rng) is None, "nine attempts are eight retries"


def test_what_the_upstream_asks_for_is_the_least_wait_up_to_a_cap() -> None:
    retries, rng = Retries(base_s=0.5, retry_after_cap_s=10.0), random.Random(1)
    assert retries.wait(0, 7.0, rng) == 7.0
    assert retries.wait(0, 10.5, rng) is None
    assert 0.0 < (retries.wait(0, 0.0, rng) or 0.0) <= 0.5


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "1.5"}, 1.5),
        ({"retry-after": "3", "retry-after-ms": "250"}, 0.25),
        ({"retry-after": "Tue, 24 Nov 2026 17:00:09 GMT", "date": "Tue, 24 Nov 2026 17:00:00 GMT"}, 9.0),
        ({"retry-after": "Tue, 24 Nov 2026 16:00:09 GMT", "date": "Tue, 24 Nov 2026 17:00:00 GMT"}, 0.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after_is_a_number_or_a_time_by_the_servers_clock(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after(headers) == seconds


def test_impossible_settings_are_refused() -> None:
    for wrong in ({"attempts": 0}, {"base_s": -1.0}, {"statuses": frozenset({200})}):
        with pytest.raises(ConfigError, match=next(iter(wrong))):
            Retries(**wrong)
