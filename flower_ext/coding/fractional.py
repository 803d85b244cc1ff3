"""Fractional repetition: s + 1 full copies of the work, each shared without a code.

Tandon et al. 2017 (arXiv:1612.03301), section 3.1.
"""

from __future__ import annotations

import numpy as np

from flower_ext.coding.gradient_code import GradientCode, check_count
from flower_ext.errors import InvalidInputError

__all__ = ["FractionalRepetition"]


class FractionalRepetition(GradientCode):
    """The fractional repetition code: ``stragglers + 1`` identical groups of workers.

    Within a group the partitions are shared out, ``stragglers + 1`` to a worker, and
    every coefficient is 1. With at most s stragglers one of the s + 1 workers of each
    share has answered, so decoding only picks replies and loses nothing to rounding;
    often it works with far more stragglers than s.

    Parameters
    ----------
    workers : int
        Number of workers and of partitions, at least 1 and a multiple of
        ``stragglers + 1``.
    stragglers : int
        Number of workers that may stay silent, in [0, workers - 1].

    Raises
    ------
    InvalidInputError
        If a value is out of range or ``stragglers + 1`` does not divide ``workers``.

    Examples
    --------
    >>> FractionalRepetition(workers=4, stragglers=1).matrix
    array([[1., 1., 0., 0.],
           [0., 0., 1., 1.],
           [1., 1., 0., 0.],
           [0., 0., 1., 1.]])
    """

    def __init__(self, workers: int, stragglers: int) -> None:
        workers = check_count("workers", workers, low=1)
        stragglers = check_count("stragglers", stragglers, low=0, high=workers - 1)
        copies = stragglers + 1
        if workers % copies:
            raise InvalidInputError(
                "FractionalRepetition needs 'stragglers' + 1 to divide 'workers', got "
                f"{workers} workers and {stragglers} stragglers. Use "
                f"{workers - workers % copies} or {workers + copies - workers % copies}"
                " workers, or CyclicRepetition, which takes any number."
            )
        group = np.kron(np.eye(workers // copies), np.ones((1, copies)))
        super().__init__(np.tile(group, (copies, 1)), stragglers)
