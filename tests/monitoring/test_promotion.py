"""Where evidence on fresh audits suffices to promote."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from tracer.certification.certificate import Certificate
from tracer.monitoring.promotion import log_evidence, promote
from tracer.stats.sequences import EProcess


def test_it_promotes_at_the_first_audit_that_suffices(estimated: Certificate) -> None:
    agreed = np.random.default_rng(0).random(3000) < 0.985
    found = promote(estimated, agreed.tolist(), 0.05)
    assert found is not None
    wrong = int((~agreed[: found.index + 1]).sum())
    assert (found.n_audits, found.n_handled, found.n_agreed) == (
        found.index + 1,
        found.index + 1,
        found.index + 1 - wrong,
    )
    values = EProcess(1.0 - 0.95, "below").log_e_values(~agreed)
    assert found.log_e == values[found.index] >= math.log(20)
    assert (values[: found.index] < math.log(20)).all()
    assert found.target == 0.95


def test_a_smaller_level_takes_longer(estimated: Certificate) -> None:
    agreed = [True] * 400
    found, later = promote(estimated, agreed, 0.05), promote(estimated, agreed, 0.005)
    assert found is not None
    assert later is not None
    assert found.index < later.index


def test_what_does_not_keep_its_promise_is_not_promoted(estimated: Certificate) -> None:
    agreed = np.random.default_rng(1).random(5000) < 0.93
    assert promote(estimated, agreed.tolist(), 0.05) is None
    assert promote(estimated, [], 0.05) is None


def test_deferred_audits_do_not_count_for_agreement(estimated: Certificate) -> None:
    rng = np.random.default_rng(2)
    agreed, handled = rng.random(2000) < 0.98, rng.random(2000) < 0.7
    found = promote(estimated, agreed.tolist(), 0.05, handled=handled.tolist())
    alone = promote(estimated, agreed[handled].tolist(), 0.05)
    assert found is not None
    assert alone is not None
    assert (found.n_handled, found.n_agreed, found.log_e) == (alone.n_handled, alone.n_agreed, alone.log_e)
    assert found.index == np.flatnonzero(handled)[alone.index]


def test_the_overall_contract_counts_all_audits_and_its_floor(estimated: Certificate) -> None:
    overall = replace(estimated, contract="overall", handled_floor=0.9)
    rng = np.random.default_rng(3)
    handled = rng.random(3000) < 0.5
    good, poor = rng.random(3000) < 0.94, rng.random(3000) < 0.88
    found = promote(overall, good.tolist(), 0.05, handled=handled.tolist())
    assert found is not None
    # Of all audits 3% are contradicted, of the handled ones 6%: too many for the contract on agreement.
    assert promote(estimated, good.tolist(), 0.05, handled=handled.tolist()) is None
    # 12% of the handled: below the floor, although 6% of all would do for a target of 0.9.
    lenient = replace(overall, target=0.9)
    assert promote(lenient, poor.tolist(), 0.05, handled=handled.tolist()) is None
    assert promote(replace(lenient, handled_floor=None), poor.tolist(), 0.05, handled=handled.tolist()) is not None


def test_evidence_for_overall_is_the_smaller_one() -> None:
    joint = log_evidence(0.95, "overall", None, 20, 500, 1000)
    floor = log_evidence(0.9, "agreement", None, 20, 500, 1000)
    assert log_evidence(0.95, "overall", 0.9, 20, 500, 1000) == min(joint, floor)


def test_bad_arguments_are_refused(estimated: Certificate) -> None:
    with pytest.raises(ValueError, match="handled has 1 audits, agreed has 2"):
        promote(estimated, [True, True], 0.05, handled=[True])
    with pytest.raises(ValueError, match=r"level = 1\.5"):
        promote(estimated, [True], 1.5)
