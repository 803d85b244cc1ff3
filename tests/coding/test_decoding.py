"""Decoding vectors, exact and fitted, against numbers by hand and other solvers."""

import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.optimize import minimize

from flower_ext.coding import (
    CyclicRepetition,
    HeterogeneityAware,
    Uncoded,
    UndecodableError,
    decode,
    decode_least_squares,
)
from flower_ext.errors import FlowerExtError, InvalidInputError

# Figure 1 of Tandon et al. 2017: three workers, one straggler.
FIGURE_1 = np.array([[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]])

small_matrices = st.integers(1, 5).flatmap(
    lambda rows: st.integers(1, 6).flatmap(
        lambda columns: arrays(
            np.float64,
            (rows, columns),
            elements=st.sampled_from([0.0, 0.0, 1.0, 1.0, -1.0, 0.5, 2.0]),
        )
    )
)


@pytest.mark.parametrize(
    ("received", "expected"),
    [([0, 1], [2, -1, 0]), ([0, 2], [1, 0, 1]), ([1, 2], [0, 1, 2])],
)
def test_figure_1_by_hand(received: list[int], expected: list[int]) -> None:
    np.testing.assert_allclose(decode(FIGURE_1, received), expected, atol=1e-12)


def test_the_shortest_vector_is_chosen() -> None:
    # Two equal replies share the weight; the silent third one has none.
    weights = decode([[1, 1], [1, 1], [1, 1]], [True, True, False])
    np.testing.assert_allclose(weights, [0.5, 0.5, 0])


def test_received_may_be_a_mask_a_set_or_repeat_itself() -> None:
    for received in ([True, False, True], {0, 2}, np.array([2, 0, 0]), iter([0, 2])):
        np.testing.assert_allclose(decode(FIGURE_1, received), [1, 0, 1], atol=1e-12)


def test_undecodable_names_the_partitions_that_nobody_sent() -> None:
    with pytest.raises(UndecodableError, match=r"2 partition\(s\) \(1, 3\) in no") as e:
        decode(Uncoded(4).matrix, [0, 2])
    assert "of 4 partitions; residual 1.41" in str(e.value)
    assert isinstance(e.value, FlowerExtError)


def test_undecodable_names_the_partitions_that_do_not_separate() -> None:
    with pytest.raises(UndecodableError, match=r"\(0, 1\) not separable from"):
        decode([[1, 2, 0], [0, 0, 1]], [0, 1])


def test_undecodable_lists_no_more_than_eight_partitions() -> None:
    with pytest.raises(UndecodableError, match=r"20 partition\(s\) \(.* 7, \.\.\.\)"):
        decode(np.zeros((1, 20)), [0])


@settings(deadline=None, max_examples=200)
@given(matrix=small_matrices)
def test_decode_agrees_with_the_pseudoinverse(matrix: NDArray[np.float64]) -> None:
    rows = range(len(matrix))
    expected = np.linalg.pinv(matrix.T, rcond=1e-8) @ np.ones(matrix.shape[1])
    if np.allclose(expected @ matrix, 1, atol=1e-9):
        np.testing.assert_allclose(decode(matrix, rows), expected, atol=1e-9)
    else:
        with pytest.raises(UndecodableError):
            decode(matrix, rows)


def test_fit_by_hand() -> None:
    # Partition 2 is missing; worker 1 sends twice partition 1, so half of it fits.
    fit = decode_least_squares([[1, 0, 0], [0, 2, 0], [0, 0, 1]], [0, 1])
    np.testing.assert_allclose(fit.weights, [1, 0.5, 0])
    assert fit.residual == pytest.approx(1)
    assert fit.coverage == pytest.approx(2 / 3)


def test_fit_keeps_every_combination_within_bounds() -> None:
    # Unbounded, c = (w, 3w) is nearest to (1, 1) at w = 0.4, where 3w = 1.2 is too
    # much; the bound leaves w = 1/3 and c = (1/3, 1).
    weights, residual, coverage, _ = decode_least_squares([[1, 3]], [0])
    np.testing.assert_allclose(weights, [1 / 3])
    assert residual == pytest.approx(2 / 3)
    assert coverage == pytest.approx(2 / 3)


def test_a_row_of_both_signs_cannot_be_used_alone() -> None:
    fit = decode_least_squares([[2, -1]], [0])
    np.testing.assert_allclose(fit.weights, [0], atol=1e-12)
    assert fit.coverage == pytest.approx(0)


