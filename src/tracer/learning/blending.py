"""Weights of an ensemble: the logits of its members add up, with weights that minimise out-of-fold log loss.

For one member the weight is its temperature. The problem is convex in a handful of numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import optimize

from tracer.types import Float32, Float64, Int32

_SILENT = 1e-6
MAX_ROWS = 20_000
"""Rows that fit the weights; with more, an even draw of them. Two or three numbers need no more."""


def fit_weights(members: Sequence[Float32], y: Int32) -> tuple[Float64, float]:
    """Weights (m,), not negative, and the mean log loss they reach on logits (n, k) each."""
    if len(y) > MAX_ROWS:
        rows = np.linspace(0, len(y) - 1, MAX_ROWS).astype(np.intp)
        members, y = [member[rows] for member in members], y[rows]
    # Each member at unit spread first, so that weights are of one size. What is common to a row's labels says
    # nothing, and a member that says nothing gets no weight.
    members = [member - member.mean(axis=1, keepdims=True) for member in members]
    spread = np.array([float(member.std()) for member in members])
    silent = spread < _SILENT
    spread[silent] = 1.0
    index = np.arange(len(y))

    def loss(weights: Float64) -> tuple[float, Float64]:
        z = sum((member * np.float32(w / s) for member, w, s in zip(members, weights, spread, strict=True)))
        z = np.asarray(z)
        z -= z.max(axis=1, keepdims=True)
        own = z[index, y].astype(np.float64)
        np.exp(z, out=z)
        total = z.sum(axis=1)
        z /= total[:, None]
        gradient = [
            (np.einsum("nk,nk->n", z, member, dtype=np.float64) - member[index, y]).mean() / s
            for member, s in zip(members, spread, strict=True)
        ]
        return float((np.log(total) - own).mean()), np.array(gradient)

    start = np.full(len(members), 2.0 / len(members))
    start[silent] = 0.0
    bounds = [(0.0, 0.0 if nothing else 100.0) for nothing in silent]
    found = optimize.minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 50})
    return found.x / spread, float(found.fun)
