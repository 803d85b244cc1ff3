"""Allocation is optimal, and never asks a worker for what it does not hold."""

import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flower_ext.coding.allocation import allocate, balance

Floats = NDArray[np.float64]
Fleet = tuple[list[set[int]], Floats, Floats]

SECONDS = st.sampled_from([0.5, 1.0, 1.7, 4.0])
OVERHEAD = st.sampled_from([0.0, 0.3, 2.0])


@st.composite
def fleets(draw: st.DrawFn) -> Fleet:
    workers = draw(st.integers(1, 3))
    several: dict[str, Any] = {"min_size": workers, "max_size": workers}
    return (
        draw(st.lists(st.sets(st.integers(0, 4)), **several)),
        np.array(draw(st.lists(SECONDS, **several))),
        np.array(draw(st.lists(OVERHEAD, **several))),
    )


def last_done(loads: Sequence[int], seconds: Floats, overhead: Floats) -> float:
    done = np.where(np.array(loads) > 0, overhead + seconds * loads, 0.0)
    return float(done.max(initial=0.0))


def best_by_trying_all(
    partitions: Sequence[int],
    holdings: Sequence[Collection[int]],
    seconds: Floats,
    overhead: Floats,
) -> float:
    owners = [[i for i, h in enumerate(holdings) if p in h] for p in partitions]
    return min(
        last_done([choice.count(i) for i in range(len(holdings))], seconds, overhead)
        for choice in itertools.product(*owners)
    )


@given(fleets())
@settings(deadline=None)
def test_optimal_within_the_holdings(fleet: Fleet) -> None:
    holdings, seconds, overhead = fleet
    jobs = allocate(range(5), holdings, seconds, overhead)
    owned = set().union(*holdings)
    assert sorted(p for job in jobs for p in job) == sorted(owned)
    assert all(set(job) <= held for job, held in zip(jobs, holdings, strict=True))
    loads = [len(job) for job in jobs]
    best = best_by_trying_all(sorted(owned), holdings, seconds, overhead)
    assert last_done(loads, seconds, overhead) == pytest.approx(best)


@given(fleets(), st.integers(0, 6))
@settings(deadline=None)
def test_optimal_when_everybody_holds_everything(fleet: Fleet, count: int) -> None:
    _, seconds, overhead = fleet
    shared = range(count)
    jobs = allocate(shared, [shared] * len(seconds), seconds, overhead)
    assert [p for job in jobs for p in job] == list(shared)
    loads = [len(job) for job in jobs]
    best = best_by_trying_all(shared, [shared] * len(seconds), seconds, overhead)
    assert last_done(loads, seconds, overhead) == pytest.approx(best)


def test_balance_by_hand() -> None:
    # Completions: worker 0 at 1, 2, 3; worker 1 at 2.5, 3.5; worker 2 at 10.
    loads = balance(4, np.array([1.0, 1.0, 5.0]), np.array([0.0, 1.5, 5.0]))
    assert loads.tolist() == [3, 1, 0]


def test_what_nobody_holds_is_left_out() -> None:
    one, zero = np.ones(3), np.zeros(3)
    assert allocate([7, 8, 9], [{8}, set(), {8}], one, zero)[1] == []
    jobs = allocate([7, 8, 9], [{8}, set(), {8}], one, zero)
    assert [p for job in jobs for p in job] == [8]
    assert allocate([7], [{8}, set(), ()], one, zero) == [[], [], []]
    assert allocate([7], [], np.empty(0), np.empty(0)) == []


def test_any_collection_and_any_order_of_ids() -> None:
    jobs = allocate([30, 10, 20], [(10, 20, 30), [30]], np.ones(2), np.zeros(2))
    assert jobs in ([[10, 20], [30]], [[30, 10], [20]])


def test_a_shared_object_of_holdings_is_read_once() -> None:
    class Counted(frozenset[int]):
        reads = 0

        def __iter__(self) -> Iterator[int]:
            Counted.reads += 1
            return super().__iter__()

        def __contains__(self, item: object) -> bool:
            Counted.reads += 1
            return super().__contains__(item)

    allocate(range(5), [Counted(range(5))] * 50, np.ones(50), np.zeros(50))
    assert Counted.reads <= 5


def test_limits_bind_and_the_next_best_takes_the_rest() -> None:
    fast_and_slow, none = np.array([1.0, 5.0]), np.zeros(2)
    limits = np.array([2, 9])
    assert balance(4, fast_and_slow, none, limits).tolist() == [2, 2]
    assert allocate(range(4), [range(4)] * 2, fast_and_slow, none, limits) == [
        [0, 1],
        [2, 3],
    ]


def test_limits_bind_under_partial_holdings() -> None:
    held = [{0, 1, 2, 3}, {2, 3}, {3}]
    jobs = allocate(range(4), held, np.ones(3), np.zeros(3), np.array([2, 1, 1]))
    assert [len(job) for job in jobs] == [2, 1, 1]
    assert sorted(p for job in jobs for p in job) == [0, 1, 2, 3]


def test_limits_without_room_for_all_take_as_many_as_possible() -> None:
    one, none = np.ones(3), np.zeros(3)
    for held in ([range(4)] * 3, [{0, 1, 2, 3}, {0}, {3}]):
        jobs = allocate(range(4), held, one, none, np.array([1, 1, 0]))
        assert [len(job) for job in jobs] == [1, 1, 0]
    assert allocate([0], [{0}, {1}], np.ones(2), none[:2], np.zeros(2, int)) == [[], []]
