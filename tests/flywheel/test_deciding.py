"""What becomes of challenger and policy in force, case by case."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tracer.certification.certificate import Certificate
from tracer.config import Contract
from tracer.flywheel.deciding import decide
from tracer.pipeline import Certified, Refused, Standing
from tracer.pipeline.certifying import BLANK
from tracer.pipeline.standing import State
from tracer.policies.policy import Policy

CHALLENGER = replace(BLANK, target=0.9, n_shadow=1000, n_handled=600, n_agreed=570)


def certified(policy: Policy, certificate: Certificate = CHALLENGER) -> Certified:
    return Certified(replace(policy, certificate=certificate), report=None)  # type: ignore[arg-type]


def standing(state: State, coverage: float | None = 0.7, agreement: float | None = 0.95) -> Standing:
    return Standing("v0001", state, 0.001, 100, 70, 66, 1000, coverage, agreement)


@pytest.mark.parametrize(
    ("found", "action"),
    [
        (None, "promote"),
        (standing("refuted"), "promote"),
        (standing("not renewed", None, None), "promote"),
        (standing("not renewed", 0.7), "keep"),
        (standing("renewed", 0.7), "renew"),
        (standing("renewed", 0.5), "promote"),
        (standing("not renewed", 0.5), "promote"),
        # As much coverage, within what nobody notices: agreement decides.
        (standing("not renewed", 0.602, 0.94), "promote"),
        (standing("not renewed", 0.602, 0.97), "keep"),
        (standing("renewed", 0.598, 0.97), "renew"),
        # It handles more, and misses the target on the very traces that certify the challenger.
        (standing("not renewed", 0.7, 0.89), "promote"),
        (standing("not renewed", 0.7, 0.90), "keep"),
    ],
)
def test_a_certified_challenger(found: Standing | None, action: str, tiny_policy: Policy) -> None:
    assert decide(certified(tiny_policy), found, "keep").action == action
    assert decide(certified(tiny_policy), found, "teacher").action == action, "nothing was refused"


@pytest.mark.parametrize(("contract", "action"), [("agreement", "promote"), ("overall", "keep")])
def test_the_contract_says_what_misses_the_target(contract: Contract, action: str, tiny_policy: Policy) -> None:
    """15% of 0.65 is less than a tenth of all answers."""
    certificate = replace(CHALLENGER, contract=contract, handled_floor=0.8)
    found = standing("not renewed", 0.65, 0.85)
    assert decide(certified(tiny_policy, certificate), found, "keep").action == action


@pytest.mark.parametrize(
    ("state", "keep", "teacher"),
    [("renewed", "renew", "renew"), ("not renewed", "keep", "teacher"), ("refuted", "demote", "teacher")],
)
def test_a_refusal(state: State, keep: str, teacher: str) -> None:
    refused = Refused(None, None)  # type: ignore[arg-type]
    assert decide(refused, standing(state), "keep").action == keep
    assert decide(refused, standing(state), "teacher").action == teacher
    assert decide(refused, None, "teacher").action == "keep", "there is nothing to fall back from"
