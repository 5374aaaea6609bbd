"""How many audits certify a policy, at which audit rate, and what they cost. Exact binomial computations.

The test is the parity gate's: certify where P(Binomial(n, 1 - target) <= disagreements) <= level. At a true agreement
above the target its power is P(disagreements <= the most allowed), which is a sawtooth in n; counts named here are
those from which on it never falls below the power asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tracer.certification.certificate import Certificate
from tracer.errors import ConfigError
from tracer.stats import binomial

EVEN, LIKELY = 0.5, 0.9
"""The two powers that budgets speak of."""
MOST_AUDITS = 1_000_000
"""Beyond so many handled audits a target counts as out of reach."""
_DEVIATIONS = 8.0
"""How far from its mean a binomial count is followed, in standard deviations."""


@dataclass(frozen=True, slots=True)
class Budget:
    """Handled audits that certify ``target`` at ``level`` with even odds and nine times in ten, if the true agreement
    is ``agreement``; None where it is not above the target, or needs more than ``MOST_AUDITS``."""

    target: float
    level: float
    agreement: float
    n_even: int | None
    n_likely: int | None


@dataclass(frozen=True, slots=True)
class Plan:
    """An audit rate at a traffic, and what comes of it.

    ``power``: probability that the audits of ``days`` days certify. ``days_needed``: days after which an audit rate
    of 1 would certify nine times in ten; None where no traffic does. Of ``audits_per_day``, ``extra_calls_per_day`` are
    teacher calls that would not be made otherwise: the other audited requests are deferred anyway.
    """

    rate: float
    power: float
    days: float
    requests_per_day: float
    coverage: float
    budget: Budget
    days_needed: float | None

    @property
    def reachable(self) -> bool:
        """The audits of these days certify nine times in ten."""
        return self.power >= LIKELY

    @property
    def audits_per_day(self) -> float:
        """Requests a day that go to the teacher by the coin."""
        return self.rate * self.requests_per_day

    @property
    def extra_calls_per_day(self) -> float:
        """Audited requests a day that the policy would have handled."""
        return self.audits_per_day * self.coverage

    def statement(self) -> str:
        """The plan in plain sentences."""
        budget = self.budget
        if budget.n_likely is None:
            if budget.agreement <= budget.target:
                return (
                    f"No number of audits certifies {budget.target:g}: an agreement of {budget.agreement:.4g} "
                    "is expected, which is not above it."
                )
            return (
                f"An agreement of {budget.agreement:.4g} is too near the target {budget.target:g}: more than "
                f"{MOST_AUDITS:,} handled audits would be needed."
            )
        if not self.reachable:
            return (
                f"{self.days:g} days at {self.requests_per_day:,.0f} requests a day cannot certify {budget.target:g}, "
                f"even if all are audited: {budget.n_likely:,} handled audits are needed, about "
                f"{self.days_needed:,.1f} days."
            )
        return (
            f"An audit rate of {self.rate:.2%} certifies {budget.target:g} within {self.days:g} days nine times in "
            f"ten, if agreement is {budget.agreement:.4g}: {self.audits_per_day:,.0f} audits a day, "
            f"{self.extra_calls_per_day:,.0f} of them teacher calls that would not be made otherwise."
        )


def power(n_handled: ArrayLike, target: float, level: float, agreement: float) -> NDArray[np.float64]:
    """Probability that so many handled audits certify, if the true agreement is ``agreement``."""
    n = np.asarray(n_handled).astype(np.int64)
    allowed = binomial.most_disagreements(n, target, level)
    passed = special.bdtr(np.maximum(allowed, 0).astype(np.float64), np.maximum(n, 1), 1.0 - agreement)
    return np.asarray(np.where((allowed >= 0) & (n > 0), passed, 0.0), dtype=np.float64)


def audits_needed(target: float, level: float, agreement: float, odds: float) -> int | None:
    """Fewest handled audits from which on the test certifies with probability ``odds``; None beyond ``MOST_AUDITS``."""
    for name, value in (("target", target), ("level", level), ("odds", odds)):
        _open_unit(name, value)
    if not 0.0 < agreement <= 1.0:
        raise ConfigError(f"agreement = {agreement}: must be a rate above 0")
    if agreement <= target:
        return None
    # A guess by the normal law; the exact power is then looked at up to well beyond it.
    spread = abs(float(special.ndtri(level))) * math.sqrt(target * (1.0 - target))
    spread += max(float(special.ndtri(odds)), 0.0) * math.sqrt(agreement * (1.0 - agreement))
    top = 2.0 * (spread / (agreement - target)) ** 2 + 4.0 * binomial.n_min(target, level)
    if top > 2.5 * MOST_AUDITS:
        return None
    short = power(np.arange(1, math.ceil(top) + 1), target, level, agreement) < odds
    needed = int(np.flatnonzero(short)[-1]) + 2 if short.any() else 1
    return needed if needed <= MOST_AUDITS else None


def expected_agreement(certificate: Certificate) -> float:
    """Handled agreement that a certificate's counts suggest: (agreed + 1/2) / (handled + 1)."""
    return (certificate.n_agreed + 0.5) / (certificate.n_handled + 1.0)


