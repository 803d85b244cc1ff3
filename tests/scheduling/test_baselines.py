"""The schedulers to compare with, on numbers that can be checked by hand."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling import (
    MaxThroughput,
    Observation,
    Random,
    RoundRobin,
    Scheduler,
    WorkerLimits,
)


def mains(count: int) -> WorkerLimits:
    one, nothing, much = np.ones(count), np.zeros(count), np.full(count, np.inf)
    return WorkerLimits(4 * one, one, nothing, nothing, much, much)


def shares(
    scheduler: Scheduler, rates: list[float], offered: list[float]
) -> list[float]:
    zeros = np.zeros(len(rates))
    seen = Observation(np.array(rates), np.array(offered), zeros)
    result: list[float] = scheduler.step(seen).shares.tolist()
    return result


def test_the_best_rate_sends_first() -> None:
    scheduler = MaxThroughput()
    scheduler.begin(mains(3))
    assert shares(scheduler, [1, 2, 4], [1, 1, 0]) == [0, 0, 0]  # nothing waits yet
    # The best rate has no backlog; the next one needs half the slot.
    assert shares(scheduler, [1, 2, 4], [0, 0, 0]) == [0.5, 0.5, 0]
    assert scheduler.backlog.tolist() == [0.5, 0, 0]


def test_turns_go_round_and_pass_on_what_is_left() -> None:
    scheduler = RoundRobin()
    scheduler.begin(mains(3))
    shares(scheduler, [1, 1, 1], [1, 1, 1])
    shares(scheduler, [0, 0, 0], [1, 1, 1])
    assert shares(scheduler, [1, 1, 1], [0] * 3) == [1, 0, 0]
    assert shares(scheduler, [1, 4, 1], [0] * 3) == [0, 0.5, 0.5]
    # 2 is next, then 0; 1 has nothing left.
    assert shares(scheduler, [4, 4, 4], [0] * 3) == [0.25, 0, 0.375]
    assert scheduler.backlog.tolist() == [0, 0, 0]


def test_the_turn_stays_with_the_worker_that_had_it() -> None:
    scheduler = RoundRobin()
    scheduler.begin(mains(3))
    shares(scheduler, [1, 1, 1], [1, 1, 1])
    assert shares(scheduler, [1, 1, 1], [0] * 3) == [1, 0, 0]  # worker 1 is next
    scheduler.begin(mains(3), np.array([2, -1, 1]))
    assert shares(scheduler, [1, 1, 1], [1] * 3) == [0, 0, 1]
    scheduler.begin(mains(2), np.array([-1, 1]))  # it was the turn of 0, who left
    assert scheduler.state()["turn"].tolist() == [0]


def test_at_random_everybody_sends_about_as_often() -> None:
    scheduler = Random(np.random.default_rng(0))
    scheduler.begin(mains(4))
    first = np.zeros(4)
    for _ in range(2000):
        first += shares(scheduler, [1.0] * 4, [1.0] * 4)
    # Five standard deviations of a binomial of 2000 draws at 1/4.
    assert (np.abs(first - 500) < 5 * np.sqrt(2000 * 3 / 16)).all()


MAKERS: dict[str, Callable[[], Scheduler]] = {
    "max-throughput": MaxThroughput,
    "round-robin": RoundRobin,
    "random": lambda: Random(np.random.default_rng(3)),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_who_lacks_the_joules_of_a_whole_slot_neither_computes_nor_sends(
    make: Callable[[], Scheduler],
) -> None:
    one, capacity = np.ones(2), np.full(2, 4.0)
    scheduler = make()
    # A slot can take 1 + 0.5·1 J.
    scheduler.begin(
        WorkerLimits(one, one, one, 0.5 * one, capacity, np.array([1.49, 1.5]))
    )
    seen = Observation(one, one, np.array([0.5, 0.0]))
    assert scheduler.step(seen).admitted.tolist() == [0.0, 1.0]
    assert scheduler.battery.tolist() == [1.99, 1.0]
    decision = scheduler.step(seen)
    assert decision.admitted.tolist() == [1.0, 0.0]
    assert decision.shares.tolist() == [0.0, 0.0]  # 1 has data, but not the energy


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(sorted(MAKERS)))
@settings(max_examples=30, deadline=None)
def test_backlogs_and_batteries_stay_within_bounds(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    count = int(rng.integers(1, 7))
    most, rate = rng.uniform(0.2, 2, count), rng.uniform(0.2, 2, count)
    energy, work = rng.uniform(0, 1, (2, count))
    capacity = rng.uniform(1, 9, count)
    battery = capacity * rng.random(count)
    fleet = WorkerLimits(rate, most, energy, work, capacity, battery)
    scheduler = MAKERS[kind]()
    scheduler.begin(fleet)
    for _ in range(100):
        part = rng.random((3, count))
        d = scheduler.step(Observation(part[0] * rate, part[1] * most, part[2]))
        assert d.shares.sum() <= 1 + 1e-12
        assert (scheduler.backlog <= 5 * most).all()
        assert (scheduler.battery >= -1e-9).all()
        assert (scheduler.battery <= capacity).all()


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_nobody_is_given_more_than_it_can_send(make: Callable[[], Scheduler]) -> None:
    scheduler = make()
    scheduler.begin(mains(3))
    for _ in range(3):
        shares(scheduler, [0.0] * 3, [1.0] * 3)
    rates, zeros = np.full(3, 4.0), np.zeros(3)
    sendable = np.array([1.0, 0.5, 0.0])  # three wait at each
    decision = scheduler.step(Observation(rates, zeros, zeros, sendable=sendable))
    assert decision.shares.tolist() == [0.25, 0.125, 0.0]
    assert decision.service.tolist() == sendable.tolist()
    assert scheduler.backlog.tolist() == [2.0, 2.5, 3.0]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize(
    ("sendable", "message"),
    [
        ([1.0, -0.5], r"sendable of worker 1 .* at least 0 .* got -0\.5"),
        ([np.nan, 1.0], "sendable of worker 0 .* got nan"),
        ([1.0, np.inf], "sendable of worker 1 .* finite, got inf"),
        ([1.0], r"sendable needs one value for each of 2 workers.*\(1,\)"),
    ],
)
def test_bad_sendable_is_refused(
    make: Callable[[], Scheduler], sendable: list[float], message: str
) -> None:
    scheduler = make()
    scheduler.begin(mains(2))
    with pytest.raises(InvalidInputError, match=message):
        scheduler.step(
            Observation(
                np.ones(2), np.ones(2), np.zeros(2), sendable=np.array(sendable)
            )
        )


def test_the_room_for_backlog_must_be_positive() -> None:
    with pytest.raises(InvalidInputError, match=r"backlog_slots .* got 0"):
        RoundRobin(backlog_slots=0)
