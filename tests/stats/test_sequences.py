"""Anytime-valid evidence, against integrals done by brute force and sums done by hand."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import special

from tracer.stats.sequences import Detector, EProcess, after_block, first, known_to

RATES = [0.005, 0.02, 0.05, 0.1, 0.3, 0.5, 0.8]


def by_integration(process: EProcess, n_ones: int, n: int) -> float:
    """log e by the trapezoidal rule over log odds, from the edge of the mixture's side outward in growing steps."""
    a, b = process.prior
    steps = np.concatenate([[0.0], np.geomspace(1e-9, 4000.0, 60_000)])
    odds = special.logit(process.rate) + (-steps if process.side == "below" else steps)
    weights = np.gradient(steps)
    weights[[0, -1]] /= 2.0

    def mass(ones: int, zeros: int) -> float:
        log_density = (a + ones) * special.log_expit(odds) + (b + zeros) * special.log_expit(-odds)
        return float(special.logsumexp(log_density, b=weights))

    null = n_ones * math.log(process.rate) + (n - n_ones) * math.log1p(-process.rate)
    return mass(n_ones, n - n_ones) - mass(0, 0) - null


@pytest.mark.parametrize("side", ["below", "above"])
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(
    ("ones", "n"),
    [(0, 1), (1, 1), (0, 60), (3, 100), (50, 100), (100, 100), (400, 20_000), (12_000, 20_000), (0, 20_000)],
)
def test_log_e_is_the_integral(side: str, rate: float, ones: int, n: int) -> None:
    process = EProcess(rate, "below" if side == "below" else "above")
    assert float(process.log_e(ones, n)) == pytest.approx(by_integration(process, ones, n), rel=1e-6, abs=1e-5)


@pytest.mark.parametrize("side", ["below", "above"])
def test_far_tails_do_not_underflow(side: str) -> None:
    # Ten million events, far on either side of the null: the regularised integral is 0 in double precision.
    process = EProcess(0.05, "below" if side == "below" else "above")
    against = 3_000_000 if side == "below" else 100_000
    ordinary = special.betainc(0.5 + 3_000_000, 9.5 + 7_000_000, 0.05)
    assert ordinary == 0.0
    log_e = process.log_e([against, 100_000 if side == "below" else 3_000_000], 10_000_000)
    assert np.isfinite(log_e).all()
    assert log_e[0] < -5.0
    assert log_e[1] > 1e5


def test_both_ways_to_the_integral_meet() -> None:
    # Around the count where one hands over to the other, log e has no step.
    n = np.full(2000, 100_000)
    log_e = EProcess(0.05, "below").log_e(np.arange(5000, 7000), n)
    assert np.abs(np.diff(log_e, 3)).max() < 1e-6
    assert (np.diff(log_e) < 0.0).all()


@given(
    rate=st.floats(0.01, 0.95),
    side=st.sampled_from(["below", "above"]),
    ones=st.integers(0, 50),
    zeros=st.integers(0, 200),
    side_step=st.floats(0.0, 1.0),
)
def test_the_mean_of_the_next_value_is_no_larger_under_the_null(
    rate: float, side: str, ones: int, zeros: int, side_step: float
) -> None:
    process = EProcess(rate, "below" if side == "below" else "above")
    p = rate + side_step * (1.0 - rate) if side == "below" else rate * (1.0 - side_step)
    now, hit, miss = process.log_e([ones, ones + 1, ones], [ones + zeros, ones + zeros + 1, ones + zeros + 1])
    mean = p * math.exp(hit - now) + (1.0 - p) * math.exp(miss - now)
    assert mean <= 1.0 + 1e-9
    if side_step == 0.0:
        assert mean == pytest.approx(1.0)


def test_values_of_a_sequence_are_those_of_its_counts() -> None:
    x = np.random.default_rng(0).random((3, 50)) < 0.1
    process = EProcess(0.05, "above")
    values = process.log_e_values(x)
    assert values.shape == (3, 50)
    assert values[1, 30] == process.log_e(int(x[1, :31].sum()), 31)


def test_crossing_is_the_first_time() -> None:
    # Nothing but agreement: the count at which the e-value passes 20, and never before.
    process = EProcess(0.05, "below")
    i = process.crossing(np.zeros(200, dtype=bool), 0.05)
    assert i is not None
    assert process.log_e(0, i + 1) >= math.log(20) > process.log_e(0, i)
    assert process.crossing(np.ones(200), 0.05) is None
    assert process.crossing([], 0.05) is None


def test_medians_of_the_promotion_process() -> None:
    x = np.random.default_rng(3).random((300, 2500))
    process = EProcess(0.05, "below")
    for rate, median in ((0.02, 250), (0.03, 630)):
        reached = process.log_e_values(x < rate) >= math.log(20)
        assert np.median(reached.argmax(axis=1) + 1) == pytest.approx(median, rel=0.1)


@pytest.mark.parametrize(("ones", "n"), [(2, 1), (-1, 4)])
def test_impossible_counts_are_refused(ones: int, n: int) -> None:
    with pytest.raises(ValueError, match="n_ones must lie between 0 and n"):
        EProcess(0.05, "below").log_e(ones, n)


