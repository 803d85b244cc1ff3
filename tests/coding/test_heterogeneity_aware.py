"""The heterogeneity-aware code: loads, holdings, and any replication pattern."""

import itertools
import time
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flower_ext.coding import HeterogeneityAware, decode
from flower_ext.coding.coefficients import colour_workers
from flower_ext.errors import InvalidInputError


def loads(code: HeterogeneityAware) -> NDArray[np.int64]:
    counts: NDArray[np.int64] = (code.matrix != 0).sum(axis=1)
    return counts


def test_loads_follow_speed() -> None:
    # 12 replicas over speeds 1, 2, 3: two, four and six partitions, 2 units of time.
    code = HeterogeneityAware([range(6)] * 3, speeds=[1, 2, 3], stragglers=1)
    np.testing.assert_array_equal(loads(code), [2, 4, 6])


def test_a_load_never_exceeds_the_number_of_partitions() -> None:
    # The fast worker can take each partition once; the other two share the rest.
    code = HeterogeneityAware([range(4)] * 3, speeds=[1, 1, 100], stragglers=1)
    np.testing.assert_array_equal(loads(code), [2, 2, 4])


def test_a_worker_too_slow_to_help_has_a_row_of_zeros() -> None:
    code = HeterogeneityAware([range(2)] * 3, speeds=[1, 1, 1e-3], stragglers=1)
    np.testing.assert_array_equal(loads(code), [2, 2, 0])
    np.testing.assert_array_equal(code.matrix[2], 0)


def test_load_is_passed_on_along_a_chain() -> None:
    # Worker 0 can only be relieved through worker 1, which hands partition 3 to 2.
    holdings = [{0, 1}, {0, 1, 2}, {2, 3}, {3}]
    code = HeterogeneityAware(holdings, speeds=[1, 1, 1, 1], stragglers=0)
    np.testing.assert_array_equal(loads(code), [1, 1, 1, 1])


def test_equal_speeds_give_equal_groups() -> None:
    code = HeterogeneityAware([range(4)] * 4, speeds=[1] * 4, stragglers=1)
    assert np.unique(code.matrix, axis=0).shape == (2, 4)
    assert set(code.matrix.ravel()) == {0.0, 1.0}


@settings(deadline=None, max_examples=80)
@given(data=st.data())
def test_any_pattern_tolerates_any_stragglers_within_its_holdings(
    data: st.DataObject,
) -> None:
    workers = data.draw(st.integers(1, 9))
    stragglers = data.draw(st.integers(0, min(3, workers - 1)))
    partitions = data.draw(st.integers(1, 10))
    everyone = st.permutations(range(workers))
    holders = [
        data.draw(everyone)[: data.draw(st.integers(stragglers + 1, workers))]
        for _ in range(partitions)
    ]
    holdings = [{k for k, h in enumerate(holders) if w in h} for w in range(workers)]
    speeds = data.draw(st.lists(st.floats(0.1, 10), min_size=workers, max_size=workers))
    code = HeterogeneityAware(holdings, speeds, stragglers)
    assert (code.workers, code.partitions) == (workers, partitions)
    np.testing.assert_array_equal((code.matrix != 0).sum(axis=0), stragglers + 1)
    for worker, row in enumerate(code.matrix):
        assert set(np.flatnonzero(row)) <= holdings[worker]
    for silent in itertools.combinations(range(workers), stragglers):
        weights = decode(code.matrix, set(range(workers)) - set(silent))
        np.testing.assert_allclose(weights @ code.matrix, 1, atol=1e-8)


def shortest_time(
    holders: list[NDArray[np.int64]], speeds: NDArray[np.float64], copies: int
) -> float:
    """Try every placement and return the shortest completion time."""
    best = np.inf
    choices = [itertools.combinations(h, copies) for h in holders]
    for placement in itertools.product(*choices):
        load = np.bincount(np.concatenate(placement), minlength=len(speeds))
        best = min(best, (load / speeds).max())
    return best


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), copies=st.integers(1, 2))
def test_the_loads_are_optimal(seed: int, copies: int) -> None:
    rng = np.random.default_rng(seed)
    workers, partitions = 4, 5
    holders = [
        rng.choice(workers, rng.integers(copies, workers + 1), replace=False)
        for _ in range(partitions)
    ]
    holdings = [[k for k, h in enumerate(holders) if w in h] for w in range(workers)]
    speeds = rng.uniform(0.2, 3, workers)
    code = HeterogeneityAware(holdings, speeds, copies - 1)
    expected = shortest_time(holders, speeds, copies)
    assert (loads(code) / speeds).max() == pytest.approx(expected)


def test_colours_differ_where_a_partition_is_shared() -> None:
    supports = np.array([[0, 1], [1, 2], [2, 3], [3, 0]])
    np.testing.assert_array_equal(colour_workers(supports, 5), [0, 1, 0, 1, 0])


def test_a_thousand_workers_are_placed_in_a_moment() -> None:
    speeds = np.random.default_rng(0).uniform(0.3, 3, 1000)
    start = time.perf_counter()
    code = HeterogeneityAware([range(4000)] * 1000, speeds, stragglers=1)
    assert time.perf_counter() - start < 2.0  # about 0.05 s; slack for a busy machine
    level = 8000 / speeds.sum()
    assert np.abs(loads(code) - level * speeds).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[0, 1], [1]], [1, 1], 1), "Partition 0 is held by 1 worker"),
        (([[0, 2], [0, 2]], [1, 1], 0), "Partition 1 is held by 0 worker"),
        (([[0], [0]], [1, 1, 1], 1), "'speeds' needs one value for each of the 2"),
        (([[0], [0]], [1, 0], 1), "got 0.0 for worker 1"),
        (([[0], [0]], [1, np.nan], 1), "got nan for worker 1"),
        (([[0], [0]], [1, 1], 2), r"'stragglers' must be in \[0, 1\], got 2"),
        (([[0], [-1]], [1, 1], 0), "got -1 for worker 1"),
        (([[0], [0.5]], [1, 1], 0), "those of worker 1 are not"),
        (([[], []], [1, 1], 0), "no worker holds a partition"),
        (([], [], 0), "number of holdings' must be at least 1"),
    ],
)
def test_bad_values_are_named(arguments: tuple[Any, Any, int], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        HeterogeneityAware(*arguments)


def test_holdings_may_be_any_iterables() -> None:
    held: list[Iterable[int]] = [(0, 1), np.array([0, 1]), iter([0, 1]), {0, 1}]
    code = HeterogeneityAware(held, [1, 1, 1, 1], stragglers=1)
    assert code.partitions == 2
