"""Multinomial logistic regression in float32, dense or sparse, by limited-memory BFGS with warm starts.

Why not a library's: they work in float64 and take a start vector only through a refit of the same estimator.
Here two matrix products a step in float32 are all the work, and a weaker penalty starts from a stronger one.
Reference: Nocedal and Wright (2006), Numerical Optimization, algorithm 7.4 (two-loop recursion).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.linalg import blas

from tracer.errors import TrainingError
from tracer.learning.heads import Block
from tracer.learning.threads import LARGE, n_workers
from tracer.types import Float32, Int32

_CHUNK = 16_384
"""Rows whose logits are held at a time."""
_MANY, _STRIDE = 32_768, 8
_MEMORY = 6
_MAX_STEPS = 200
_ARMIJO = 1e-4
_Objective = Callable[[Float32], tuple[float, Float32]]


class Solution(NamedTuple):
    """``coefficients`` (d + 1, k), the last row the intercept, and the length of a good step from there."""

    coefficients: Float32
    step: float


def fit_logistic(
    block: Block,
    y: Int32,
    n_classes: int,
    penalty: float,
    *,
    start: Float32 | None = None,
    step: float = 0.0,
    tolerance: float = 1e-3,
) -> Solution:
    """Minimise the penalised mean log loss.

    ``penalty`` multiplies half the squared norm of the weights, the intercept is free. Stops when a step
    lowers the objective by less than ``tolerance`` of itself. Without a ``start`` many rows start from the solution
    for a few of them, which is most of the way. ``step``: that of an earlier solution of nearly the same problem.
    """
    d = block.shape[1]
    if start is None:
        start = np.zeros((d + 1, n_classes), dtype=np.float32)
        if len(y) >= _MANY:
            start, step = fit_logistic(block[::_STRIDE], y[::_STRIDE], n_classes, penalty, tolerance=tolerance)
    parts = [_Rows.of(block[i : i + _CHUNK], y[i : i + _CHUNK]) for i in range(0, len(y), _CHUNK)]
    share = np.float32(1.0 / len(y))

    with ThreadPoolExecutor(n_workers(len(parts)) if len(y) > LARGE else 1) as workers:

        def objective(coefficients: Float32) -> tuple[float, Float32]:
            weights = coefficients[:d]
            gradient = np.float32(penalty) * coefficients
            gradient[d] = 0.0
            loss = 0.0
            run = map if len(y) <= LARGE else workers.map
            for part_loss, part_gradient in run(lambda part: part.loss(coefficients, share), parts):
                loss += part_loss
                gradient += part_gradient
            return loss + 0.5 * penalty * float(np.vdot(weights, weights)), gradient

        return _minimise(objective, start, step, tolerance)


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """Some rows of the block, as they are and transposed."""

    block: Block
    transposed: Block
    y: Int32

    @classmethod
    def of(cls, block: Block, y: Int32) -> _Rows:
        return cls(block, block.T if isinstance(block, np.ndarray) else block.T.tocsr(), y)

    def loss(self, coefficients: Float32, share: np.float32) -> tuple[float, Float32]:
        """What these rows add to the mean log loss, and to its gradient; each row counts ``share``."""
        rows = np.arange(len(self.y))
        z = np.asarray(self.block @ coefficients[:-1])
        z += coefficients[-1]
        z -= z[rows, z.argmax(axis=1)][:, None]
        own = z[rows, self.y].copy()
        np.exp(z, out=z)
        total = z @ np.ones(z.shape[1], dtype=np.float32)
        loss = float((np.log(total) - own).sum(dtype=np.float64)) * float(share)
        z *= (share / total)[:, None]
        z[rows, self.y] -= share
        gradient = np.empty_like(coefficients)
        gradient[:-1] = self.transposed @ z
        gradient[-1] = z.sum(axis=0)
        return loss, gradient


def _minimise(objective: _Objective, x: Float32, step_length: float, tolerance: float) -> Solution:
    value, gradient = objective(x)
    if not math.isfinite(value):
        raise TrainingError("the loss is no number: the features or the start are too large for float32")
    history = _History(x.shape, step_length)
    for _ in range(_MAX_STEPS):
        direction = history.direction(gradient)
        slope = float(np.vdot(gradient, direction))
        if not slope < 0.0:
            break
        step = 1.0
        while True:
            candidate = x + np.float32(step) * direction
            new_value, new_gradient = objective(candidate)
            if new_value <= value + _ARMIJO * step * slope or step < 1e-4:
                break
            # The lowest point of the parabola through what is known: a first step may be far too long.
            rise = new_value - value - step * slope
            step *= min(max(-0.5 * step * slope / rise, 0.02), 0.5) if math.isfinite(rise) else 0.02
        gain = value - new_value
        if not gain > 0.0:
            break
        history.add(candidate - x, new_gradient - gradient)
        x, value, gradient = candidate, new_value, new_gradient
        if gain < tolerance * abs(value):
            break
    return Solution(x, history.step_length)


class _History:
    """The last steps and changes of the gradient, flat, and the direction that they suggest."""

    def __init__(self, shape: tuple[int, ...], step_length: float) -> None:
        self._shape = shape
        self.step_length = step_length
        self._pairs: deque[tuple[Float32, Float32, float]] = deque(maxlen=_MEMORY)

    def add(self, step: Float32, change: Float32) -> None:
        s, y = step.ravel(), change.ravel()
        curvature = float(np.dot(s, y))
        if curvature > 1e-12:
            self._pairs.append((s, y, 1.0 / curvature))
            self.step_length = curvature / max(float(np.dot(y, y)), 1e-30)

    def direction(self, gradient: Float32) -> Float32:
        # The updates run in place: for many features these vectors are the larger part of the work.
        q = gradient.ravel() * np.float32(-1.0)
        factors = []
        for s, y, inverse in reversed(self._pairs):
            factor = inverse * float(np.dot(s, q))
            factors.append(factor)
            blas.saxpy(y, q, a=-factor)
        q *= np.float32(self.step_length or 1.0 / max(float(np.linalg.norm(gradient)), 1e-12))
        for (s, y, inverse), factor in zip(self._pairs, reversed(factors), strict=True):
            blas.saxpy(s, q, a=factor - inverse * float(np.dot(y, q)))
        return q.reshape(self._shape)
