"""Sharing a carrier: by hand, and against a convex solver."""

import math

import cvxpy as cp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flower_ext.scheduling.shares import in_order, ofdma, time_shared

Floats = NDArray[np.float64]


def test_in_order_passes_on_what_is_not_needed() -> None:
    backlog, rates = np.array([1.0, 1.0, 8.0, 8.0]), np.full(4, 4.0)
    shares = in_order(np.array([1, 3, 2]), backlog, rates)
    assert shares.tolist() == [0.0, 0.25, 0.0, 0.75]
    assert in_order(np.zeros(0, dtype=np.int64), backlog, rates).tolist() == [0.0] * 4


def test_the_greatest_weight_sends_first_and_only_until_its_backlog_is_empty() -> None:
    backlog, rates = np.array([1.0, 5.0, 5.0]), np.array([4.0, 10.0, 2.0])
    # Weight, not rate, decides; the rest of the slot goes to the next best.
    assert time_shared(np.array([3.0, 2.0, 1.0]), backlog, rates).tolist() == [
        0.25,
        0.5,
        0.25,
    ]
    # A weight of zero or less is worth no share, even of an idle carrier.
    assert time_shared(np.array([3.0, 0.0, -1.0]), backlog, rates).tolist() == [
        0.25,
        0.0,
        0.0,
    ]
    # One that can use it all gets it all.
    assert time_shared(np.array([1.0, 1.0, 4.0]), backlog, rates).tolist() == [0, 0, 1]
    assert not time_shared(np.full(3, -1.0), backlog, rates).any()


@given(seed=st.integers(0, 2**32))
def test_time_shared_is_the_linear_optimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 6))
    weight, rates = rng.uniform(-1, 3, count), rng.uniform(0.5, 3, count)
    backlog = rng.uniform(0, 1.5, count)
    shares = time_shared(weight, backlog, rates)
    assert shares.sum() <= 1 + 1e-12
    assert (shares >= 0).all()
    assert (shares <= backlog / rates + 1e-12).all()
    # Duality: at the price of a full slot nobody gains by more or less.
    open_ended = (shares < backlog / rates - 1e-9) & (weight > 0)
    price = weight[open_ended].max(initial=0.0)
    assert (weight[shares > 0] >= price - 1e-12).all()
    assert price == 0 or shares.sum() == pytest.approx(1)


def value(
    instance: tuple[Floats, Floats, Floats, Floats, Floats], x: Floats, q: Floats
) -> float:
    weight, backlog, rates, snr, cost = instance
    band = np.where(x > 0, x, 1.0)
    units = rates * x * np.log1p(snr * q / band) / np.log1p(snr)
    return float((weight * np.minimum(units, backlog) - cost * q).sum())


def random_instance(seed: int) -> tuple[Floats, Floats, Floats, Floats, Floats]:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 7))
    return (
        rng.uniform(0, 10, count),
        rng.uniform(0, 3, count) * rng.choice([1, 0.1], count),
        rng.uniform(0.1, 5, count),
        10.0 ** rng.uniform(-1, 2.5, count),
        rng.uniform(0, 30, count) * rng.choice([0, 0.1, 1], count),
    )


@pytest.mark.parametrize("seed", range(60))
def test_water_filling_is_the_convex_optimum(seed: int) -> None:
    instance = random_instance(seed)
    weight, backlog, rates, snr, cost = instance
    count = len(weight)
    x, q, units = ofdma(*instance)
    band, power = cp.Variable(count, nonneg=True), cp.Variable(count, nonneg=True)
    sent = cp.Variable(count)
    nats = -cp.rel_entr(band, band + cp.multiply(snr, power))
    within = [
        cp.sum(band) <= 1,
        power <= 1,
        sent <= backlog,
        sent <= cp.multiply(rates / np.log1p(snr), nats),
    ]
    problem = cp.Problem(cp.Maximize(weight @ sent - cost @ power), within)
    problem.solve(solver=cp.CLARABEL)
    assert value(instance, x, q) == pytest.approx(problem.value, rel=1e-6, abs=1e-6)
    assert float(weight @ units - cost @ q) == pytest.approx(value(instance, x, q))


@given(seed=st.integers(0, 2**32), large=st.booleans())
@settings(max_examples=60, deadline=None)
def test_bands_and_powers_are_feasible_at_any_scale(seed: int, large: bool) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1500, 4000) if large else rng.integers(1, 30))

    def scales(low: float, high: float) -> Floats:
        exponents = rng.uniform(low, high, count)
        values: Floats = 10.0**exponents * rng.choice([1, 1, 0], count)
        return values

    rates, snr = scales(-6, 9), 10 ** rng.uniform(-9, 12, count)
    backlog = scales(-3, 6)
    x, q, units = ofdma(scales(-3, 6), backlog, rates, snr, scales(-9, 9))
    assert (x >= 0).all()
    assert x.sum() <= 1 + 1e-12
    assert ((q >= 0) & (q <= 1)).all()
    assert ((units >= 0) & (units <= backlog)).all()
    assert (units <= rates * (1 + 1e-9)).all()
    assert not units[x == 0].any()


def test_many_workers_get_what_few_times_as_large_would() -> None:
    # Bands scale: a copy of every worker with a part of the rate, the power and the
    # backlog, at the same density, leaves the sum of the values unchanged.
    for seed in range(5):
        weight, backlog, rates, snr, cost = random_instance(seed)
        copies = 2000
        few = ofdma(weight, backlog, rates, snr, cost)
        nats = rates / np.log1p(snr)
        part = (
            np.repeat(weight, copies),
            np.repeat(backlog / copies, copies),
            np.repeat(nats * np.log1p(snr / copies), copies),
            np.repeat(snr / copies, copies),
            np.repeat(cost / copies, copies),
        )
        many = ofdma(*part)
        assert value(part, many[0], many[1]) == pytest.approx(
            value((weight, backlog, rates, snr, cost), few[0], few[1]), rel=1e-6
        )


def test_energy_decides_how_much_power_a_band_gets() -> None:
    # Alone with rate 1, snr e − 1: R = x·log(1 + (e−1)q/x), at x = 1 best where
    # weight·(e−1)/(1 + (e−1)q) = cost: q = (weight/cost − 1/(e−1)).
    snr = np.array([math.e - 1])
    one = np.ones(1)
    x, q, units = ofdma(one, 9 * one, one, snr, 1.25 * one)
    assert x[0] == pytest.approx(1)
    assert q[0] == pytest.approx(1 / 1.25 - 1 / (math.e - 1))
    assert units[0] == pytest.approx(math.log(1 + (math.e - 1) * q[0]))
    # Dearer than the first unit is worth: nothing.
    assert ofdma(one, 9 * one, one, snr, 1.8 * one)[1].tolist() == [0.0]
    # Nothing to send, or no rate: nothing.
    assert not any(a.any() for a in ofdma(one, 0 * one, one, snr, 0 * one))
    assert not any(a.any() for a in ofdma(one, one, 0 * one, snr, 0 * one))


def test_spare_band_saves_the_power_of_a_short_backlog() -> None:
    one = np.ones(1)
    snr = np.array([3.0])
    free = ofdma(one, 0.5 * one, one, snr, 0 * one)
    dear = ofdma(one, 0.5 * one, one, snr, 0.01 * one)
    assert free[2][0] == pytest.approx(0.5)
    assert dear[2][0] == pytest.approx(0.5)
    # Half the units of the whole band: power (√4 − 1)/3 over the whole band.
    assert (dear[0][0], dear[1][0]) == pytest.approx((1.0, 1 / 3))
