"""Decoding as the replies arrive: knows the moment they suffice.

The rows fall into blocks that share no partition. Each block keeps an orthonormal basis
of its rows, built by Gram-Schmidt with reorthogonalisation (Golub and Van Loan, "Matrix
Computations", section 5.2), the rows in terms of that basis, and what is left of the
all-ones vector outside it, so uncoded replies cost next to nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_ext.coding.blocks import EXACT_TOLERANCE, RANK_TOLERANCE
from flower_ext.coding.decoding import UndecodableError
from flower_ext.coding.gradient_code import check_count
from flower_ext.errors import InvalidInputError

__all__ = ["IncrementalDecoder"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


class IncrementalDecoder:
    """Decodes replies one at a time.

    Parameters
    ----------
    partitions : int
        Number of partitions, K, at least 1.

    Raises
    ------
    InvalidInputError
        If ``partitions`` is not a positive integer.

    Examples
    --------
    >>> decoder = IncrementalDecoder(partitions=3)
    >>> decoder.add([1.0, 1.0, 0.0])
    False
    >>> decoder.add([2.0, 2.0], partitions=[1, 2])
    False
    >>> decoder.add([0.0, 1.0, 0.0])
    True
    >>> decoder.weights.round(6) + 0.0
    array([ 1. ,  0.5, -1. ])
    """

    def __init__(self, partitions: int) -> None:
        self._partitions = check_count("partitions", partitions, low=1)
        self._block_of = np.full(self._partitions, -1)
        self._place = np.zeros(self._partitions, dtype=np.int64)
        self._blocks: dict[int, _Block] = {}
        self._unsolved: set[int] = set()
        self._unreached = self._partitions
        self._rows = 0

    @property
    def decodable(self) -> bool:
        """Whether the rows so far combine to the all-ones vector."""
        return self._unreached == 0 and not self._unsolved

    @property
    def weights(self) -> Floats:
        """The minimum-norm decoding vector, one weight per row in order of adding.

        Raises
        ------
        UndecodableError
            If the rows so far do not decode.
        """
        if not self.decodable:
            raise UndecodableError(
                f"The {self._rows} rows so far do not decode: {self._unreached} of "
                f"{self._partitions} partitions are in no row, and {self.residual:.3g} "
                "of the all-ones vector is out of reach. Add more rows first."
            )
        weights = np.zeros(self._rows)
        for block in self._blocks.values():
            weights[block.rows] = block.weights()
        return weights

    @property
    def residual(self) -> float:
        """Distance from the all-ones vector to the rows' span, in [0, sqrt(K)]."""
        blocks = (self._blocks[number] for number in self._unsolved)
        squared = sum(float(block.left @ block.left) for block in blocks)
        return math.sqrt(self._unreached + squared)

    def add(self, coefficients: ArrayLike, partitions: ArrayLike | None = None) -> bool:
        """Take one reply's row of the encoding matrix.

        Parameters
        ----------
        coefficients : array_like of shape (K,), or as long as ``partitions``
            The row, finite. It may depend on earlier rows or be zero.
        partitions : array_like of int, optional
            The distinct partitions that the coefficients belong to; all, in order, when
            None.

        Returns
        -------
        bool
            Whether the rows so far decode.

        Raises
        ------
        InvalidInputError
            If the row is malformed.
        """
        support, values = self._checked(coefficients, partitions)
        number = self._rows
        self._rows += 1
        if not len(support):
            return self.decodable
        touched = self._block_of[support]
        fresh = support
        if max(touched.tolist()) < 0:
            block = _Block(number, support, values)
            self._place[support] = np.arange(len(support))
        else:
            fresh = support[touched < 0]
            block = self._join(np.unique(touched[touched >= 0]).tolist(), fresh)
            block.add(number, self._place[support], values)
        self._unreached -= len(fresh)
        # A joined block takes the number of its newest row, which no other block has.
        self._blocks[number] = block
        self._block_of[block.partitions] = number
        if block.left @ block.left > EXACT_TOLERANCE**2:
            self._unsolved.add(number)
        return self.decodable

    def _join(self, numbers: list[int], fresh: Ints) -> _Block:
        """Merge blocks, and partitions that no row had yet, into one block."""
        self._unsolved.difference_update(numbers)
        parts = sorted(map(self._blocks.pop, numbers), key=lambda b: len(b.partitions))
        block = parts.pop()
        old = len(block.partitions)
        for part in parts:
            block.absorb(part)
        block.extend(fresh)
        moved = block.partitions[old:]
        self._place[moved] = np.arange(old, old + len(moved))
        return block

    def _checked(
        self, coefficients: ArrayLike, partitions: ArrayLike | None
    ) -> tuple[Ints, Floats]:
        """Return the row's support and its values there."""
        values = np.asarray(coefficients, dtype=np.float64)
        if partitions is None:
            if values.shape != (self._partitions,):
                raise InvalidInputError(
                    f"'coefficients' needs shape ({self._partitions},), one number per "
                    f"partition, got {values.shape}. Name 'partitions' to add a "
                    "shorter row."
                )
            (ids,) = values.nonzero()
            values = values[ids]
        else:
            ids = np.asarray(partitions)
            if ids.ndim != 1 or ids.shape != values.shape:
                raise InvalidInputError(
                    "'coefficients' and 'partitions' need one entry for each other, "
                    f"got shapes {values.shape} and {ids.shape}."
                )
            named = ids.tolist()
            if named and (
                len(set(named)) < len(named)
                or ids.dtype.kind not in "iu"
                or min(named) < 0
                or max(named) >= self._partitions
            ):
                raise InvalidInputError(
                    "'partitions' must be distinct integers in "
                    f"[0, {self._partitions}), got {named!r:.80}."
                )
            if 0.0 in values.tolist():
                ids, values = ids[values != 0], values[values != 0]
        if len(ids) and not 0.0 < values @ values < math.inf:
            raise InvalidInputError(
                "'coefficients' must be finite, with squares that neither overflow nor "
                f"vanish, got {values!r:.80}."
            )
        return ids, values


