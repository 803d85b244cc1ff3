"""Stage two's rows decode whichever `redundancy` of them stay away."""

import itertools
from collections.abc import Collection, Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from flower_ext.coding.incremental import IncrementalDecoder
from flower_ext.coding.spread import Row, Spread, spread_missing

Floats = NDArray[np.float64]
Situation = tuple[list[int], Sequence[Collection[int]], Floats, Floats]


def decodes(rows: Sequence[Row], partitions: Sequence[int]) -> bool:
    column = {p: k for k, p in enumerate(partitions)}
    decoder = IncrementalDecoder(len(partitions))
    for ids, coefficients in rows:
        decoder.add(coefficients, [column[p] for p in ids])
    return decoder.decodable


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    partitions = list(range(100, 100 + draw(st.integers(1, 6))))
    held = draw(
        st.one_of(
            st.integers(1, 6).map(lambda m: [frozenset(partitions)] * m),
            st.lists(st.sets(st.sampled_from(partitions)), min_size=1, max_size=6),
        )
    )
    seconds = draw(st.lists(st.floats(0.01, 50), min_size=6, max_size=6))
    overhead = draw(st.lists(st.floats(0, 5), min_size=6, max_size=6))
    m = len(held)
    return partitions, held, np.array(seconds[:m]), np.array(overhead[:m])


@given(situations(), st.integers(0, 2))
@settings(deadline=None)
def test_any_redundancy_rows_may_stay_away(
    situation: Situation, redundancy: int
) -> None:
    partitions, held, seconds, overhead = situation
    spread = spread_missing(partitions, held, seconds, overhead, redundancy)
    holders = [sum(p in h for h in held) for p in partitions]
    if spread is None:
        assert min(holders) <= redundancy > 0
        return
    assert spread.covered == {p for p, n in zip(partitions, holders, strict=True) if n}
    for (ids, coefficients), h in zip(spread.rows, held, strict=True):
        assert set(ids) <= set(h)
        assert len(set(ids)) == len(ids) == len(coefficients)
    used = [row for row in spread.rows if row[0]]
    for away in itertools.combinations(range(len(used)), redundancy):
        rest = [row for i, row in enumerate(used) if i not in away]
        assert not spread.covered or decodes(rest, sorted(spread.covered))


def spread_of(
    partitions: Sequence[int],
    held: Sequence[Collection[int]],
    seconds: Floats,
    overhead: Floats,
    redundancy: int,
) -> Spread:
    """Spread partitions of which there are copies enough."""
    spread = spread_missing(partitions, held, seconds, overhead, redundancy)
    assert spread is not None
    return spread


def test_full_holdings_without_redundancy_share_by_speed() -> None:
    spread = spread_of([1, 2, 3], [range(9)] * 2, np.array([1.0, 2.0]), np.zeros(2), 0)
    assert spread.rows == [([1, 2], [1.0, 1.0]), ([3], [1.0])]
    assert spread.groups == [[0], [1]]


def test_a_group_joins_a_fast_and_a_slow_worker() -> None:
    seconds = np.array([9.0, 1.0, 1.5, 8.0])
    spread = spread_of([5, 6], [range(9)] * 4, seconds, np.zeros(4), 1)
    assert spread.groups == [[1, 3], [2, 0]]
    assert spread.rows[1] == spread.rows[3] == ([5], [1.0])
    assert spread.rows[2] == spread.rows[0] == ([6], [1.0])


def test_too_little_replication_for_the_redundancy() -> None:
    one, zero = np.ones(2), np.zeros(2)
    assert spread_missing([1, 2], [{1, 2}, {1}], one, zero, 1) is None
    assert spread_missing([1], [{1}, {1}], one, zero, 2) is None


def test_what_nobody_holds_is_not_covered() -> None:
    spread = spread_of([1, 2], [{1}, {3}], np.ones(2), np.zeros(2), 0)
    assert spread.covered == {1}
    assert spread.rows == [([1], [1.0]), ([], [])]


def completion(
    spread: Spread,
    done: Sequence[float],
    arrivals: Sequence[float],
    jobs: Sequence[Sequence[int]],
) -> list[float]:
    times = spread.completion(
        np.array([done], dtype=float), np.array([arrivals], dtype=float), jobs
    )
    listed: list[float] = times.tolist()
    return listed


def test_completion_of_groups_by_hand() -> None:
    spread = spread_of([1, 2], [range(9)] * 4, np.ones(4), np.zeros(4), 1)
    assert spread.groups == [[0, 2], [1, 3]]
    # Chunk {1} is known at 3, chunk {2} at 4.
    assert completion(spread, [5, 4, 3, 8], [9.0], [[1, 2]]) == [4.0]
    # A late job counts if it is earlier than the chunks that replace it...
    assert completion(spread, [5, 4, 3, 8], [3.5], [[1, 2]]) == [3.5]
    # ...and what no late job holds has to come from stage two.
    assert completion(spread, [5, 4, 3, 8], [1.0], [[1]]) == [4.0]
    assert completion(spread, [5, 4, 3, 8], [], []) == [4.0]
    # A job with a partition that is not recomputed has to come itself.
    assert completion(spread, [5, 4, 3, 8], [9.0], [[1, 7]]) == [9.0]


def test_completion_of_a_general_code_by_hand() -> None:
    held = [{1, 2}, {2, 3}, {1, 3}]
    spread = spread_of([1, 2, 3], held, np.ones(3), np.zeros(3), 1)
    assert spread.groups == []
    # All rows but one, or both late jobs.
    assert completion(spread, [5, 7, 6], [9.0, 1.0], [[1], [2, 3]]) == [6.0]
    assert completion(spread, [5, 7, 6], [2.0, 1.0], [[1], [2, 3]]) == [2.0]
    assert completion(spread, [5, 7, 6], [2.0], [[1]]) == [6.0]


@pytest.mark.parametrize("redundancy", [0, 1, 2])
def test_a_larger_fleet_than_work_leaves_workers_idle(redundancy: int) -> None:
    spread = spread_of([1], [range(9)] * 8, np.ones(8), np.zeros(8), redundancy)
    assert sum(bool(ids) for ids, _ in spread.rows) == redundancy + 1


@given(situations(), st.integers(0, 2), st.lists(st.integers(0, 4), min_size=6))
def test_rows_keep_to_the_limits(
    situation: Situation, redundancy: int, limits: list[int]
) -> None:
    missing, held, seconds, overhead = situation
    most = np.array(limits[: len(held)])
    spread = spread_missing(missing, held, seconds, overhead, redundancy, most)
    if spread is not None:
        assert all(
            len(row) <= limit for (row, _), limit in zip(spread.rows, most, strict=True)
        )


def test_a_chunk_is_as_large_as_the_least_of_its_group_may_have() -> None:
    held = [range(4)] * 4
    limits = np.array([4, 4, 1, 3])
    spread = spread_missing(
        range(4), held, np.array([1.0, 1.1, 1.2, 1.3]), np.zeros(4), 1, limits
    )
    assert spread is not None
    assert [len(row) for row, _ in spread.rows] == [1, 3, 1, 3]
    limits[3] = 2
    assert spread_missing(range(4), held, np.ones(4), np.zeros(4), 1, limits) is None
