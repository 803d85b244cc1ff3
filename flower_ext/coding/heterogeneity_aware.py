"""A code for workers of unequal speed that hold only some of the partitions.

Wang et al. 2019 (arXiv:1901.09339), generalised to any replication pattern: loads by
:mod:`flower_ext.coding.placement`, coefficients by
:mod:`flower_ext.coding.coefficients`.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flower_ext.coding.coefficients import colour_workers, encoding_matrix
from flower_ext.coding.gradient_code import GradientCode, check_count
from flower_ext.coding.placement import place_replicas
from flower_ext.errors import InvalidInputError

__all__ = ["HeterogeneityAware"]


class HeterogeneityAware(GradientCode):
    """Loads in proportion to speed, every partition on s + 1 workers that hold it.

    The longest time ``load / speed`` is as short as whole partitions and the holdings
    allow. A worker that is too slow to help, or holds nothing, has a row of zeros.

    Replies in float32 lose less than 1e-5 of the update when neighbours on a ring or in
    a group hold the same partitions, or everyone holds everything. Holdings scattered
    at random over fifty workers and five stragglers can lose more than 1e-3: nearly
    every two workers then share a partition, and need coefficients of their own.

    Parameters
    ----------
    holdings : sequence over workers of iterables of int
        The partitions that each worker holds, with ids 0, ..., K - 1; each partition
        with at least ``stragglers + 1`` workers.
    speeds : array_like of shape (workers,)
        Predicted partitions per unit of time, positive; only their ratios matter.
    stragglers : int
        Number of workers that may stay silent, in [0, workers - 1].

    Raises
    ------
    InvalidInputError
        If a value is out of range, or a partition is held by too few workers; the
        message names it.

    Examples
    --------
    The third worker is twice as fast and gets twice the load:

    >>> code = HeterogeneityAware([range(4)] * 3, speeds=[1, 1, 2], stragglers=1)
    >>> code.matrix
    array([[1., 1., 0., 0.],
           [0., 0., 1., 1.],
           [1., 1., 1., 1.]])
    """

    def __init__(
        self,
        holdings: Sequence[Iterable[int]],
        speeds: ArrayLike,
        stragglers: int,
    ) -> None:
        workers = check_count("the number of holdings", len(holdings), low=1)
        stragglers = check_count("stragglers", stragglers, low=0, high=workers - 1)
        rates = np.asarray(speeds, dtype=np.float64)
        if rates.shape != (workers,):
            raise InvalidInputError(
                f"'speeds' needs one value for each of the {workers} workers of "
                f"'holdings', got shape {rates.shape}."
            )
        if not (np.isfinite(rates) & (rates > 0)).all():
            worst = int(np.argmin(np.isfinite(rates) & (rates > 0)))
            raise InvalidInputError(
                f"'speeds' must be positive and finite, got {rates[worst]} for worker "
                f"{worst}. Leave a worker that cannot compute out of 'holdings'."
            )
        held = _held(holdings)
        holders = held.sum(axis=1)
        if holders.min() <= stragglers:
            scarce = int(np.argmin(holders))
            raise InvalidInputError(
                f"Partition {scarce} is held by {holders[scarce]} worker(s), but "
                f"{stragglers} straggler(s) need every partition on {stragglers + 1}. "
                f"Replicate it further or set 'stragglers' to at most "
                f"{max(0, int(holders[scarce]) - 1)}."
            )
        supports = place_replicas(held, rates, stragglers + 1)
        colours = colour_workers(supports, workers)
        super().__init__(encoding_matrix(supports, colours), stragglers)


def _held(holdings: Sequence[Iterable[int]]) -> NDArray[np.bool_]:
    """Return who holds what as an array of shape (partitions, workers)."""
    # Workers often share one object of partitions, which is then read once.
    read: dict[int, NDArray[np.int64]] = {}
    for worker, partitions in enumerate(holdings):
        if id(partitions) not in read:
            read[id(partitions)] = _partition_ids(worker, partitions)
    ids = [read[id(partitions)] for partitions in holdings]
    count = 1 + max((int(k.max()) for k in ids if len(k)), default=-1)
    if count == 0:
        raise InvalidInputError("'holdings' is empty: no worker holds a partition.")
    held = np.zeros((len(holdings), count), dtype=bool)
    for row, partitions_held in zip(held, ids, strict=True):
        row[partitions_held] = True
    return np.ascontiguousarray(held.T)


def _partition_ids(worker: int, partitions: Iterable[int]) -> NDArray[np.int64]:
    """Return one worker's partitions as an array, checked."""
    given = partitions.tolist() if isinstance(partitions, np.ndarray) else partitions
    try:
        ids = np.array(array("q", given))
    except (TypeError, OverflowError) as error:
        raise InvalidInputError(
            "'holdings' must list partition ids, integers from 0, for every worker; "
            f"those of worker {worker} are not: {error}."
        ) from None
    if len(ids) and ids.min() < 0:
        raise InvalidInputError(
            "'holdings' must list partition ids, integers from 0, for every worker; "
            f"got {ids.min()} for worker {worker}."
        )
    return ids
