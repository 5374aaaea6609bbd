"""From estimated to certified: evidence on audits that the policy was never fitted on, looked at after each of them.

The evidence is an e-process against H: the promise does not hold. To promote where it reaches 1 / level is wrong with
probability level at most, however often one looks and however long one waits (``tracer.stats.sequences``). Several
policies, or several attempts of one line, share a level: the caller says which share this one has.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tracer.certification.certificate import Certificate
from tracer.config import Contract
from tracer.stats.sequences import EProcess, first


@dataclass(frozen=True, slots=True)
class Promotion:
    """Where the evidence sufficed: at the audit with this ``index`` in the sequence given, after these counts.

    Of ``n_audits`` audits the policy would have handled ``n_handled``, and ``n_agreed`` of those agreed.
    """

    target: float
    level: float
    index: int
    n_audits: int
    n_handled: int
    n_agreed: int
    log_e: float


def log_evidence(
    target: float,
    contract: Contract,
    handled_floor: float | None,
    n_disagreed: ArrayLike,
    n_handled: ArrayLike,
    n_audits: ArrayLike,
) -> NDArray[np.float64]:
    """Logarithm of the e-value that the promise holds, after these counts; arrays broadcast.

    ``agreement``: of handled audits more than ``target`` agree. ``overall``: of all audits fewer than 1 - target are
    handled and contradicted, and of the handled ones more than ``handled_floor`` agree: the smaller of both e-values,
    since one of the two fails where the promise does.
    """
    process = EProcess(1.0 - target, "below")
    if contract == "agreement":
        return process.log_e(n_disagreed, n_handled)
    joint = process.log_e(n_disagreed, n_audits)
    if not handled_floor:
        return joint
    return np.minimum(joint, EProcess(1.0 - handled_floor, "below").log_e(n_disagreed, n_handled))


def promote(
    certificate: Certificate, agreed: Sequence[bool], level: float, *, handled: Sequence[bool] | None = None
) -> Promotion | None:
    """The first audit at which the evidence reaches 1 / ``level``; None where it does not.

    ``agreed`` (n,): of each audit, in the order in which they came, whether the teacher agrees with the surrogate.
    ``handled`` (n,): whether the policy would have answered, all of them if not given. The certificate says what is
    promised; its counts play no part. The audits must not have trained, chosen or certified this policy.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(f"level = {level}: must lie strictly between 0 and 1")
    agrees = np.asarray(agreed, dtype=bool)
    answered = np.ones(len(agrees), dtype=bool) if handled is None else np.asarray(handled, dtype=bool)
    if len(answered) != len(agrees):
        raise ValueError(f"handled has {len(answered)} audits, agreed has {len(agrees)}")
    n_handled, n_agreed = np.cumsum(answered), np.cumsum(answered & agrees)
    log_e = log_evidence(
        certificate.target,
        certificate.contract,
        certificate.handled_floor,
        n_handled - n_agreed,
        n_handled,
        np.arange(1, len(agrees) + 1),
    )
    i = first(log_e >= -math.log(level))
    if i is None:
        return None
    return Promotion(certificate.target, level, i, i + 1, int(n_handled[i]), int(n_agreed[i]), float(log_e[i]))
