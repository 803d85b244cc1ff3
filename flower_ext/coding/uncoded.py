"""No code at all: every worker has one partition and every reply is needed."""

from __future__ import annotations

import numpy as np

from flower_ext.coding.gradient_code import GradientCode, check_count

__all__ = ["Uncoded"]


class Uncoded(GradientCode):
    """One partition per worker, no redundancy: the baseline that stragglers hold up.

    Parameters
    ----------
    workers : int
        Number of workers and of partitions, at least 1.

    Raises
    ------
    InvalidInputError
        If ``workers`` is not a positive integer.

    Examples
    --------
    >>> Uncoded(2).matrix
    array([[1., 0.],
           [0., 1.]])
    """

    def __init__(self, workers: int) -> None:
        workers = check_count("workers", workers, low=1)
        super().__init__(np.eye(workers), stragglers=0)
