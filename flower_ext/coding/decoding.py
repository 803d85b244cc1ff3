"""Decoding vectors: how to combine the replies into the sum of all updates.

Tandon et al. 2017 (arXiv:1612.03301), section 2: replies with rows B decode if some w
has w^T B = 1^T. When none has, c = w^T B is fitted to 1^T within 0 <= c <= 1, so that
no partition enters with a negative weight or more than once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_ext.coding.blocks import (
    EXACT_TOLERANCE,
    RANK_TOLERANCE,
    independent_blocks,
    received_rows,
)
from flower_ext.coding.least_distance import fit_within_bounds
from flower_ext.errors import FlowerExtError, InvalidInputError

__all__ = ["LeastSquaresFit", "UndecodableError", "decode", "decode_least_squares"]

Floats = NDArray[np.float64]


class UndecodableError(FlowerExtError):
    """The received rows do not combine to the all-ones vector."""


class LeastSquaresFit(NamedTuple):
    """A decoding vector and how close it comes.

    Parameters
    ----------
    weights : ndarray of shape (workers,)
        w, zero for the workers that have not replied.
    residual : float
        The norm of w^T B - 1^T, in [0, sqrt(K)]; 0 when the replies decode.
    coverage : float
        Share of the examples in the update, in [0, 1]; 1 when the replies decode.
    combination : ndarray of shape (partitions,)
        c = w^T B, within [0, 1].
    """

    weights: Floats
    residual: float
    coverage: float
    combination: Floats


def decode(matrix: ArrayLike, received: Iterable[int] | NDArray[np.bool_]) -> Floats:
    """Return the minimum-norm decoding vector of the received replies.

    Parameters
    ----------
    matrix : array_like of shape (workers, partitions)
        The encoding matrix B.
    received : iterable of int, or boolean mask of shape (workers,)
        The workers that have replied.

    Returns
    -------
    ndarray of shape (workers,)
        w, zero outside ``received``, with w^T B = 1^T to within 1e-8.

    Raises
    ------
    UndecodableError
        If the rows do not decode; the message names the partitions that are missing.
    InvalidInputError
        If the matrix or an index is malformed.

    Examples
    --------
    The code of that paper's figure 1, with worker 0 silent:

    >>> decode([[0.5, 1, 0], [0, 1, -1], [0.5, 0, 1]], received=[1, 2]).round(6)
    array([0., 1., 2.])
    """
    encoding, rows = received_rows(matrix, received)
    weights = np.zeros(len(encoding))
    for block in independent_blocks(encoding, rows):
        scale = np.sqrt(block.counts)
        weights[block.rows] = np.linalg.lstsq(
            (block.matrix * scale).T, scale, rcond=RANK_TOLERANCE
        )[0]
    error = weights @ encoding - 1.0
    if np.abs(error).max() > EXACT_TOLERANCE:
        raise UndecodableError(_why(encoding, rows, error))
    return weights


def decode_least_squares(
    matrix: ArrayLike,
    received: Iterable[int] | NDArray[np.bool_],
    *,
    examples: ArrayLike | None = None,
) -> LeastSquaresFit:
    """Fit c = w^T B to 1^T within 0 <= c <= 1.

    Parameters
    ----------
    matrix : array_like of shape (workers, partitions)
        The encoding matrix B.
    received : iterable of int, or boolean mask of shape (workers,)
        The workers that have replied; may be empty.
    examples : array_like of shape (partitions,), optional
        The number of examples of each partition, not negative and not all zero; equal
        numbers when None. They weigh the coverage, not the fit.

    Returns
    -------
    LeastSquaresFit
        The weights (of the least norm that gives c), the residual and the coverage
        sum_k c_k n_k / sum_k n_k.

    Raises
    ------
    InvalidInputError
        If an argument is malformed.

    Examples
    --------
    Worker 1 is silent; worker 2 has one of its two partitions, too:

    >>> fit = decode_least_squares([[1, 0, 0], [0, 1, 1], [0, 1, 0]], received=[0, 2])
    >>> fit.weights, fit.residual, round(fit.coverage, 3)
    (array([1., 0., 1.]), 1.0, 0.667)
    """
    encoding, rows = received_rows(matrix, received)
    sizes = _example_counts(examples, encoding.shape[1])
    weights = np.zeros(len(encoding))
    for block in independent_blocks(encoding, rows):
        weights[block.rows] = fit_within_bounds(block)
        # What rounding leaves of a fit to nothing would be scaled up to an update.
        if np.abs(weights[block.rows] @ encoding[block.rows]).max() <= EXACT_TOLERANCE:
            weights[block.rows] = 0.0
    combination = weights @ encoding
    for bound in (0.0, 1.0):
        combination[np.abs(combination - bound) <= EXACT_TOLERANCE] = bound
    combination = np.clip(combination, 0.0, 1.0)
    return LeastSquaresFit(
        weights=weights,
        residual=float(np.linalg.norm(combination - 1.0)),
        coverage=float(combination @ sizes / sizes.sum()),
        combination=combination,
    )


def _example_counts(examples: ArrayLike | None, partitions: int) -> Floats:
    """Return the checked example counts."""
    if examples is None:
        return np.ones(partitions)
    counts = np.asarray(examples, dtype=np.float64)
    if (
        counts.shape != (partitions,)
        or not np.isfinite(counts).all()
        or (counts < 0).any()
        or not counts.any()
    ):
        raise InvalidInputError(
            f"'examples' needs one number for each of the {partitions} partitions, "
            f"none negative and not all zero, got {counts!r:.120}."
        )
    return counts


def _why(encoding: Floats, rows: NDArray[np.int64], error: Floats) -> str:
    """Explain which partitions stand in the way."""
    unreachable = np.flatnonzero(~encoding[rows].any(axis=0))
    inexact = np.flatnonzero(np.abs(error) > EXACT_TOLERANCE)
    tangled = np.setdiff1d(inexact, unreachable)
    reasons = []
    if len(unreachable):
        reasons.append(f"{_named(unreachable)} in no received row")
    if len(tangled):
        reasons.append(f"{_named(tangled)} not separable from the others")
    return (
        f"The {len(rows)} received rows do not decode: {'; '.join(reasons)}, of "
        f"{encoding.shape[1]} partitions; residual {math.sqrt(error @ error):.3g}. "
        "Wait for more replies or use decode_least_squares."
    )


def _named(partitions: NDArray[np.int64]) -> str:
    """Name up to eight partitions and count them all."""
    names = ", ".join(map(str, partitions[:8].tolist()))
    more = ", ..." if len(partitions) > 8 else ""
    return f"{len(partitions)} partition(s) ({names}{more})"