class _Block:
    """Rows that share partitions with each other and with no other row.

    Parameters
    ----------
    number : int
        The number of the block's first row, in order of adding.
    partitions : ndarray of shape (columns,)
        The partitions of that row.
    values : ndarray of shape (columns,)
        Its coefficients, none zero.
    """

    def __init__(self, number: int, partitions: Ints, values: Floats) -> None:
        norm = math.sqrt(values @ values)
        direction = values / norm
        self.rows = [number]
        self.partitions = partitions
        self.left = 1.0 - direction * direction.sum()
        self._rank = 1
        # Both have spare rows and columns of zeros, so that growing is rarely a copy.
        self._basis = direction[None, :]
        self._factors = np.array([[norm]])

    def absorb(self, other: _Block) -> None:
        """Take in a block that shares no partition with this one.

        Bases of disjoint supports are orthogonal to each other: nothing is recomputed.
        """
        rows, rank, columns = len(self.rows), self._rank, len(self.partitions)
        self.extend(other.partitions)
        self.left[columns:] = other.left
        self.rows += other.rows
        self._rank += other._rank
        self._make_room()
        self._basis[rank : self._rank, columns : len(self.partitions)] = other._basis[
            : other._rank, : len(other.partitions)
        ]
        self._factors[rows : len(self.rows), rank : self._rank] = other._factors[
            : len(other.rows), : other._rank
        ]

    def extend(self, partitions: Ints) -> None:
        """Take in partitions that no row had yet."""
        self.partitions = np.concatenate([self.partitions, partitions])
        self.left = np.concatenate([self.left, np.ones(len(partitions))])
        self._make_room()

    def add(self, number: int, places: Ints, values: Floats) -> None:
        """Take one more row, of the given values at the given places of the block."""
        row = np.zeros(len(self.partitions))
        row[places] = values
        basis = self._basis[: self._rank, : len(row)]
        factors = np.zeros(self._rank)
        # One pass loses orthogonality when little of the row is new; two never do.
        for _ in range(2):
            parts = basis @ row
            row -= parts @ basis
            factors += parts
        self.rows.append(number)
        new = math.sqrt(row @ row)
        independent = new > RANK_TOLERANCE * math.sqrt(values @ values)
        self._rank += independent
        self._make_room()
        self._factors[len(self.rows) - 1, : len(factors)] = factors
        if independent:
            row /= new
            self._basis[self._rank - 1, : len(row)] = row
            self._factors[len(self.rows) - 1, self._rank - 1] = new
            self.left -= row * (row @ self.left)

    def weights(self) -> Floats:
        """Return the minimum-norm weights of the block's rows."""
        if len(self.rows) == 1:
            only: Floats = self._basis.sum(axis=1) / self._factors[0]
            return only
        projection = self._basis[: self._rank, : len(self.partitions)].sum(axis=1)
        factors = self._factors[: len(self.rows), : self._rank]
        weights: Floats = np.linalg.lstsq(factors.T, projection, rcond=RANK_TOLERANCE)[
            0
        ]
        return weights

    def _make_room(self) -> None:
        """Let the arrays hold all rows, columns and basis vectors."""
        self._basis = _grown(self._basis, self._rank, len(self.partitions))
        self._factors = _grown(self._factors, len(self.rows), self._rank)


def _grown(array: Floats, rows: int, columns: int) -> Floats:
    """Return the array, or one of at least twice the size when it is too small."""
    if rows <= array.shape[0] and columns <= array.shape[1]:
        return array
    shape = [
        have if need <= have else max(need, 2 * have)
        for need, have in zip((rows, columns), array.shape, strict=True)
    ]
    larger = np.zeros(shape)
    larger[: array.shape[0], : array.shape[1]] = array
    return larger
