"""Confidence sequences: intervals that hold at all times at once, so that a page may be looked at whenever it pleases.

- ``constant_rate``: for independent events of one unknown rate p. The mixture likelihood ratio against p,
  B(a + k, b + n - k) / (B(a, b) p^k (1 - p)^(n - k)), is a martingale from 1, so P(ever >= 1 / level) <= level, and the
  rates where it stays below are a confidence sequence. Robbins (1970), Ann. Math. Statist. 41, 1397.
- ``running_average``: for the mean of p_1, ..., p_n, p_t = P(x_t = 1 | all before), which may change in any way. For
  guesses g_t made before x_t, exp(l sum (x_t - p_t) - psi(l) sum (x_t - g_t)^2), psi(l) = -log(1 - l) - l, is a
  supermartingale for each l in [0, 1), and so is its mean over a grid of l. Howard, Ramdas, McAuliffe and Sekhon
  (2021), "Time-uniform, nonparametric, nonasymptotic confidence sequences", theorem 4, arXiv 1810.08240.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

_HALVINGS = 60
_GRID = np.geomspace(0.002, 0.9, 24)
_PSI = -np.log1p(-_GRID) - _GRID

FIRST_GUESS = 0.5
"""What ``running_average`` guesses of the first event; later it guesses the mean of this and the events before."""


def constant_rate(
    n_ones: ArrayLike, n: ArrayLike, level: float, prior: tuple[float, float] = (0.5, 0.5)
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds of a constant rate after ``n_ones`` of ``n`` events, valid at all n with error ``level``.

    ``prior`` (a, b): any choice is valid; the interval is narrowest for rates near a / (a + b). Arrays broadcast.
    """
    ones, total = np.broadcast_arrays(np.asarray(n_ones, dtype=np.float64), np.asarray(n, dtype=np.float64))
    if np.any(ones > total) or np.any(ones < 0):
        raise ValueError("n_ones must lie between 0 and n")
    a, b = prior
    allowed = special.betaln(a + ones, b + total - ones) - special.betaln(a, b) + math.log(level)

    def beyond(p: NDArray[np.float64]) -> NDArray[np.bool_]:
        return np.asarray(special.xlogy(ones, p) + special.xlog1py(total - ones, -p) <= allowed)

    mean = np.divide(ones, total, out=np.full(ones.shape, 0.5), where=total > 0)
    # The likelihood falls on both sides of the mean: each bound is where it meets the mixture, kept on the outside.
    out_low, in_low = np.zeros_like(mean), mean.copy()
    in_high, out_high = mean.copy(), np.ones_like(mean)
    for _ in range(_HALVINGS):
        low, high = (out_low + in_low) / 2.0, (in_high + out_high) / 2.0
        past_low, past_high = beyond(low), beyond(high)
        out_low, in_low = np.where(past_low, low, out_low), np.where(past_low, in_low, low)
        in_high, out_high = np.where(past_high, in_high, high), np.where(past_high, high, out_high)
    return out_low, out_high


def running_average(x: ArrayLike, level: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Lower and upper bounds (..., n) of the mean of p_1 to p_t, at all t with error ``level``; ``x`` is (..., n)."""
    events = np.asarray(x, dtype=np.float64)
    n = np.arange(1, events.shape[-1] + 1)
    ones = np.cumsum(events, axis=-1)
    guesses = (FIRST_GUESS + ones - events) / n
    return average_bounds(ones, n, np.cumsum((events - guesses) ** 2, axis=-1), level)


def squared_error(x: int, n_ones: int, n: int) -> float:
    """(x - guess)^2 of the event that follows ``n_ones`` of ``n``: what ``average_bounds`` takes the sum of."""
    return float((x - (FIRST_GUESS + n_ones) / (n + 1)) ** 2)


def average_bounds(
    n_ones: ArrayLike, n: ArrayLike, squares: ArrayLike, level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Bounds of the mean of p_1 to p_n after ``n_ones`` of ``n`` events whose squared errors sum to ``squares``."""
    total = np.maximum(np.asarray(n, dtype=np.float64), 1.0)
    margin = _margin(np.asarray(squares, dtype=np.float64), level / 2.0)
    ones = np.asarray(n_ones, dtype=np.float64)
    nothing = np.asarray(n) == 0
    lower = np.where(nothing, 0.0, np.clip((ones - margin) / total, 0.0, 1.0))
    upper = np.where(nothing, 1.0, np.clip((ones + margin) / total, 0.0, 1.0))
    return lower, upper


def _margin(squares: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    """The sum of x_t - p_t at which the mean over the grid reaches 1 / level, on the outside."""
    penalty = _PSI * squares[..., None]
    enough = math.log(len(_GRID) / level)
    # One term of the mean alone reaches it there, so the mean does.
    high = ((enough + penalty) / _GRID).min(axis=-1)
    low = np.zeros_like(high)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        reached = _log_sum(_GRID * middle[..., None] - penalty) >= enough
        low, high = np.where(reached, low, middle), np.where(reached, middle, high)
    return np.asarray(high, dtype=np.float64)


def _log_sum(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """log of the sum of exponentials along the last axis."""
    top = terms.max(axis=-1)
    return np.asarray(top + np.log(np.exp(terms - top[..., None]).sum(axis=-1)), dtype=np.float64)
