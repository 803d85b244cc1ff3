"""No code loses more than 1e-4 of an update to replies that travel in float32."""

import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from flower_ext.coding import (
    CyclicRepetition,
    FractionalRepetition,
    HeterogeneityAware,
    decode,
)
from flower_ext.coding.gradient_code import GradientCode

TOLERANCE = 1e-5  # ten times below the bar
SMALL = [(n, s) for n in range(2, 13) for s in range(1, min(4, n))]


def worst_error(code: GradientCode, straggler_sets: Iterable[Iterable[int]]) -> float:
    """Return the largest relative error of the decoded sum over the sets."""
    rng = np.random.default_rng(5)
    deltas = rng.standard_normal((code.partitions, 200)).astype(np.float32)
    exact = deltas.sum(axis=0, dtype=np.float64)
    replies = (code.matrix @ deltas.astype(np.float64)).astype(np.float32)
    worst = 0.0
    for silent in straggler_sets:
        received = np.ones(code.workers, dtype=bool)
        received[list(silent)] = False
        decoded = decode(code.matrix, received) @ replies.astype(np.float64)
        worst = max(worst, np.abs(decoded - exact).max() / np.abs(exact).max())
    return worst


def ring(workers: int, width: int, per_worker: int = 1) -> list[list[int]]:
    """Worker i holds the partitions of workers i to i + width - 1."""
    return [
        [
            ((i + j) % workers) * per_worker + k
            for j in range(width)
            for k in range(per_worker)
        ]
        for i in range(workers)
    ]


def scattered(workers: int, copies: int) -> list[list[int]]:
    """Every one of three partitions per worker lies with a few workers at random."""
    rng = np.random.default_rng(workers)
    holdings: list[list[int]] = [[] for _ in range(workers)]
    for partition in range(3 * workers):
        for worker in rng.choice(workers, copies, replace=False):
            holdings[worker].append(partition)
    return holdings


def patterns(workers: int, stragglers: int) -> list[HeterogeneityAware]:
    """Return heterogeneity-aware codes of several replication patterns."""
    speeds = np.random.default_rng(workers).uniform(0.5, 4, workers)
    widths = [stragglers + 1, min(stragglers + 2, workers)]
    holdings: list[Sequence[Iterable[int]]] = [[range(2 * workers)] * workers]
    holdings += [ring(workers, w, per_worker=2) for w in widths]
    holdings += [scattered(workers, w) for w in widths]
    return [HeterogeneityAware(h, speeds, stragglers) for h in holdings]


@pytest.mark.parametrize(("workers", "stragglers"), SMALL)
def test_every_straggler_set_of_small_codes(workers: int, stragglers: int) -> None:
    codes = [CyclicRepetition(workers, stragglers), *patterns(workers, stragglers)]
    if workers % (stragglers + 1) == 0:
        codes.append(FractionalRepetition(workers, stragglers))
    for code in codes:
        sets = itertools.combinations(range(workers), stragglers)
        assert worst_error(code, sets) <= TOLERANCE


def sampled_sets(workers: int, stragglers: int, count: int) -> NDArray[np.int64]:
    rng = np.random.default_rng(11)
    return rng.random((count, workers)).argsort(axis=1)[:, :stragglers]


def test_sampled_straggler_sets_of_fifty_workers() -> None:
    sets = sampled_sets(50, 5, 10_000)
    assert worst_error(CyclicRepetition(50, 5), sets) <= TOLERANCE


@pytest.mark.parametrize("pattern", ["all", "ring"])
def test_sampled_straggler_sets_of_fifty_unequal_workers(pattern: str) -> None:
    held = [range(100)] * 50 if pattern == "all" else ring(50, 7, per_worker=2)
    speeds = np.random.default_rng(3).uniform(0.5, 4, 50)
    code = HeterogeneityAware(held, speeds, stragglers=5)
    assert worst_error(code, sampled_sets(50, 5, 3_000)) <= TOLERANCE


def test_fractional_repetition_of_many_workers_loses_nothing() -> None:
    code = FractionalRepetition(48, 5)
    assert worst_error(code, sampled_sets(48, 5, 500)) <= 1e-6
