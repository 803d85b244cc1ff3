"""What every scheduler does alike: settling, saving, taking on fleets, refusing."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling import (
    Decision,
    LyapunovScheduler,
    MaxThroughput,
    Observation,
    Random,
    RoundRobin,
    Scheduler,
    WorkerLimits,
)

Floats = NDArray[np.float64]

FLEET = WorkerLimits(
    max_rate=np.array([2.0, 3.0, 1.0, 2.5]),
    max_admission=np.array([1.0, 1.5, 1.0, 0.5]),
    transmit_energy=np.array([0.5, 0.2, 0.3, 1.0]),
    compute_energy=np.array([0.25, 0.5, 0.1, 0.2]),
    capacity=np.array([200.0, np.inf, 300.0, 170.0]),
    battery=np.array([5.0, np.inf, 9.0, 160.0]),
    max_snr=np.array([10.0, 20.0, 5.0, 40.0]),
)
MAKERS: dict[str, Callable[[], Scheduler]] = {
    "lyapunov": lambda: LyapunovScheduler(v=5.0),
    "ofdma": lambda: LyapunovScheduler(v=5.0, carrier="ofdma"),
    "max-throughput": MaxThroughput,
    "round-robin": RoundRobin,
    "random": lambda: Random(np.random.default_rng(3)),
    "random-mt": lambda: Random(np.random.Generator(np.random.MT19937(3))),
}
EVERY = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def begun(make: Callable[[], Scheduler]) -> Scheduler:
    scheduler = make()
    scheduler.begin(FLEET)
    return scheduler


def slot(rng: np.random.Generator) -> Observation:
    assert FLEET.max_snr is not None
    return Observation(
        rng.random(4) * FLEET.max_rate,
        rng.random(4) * FLEET.max_admission,
        rng.random(4),
        (0.1 + 0.9 * rng.random(4)) * FLEET.max_snr,
    )


def same(one: Decision, other: Decision) -> bool:
    return all(np.array_equal(getattr(one, n), getattr(other, n)) for n in vars(one))


@EVERY
def test_a_restored_scheduler_continues_bit_for_bit(
    make: Callable[[], Scheduler],
) -> None:
    scheduler, rng = begun(make), np.random.default_rng(0)
    for _ in range(40):
        scheduler.step(slot(rng))
    state = scheduler.state()
    other = make()
    other.begin(FLEET)
    other.step(slot(np.random.default_rng(9)))
    other.restore(state)
    # The last slot can still be settled, and what comes after is the same.
    for one in (scheduler, other):
        one.settle(served=np.array([0.1, 0, 0, 0.2]), admitted=np.zeros(4))
    for _ in range(50):
        observation = slot(rng)
        assert same(scheduler.step(observation), other.step(observation))
        assert np.array_equal(scheduler.backlog, other.backlog)
        assert np.array_equal(scheduler.battery, other.battery)
    ours, theirs = scheduler.state(), other.state()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


@EVERY
def test_states_that_do_not_fit_are_refused(make: Callable[[], Scheduler]) -> None:
    scheduler, rng = begun(make), np.random.default_rng(0)
    scheduler.step(slot(rng))
    state = scheduler.state()
    for name in state:
        lacking = {n: a for n, a in state.items() if n != name}
        with pytest.raises(InvalidInputError, match=name):
            scheduler.restore(lacking)
        if len(state[name]) == 4:
            with pytest.raises(InvalidInputError, match=rf"{name} .* 4 workers"):
                scheduler.restore({**state, name: np.zeros(3)})
            bad = state[name].copy()
            bad[1] = np.nan
            with pytest.raises(InvalidInputError, match=rf"{name} of worker 1 .* nan"):
                scheduler.restore({**state, name: bad})
    after = scheduler.state()
    assert all(np.array_equal(state[name], after[name]) for name in state)


@EVERY
def test_settling_replaces_the_last_update(make: Callable[[], Scheduler]) -> None:
    scheduler, rng = begun(make), np.random.default_rng(1)
    for _ in range(30):
        scheduler.step(slot(rng))
    before = scheduler.state()
    decision = scheduler.step(slot(rng))
    settled = scheduler.state()
    admitted, served = 0.5 * decision.admitted, 0.25 * decision.service
    scheduler.settle(admitted=admitted, served=served)
    expected = np.maximum(before["backlog"] - served, 0) + admitted
    assert np.array_equal(scheduler.backlog, expected)
    grown = before["virtual"] + decision.auxiliary - admitted
    assert np.array_equal(scheduler.state()["virtual"], np.maximum(grown, 0))
    # Work that was not done gives its joules back, but the harvest stays bounded.
    saved = FLEET.compute_energy * (decision.admitted - admitted)
    more = np.minimum(settled["battery"] + saved, FLEET.capacity)
    assert np.allclose(scheduler.battery, more)
    # Settling again starts from the decision again; measured joules replace the rest.
    scheduler.settle(battery=np.array([7.0, np.nan, np.nan, 0.0]))
    assert np.array_equal(scheduler.backlog, settled["backlog"])
    assert scheduler.battery[[0, 3]].tolist() == [7.0, 0.0]
    assert np.array_equal(scheduler.battery[[1, 2]], settled["battery"][[1, 2]])


@EVERY
def test_what_cannot_have_happened_is_refused(make: Callable[[], Scheduler]) -> None:
    scheduler = make()
    with pytest.raises(InvalidInputError, match=r"call begin\(\)"):
        scheduler.step(slot(np.random.default_rng(0)))
    scheduler.begin(FLEET)
    with pytest.raises(InvalidInputError, match=r"call step\(\) first"):
        scheduler.settle()
    scheduler.step(slot(np.random.default_rng(0)))
    with pytest.raises(InvalidInputError, match=r"battery of worker 0 .* 200, got 201"):
        scheduler.settle(battery=np.array([201.0, np.nan, np.nan, np.nan]))
    with pytest.raises(InvalidInputError, match=r"battery of worker 3 .* got -1"):
        scheduler.settle(battery=np.array([1.0, 1.0, 1.0, -1.0]))
    with pytest.raises(InvalidInputError, match=r"admitted of worker 2 .* got 3\.0"):
        scheduler.settle(admitted=np.array([0.0, 0.0, 3.0, 0.0]))
    with pytest.raises(InvalidInputError, match=r"served of worker 0 .* got inf"):
        scheduler.settle(served=np.array([np.inf, 0, 0, 0]))


@EVERY
@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rates", np.array([0, 0, 1.5, 0]), r"worker 2 must be .* at most 1, got 1\.5"),
        ("rates", np.zeros(3), r"rates .* 4 workers, got .* \(3,\)"),
        ("offered", np.array([-0.5, 0, 0, 0]), r"offered of worker 0 .* got -0\.5"),
        ("harvest", np.array([0, np.inf, 0, 0]), r"harvest of worker 1 .* got inf"),
        ("harvest", np.array([0, 0, 0, np.nan]), r"harvest of worker 3 .* got nan"),
    ],
)
def test_observations_out_of_range_are_named(
    make: Callable[[], Scheduler], name: str, value: Floats, message: str
) -> None:
    scheduler = begun(make)
    good = vars(slot(np.random.default_rng(0)))
    with pytest.raises(InvalidInputError, match=message):
        scheduler.step(Observation(**{**good, name: value}))


def test_ofdma_needs_the_signal_to_noise_ratio() -> None:
    scheduler = LyapunovScheduler(v=5.0, carrier="ofdma")
    without = {**vars(FLEET), "max_snr": None}
    with pytest.raises(InvalidInputError, match="max_snr"):
        scheduler.begin(WorkerLimits(**without))
    scheduler.begin(FLEET)
    good = vars(slot(np.random.default_rng(0)))
    with pytest.raises(InvalidInputError, match="snr of every slot"):
        scheduler.step(Observation(**{**good, "snr": None}))
    zero = np.array([1.0, 0.0, 1.0, 1.0])
    with pytest.raises(InvalidInputError, match="snr of worker 1 must be positive"):
        scheduler.step(Observation(**{**good, "snr": zero}))
    with pytest.raises(InvalidInputError, match=r"carrier .* got 'cdma'"):
        LyapunovScheduler(carrier="cdma")


@EVERY
@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (np.array([0, 1]), r"keep .* 4 workers, got .* \(2,\)"),
        (np.array([0, 1, 2, 4]), "keep of worker 3 is 4: .* had 4 workers"),
        (np.array([0, -2, 1, -1]), "keep of worker 1 is -2"),
        (np.array([0, -1, 1, 1]), "names worker 1 .* more than once"),
        (np.array([0.0, 1.0, 2.0, 3.0]), "whole number .* float64"),
    ],
)
def test_indices_to_keep_are_checked_and_nothing_changes(
    make: Callable[[], Scheduler], keep: NDArray[np.int64], message: str
) -> None:
    scheduler, rng = begun(make), np.random.default_rng(2)
    scheduler.step(slot(rng))
    state = scheduler.state()
    with pytest.raises(InvalidInputError, match=message):
        scheduler.begin(FLEET, keep)
    after = scheduler.state()
    assert all(np.array_equal(state[name], after[name]) for name in state)


@EVERY
def test_decisions_and_observations_can_not_change_the_books(
    make: Callable[[], Scheduler],
) -> None:
    scheduler, rng = begun(make), np.random.default_rng(2)
    observation = slot(rng)
    decision = scheduler.step(observation)
    expected = scheduler.battery
    with pytest.raises(ValueError, match="read-only"):
        decision.service[0] = 1.0
    observation.harvest[:] = 0.0
    scheduler.backlog[:] = 9.0
    scheduler.settle()
    assert np.array_equal(scheduler.battery, expected)
    assert not (scheduler.backlog == 9.0).any()
