"""Evidence that may be looked at after every observation: e-processes and an e-detector for events of 0 or 1.

x_t is 1 where event t happens (a disagreement, an input handled), and p_t = P(x_t = 1 | all before). Nothing is assumed
but a bound on p_t: it may change with time and depend on the past, and looking, stopping or going on may too.

- ``EProcess``: E_n is a nonnegative supermartingale from 1 while the bound holds, so P(ever E_n >= 1 / level) <= level
  (Ville 1939). Mixtures of likelihood ratios: Robbins (1970), Ann. Math. Statist. 41, 1397.
- ``Detector``: Shiryaev-Roberts sums of such ratios over all possible times of change. While the bound holds, M_t less
  the time passed is a supermartingale. Hence the mean time to the first alarm is at least ``limit``, and
  P(alarm within n) <= n / limit by Markov's inequality at the alarm or n. Shin, Ramdas and Rinaldo (2022),
  "E-detectors", arXiv 2203.03532.

The ratio of rate q to rate p0 is (q / p0)^x ((1 - q) / (1 - p0))^(1 - x). Its mean given the past is
1 + (p_t - p0)(q - p0) / (p0 (1 - p0)), which is at most 1 for q < p0 <= p_t and for q > p0 >= p_t.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from tracer.stats import binomial

MULTIPLES = (1.3, 1.6, 2.1, 3.3, 6.3)
"""Odds of the rates that a detector bets on, in multiples of the odds at its bound."""
_FAR = 1e-100
"""Below this beta probabilities come from a continued fraction, before they underflow."""
_CAP = 1e100
"""Largest value that a detector keeps; cutting it there only makes it smaller."""


@dataclass(frozen=True, slots=True)
class EProcess:
    """Evidence that events are rarer (``below``) or more frequent (``above``) than ``rate``, at every time.

    ``below`` tests H: all p_t >= rate, with a Beta(1/2, 1/2 (1/rate - 1)) mixture cut to q < rate; ``above`` tests
    H: all p_t <= rate, with Beta(1, 1 / (2 rate) - 1) cut to q > rate (mean twice the rate; at least Beta(1, 1/2)).
    """

    rate: float
    side: Literal["below", "above"]

    def __post_init__(self) -> None:
        _open_unit("rate", self.rate)

    @property
    def prior(self) -> tuple[float, float]:
        """Parameters of the beta density that mixes the rates on this side."""
        if self.side == "below":
            return 0.5, 0.5 / self.rate - 0.5
        return 1.0, max(0.5 / self.rate - 1.0, 0.5)

    def log_e(self, n_ones: ArrayLike, n: ArrayLike) -> NDArray[np.float64]:
        """Logarithm of the e-value after ``n_ones`` events among ``n``. Integer counts; arrays broadcast."""
        ones, total = np.asarray(n_ones).astype(np.int64), np.asarray(n).astype(np.int64)
        if np.any(ones > total) or np.any(ones < 0):
            raise ValueError("n_ones must lie between 0 and n")
        a, b = self.prior
        if self.side == "below":
            return _log_scaled(a + ones, b + (total - ones), self.rate) - _log_scaled(a, b, self.rate)
        return _log_scaled(b + (total - ones), a + ones, 1.0 - self.rate) - _log_scaled(b, a, 1.0 - self.rate)

    def log_e_values(self, x: ArrayLike) -> NDArray[np.float64]:
        """Logarithms of the e-values after each event of 0/1 sequences (..., n)."""
        ones = np.cumsum(np.asarray(x).astype(np.int64), axis=-1)
        return self.log_e(ones, np.arange(1, ones.shape[-1] + 1))

    def crossing(self, x: ArrayLike, level: float) -> int | None:
        """Index of the event of a sequence (n,) at which the e-value first reaches 1 / level; None if it never does."""
        return first(self.log_e_values(x) >= -math.log(level))


@dataclass(frozen=True, slots=True)
class Detector:
    """Shiryaev-Roberts e-detector: ``log_one`` and ``log_zero`` are log likelihood ratios of its bets, one a rate.

    The state is one number a bet, M <- (M + 1) ratio from 0; the alarm rings where their mean reaches ``limit``. All
    is replayed to the last bit from the same events, one by one or many sequences at once.
    """

    limit: float
    log_one: tuple[float, ...]
    log_zero: tuple[float, ...]

    @classmethod
    def above(cls, rate: float, limit: float, multiples: Sequence[float] = MULTIPLES) -> Self:
        """Rings where events become more frequent than ``rate``; null: p_t <= rate."""
        return cls.outside(0.0, rate, limit, multiples)

    @classmethod
    def outside(cls, lower: float, upper: float, limit: float, multiples: Sequence[float] = MULTIPLES) -> Self:
        """Rings where events leave [lower, upper]; null: lower <= p_t <= upper. A bound at 0 or 1 has no other side."""
        if not 0.0 <= lower <= upper <= 1.0:
            raise ValueError(f"lower = {lower}, upper = {upper}: must be ordered rates")
        if limit <= 0.0:
            raise ValueError(f"limit = {limit}: must be positive")
        bets = [(upper, _odds_times(upper, m)) for m in multiples if upper < 1.0]
        bets += [(lower, _odds_times(lower, 1.0 / m)) for m in multiples if lower > 0.0]
        return cls(
            float(limit),
            tuple(math.log(q / base) for base, q in bets),
            tuple(math.log1p(-q) - math.log1p(-base) for base, q in bets),
        )

    def start(self) -> tuple[float, ...]:
        """The state before any event."""
        return (0.0,) * len(self.log_one)

    def value(self, state: Sequence[float]) -> float:
        """Mean of the state, what is compared with ``limit``."""
        return _mean(state)

    def run(self, state: Sequence[float], x: Iterable[int]) -> tuple[tuple[float, ...], list[float]]:
        """The state after a sequence of events, and the value after each."""
        bets, values = list(state), []
        ones, zeros = [math.exp(v) for v in self.log_one], [math.exp(v) for v in self.log_zero]
        for event in x:
            bets = [min((m + 1.0) * r, _CAP) for m, r in zip(bets, ones if event else zeros, strict=True)]
            values.append(_mean(bets))
        return tuple(bets), values

    def values(self, x: ArrayLike) -> NDArray[np.float64]:
        """Values (..., n) after each event of 0/1 sequences (..., n), all sequences at once."""
        events = np.asarray(x).astype(bool)
        out = np.empty(events.shape)
        bets = [np.zeros(events.shape[:-1]) for _ in self.log_one]
        ratios = [(math.exp(one), math.exp(zero)) for one, zero in zip(self.log_one, self.log_zero, strict=True)]
        for t in range(events.shape[-1]):
            event = events[..., t]
            bets = [
                np.minimum((m + 1.0) * np.where(event, one, zero), _CAP)
                for m, (one, zero) in zip(bets, ratios, strict=True)
            ]
            out[..., t] = sum(bets) / len(bets) if bets else 0.0
        return out


def after_block(
    state: NDArray[np.float64],
    log_one: NDArray[np.float64],
    log_zero: NDArray[np.float64],
    n_ones: ArrayLike,
    n: ArrayLike,
    time: float,
) -> NDArray[np.float64]:
    """Bets (k,) of detectors after a block of n events, whose order is not known, that took ``time``.

    M <- (M + time) ratio, with the block's ratio: the mean of M rises by at most ``time``, so limits count time. The
    length of the block must not depend on its events. ``n_ones`` and ``n`` are numbers or (k,).
    """
    ones = np.asarray(n_ones, dtype=np.float64)
    exponent = ones * log_one + (np.asarray(n, dtype=np.float64) - ones) * log_zero
    return np.asarray(np.minimum((state + time) * np.exp(np.minimum(exponent, 400.0)), _CAP), dtype=np.float64)


def known_to(n_ones: int, n: int, level: float, odds: float = 1.0) -> tuple[float, float]:
    """Interval of a rate known from counts (Clopper and Pearson), each end moved outward by a factor of the odds.

    As the null of a detector it keeps the noise of a reference from ringing: at most ``level`` of references mislead.
    """
    lower, upper = binomial.agreement_interval(n_ones, n, level)
    return (_odds_times(lower, 1.0 / odds) if lower > 0.0 else 0.0), (_odds_times(upper, odds) if upper < 1.0 else 1.0)


def largest_unproven(n_ones: int, n: int, level: float) -> float:
    """Upper bound of a rate that holds at all times at once, from the e-processes below each rate turned around.

    The largest rate q whose e-process ``EProcess(q, "below")`` has not reached 1 / ``level``: a true rate is excluded
    with probability at most ``level`` (Ville), whenever one looks.
    """
    low, high = n_ones / n if n else 0.0, 1.0
    if not n:
        return high
    for _ in range(60):
        middle = (low + high) / 2.0
        if not low < middle < high:
            break
        proven = float(EProcess(middle, "below").log_e(n_ones, n)) >= -math.log(level)
        low, high = (low, middle) if proven else (middle, high)
    return high


def first(reached: ArrayLike) -> int | None:
    """Index of the first True of (n,); None without any."""
    where = np.flatnonzero(np.asarray(reached))
    return int(where[0]) if len(where) else None


def _mean(bets: Sequence[float]) -> float:
    """Summed from left to right, as arrays are: ``sum`` of floats rounds otherwise from Python 3.12 on."""
    total = 0.0
    for bet in bets:
        total += bet
    return total / len(bets) if bets else 0.0


def _odds_times(rate: float, factor: float) -> float:
    """The rate whose odds are this multiple of those of ``rate``."""
    return factor * rate / (1.0 + (factor - 1.0) * rate)


def _log_scaled(a: ArrayLike, b: ArrayLike, x: float) -> NDArray[np.float64]:
    """log of the integral of t^(a-1) (1-t)^(b-1) over (0, x), divided by x^a (1-x)^b.

    Where the regularised integral is tiny its continued fraction gives the quotient itself, and nothing underflows:
    https://dlmf.nist.gov/8.17.E22, evaluated by Lentz's method. It converges fast there, far left of the mean.
    """
    one, other = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    mass = np.asarray(special.betainc(one, other, x), dtype=np.float64)
    far = mass < _FAR
    out = np.empty(mass.shape)
    near = ~far
    out[near] = np.log(mass[near]) + special.betaln(one[near], other[near])
    out[near] -= one[near] * math.log(x) + other[near] * math.log1p(-x)
    if far.any():
        out[far] = -np.log(one[far]) - np.log(_fraction(one[far], other[far], x))
    return out


def _fraction(a: NDArray[np.float64], b: NDArray[np.float64], x: float) -> NDArray[np.float64]:
    """1 + d1 / (1 + d2 / (1 + ...)) of the incomplete beta function, (n,)."""
    value, c, d = np.ones_like(a), np.ones_like(a), np.zeros_like(a)
    for j in range(1, 100_000):
        m, odd = divmod(j, 2)
        if odd:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1.0 / (1.0 + term * d)
        c = 1.0 + term / c
        value = value * c * d
        if np.all(np.abs(c * d - 1.0) < 1e-15):
            return value
    raise ArithmeticError(f"the continued fraction does not converge at {x}")


def _open_unit(name: str, value: float) -> None:
    if not 0.0 < value < 1.0:
        raise ValueError(f"{name} = {value}: must lie strictly between 0 and 1")
