"""What every gradient code has: an encoding matrix and the stragglers it tolerates."""

from __future__ import annotations

import operator

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError

__all__ = ["GradientCode", "check_count"]

Floats = NDArray[np.float64]


def check_count(name: str, value: int, *, low: int, high: int | None = None) -> int:
    """Return ``value`` as a plain int after checking its range.

    Parameters
    ----------
    name : str
        What the value is called in the message.
    value : int
        A Python or NumPy integer.
    low : int
        The smallest value allowed.
    high : int, optional
        The largest value allowed; no bound when None.

    Raises
    ------
    InvalidInputError
        If the value is not an integer or lies outside ``[low, high]``.
    """
    try:
        count = operator.index(value)
    except TypeError:
        raise InvalidInputError(
            f"'{name}' must be an integer, got {value!r}."
        ) from None
    if count < low or (high is not None and count > high):
        allowed = f"at least {low}" if high is None else f"in [{low}, {high}]"
        raise InvalidInputError(f"'{name}' must be {allowed}, got {count}.")
    return count


class GradientCode:
    """An encoding matrix B and the number of stragglers that it tolerates.

    Worker i replies with row i of B times the partitions' updates; the replies of any
    ``workers - stragglers`` workers combine to the sum of all updates (Tandon et al.
    2017, arXiv:1612.03301, section 2). The families subclass this and build B.

    Parameters
    ----------
    matrix : ndarray of shape (workers, partitions)
        The encoding matrix; its ownership passes to the code, which makes it read-only.
    stragglers : int
        How many workers may stay silent, at least 0.
    """

    def __init__(self, matrix: Floats, stragglers: int) -> None:
        matrix.flags.writeable = False
        self._matrix = matrix
        self._stragglers = stragglers

    @property
    def matrix(self) -> Floats:
        """The encoding matrix, read-only float64 of shape (workers, partitions)."""
        return self._matrix

    @property
    def workers(self) -> int:
        """Number of workers, M."""
        return int(self._matrix.shape[0])

    @property
    def partitions(self) -> int:
        """Number of partitions, K."""
        return int(self._matrix.shape[1])

    @property
    def stragglers(self) -> int:
        """Number of workers that may stay silent, s."""
        return self._stragglers

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(workers={self.workers}, "
            f"partitions={self.partitions}, stragglers={self.stragglers})"
        )
