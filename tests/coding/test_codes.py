"""The code families that need no holdings: their matrices and what they tolerate."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_ext import coding
from flower_ext.coding import CyclicRepetition, FractionalRepetition, Uncoded, decode
from flower_ext.coding.gradient_code import GradientCode
from flower_ext.errors import InvalidInputError


def test_public_names() -> None:
    assert all(hasattr(coding, name) for name in coding.__all__)
    assert sorted(coding.__all__) == coding.__all__


def test_uncoded_is_the_identity_and_needs_every_reply() -> None:
    code = Uncoded(3)
    np.testing.assert_array_equal(code.matrix, np.eye(3))
    assert (code.workers, code.partitions, code.stragglers) == (3, 3, 0)


def test_fractional_repetition_by_hand() -> None:
    expected = [
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
        [1, 1, 1, 0, 0, 0],
        [0, 0, 0, 1, 1, 1],
    ]
    np.testing.assert_array_equal(FractionalRepetition(6, 2).matrix, expected)


def test_cyclic_repetition_decodes_by_hand() -> None:
    # Three workers, one straggler: no two rows may be parallel, and each pair spans 1.
    matrix = CyclicRepetition(3, 1).matrix
    np.testing.assert_array_equal(
        matrix != 0, [[True, True, False], [False, True, True], [True, False, True]]
    )
    for silent in range(3):
        weights = decode(matrix, {0, 1, 2} - {silent})
        assert weights[silent] == 0
        np.testing.assert_allclose(weights @ matrix, 1, atol=1e-12)


def test_cyclic_repetition_of_all_but_one_straggler_replicates_everything() -> None:
    np.testing.assert_array_equal(CyclicRepetition(4, 3).matrix, np.ones((4, 4)))


@settings(deadline=None, max_examples=60)
@given(data=st.data(), workers=st.integers(1, 30))
def test_any_stragglers_decode(data: st.DataObject, workers: int) -> None:
    stragglers = data.draw(st.integers(0, min(5, workers - 1)))
    silent = data.draw(
        st.sets(st.integers(0, workers - 1), min_size=stragglers, max_size=stragglers)
    )
    codes: list[GradientCode] = [CyclicRepetition(workers, stragglers)]
    if workers % (stragglers + 1) == 0:
        codes.append(FractionalRepetition(workers, stragglers))
    for code in codes:
        weights = decode(code.matrix, set(range(workers)) - silent)
        assert not weights[list(silent)].any()
        np.testing.assert_allclose(weights @ code.matrix, 1, atol=1e-9)
        holders = (code.matrix != 0).sum(axis=0)
        np.testing.assert_array_equal(holders, stragglers + 1)
        np.testing.assert_array_equal((code.matrix != 0).sum(axis=1), stragglers + 1)


@pytest.mark.parametrize("workers", [7, 11])
@pytest.mark.parametrize("stragglers", [2, 3])
def test_cyclic_supports_and_determinism(workers: int, stragglers: int) -> None:
    code = CyclicRepetition(workers, stragglers)
    for worker, row in enumerate(code.matrix):
        held = {(worker + j) % workers for j in range(stragglers + 1)}
        assert set(np.flatnonzero(row)) == held
    np.testing.assert_allclose(np.abs(code.matrix).max(axis=1), 1)
    again = CyclicRepetition(workers, stragglers)
    np.testing.assert_array_equal(code.matrix, again.matrix)


def test_matrix_is_read_only_float64() -> None:
    for code in (Uncoded(2), CyclicRepetition(5, 1), FractionalRepetition(4, 1)):
        assert code.matrix.dtype == np.float64
        with pytest.raises(ValueError, match="read-only"):
            code.matrix[0, 0] = 2.0


def test_repr_names_the_size() -> None:
    expected = "CyclicRepetition(workers=5, partitions=5, stragglers=1)"
    assert repr(CyclicRepetition(5, 1)) == expected


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Uncoded(0), "'workers' must be at least 1, got 0"),
        (lambda: Uncoded(2.5), "'workers' must be an integer, got 2.5"),  # type: ignore[arg-type]
        (lambda: CyclicRepetition(4, 4), r"'stragglers' must be in \[0, 3\], got 4"),
        (lambda: CyclicRepetition(4, -1), r"'stragglers' must be in \[0, 3\], got -1"),
        (lambda: FractionalRepetition(7, 1), "divide 'workers', got 7 workers and 1"),
        (lambda: FractionalRepetition(7, 1), "Use 6 or 8 workers"),
    ],
)
def test_bad_sizes_are_named(build: Callable[[], object], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        build()
