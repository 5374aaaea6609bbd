"""The recheck in ``docs/guarantee.md`` is run as it stands there, and its table is true."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tracer.certification.certificate import Certificate
from tracer.stats import binomial

DOC = (Path(__file__).parents[2] / "docs" / "guarantee.md").read_text(encoding="utf-8")
CERTIFICATE = Certificate(
    target=0.95,
    delta=0.05,
    level=0.04,
    contract="agreement",
    guarantee="certified",
    threshold=0.6,
    n_shadow=1000,
    n_handled=700,
    n_agreed=678,
    rank=1,
    n_candidates=3,
    attempt=1,
    chain_start=90,
    n_tested=50,
    grid_size=200,
    grid_digest="0123456789abcdef",
    split_digest="fedcba",
    split="by hash",
)
OVERALL = replace(CERTIFICATE, contract="overall", handled_floor=0.9, n_agreed=665)

Recheck = Callable[[dict[str, Any]], float]


@pytest.fixture(scope="module")
def recheck() -> Recheck:
    (snippet,) = re.findall(r"```python\n(.*?)```", DOC, flags=re.DOTALL)
    assert "tracer" not in snippet
    names: dict[str, Any] = {}
    exec(snippet, names)  # noqa: S102
    found: Recheck = names["recheck"]
    return found


@pytest.mark.parametrize("certificate", [CERTIFICATE, OVERALL])
def test_a_sound_certificate_passes(recheck: Recheck, certificate: Certificate) -> None:
    assert certificate.p_value <= certificate.level
    lower = recheck(json.loads(json.dumps(certificate.as_dict())))
    assert lower == pytest.approx(certificate.agreement_lower, rel=1e-9)


@pytest.mark.parametrize(
    ("certificate", "message"),
    [
        (replace(CERTIFICATE, n_agreed=665), "agreement is not shown"),
        (replace(OVERALL, n_shadow=720), "too many contradicted answers"),
        (replace(OVERALL, n_handled=250, n_agreed=220), "below the handled floor"),
        (replace(CERTIFICATE, n_agreed=701), None),
        (replace(CERTIFICATE, level=0.06), None),
    ],
)
def test_an_unsound_certificate_does_not(recheck: Recheck, certificate: Certificate, message: str | None) -> None:
    with pytest.raises(AssertionError, match=message):
        recheck(certificate.as_dict())


def test_the_table_of_sizes() -> None:
    rows = re.findall(r"^\| (0\.\d+) \| (\d+) \| (\d+) \|$", DOC, flags=re.MULTILINE)
    assert len(rows) == 4
    for target, at_5, at_10 in rows:
        assert binomial.n_min(float(target), 0.05) == int(at_5)
        assert binomial.n_min(float(target), 0.10) == int(at_10)
