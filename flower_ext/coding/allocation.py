"""Who computes what: integer loads that minimise the time of the last worker."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

__all__ = ["allocate", "balance"]


def balance(
    work: int,
    seconds: NDArray[np.float64],
    overhead: NDArray[np.float64],
    limits: NDArray[np.int64] | None = None,
) -> NDArray[np.int64]:
    """Spread interchangeable units of work so that the last worker is done earliest.

    A worker with n > 0 units is done after ``overhead + n * seconds``; the greedy
    choice of the earliest next completion is optimal.

    Parameters
    ----------
    work : int
        Units of work, at least 0.
    seconds : ndarray of shape (workers,)
        Seconds per unit, positive.
    overhead : ndarray of shape (workers,)
        Seconds per worker, at least 0.
    limits : ndarray of shape (workers,), optional
        The most units that each worker may have, at least 0.

    Returns
    -------
    ndarray of shape (workers,)
        Units per worker, summing to `work`, or to all that the limits allow.

    Examples
    --------
    >>> balance(3, np.array([1.0, 2.0]), np.array([0.0, 0.0])).tolist()
    [2, 1]
    """
    loads = np.zeros(len(seconds), dtype=np.int64)
    heap = [(o + s, i) for i, (o, s) in enumerate(zip(overhead, seconds, strict=True))]
    if limits is not None:
        heap = [entry for entry in heap if limits[entry[1]] > 0]
    heapq.heapify(heap)
    for _ in range(work):
        if not heap:
            break
        done, i = heap[0]
        loads[i] += 1
        if limits is not None and loads[i] == limits[i]:
            heapq.heappop(heap)
        else:
            heapq.heapreplace(heap, (done + seconds[i], i))
    return loads


def allocate(
    partitions: Sequence[int],
    holdings: Sequence[Collection[int]],
    seconds: NDArray[np.float64],
    overhead: NDArray[np.float64],
    limits: NDArray[np.int64] | None = None,
) -> list[list[int]]:
    """Give every partition to one worker that holds it, the last done earliest.

    Exact: where all workers hold everything by :func:`balance`, else by bisection over
    the completion time with a maximum flow from partitions to their holders.

    Parameters
    ----------
    partitions : Sequence[int]
        Distinct partition ids. Those that nobody holds are left out of the result.
    holdings : Sequence[Collection[int]]
        The partitions each worker holds.
    seconds, overhead : ndarray of shape (workers,)
        As in :func:`balance`.
    limits : ndarray of shape (workers,), optional
        The most partitions that each worker may have, at least 0. Where they leave no
        room for all, as many partitions as possible are given out.

    Returns
    -------
    list[list[int]]
        The partitions of each worker, neighbours in `partitions` kept together where
        the holdings permit.

    Examples
    --------
    >>> zero, one = np.zeros(2), np.ones(2)
    >>> allocate([0, 1, 2], [{0, 1}, {2}], one, zero)
    [[0, 1], [2]]
    """
    wanted = set(partitions)
    # Workers often share one object of holdings, which is then read once.
    distinct = {id(h): h for h in holdings}
    read = {key: wanted.intersection(h) for key, h in distinct.items()}
    held = [read[id(h)] for h in holdings]
    owned = set().union(*read.values())
    placed = [p for p in partitions if p in owned]
    if not placed:
        return [[] for _ in holdings]
    full = [i for i, h in enumerate(held) if len(h) == len(placed)]
    if len(full) == sum(1 for h in held if h):
        loads = np.zeros(len(holdings), dtype=np.int64)
        loads[full] = balance(
            len(placed),
            seconds[full],
            overhead[full],
            None if limits is None else limits[full],
        )
        ends = np.cumsum(loads)
        return [
            list(placed[end - load : end])
            for end, load in zip(ends, loads, strict=True)
        ]
    largest = np.array([len(h) for h in held])
    if limits is not None:
        largest = np.minimum(largest, limits)
    if not largest.any():
        return [[] for _ in holdings]
    return _flow(placed, held, seconds, overhead, largest)


def _flow(
    placed: list[int],
    held: list[set[int]],
    seconds: NDArray[np.float64],
    overhead: NDArray[np.float64],
    largest: NDArray[np.int64],
) -> list[list[int]]:
    """Bisect the completion time; at each, ask a maximum flow whether it suffices."""
    workers, count = len(held), len(placed)
    node = {p: 1 + workers + k for k, p in enumerate(placed)}
    source, sink = 0, 1 + workers + count
    edges = [(1 + i, node[p]) for i, h in enumerate(held) for p in sorted(h)]
    tails = [source] * workers + [a for a, _ in edges] + list(node.values())
    heads = list(range(1, 1 + workers)) + [b for _, b in edges] + [sink] * count
    graph = csr_array(
        (np.ones(len(tails), dtype=np.int32), (tails, heads)),
        shape=(sink + 1, sink + 1),
    )

    def loads_within(bound: float) -> NDArray[np.int32]:
        fits = np.floor((bound - overhead) / seconds * (1 + 1e-12))
        return np.clip(fits, 0, largest).astype(np.int32)

    def solve(bound: float) -> tuple[int, csr_array]:
        graph.data[:workers] = loads_within(bound)  # the source's row comes first
        result = maximum_flow(graph, source, sink)
        return int(result.flow_value), result.flow

    finishes = np.unique(
        np.concatenate(
            [
                overhead[i] + seconds[i] * np.arange(1, largest[i] + 1)
                for i in range(workers)
            ]
        )
    )
    low, high = 0, len(finishes) - 1
    most, flow = solve(finishes[high])  # fewer than `count` only where limits bind
    while low < high:
        middle = (low + high) // 2
        amount, found = solve(finishes[middle])
        if amount < most:
            low = middle + 1
        else:
            high, flow = middle, found
    dense = flow.tocoo()
    result: list[list[int]] = [[] for _ in held]
    for tail, head, amount in zip(dense.row, dense.col, dense.data, strict=True):
        if amount > 0 and 1 <= tail <= workers:
            result[tail - 1].append(placed[head - 1 - workers])
    order = {p: k for k, p in enumerate(placed)}
    return [sorted(r, key=order.__getitem__) for r in result]
