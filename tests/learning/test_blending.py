"""Weights of an ensemble against a plain search."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize
from scipy.special import logsumexp

from tracer.learning import blending
from tracer.types import Float32, Float64, Int32

N, K = 400, 3


def evidence(seed: int, strength: float) -> tuple[Float32, Int32]:
    rng = np.random.default_rng(seed)
    y = (np.arange(N) % K).astype(np.int32)
    return (strength * np.eye(K)[y] + rng.normal(size=(N, K))).astype(np.float32), y


def log_loss(members: list[Float32], weights: Float64, y: Int32) -> float:
    z = sum((w * member.astype(np.float64) for w, member in zip(weights, members, strict=True)), np.zeros((N, K)))
    return float((logsumexp(z, axis=1) - z[np.arange(N), y]).mean())


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_one_weight_is_the_best_temperature_whatever_the_scale(scale: float) -> None:
    logits, y = evidence(0, 2.0)
    weights, loss = blending.fit_weights([logits * np.float32(scale)], y)
    best = optimize.minimize_scalar(lambda w: log_loss([logits], np.array([w]), y), bounds=(0, 10), method="bounded")
    assert weights[0] * scale == pytest.approx(best.x, rel=0.02)
    assert loss == pytest.approx(best.fun, rel=1e-3)


def test_two_weights_are_the_best_pair() -> None:
    (one, y), (two, _) = evidence(1, 1.5), evidence(2, 0.8)
    weights, loss = blending.fit_weights([one, two], y)

    def loss_at(weights: Float64) -> float:
        return log_loss([one, two], weights, y)

    best = optimize.minimize(loss_at, np.ones(2), method="Nelder-Mead")
    assert weights == pytest.approx(best.x, rel=0.03)
    assert loss == pytest.approx(log_loss([one, two], weights, y), rel=1e-4)
    assert loss < min(blending.fit_weights([one], y)[1], blending.fit_weights([two], y)[1])


def test_weights_are_never_negative() -> None:
    logits, y = evidence(3, 2.0)
    weights, loss = blending.fit_weights([logits, -logits], y)
    assert (weights >= 0).all()
    assert weights[1] < weights[0]
    against, worst = blending.fit_weights([-logits], y)
    assert against[0] == pytest.approx(0.0, abs=1e-3)
    assert worst == pytest.approx(np.log(K), abs=1e-3)
    assert loss < worst


def test_a_member_that_says_nothing_does_no_harm() -> None:
    logits, y = evidence(4, 2.0)
    weights, loss = blending.fit_weights([logits, np.full((N, K), 3.0, dtype=np.float32)], y)
    assert np.isfinite(weights).all()
    assert loss == pytest.approx(blending.fit_weights([logits], y)[1], rel=1e-3)


def test_many_rows_are_drawn_evenly() -> None:
    logits, y = evidence(5, 2.0)
    times = blending.MAX_ROWS // N + 5
    many, loss = blending.fit_weights([np.tile(logits, (times, 1))], np.tile(y, times))
    few, _ = blending.fit_weights([logits], y)
    assert many == pytest.approx(few, rel=0.05)
    assert np.isfinite(loss)
