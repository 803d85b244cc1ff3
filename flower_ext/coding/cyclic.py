"""Cyclic repetition: worker i holds partitions i to i + s, for any number of workers.

The supports are those of Tandon et al. 2017 (arXiv:1612.03301), section 3.2; the
coefficients come from :mod:`flower_ext.coding.coefficients`, because the random ones
of that paper can lose several per cent of an update that travels in float32.
"""

from __future__ import annotations

import numpy as np

from flower_ext.coding.coefficients import encoding_matrix
from flower_ext.coding.gradient_code import GradientCode, check_count

__all__ = ["CyclicRepetition"]


class CyclicRepetition(GradientCode):
    """The cyclic repetition code: worker i holds partitions i, ..., i + s modulo M.

    Parameters
    ----------
    workers : int
        Number of workers and of partitions, at least 1.
    stragglers : int
        Number of workers that may stay silent, in [0, workers - 1].

    Raises
    ------
    InvalidInputError
        If a value is out of range.

    Examples
    --------
    When ``stragglers + 1`` divides ``workers``, every coefficient is 1:

    >>> CyclicRepetition(workers=4, stragglers=1).matrix
    array([[1., 1., 0., 0.],
           [0., 1., 1., 0.],
           [0., 0., 1., 1.],
           [1., 0., 0., 1.]])
    """

    def __init__(self, workers: int, stragglers: int) -> None:
        workers = check_count("workers", workers, low=1)
        stragglers = check_count("stragglers", stragglers, low=0, high=workers - 1)
        partitions = np.arange(workers)
        supports = (partitions[:, None] - np.arange(stragglers + 1)) % workers
        # Cut the circle of workers into runs of at least s + 1 and number each run from
        # 0: two workers of one colour are then s + 1 or more apart and share nothing.
        runs = workers // (stragglers + 1)
        first = -(-np.arange(runs) * workers // runs)
        colours = partitions - np.repeat(first, np.diff(first, append=workers))
        super().__init__(encoding_matrix(supports, colours), stragglers)
