"""Received rows, cut into blocks that decode independently of each other.

Most rounds are mostly uncoded: a thousand rows may fall apart into hundreds of blocks
that share no partition, and partitions with equal columns behave as one. Decoding works
block by block on what is left.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_ext.errors import InvalidInputError

__all__ = [
    "EXACT_TOLERANCE",
    "RANK_TOLERANCE",
    "Block",
    "independent_blocks",
    "received_rows",
]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Directions weaker than this, relative to the strongest, count as absent. Replies carry
# the rounding of float32, 6e-8, which such a direction would amplify to order one.
RANK_TOLERANCE = 1e-8


# w^T B = 1^T counts as solved when no entry is off by more. This is below half a unit
# in the last place of float32 (6e-8), in which the replies travel, and far above the
# rounding of float64, 2e-16 times the condition of the rows, of the codes built here.
EXACT_TOLERANCE = 1e-8


class Block(NamedTuple):
    """Rows that share partitions with each other and with no other row.

    Parameters
    ----------
    rows : ndarray of shape (block rows,)
        Indices into the encoding matrix.
    matrix : ndarray of shape (block rows, distinct columns)
        Their distinct non-zero columns.
    counts : ndarray of shape (distinct columns,)
        How many partitions have each of the columns.
    """

    rows: Ints
    matrix: Floats
    counts: Ints


def received_rows(
    matrix: ArrayLike, received: Iterable[int] | NDArray[np.bool_]
) -> tuple[Floats, Ints]:
    """Check the arguments of a decoder.

    Parameters
    ----------
    matrix : array_like of shape (workers, partitions)
        The encoding matrix.
    received : iterable of int, or boolean mask of shape (workers,)
        The rows whose replies are there.

    Returns
    -------
    tuple of ndarray
        The matrix in float64 and the sorted, distinct indices of the received rows.

    Raises
    ------
    InvalidInputError
        If the matrix is not two-dimensional and finite, or an index is out of range.
    """
    encoding = np.asarray(matrix, dtype=np.float64)
    if encoding.ndim != 2 or not encoding.shape[1] or not np.isfinite(encoding).all():
        raise InvalidInputError(
            "'matrix' must be finite, of shape (workers, partitions) with a partition "
            f"at least, got shape {encoding.shape}."
        )
    workers = len(encoding)
    rows = np.asarray(
        received if isinstance(received, np.ndarray) else list(received),
    )
    if rows.dtype == np.bool_:
        if rows.shape != (workers,):
            raise InvalidInputError(
                f"'received' as a mask needs shape ({workers},), got {rows.shape}."
            )
        return encoding, np.flatnonzero(rows)
    if rows.size == 0:
        return encoding, np.empty(0, dtype=np.int64)
    if rows.ndim != 1 or rows.dtype.kind not in "iu":
        raise InvalidInputError(
            f"'received' must hold row indices or be a boolean mask, got {rows!r:.80}."
        )
    if rows.min() < 0 or rows.max() >= workers:
        raise InvalidInputError(
            f"'received' must lie in [0, {workers}), got values from {rows.min()} to "
            f"{rows.max()}."
        )
    return encoding, np.unique(rows.astype(np.int64))


def independent_blocks(matrix: Floats, rows: Ints) -> list[Block]:
    """Cut the given rows of a matrix into independent blocks.

    Parameters
    ----------
    matrix : ndarray of shape (workers, partitions)
        The encoding matrix.
    rows : ndarray of shape (received,)
        Distinct indices of rows.

    Returns
    -------
    list of Block
        Rows of zeros and partitions that no row reaches are in none of them.
    """
    row, column = np.nonzero(matrix)
    received = np.zeros(len(matrix), dtype=bool)
    received[rows] = True
    row, column = row[received[row]], column[received[row]]
    if not len(row):
        return []
    by_column = np.argsort(column, kind="stable")
    row, column = row[by_column], column[by_column]
    starts = np.flatnonzero(np.diff(column, prepend=-1))
    first, counts = _distinct(row, matrix[row, column], starts)
    sizes = np.diff(starts, append=len(row))[first]
    starts = starts[first]
    # The entries of the distinct columns, one column after the other.
    skipped = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes)
    label = _component_of_rows(
        row[np.arange(len(skipped)) + skipped], sizes, len(matrix)
    )
    columns = column[starts]
    return [
        Block(r, matrix[np.ix_(r, columns[c])], counts[c])
        for r, c in _members(label, label[row[starts]], np.unique(row))
    ]


def _distinct(row: Ints, values: Floats, starts: Ints) -> tuple[Ints, Ints]:
    """Return which columns are the first of their kind, and how many are alike."""
    bounds = [*starts.tolist(), len(row)]
    alike: dict[bytes, list[int]] = {}
    for column, (start, stop) in enumerate(itertools.pairwise(bounds)):
        key = row[start:stop].tobytes() + values[start:stop].tobytes()
        alike.setdefault(key, [column, 0])[1] += 1
    first, counts = np.array(list(alike.values())).T
    return first, counts


def _component_of_rows(row: Ints, sizes: Ints, rows: int) -> Ints:
    """Label rows so that those joined by columns share a label: the lowest row's."""
    starts = np.cumsum(sizes) - sizes
    label = np.arange(rows)
    while True:
        lowest = np.minimum.reduceat(label[row], starts)
        joined = label.copy()
        # Hooking the labels themselves, too, merges whole trees in one pass.
        np.minimum.at(joined, label[row], np.repeat(lowest, sizes))
        np.minimum.at(joined, row, np.repeat(lowest, sizes))
        joined = joined[joined]
        if np.array_equal(joined, label):
            return label
        label = joined


def _members(
    row_label: Ints, column_label: Ints, rows: Ints
) -> Iterable[tuple[Ints, Ints]]:
    """Return the rows and the columns of each label, of the rows given."""
    rows = rows[np.argsort(row_label[rows], kind="stable")]
    columns = np.argsort(column_label, kind="stable")
    row_cuts = np.flatnonzero(np.diff(row_label[rows])) + 1
    column_cuts = np.flatnonzero(np.diff(column_label[columns])) + 1
    return zip(np.split(rows, row_cuts), np.split(columns, column_cuts), strict=True)
