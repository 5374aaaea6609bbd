"""A certificate that is still an estimate."""

from __future__ import annotations

import pytest

from tracer.certification.certificate import Certificate


@pytest.fixture(scope="session")
def estimated() -> Certificate:
    return Certificate(
        target=0.95,
        delta=0.05,
        level=0.025,
        contract="agreement",
        guarantee="estimated",
        threshold=0.4,
        n_shadow=2000,
        n_handled=1600,
        n_agreed=1560,
        rank=0,
        n_candidates=3,
        attempt=1,
        chain_start=70,
        n_tested=10,
        grid_size=100,
        grid_digest="0" * 16,
        split_digest="0" * 16,
        split="out of fold",
    )