def budget(target: float, level: float, agreement: float) -> Budget:
    """Handled audits that certify ``target`` at ``level`` if the true agreement is ``agreement``."""
    even = audits_needed(target, level, agreement, EVEN)
    return Budget(target, level, agreement, even, audits_needed(target, level, agreement, LIKELY))


def rate_for(
    days: float, requests_per_day: float, *, target: float, level: float, agreement: float, coverage: float
) -> Plan:
    """The smallest audit rate that certifies within ``days`` nine times in ten, at this traffic and coverage.

    How many audits meet a handled input is binomial too, and counted in. Where even a rate of 1 falls short the plan
    says so, with ``rate`` 1 (0 where no number of audits would do).
    """
    for name, value in (("days", days), ("requests_per_day", requests_per_day)):
        if not (math.isfinite(value) and value > 0.0):
            raise ConfigError(f"{name} = {value}: must be positive")
    if not 0.0 < coverage <= 1.0:
        raise ConfigError(f"coverage = {coverage}: must be a rate above 0")
    wanted = budget(target, level, agreement)
    requests = math.floor(days * requests_per_day)

    def chance(rate: float) -> float:
        return _certifies(requests, rate * coverage, target, level, agreement)

    if wanted.n_likely is None:
        return Plan(0.0, 0.0, days, requests_per_day, coverage, wanted, None)
    days_needed = wanted.n_likely / (requests_per_day * coverage)
    best = chance(1.0)
    if best < LIKELY:
        return Plan(1.0, best, days, requests_per_day, coverage, wanted, days_needed)
    low, high = 0.0, 1.0
    while high - low > 1e-4 * high:
        middle = (low + high) / 2.0
        low, high = (low, middle) if chance(middle) >= LIKELY else (middle, high)
    return Plan(high, chance(high), days, requests_per_day, coverage, wanted, days_needed)


def _certifies(requests: int, share: float, target: float, level: float, agreement: float) -> float:
    """Probability of a certificate where each request is a handled audit with probability ``share``."""
    if requests == 0 or share == 0.0:
        return 0.0
    if share >= 1.0:
        return float(power(requests, target, level, agreement))
    spread = _DEVIATIONS * math.sqrt(requests * share * (1.0 - share)) + _DEVIATIONS
    low = max(math.floor(requests * share - spread), 0)
    n = np.arange(low, min(math.ceil(requests * share + spread), requests) + 1)
    # Masses by logarithms of gamma functions: differences of the distribution lose them to rounding.
    mass = np.exp(
        special.gammaln(requests + 1.0)
        - special.gammaln(n + 1.0)
        - special.gammaln(requests - n + 1.0)
        + n * math.log(share)
        + (requests - n) * math.log1p(-share)
    )
    return float(mass @ power(n, target, level, agreement) / mass.sum())


def _open_unit(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ConfigError(f"{name} = {value}: must lie strictly between 0 and 1")
