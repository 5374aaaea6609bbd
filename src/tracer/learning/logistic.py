"""Multinomial logistic regression in float32, dense or sparse, by limited-memory BFGS with warm starts.

Why not a library's: they work in float64 and take a start vector only through a refit of the same estimator.
Here two matrix products a step in float32 are all the work, and a weaker penalty starts from a stronger one.
Reference: Nocedal and Wright (2006), Numerical Optimization, algorithm 7.4 (two-loop recursion).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

import numpy as np
from scipy import sparse

from tracer.learning.heads import Block
from tracer.types import Float32, Int32

_MEMORY = 8
_MAX_STEPS = 200
_ARMIJO = 1e-4
_Objective = Callable[[Float32], tuple[float, Float32]]


def fit_logistic(
    block: Block,
    y: Int32,
    n_classes: int,
    penalty: float,
    *,
    start: Float32 | None = None,
    tolerance: float = 1e-3,
) -> Float32:
    """Coefficients (d + 1, k), the last row the intercept, of the penalised mean log loss.

    ``penalty`` multiplies half the squared norm of the weights, the intercept is free. Stops when a step
    lowers the objective by less than ``tolerance`` of itself.
    """
    d = block.shape[1]
    transposed = block.T.tocsr() if sparse.issparse(block) else np.asarray(block).T
    rows = np.arange(len(y))

    def objective(coefficients: Float32) -> tuple[float, Float32]:
        weights = coefficients[:d]
        z = np.asarray(block @ weights)
        z += coefficients[d]
        z -= z.max(axis=1, keepdims=True)
        own = z[rows, y].copy()
        np.exp(z, out=z)
        total = z.sum(axis=1, keepdims=True)
        loss = float((np.log(total[:, 0]) - own).mean())
        z /= total
        z[rows, y] -= 1.0
        z /= np.float32(len(y))
        gradient = np.empty_like(coefficients)
        gradient[:d] = transposed @ z
        gradient[:d] += np.float32(penalty) * weights
        gradient[d] = z.sum(axis=0)
        return loss + 0.5 * penalty * float(np.vdot(weights, weights)), gradient

    initial = np.zeros((d + 1, n_classes), dtype=np.float32) if start is None else start.copy()
    return _minimise(objective, initial, tolerance)


def _minimise(objective: _Objective, x: Float32, tolerance: float) -> Float32:
    value, gradient = objective(x)
    pairs: deque[tuple[Float32, Float32, float]] = deque(maxlen=_MEMORY)
    for _ in range(_MAX_STEPS):
        direction = _direction(gradient, pairs)
        slope = float(np.vdot(gradient, direction))
        if slope >= 0.0:
            break
        step = 1.0
        while True:
            candidate = x + np.float32(step) * direction
            new_value, new_gradient = objective(candidate)
            if new_value <= value + _ARMIJO * step * slope or step < 1e-4:
                break
            step *= 0.5
        s, change = candidate - x, new_gradient - gradient
        curvature = float(np.vdot(s, change))
        if curvature > 1e-12:
            pairs.append((s, change, 1.0 / curvature))
        gain = value - new_value
        if gain <= 0.0:
            break
        x, value, gradient = candidate, new_value, new_gradient
        if gain < tolerance * abs(value):
            break
    return x


def _direction(gradient: Float32, pairs: deque[tuple[Float32, Float32, float]]) -> Float32:
    q = gradient.copy()
    factors = []
    for s, change, inverse in reversed(pairs):
        factor = inverse * float(np.vdot(s, q))
        factors.append(factor)
        q -= np.float32(factor) * change
    if pairs:
        s, change, inverse = pairs[-1]
        q *= np.float32(1.0 / (inverse * float(np.vdot(change, change))))
    else:
        q /= np.float32(max(float(np.linalg.norm(gradient)), 1e-12))
    for (s, change, inverse), factor in zip(pairs, reversed(factors), strict=True):
        q += s * np.float32(factor - inverse * float(np.vdot(change, q)))
    return -q