def test_a_fit_to_nothing_is_nothing_and_not_what_rounding_leaves_of_it() -> None:
    rng = np.random.default_rng(0)
    empty = 0
    for _ in range(200):
        # No combination of rows whose signs differ like these stays within bounds.
        matrix = np.c_[rng.random((2, 2)), -rng.random((2, 2))] * 3
        fit = decode_least_squares(matrix, [0, 1])
        if fit.coverage < 1e-6:
            empty += 1
            np.testing.assert_array_equal(fit.weights, [0, 0])
            np.testing.assert_array_equal(fit.combination, np.zeros(4))
            assert fit.coverage == 0
    assert empty > 50


def test_examples_weigh_the_coverage() -> None:
    fit = decode_least_squares(np.eye(3), [0, 2], examples=[10, 60, 30])
    assert fit.coverage == pytest.approx(0.4)
    assert fit.residual == 1


def test_nothing_received_covers_nothing() -> None:
    weights, residual, coverage, _ = decode_least_squares(FIGURE_1, [])
    np.testing.assert_array_equal(weights, [0, 0, 0])
    assert residual == pytest.approx(np.sqrt(3))
    assert coverage == 0


def test_a_decodable_fit_is_exact() -> None:
    code = CyclicRepetition(11, 3)
    received = [1, 2, 3, 5, 6, 7, 9, 10]
    fit = decode_least_squares(code.matrix, received, examples=np.arange(1, 12))
    np.testing.assert_allclose(fit.weights, decode(code.matrix, received), atol=1e-9)
    assert (fit.residual, fit.coverage) == (0, 1)


@settings(deadline=None, max_examples=100)
@given(matrix=small_matrices)
def test_fit_agrees_with_a_general_solver(matrix: NDArray[np.float64]) -> None:
    fit = decode_least_squares(matrix, range(len(matrix)))
    combination = fit.weights @ matrix
    assert combination.min() >= -1e-9
    assert combination.max() <= 1 + 1e-9
    assert fit.residual == pytest.approx(np.linalg.norm(combination - 1), abs=1e-7)
    assert fit.coverage == pytest.approx(combination.mean(), abs=1e-7)
    general = minimize(
        lambda w: ((w @ matrix - 1) ** 2).sum(),
        np.zeros(len(matrix)),
        jac=lambda w: 2 * matrix @ (w @ matrix - 1),
        method="SLSQP",
        constraints={
            "type": "ineq",
            "fun": lambda w: np.concatenate([w @ matrix, 1 - w @ matrix]),
            "jac": lambda w: np.concatenate([matrix.T, -matrix.T]),
        },
        options={"ftol": 1e-12, "maxiter": 300},
    )
    if general.success:
        assert fit.residual**2 == pytest.approx(general.fun, abs=1e-6)


def test_fit_of_a_large_round_that_is_mostly_uncoded_is_fast() -> None:
    # 800 workers send five partitions each; 40 stay silent, and 200 others spread
    # the missing partitions with one straggler allowed, of which 50 stay silent, too.
    matrix = np.zeros((1000, 4000))
    matrix[np.arange(4000) // 5, np.arange(4000)] = 1.0
    speeds = np.random.default_rng(1).uniform(0.5, 2, 200)
    code = HeterogeneityAware([range(200)] * 200, speeds, stragglers=1)
    matrix[800:, :200] = code.matrix
    received = np.arange(40, 950)
    start = time.perf_counter()
    fit = decode_least_squares(matrix, received)
    assert time.perf_counter() - start < 2.0  # about 0.1 s; slack for a busy machine
    assert fit.residual > 0
    assert 0.95 < fit.coverage < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [0]), r"got shape \(2,\)"),
        (([[np.nan]], [0]), "'matrix' must be finite"),
        (([[1.0]], [1]), r"must lie in \[0, 1\), got values from 1 to 1"),
        (([[1.0]], [-1]), "got values from -1"),
        (([[1.0]], [0.0]), "row indices or be a boolean mask"),
        (([[1.0]], [True, False]), r"needs shape \(1,\), got \(2,\)"),
    ],
)
def test_bad_arguments_are_named(arguments: tuple[Any, Any], message: str) -> None:
    for decoder in (decode, decode_least_squares):
        with pytest.raises(InvalidInputError, match=message):
            decoder(*arguments)


@pytest.mark.parametrize("examples", [[1], [1, -1], [0, 0], [1, np.inf]])
def test_bad_example_counts_are_named(examples: list[float]) -> None:
    with pytest.raises(InvalidInputError, match="'examples' needs one number for each"):
        decode_least_squares(np.eye(2), [0], examples=examples)
