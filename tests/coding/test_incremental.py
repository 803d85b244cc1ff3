"""Decoding reply by reply: the same answers as all at once, at the right moment."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray

from flower_ext.coding import (
    CyclicRepetition,
    HeterogeneityAware,
    IncrementalDecoder,
    UndecodableError,
    decode,
)
from flower_ext.errors import InvalidInputError


def decodes(matrix: NDArray[np.float64]) -> NDArray[np.float64] | None:
    try:
        return decode(matrix, range(len(matrix)))
    except UndecodableError:
        return None


def assert_equals_batch(rows: NDArray[np.float64]) -> None:
    """Add the rows one by one and compare with decoding each prefix at once."""
    decoder = IncrementalDecoder(rows.shape[1])
    for count, row in enumerate(rows, start=1):
        expected = decodes(rows[:count])
        assert decoder.add(row) == (expected is not None)
        if expected is None:
            assert decoder.residual > 1e-8
            with pytest.raises(UndecodableError):
                _ = decoder.weights
        else:
            assert decoder.residual <= 1e-8
            np.testing.assert_allclose(decoder.weights, expected, atol=1e-7)


def test_two_uncoded_replies() -> None:
    decoder = IncrementalDecoder(3)
    assert not decoder.decodable
    assert not decoder.add([2.0, 2.0, 0.0])
    assert decoder.residual == pytest.approx(1)
    assert decoder.add([4.0], partitions=[2])
    np.testing.assert_allclose(decoder.weights, [0.5, 0.25])


def test_a_late_reply_shares_the_weight_of_an_equal_one() -> None:
    decoder = IncrementalDecoder(2)
    assert decoder.add([1.0, 1.0])
    assert decoder.add([1.0, 1.0])
    np.testing.assert_allclose(decoder.weights, [0.5, 0.5])


def test_a_row_of_zeros_has_no_weight() -> None:
    decoder = IncrementalDecoder(1)
    assert not decoder.add([0.0])
    assert not decoder.add([], partitions=[])
    assert decoder.add([1.0])
    np.testing.assert_allclose(decoder.weights, [0, 0, 1])


def test_a_reply_that_bridges_two_blocks() -> None:
    # (1, 1, 0, 0) and (0, 0, 1, 1) decode; so they do with (0, 1, 1, 0) on top.
    decoder = IncrementalDecoder(4)
    assert [decoder.add(row) for row in ([1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0])] == [
        False,
        True,
        True,
    ]
    np.testing.assert_allclose(decoder.weights, [1, 1, 0], atol=1e-12)


@settings(deadline=None, max_examples=150)
@given(
    rows=st.integers(1, 6).flatmap(
        lambda partitions: arrays(
            np.float64,
            st.tuples(st.integers(1, 8), st.just(partitions)),
            elements=st.sampled_from([0.0, 0.0, 0.0, 1.0, 1.0, -1.0, 2.0]),
        )
    )
)
def test_any_mix_of_rows_equals_batch(rows: NDArray[np.float64]) -> None:
    assert_equals_batch(rows)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), stragglers=st.integers(0, 3))
def test_codes_equal_batch(seed: int, stragglers: int) -> None:
    rng = np.random.default_rng(seed)
    workers = int(rng.integers(stragglers + 1, 16))
    uneven = HeterogeneityAware(
        [range(12)] * workers, rng.uniform(0.5, 4, workers), stragglers
    )
    for code in (CyclicRepetition(workers, stragglers), uneven):
        assert_equals_batch(rng.permutation(code.matrix))


def test_sparse_rows_equal_dense_ones() -> None:
    code = CyclicRepetition(9, 2)
    dense, sparse = IncrementalDecoder(9), IncrementalDecoder(9)
    for row in code.matrix[[3, 1, 4, 8, 0, 6, 5]]:
        support = np.flatnonzero(row)[::-1]
        assert dense.add(row) == sparse.add(row[support], partitions=support)
    np.testing.assert_allclose(dense.weights, sparse.weights, atol=1e-10)


def test_late_stage_one_replies_and_a_coded_second_stage() -> None:
    # 30 uncoded shares of two partitions, six of them late and coded over ten others.
    uncoded = np.repeat(np.eye(30), 2, axis=1)
    late = HeterogeneityAware([range(12)] * 10, np.ones(10), stragglers=3).matrix
    coded = np.concatenate([late, np.zeros((10, 48))], axis=1)
    order = np.random.default_rng(0).permutation(40)
    assert_equals_batch(np.concatenate([uncoded, coded])[order])


def test_a_thousand_disjoint_replies_are_fast() -> None:
    decoder = IncrementalDecoder(4000)
    rows = np.kron(np.eye(1000), np.ones((1, 4)))
    start = time.perf_counter()
    sufficed = [decoder.add(row) for row in rows]
    assert time.perf_counter() - start < 1.0  # about 0.04 s; slack for a busy machine
    assert sufficed == [False] * 999 + [True]
    np.testing.assert_allclose(decoder.weights, 1)


def test_undecodable_says_how_far_it_is() -> None:
    decoder = IncrementalDecoder(4)
    decoder.add([1.0, 0.0, 0.0, 0.0])
    with pytest.raises(UndecodableError, match="3 of 4 partitions are in no row"):
        _ = decoder.weights


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 1.0],), r"needs shape \(3,\).*got \(2,\)"),
        (([1.0, np.nan, 0.0],), "must be finite"),
        (([1.0, np.inf, 0.0],), "must be finite"),
        (([1e-200, 0.0, 0.0],), "nor vanish"),
        (([1.0], [3]), r"distinct integers in \[0, 3\), got \[3\]"),
        (([1.0], [-1]), r"got \[-1\]"),
        (([1.0, 1.0], [1, 1]), r"got \[1, 1\]"),
        (([1.0], [0.5]), r"got \[0.5\]"),
        (([1.0, 2.0], [0]), "one entry for each other"),
    ],
)
def test_bad_rows_are_named_and_change_nothing(
    arguments: tuple[Any, ...], message: str
) -> None:
    decoder = IncrementalDecoder(3)
    with pytest.raises(InvalidInputError, match=message):
        decoder.add(*arguments)
    assert decoder.add([1.0, 1.0, 1.0])
    np.testing.assert_allclose(decoder.weights, [1])


def test_bad_sizes_are_named() -> None:
    with pytest.raises(InvalidInputError, match="'partitions' must be at least 1"):
        IncrementalDecoder(0)
