"""The Lyapunov scheduler: its rule by hand, and its promises on random instances."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling import (
    AlphaFair,
    LyapunovScheduler,
    Observation,
    Scheduler,
    WorkerLimits,
)

Floats = NDArray[np.float64]


def limits(count: int = 1, **values: Any) -> WorkerLimits:
    """Return a fleet of equals; every value may be a number or an array."""
    given: dict[str, Any] = {
        "max_rate": 2.0,
        "max_admission": 4.0,
        "transmit_energy": 0.0,
        "compute_energy": 0.0,
        "capacity": np.inf,
        "battery": np.inf,
    }
    given |= values
    return WorkerLimits(**{n: np.broadcast_to(v, (count,)) for n, v in given.items()})


def seen(rates: Any, offered: Any, harvest: Any = None, snr: Any = None) -> Observation:
    harvest = np.zeros(len(rates)) if harvest is None else np.array(harvest)
    return Observation(np.array(rates), np.array(offered), harvest, snr)


BATTERY = {
    "max_rate": 2.0,
    "max_admission": 1.0,
    "transmit_energy": 0.5,
    "compute_energy": 0.25,
}


def test_queues_by_hand() -> None:
    scheduler = LyapunovScheduler(v=6.0)
    scheduler.begin(limits())
    assert isinstance(scheduler, Scheduler)
    # γ = min(6/H − 1, 4); a = 3 if H > Q; x = min(Q/2, 1) if Q > 0.
    rows = []
    for _ in range(4):
        d = scheduler.step(seen([2.0], [3.0]))
        virtual = scheduler.state()["virtual"]
        row = (d.auxiliary, d.admitted, d.shares, d.service, scheduler.backlog, virtual)
        rows.append([float(array[0]) for array in row])
    assert rows == [
        [4.0, 0.0, 0.0, 0.0, 0.0, 4.0],
        [0.5, 3.0, 0.0, 0.0, 3.0, 1.5],
        [3.0, 0.0, 1.0, 2.0, 1.0, 4.5],
        [pytest.approx(1 / 3), 3.0, 0.5, 1.0, 3.0, pytest.approx(4.5 + 1 / 3 - 3)],
    ]


def test_the_greatest_product_of_backlog_and_rate_sends() -> None:
    scheduler = LyapunovScheduler(v=6.0)
    scheduler.begin(limits(2, max_rate=4.0))
    for _ in range(2):
        scheduler.step(seen([1.0, 1.0], [4.0, 3.0]))
    assert scheduler.backlog.tolist() == [4.0, 3.0]
    decision = scheduler.step(seen([1.0, 2.0], [0.0, 0.0]))
    assert decision.shares.tolist() == [0.0, 1.0]  # 3·2 beats 4·1
    assert decision.powers.tolist() == [0.0, 1.0]


def test_what_cannot_be_sent_leaves_the_carrier_to_others() -> None:
    scheduler = LyapunovScheduler(v=6.0)
    scheduler.begin(limits(2, max_rate=4.0))
    for _ in range(2):
        scheduler.step(seen([1.0, 1.0], [4.0, 3.0]))
    zeros = np.zeros(2)
    sent = Observation(np.array([4.0, 2.0]), zeros, zeros, None, np.array([1.0, 0.5]))
    decision = scheduler.step(sent)
    # Four and three wait; the first, at 4·4, may send one only.
    assert decision.shares.tolist() == [0.25, 0.25]
    assert decision.service.tolist() == [1.0, 0.5]
    assert scheduler.backlog.tolist() == [3.0, 2.5]
    with pytest.raises(InvalidInputError, match=r"sendable of worker 0 .* got -1\.0"):
        scheduler.step(Observation(zeros, zeros, zeros, None, np.array([-1.0, 0.0])))


def test_energy_price_by_hand() -> None:
    scheduler = LyapunovScheduler(v=2.0)
    capacity = [20.0, np.inf]
    scheduler.begin(limits(2, **BATTERY, capacity=capacity, battery=[10.0, np.inf]))
    # e + c·A + max((2 + 2)·2/0.5, (2 + 1)/0.25) = 0.75 + max(16, 12)
    assert scheduler.theta.tolist() == [16.75, 0.0]
    assert scheduler.price.tolist() == [6.75, 0.0]
    assert scheduler.backlog_bound.tolist() == [4.0, 4.0]
    for _ in range(2):
        decision = scheduler.step(seen([2.0, 2.0], [1.0, 1.0], [0.5, 0.5]))
    # The second slot: H = 1 beats 0 but not the 5.75·0.25 of computing; mains do.
    assert decision.admitted.tolist() == [0.0, 1.0]
    assert decision.harvested.tolist() == [0.5, 0.0]
    assert scheduler.battery.tolist() == [11.0, np.inf]
    # Full: computing and sending cost what they cost, the price is zero.
    scheduler.settle(battery=np.array([20.0, np.nan]))
    assert scheduler.price.tolist() == [0.0, 0.0]
    decision = scheduler.step(seen([2.0, 2.0], [1.0, 0.0], [1.0, 0.0]))
    assert decision.admitted.tolist() == [1.0, 0.0]
    # What the slot took made room for as much.
    assert decision.harvested.tolist() == [0.25, 0.0]
    assert scheduler.battery.tolist() == [20.0, np.inf]


def test_a_capacity_below_theta_names_the_largest_v() -> None:
    fleet = limits(2, **BATTERY, capacity=[np.inf, 10.0], battery=[np.inf, 0.0])
    # (10 − 0.75)/4 − 2 = 0.3125
    message = r"worker 1 holds 10 J, less than the 16\.75 J that v = 2 .* is 0\.3125"
    with pytest.raises(InvalidInputError, match=message):
        LyapunovScheduler(v=2.0).begin(fleet)
    LyapunovScheduler(v=0.3125).begin(fleet)
    with pytest.raises(InvalidInputError, match=r"largest v .* is 0\.3125"):
        LyapunovScheduler(v=0.3126).begin(fleet)
    small = limits(1, **BATTERY, capacity=0.7, battery=0.0)
    with pytest.raises(
        InvalidInputError, match=r"below one transmission and computing \(0\.75 J\)"
    ):
        LyapunovScheduler(v=0.1).begin(small)


def test_theta_on_ofdma_counts_the_units_per_joule_at_power_zero() -> None:
    scheduler = LyapunovScheduler(v=2.0, carrier="ofdma")
    scheduler.begin(limits(1, **BATTERY, capacity=99.0, battery=9.0, max_snr=3.0))
    per_joule = 2 / 0.5 * 3 / np.log(4)
    assert scheduler.theta[0] == pytest.approx(0.75 + 4 * per_joule)


def test_gap_bound_by_hand() -> None:
    fleet = limits(2, **BATTERY, capacity=[20.0, np.inf], battery=[0.0, np.inf])
    scheduler = LyapunovScheduler(v=2.0)
    scheduler.begin(fleet)
    # ½·2² + 2·1² + ½·0.75²
    assert scheduler.gap_bound() == (2 + 2 + 0.28125) / 2
    assert scheduler.gap_bound(np.array([2.0, 2.0])) == (2 + 2 + 2) / 2


def random_fleet(rng: np.random.Generator, carrier: str, v: float) -> WorkerLimits:
    """Return limits whose batteries barely suffice for V, mostly."""
    count = int(rng.integers(1, 8))
    rate, admission = rng.uniform(0.2, 4, count), rng.uniform(0.2, 3, count)
    transmit = rng.uniform(0.1, 2, count) * rng.choice([0, 1, 1], count)
    compute = rng.uniform(0.1, 2, count) * rng.choice([0, 1, 1], count)
    snr = 10 ** rng.uniform(-1, 2, count)
    vast = np.full(count, 1e9)
    probe = LyapunovScheduler(v=v, carrier=carrier)
    probe.begin(WorkerLimits(rate, admission, transmit, compute, vast, vast, snr))
    capacity = np.maximum(probe.theta, 0.1) * rng.choice([1, 1, 1.5, np.inf], count)
    full = np.isinf(capacity)
    battery = np.where(full, np.inf, rng.random(count) * np.where(full, 0, capacity))
    return WorkerLimits(rate, admission, transmit, compute, capacity, battery, snr)


def random_slot(rng: np.random.Generator, fleet: WorkerLimits) -> Observation:
    """Return rates, offers and harvests that change at random, zeros among them."""
    count = len(fleet)

    def part() -> Floats:
        part: Floats = rng.random(count) * rng.choice([0, 1, 1], count)
        return part

    assert fleet.max_snr is not None
    most = fleet.transmit_energy + fleet.compute_energy * fleet.max_admission
    full = rng.choice([0.0, 1.0], count)
    return Observation(
        np.maximum(part(), full) * fleet.max_rate,
        np.maximum(part(), full) * fleet.max_admission,
        3 * part() * most,
        (0.01 + 0.99 * rng.random(count)) * fleet.max_snr,
    )


CARRIERS = st.sampled_from(["time-shared", "ofdma"])


@given(
    seed=st.integers(0, 2**32),
    carrier=CARRIERS,
    v=st.floats(0.1, 50.0),
    settled=st.booleans(),
    bounded=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_backlogs_stay_bounded_and_batteries_within_their_capacity(
    seed: int, carrier: str, v: float, settled: bool, bounded: bool
) -> None:
    rng = np.random.default_rng(seed)
    fleet = random_fleet(rng, carrier, v)
    scheduler = LyapunovScheduler(v=v, carrier=carrier)
    scheduler.begin(fleet)
    bound = v + 2 * fleet.max_admission
    rounding = np.where(np.isinf(fleet.capacity), 0, 1e-9 * fleet.capacity)
    for _ in range(150):
        before = scheduler.battery
        observation = random_slot(rng, fleet)
        if bounded:
            sendable = rng.random(len(fleet)) * rng.choice([0, 1, 3], len(fleet))
            observation = replace(observation, sendable=sendable)
        d = scheduler.step(observation)
        if bounded:
            assert (d.service <= sendable * (1 + 1e-9)).all()
        assert d.shares.sum() <= 1 + 1e-12
        assert ((d.shares >= 0) & (d.powers >= 0) & (d.powers <= 1)).all()
        assert ((d.admitted == 0) | (d.admitted == observation.offered)).all()
        assert ((d.harvested >= 0) & (d.harvested <= observation.harvest + 1e-9)).all()
        spent = fleet.transmit_energy * d.powers + fleet.compute_energy * d.admitted
        finite = np.isfinite(fleet.capacity)
        moved = before - spent + d.harvested
        assert np.allclose(scheduler.battery[finite], moved[finite])
        if settled:
            measured = np.where(rng.random(len(fleet)) < 0.9, np.nan, 0.0)
            scheduler.settle(
                admitted=d.admitted * rng.choice([0, 1], len(fleet)),
                served=d.service * rng.random(len(fleet)),
                battery=measured,
            )
        assert (scheduler.backlog <= bound * (1 + 1e-12)).all()
        assert (scheduler.battery >= -rounding).all()
        assert (scheduler.battery <= fleet.capacity).all()


@pytest.mark.parametrize("carrier", ["time-shared", "ofdma"])
def test_a_worker_that_harvests_enough_is_not_starved_by_its_price(
    carrier: str,
) -> None:
    scheduler = LyapunovScheduler(v=5.0, utility=AlphaFair(1.0), carrier=carrier)
    snr = np.array([3.0, 3.0])
    fleet = limits(
        2, **BATTERY, capacity=[200.0, np.inf], battery=[0.0, np.inf], max_snr=3.0
    )
    scheduler.begin(fleet)
    served = np.zeros(2)
    for slot in range(1000):
        observation = seen([2.0, 2.0], [1.0, 1.0], [0.5, 0.0], snr)
        decision = scheduler.step(observation)
        served += decision.service if slot >= 500 else 0
    assert (served / 500 > 0.95).all()


def test_joining_and_leaving_keep_the_queues_of_those_who_stay() -> None:
    scheduler = LyapunovScheduler(v=2.0)
    fleet = limits(3, **BATTERY, capacity=20.0, battery=[18.0, 17.0, 16.5])
    scheduler.begin(fleet)
    for _ in range(3):
        scheduler.step(seen([0.5, 0.5, 0.5], [1.0, 0.5, 0.25], [0.1] * 3))
    before = scheduler.state()
    scheduler.begin(
        limits(2, **BATTERY, capacity=20.0, battery=[3.0, 4.0]), np.array([2, -1])
    )
    after = scheduler.state()
    for name in ("backlog", "virtual", "battery"):
        assert after[name][0] == before[name][2]
    assert (after["backlog"][1], after["virtual"][1], after["battery"][1]) == (0, 0, 4)
    with pytest.raises(InvalidInputError, match="no slot to settle"):
        scheduler.settle(served=np.zeros(2))


def test_a_queue_kept_from_a_wider_fleet_does_not_overdraw_a_battery() -> None:
    scheduler = LyapunovScheduler(v=1.0)
    wide = {**BATTERY, "max_admission": 9.0}
    scheduler.begin(limits(1, **wide))
    while scheduler.backlog[0] < 8:
        scheduler.step(seen([0.0], [9.0]))
    narrow = limits(1, **BATTERY, capacity=12.75, battery=0.0)  # θ itself
    scheduler.begin(narrow, np.array([0]))
    assert scheduler.battery.tolist() == [0.0]  # it was on mains
    assert scheduler.backlog[0] > scheduler.backlog_bound[0]
    for _ in range(300):
        scheduler.step(seen([2.0], [1.0], [0.3]))
        assert scheduler.battery[0] >= 0
    assert scheduler.backlog[0] <= scheduler.backlog_bound[0]


@pytest.mark.parametrize("v", [0.0, -1.0, float("nan"), float("inf")])
def test_v_must_be_positive_and_finite(v: float) -> None:
    with pytest.raises(InvalidInputError, match=f"v must be .* got {v}"):
        LyapunovScheduler(v=v)


def test_a_state_of_a_larger_v_is_refused() -> None:
    scheduler = LyapunovScheduler(v=2.0)
    scheduler.begin(limits())
    state = scheduler.state()
    state["virtual"][0] = 6.1  # at most 2 + 4
    with pytest.raises(InvalidInputError, match=r"virtual .* got 6\.1"):
        scheduler.restore(state)
