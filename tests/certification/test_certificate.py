"""Certificates: derived figures, words, and the round trip through JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from scipy import stats

from tracer.certification.certificate import Attempt, Certificate, Refusal
from tracer.certification.proposals import ACCEPT_ALL
from tracer.errors import ArchiveError

CERTIFICATE = Certificate(
    target=0.95,
    delta=0.05,
    level=0.04,
    contract="agreement",
    guarantee="certified",
    threshold=0.625,
    n_shadow=2000,
    n_handled=1500,
    n_agreed=1455,
    rank=1,
    n_candidates=3,
    attempt=1,
    chain_start=90,
    n_tested=61,
    grid_size=200,
    grid_digest="0123456789abcdef",
    split_digest="fedcba",
    split="by hash",
)
OVERALL = replace(CERTIFICATE, contract="overall", handled_floor=0.9)
ASSUMPTION = "disagreement does not rise with the score"


def test_figures_derive_from_the_counts() -> None:
    assert CERTIFICATE.n_disagreed == 45
    assert CERTIFICATE.coverage == 0.75
    assert CERTIFICATE.agreement == 0.97
    assert CERTIFICATE.agreement_lower == pytest.approx(stats.beta.ppf(0.04, 1455, 46))
    assert CERTIFICATE.p_value == pytest.approx(stats.binom.cdf(45, 1500, 1 - 0.95))


def test_the_overall_p_value_is_the_larger_of_two() -> None:
    joint, floor = stats.binom.cdf(45, 2000, 1 - 0.95), stats.binom.cdf(45, 1500, 1 - 0.9)
    assert OVERALL.p_value == pytest.approx(max(joint, floor))
    strict = replace(OVERALL, handled_floor=0.965)
    assert strict.p_value == pytest.approx(stats.binom.cdf(45, 1500, 1 - 0.965))
    assert strict.p_value > joint


def test_statement_of_the_agreement_contract() -> None:
    assert CERTIFICATE.statement() == (
        "Of 2,000 shadow traces 1,500 are handled (75.0%) and 1,455 of those agree with the teacher (97.0%). "
        "If traffic stays as it was, then with confidence 0.95 at least 0.95 of what the surrogate answers "
        "agrees with the teacher."
    )


def test_statement_names_the_assumption() -> None:
    said = replace(CERTIFICATE, assumption=ASSUMPTION).statement()
    assert f"If traffic stays as it was and {ASSUMPTION}, then with confidence 0.95" in said
    assert ASSUMPTION not in CERTIFICATE.statement()


def test_statement_of_the_overall_contract() -> None:
    said = OVERALL.statement()
    assert "1,500 are handled" in said
    assert "the teacher would contradict at most 0.05 of all answers" in said


def test_an_estimate_claims_no_confidence() -> None:
    said = replace(CERTIFICATE, guarantee="estimated").statement()
    assert "1,455 of those agree" in said
    assert "evidence, not a guarantee" in said
    assert "confidence" not in said


@pytest.mark.parametrize(
    "certificate",
    [
        CERTIFICATE,
        OVERALL,
        replace(CERTIFICATE, threshold=ACCEPT_ALL),
        replace(CERTIFICATE, assumption=ASSUMPTION),
    ],
)
def test_round_trip_through_strict_json(certificate: Certificate) -> None:
    text = json.dumps(certificate.as_dict(), allow_nan=False)
    back = Certificate.from_dict(json.loads(text))
    assert back == certificate
    assert isinstance(back.threshold, float)


@pytest.mark.parametrize(
    "change",
    [
        {"n_agreed": 1501},
        {"n_handled": 2001},
        {"n_agreed": -1},
        {"n_agreed": 1455.5},
        {"n_shadow": 1499},
        {"n_handled": "1500"},
    ],
)
def test_impossible_counts_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ArchiveError, match="the certificate's counts are impossible"):
        Certificate.from_dict(CERTIFICATE.as_dict() | change)


@pytest.mark.parametrize("missing", ["n_agreed", "threshold", "delta"])
def test_missing_fields_are_refused(missing: str) -> None:
    values = CERTIFICATE.as_dict()
    del values[missing]
    with pytest.raises(ArchiveError, match=f"does not have the fields it should.*{missing}"):
        Certificate.from_dict(values)


def test_unknown_fields_are_refused() -> None:
    with pytest.raises(ArchiveError, match="luck"):
        Certificate.from_dict(CERTIFICATE.as_dict() | {"luck": 1})


def test_an_attempt_that_handles_nothing_has_rates() -> None:
    attempt = Attempt("one", "l2d", 0.9, 0.05, False, 0.5, 0, 0, 0, 1.0)
    assert (attempt.coverage, attempt.agreement) == (0.0, 0.0)
    assert replace(attempt, n_shadow=8, n_handled=4, n_agreed=3).coverage == 0.5
    assert replace(attempt, n_shadow=8, n_handled=4, n_agreed=3).agreement == 0.75


def test_a_refusal_says_its_reason_and_then_its_advice() -> None:
    refusal = Refusal(0.95, "Nothing cleared.", (), ("Get more.", "Or ask for less."))
    assert refusal.statement() == "Nothing cleared. Get more. Or ask for less."
