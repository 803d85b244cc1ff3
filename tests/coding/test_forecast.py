"""Completion times of stopped rounds, by hand."""

import math
from collections.abc import Sequence

import numpy as np

from flower_ext.coding.forecast import completion_if_stopped


def forecast(
    stops: Sequence[float],
    arrivals: Sequence[Sequence[float]],
    pending: Sequence[int],
    seconds: Sequence[Sequence[float]] | None = None,
    overhead: Sequence[Sequence[float]] | None = None,
) -> tuple[list[list[float]], list[list[float]]]:
    """Two partitions per job; one second per partition and no overhead by default."""
    back = np.array(arrivals, dtype=float)
    shape = (len(back), len(pending))
    times, again = completion_if_stopped(
        stops,
        back,
        np.full(back.shape[1], 2),
        np.array(pending),
        np.ones(shape) if seconds is None else np.array(seconds, dtype=float),
        np.zeros(shape) if overhead is None else np.array(overhead, dtype=float),
    )
    return times.tolist(), again.tolist()


def test_one_late_job_is_redone_by_the_one_that_is_back() -> None:
    # Job 0 is back at 1, job 1 at 10; worker 0 redoes two partitions in two seconds.
    times, again = forecast([1.0, 5.0, 9.0, math.inf], [[1.0, 10.0]], pending=[0, 1])
    assert times == [[3.0], [7.0], [10.0], [10.0]]
    assert again == [[2.0], [2.0], [2.0], [0.0]]


def test_idle_workers_share() -> None:
    times, again = forecast([1.0], [[1.0, 10.0]], pending=[0, 1, -1])
    assert times == [[2.0]]
    assert again == [[2.0]]


def test_overhead_counts_once_per_worker() -> None:
    times, _ = forecast([1.0], [[1.0, 10.0]], [0, 1], overhead=[[0.5, 0.5]])
    assert times == [[3.5]]


def test_a_faster_worker_takes_more() -> None:
    # Worker 2 does both partitions in 0.2 s before worker 0 has done one.
    times, _ = forecast([1.0], [[1.0, 10.0]], [0, 1, -1], seconds=[[1.0, 1.0, 0.1]])
    assert np.allclose(times, [[1.2]])


def test_nobody_idle_means_waiting() -> None:
    times, _ = forecast([0.5], [[1.0, 10.0]], pending=[0, 1])
    assert times == [[10.0]]


def test_nobody_idle_and_a_job_that_never_comes() -> None:
    times, _ = forecast([0.5, 1.0], [[1.0, math.inf]], pending=[0, 1])
    assert times == [[math.inf], [3.0]]


def test_each_scenario_is_its_own() -> None:
    times, again = forecast([2.0], [[1.0, 10.0], [1.0, 1.5]], pending=[0, 1])
    assert times == [[4.0, 1.5]]
    assert again == [[2.0, 0.0]]


def test_more_partitions_than_looked_at_stretch_the_last_completion() -> None:
    # 16 partitions missing and one worker idle: all of them on it, one after another.
    times, _ = forecast([1.0], [[1.0] + [99.0] * 8], pending=[0, *range(1, 9)])
    assert times == [[17.0]]
