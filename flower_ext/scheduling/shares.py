"""How a slot of a shared carrier is split between workers.

All functions are pure; arrays have one entry per worker.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["in_order", "time_shared"]

Floats = NDArray[np.float64]


def in_order(order: NDArray[np.int64], backlog: Floats, rates: Floats) -> Floats:
    """Return shares of the slot for workers that send one after the other.

    Everyone sends until its backlog is empty or the slot is over.

    Parameters
    ----------
    order : ndarray of int
        Who sends, first to last; each with a positive rate, nobody twice.
    backlog : ndarray of shape (workers,)
        Units that wait, at least 0.
    rates : ndarray of shape (workers,)
        Units that a worker sends in a whole slot.

    Examples
    --------
    >>> in_order(np.array([2, 0]), np.array([9.0, 9.0, 1.0]), np.array([3.0, 4.0, 4.0]))
    array([0.75, 0.  , 0.25])
    """
    shares = np.zeros(len(rates))
    need = backlog[order] / rates[order]
    before = need.cumsum() - need
    shares[order] = np.maximum(np.minimum(1.0 - before, need), 0.0)
    return shares


def time_shared(weight: Floats, backlog: Floats, rates: Floats) -> Floats:
    """Return the shares x that maximise Σ weight·x over Σx ≤ 1, 0 ≤ x ≤ backlog/rate.

    Workers send by falling weight, each until its backlog is empty: the fractional
    knapsack, whose greedy solution is optimal. A weight of 0 or less is not worth a
    share; a positive one must come with a positive rate. Ties go to the lower index.

    Examples
    --------
    >>> time_shared(np.array([1.0, 3.0, -1.0]), np.full(3, 2.0), np.array([4.0, 8, 8]))
    array([0.5 , 0.25, 0.  ])
    """
    worth = (weight > 0).nonzero()[0]
    order = worth[(-weight[worth]).argsort(kind="stable")]
    return in_order(order, backlog, rates)