def test_impossible_rates_are_refused() -> None:
    with pytest.raises(ValueError, match=r"rate = 1\.0"):
        EProcess(1.0, "below")
    with pytest.raises(ValueError, match="must be ordered rates"):
        Detector.outside(0.5, 0.4, 100.0)
    with pytest.raises(ValueError, match="limit = 0"):
        Detector.above(0.05, 0)


def shiryaev_roberts(x: NDArray[np.bool_], detector: Detector) -> float:
    """The value by its definition: for each bet the sum, over all times of change, of the ratio since."""
    ratios = np.where(x[:, None], np.exp(detector.log_one), np.exp(detector.log_zero))
    return float(np.cumprod(ratios[::-1], axis=0).sum(axis=0).mean())


@pytest.mark.parametrize("detector", [Detector.above(0.05, 1000.0), Detector.outside(0.6, 0.7, 1000.0)])
def test_the_detector_sums_over_all_times_of_change(detector: Detector) -> None:
    x = np.random.default_rng(1).random(60) < 0.2
    state, values = detector.run(detector.start(), x)
    assert values[-1] == pytest.approx(shiryaev_roberts(x, detector))
    assert detector.value(state) == values[-1]


def test_one_by_one_in_pieces_and_all_at_once_are_equal_to_the_bit() -> None:
    detector = Detector.above(0.05, 20_000.0)
    x = np.random.default_rng(2).random((4, 3000)) < np.array([[0.02], [0.05], [0.1], [0.9]])
    together = detector.values(x)
    for row, values in zip(x, together, strict=True):
        state, first_part = detector.run(detector.start(), row[:1234])
        state = tuple(json.loads(json.dumps(state)))
        _, rest = detector.run(state, row[1234:])
        assert [*first_part, *rest] == values.tolist()


def test_the_detector_survives_what_it_bets_on() -> None:
    values = Detector.above(0.05, 20_000.0).values(np.ones(5000))
    assert np.isfinite(values).all()
    assert values[-1] > 1e90


@pytest.mark.parametrize(
    ("rate", "median", "tenth"),
    [(0.07, 880, 1932), (0.08, 560, 1117), (0.10, 262, 492), (0.15, 98, 178), (0.25, 40, 67), (0.50, 16, 23)],
)
def test_delays_of_the_alarm(rate: float, median: int, tenth: int) -> None:
    x = np.random.default_rng(4).random((1000, 6000 if rate < 0.1 else 1500)) < rate
    delays = (Detector.above(0.05, 20_000.0).values(x) >= 20_000.0).argmax(axis=1) + 1
    assert np.median(delays) == pytest.approx(median, rel=0.2)
    assert np.quantile(delays, 0.9) == pytest.approx(tenth, rel=0.2)


@pytest.mark.parametrize("rate", RATES)
def test_the_mean_of_the_detector_rises_by_one_at_most(rate: float) -> None:
    detector = Detector.outside(rate, min(rate * 1.2, 0.9), 1000.0)
    state, _ = detector.run(detector.start(), [1, 0, 0, 1, 0])
    for p in (rate, rate * 1.1):
        hit, miss = (detector.value(detector.run(state, [x])[0]) for x in (1, 0))
        assert p * hit + (1 - p) * miss <= detector.value(state) + 1.0 + 1e-12


def test_sides_of_a_detector() -> None:
    assert len(Detector.above(0.05, 10.0).log_one) == 5
    assert len(Detector.outside(0.2, 0.3, 10.0).log_one) == 10
    nothing = Detector.outside(0.0, 1.0, 10.0)
    assert nothing.run(nothing.start(), [1, 0, 1]) == ((), [0.0, 0.0, 0.0])
    assert nothing.values([1, 0]).tolist() == [0.0, 0.0]
    # Fewer than expected rings too.
    assert Detector.outside(0.6, 0.7, 1000.0).values(np.zeros(40))[-1] > 1000.0


def test_a_block_of_one_is_an_event() -> None:
    detector = Detector.above(0.05, 100.0)
    state, _ = detector.run(detector.start(), [0, 1])
    one, zero = np.array(detector.log_one), np.array(detector.log_zero)
    np.testing.assert_allclose(after_block(np.array(state), one, zero, 1, 1, 1.0), detector.run(state, [1])[0])
    np.testing.assert_allclose(after_block(np.array(state), one, zero, 0, 0, 7.0), np.array(state) + 7.0)
    assert np.isfinite(after_block(np.array(state), one, zero, 10**7, 10**7, 1.0)).all()


def test_a_rate_known_from_counts() -> None:
    lower, upper = known_to(80, 100, 0.01)
    assert lower < 0.8 < upper
    assert known_to(80, 100, 0.001)[0] < lower
    wide = known_to(80, 100, 0.01, odds=2.0)
    assert wide[0] / (1 - wide[0]) == pytest.approx(lower / (1 - lower) / 2)
    assert wide[1] / (1 - wide[1]) == pytest.approx(upper / (1 - upper) * 2)
    assert known_to(0, 0, 0.01, odds=2.0) == (0.0, 1.0)


def test_first() -> None:
    assert first([False, True, True]) == 1
    assert first([]) is None
