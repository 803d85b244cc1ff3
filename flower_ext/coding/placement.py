"""Which workers compute which partition: loads in proportion to speed, within holdings.

The loads minimise the longest time max_i load_i / speed_i subject to what each worker
holds, in whole partitions: a greedy start, then exchanges along augmenting paths until
no worker among the slowest can be relieved, which is the optimum (the argument is that
of maximum flow). Wang et al. 2019 (arXiv:1901.09339, section IV-A) allocate likewise
when every worker holds everything.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["place_replicas"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_EQUAL = 1e-12  # relative difference below which two completion times are the same


def place_replicas(held: Bools, speeds: Floats, copies: int) -> Ints:
    """Choose ``copies`` holders for every partition.

    Parameters
    ----------
    held : ndarray of shape (partitions, workers)
        Whether a worker holds a partition; at least ``copies`` holders each.
    speeds : ndarray of shape (workers,)
        Partitions per unit of time, positive.
    copies : int
        Replicas of each partition, at least 1.

    Returns
    -------
    ndarray of shape (partitions, copies)
        The distinct workers of each partition.
    """
    partitions, workers = held.shape
    supports = np.empty((partitions, copies), dtype=np.int64)
    loads = np.zeros(workers, dtype=np.int64)
    for members in _same_holders(held):
        holders = np.flatnonzero(held[members[0]])
        if len(members) == 1:
            ends = (loads[holders] + 1) / speeds[holders]
            chosen = holders[np.argpartition(ends, copies - 1)[:copies]]
            supports[members[0]] = chosen
            loads[chosen] += 1
            continue
        share = _fill(loads[holders], speeds[holders], len(members), copies)
        loads[holders] += share
        start = 0
        for block in _blocks(share, copies):
            sequence = np.repeat(holders[block], share[block]).reshape(copies, -1)
            stop = start + sequence.shape[1]
            supports[members[start:stop]] = sequence.T
            start = stop
    _relieve(supports, held, speeds, loads)
    return supports


def _same_holders(held: Bools) -> list[Ints]:
    """Group the partitions by their holders, those with the fewest holders first."""
    packed = np.packbits(held, axis=1)
    keys = packed.view(np.dtype((np.void, packed.shape[1]))).ravel()
    _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group))[:-1])
    rarity = held[first].sum(axis=1)
    return [members[g] for g in np.argsort(rarity, kind="stable")]


def _fill(loads: Ints, speeds: Floats, partitions: int, copies: int) -> Ints:
    """Return how many of ``partitions`` each holder takes, ``copies`` times in all.

    The j-th further partition of a holder ends at (load + j) / speed; the earliest ends
    of all holders are taken.
    """
    wanted = partitions * copies
    horizon = (loads.sum() + wanted) / speeds.sum()
    while True:
        room = np.clip(np.floor(horizon * speeds - loads), 0, partitions)
        if room.sum() >= wanted:
            break
        horizon *= 2.0
    room = room.astype(np.int64)
    owner = np.repeat(np.arange(len(loads)), room)
    nth = np.arange(1, len(owner) + 1) - np.repeat(np.cumsum(room) - room, room)
    ends = (loads[owner] + nth) / speeds[owner]
    earliest = np.argpartition(ends, wanted - 1)[:wanted]
    return np.bincount(owner[earliest], minlength=len(loads))


def _blocks(share: Ints, copies: int) -> list[Ints]:
    """Cut the holders into small blocks that each cover their partitions on their own.

    A block's share must be ``copies`` times a whole number that no member exceeds: laid
    end to end around a circle of that length, its members then cover every point
    ``copies`` times, each by different members. Small blocks often decode with more
    stragglers than the code promises.
    """
    order = np.argsort(-share, kind="stable")
    order = order[: np.count_nonzero(share)]
    blocks: list[Ints] = []
    start = total = 0
    for stop, holder in enumerate(order, start=1):
        total += int(share[holder])
        if total % copies == 0 and share[order[start]] <= total // copies:
            blocks.append(order[start:stop])
            start, total = stop, 0
    if total:
        # What is left is a multiple of 'copies' too, and smaller than the block before.
        blocks[-1] = np.concatenate([blocks[-1], order[start:]])
    return blocks


def _relieve(supports: Ints, held: Bools, speeds: Floats, loads: Ints) -> None:
    """Move partitions off the slowest workers until none of them can be relieved."""
    owners: list[list[int]] = supports.tolist()
    owned: list[set[int]] = [set() for _ in loads]
    for partition, workers in enumerate(owners):
        for worker in workers:
            owned[worker].add(partition)
    holders = _Holders(held)
    times = loads / speeds
    next_times = (loads + 1) / speeds
    while True:
        slowest = int(np.argmax(times))
        limit = times[slowest] * (1 - _EQUAL)
        if not (next_times < limit).any():
            break
        path = _path_to_spare(slowest, next_times < limit, owners, owned, holders)
        if not path:
            break
        for giver, partition, taker in path:
            owners[partition][owners[partition].index(giver)] = taker
            owned[giver].remove(partition)
            owned[taker].add(partition)
        ends = [slowest, path[0][2]]
        loads[ends] += [-1, 1]
        times[ends] = loads[ends] / speeds[ends]
        next_times[ends] = (loads[ends] + 1) / speeds[ends]
    supports[:] = owners


class _Holders(dict[int, list[int]]):
    """The workers that hold a partition, listed when first asked for."""

    def __init__(self, held: Bools) -> None:
        super().__init__()
        self._held = held

    def __missing__(self, partition: int) -> list[int]:
        self[partition] = np.flatnonzero(self._held[partition]).tolist()
        return self[partition]


def _path_to_spare(
    slowest: int,
    spare: Bools,
    owners: list[list[int]],
    owned: list[set[int]],
    holders: _Holders,
) -> list[tuple[int, int, int]]:
    """Return (giver, partition, taker) hops from a spare worker back to ``slowest``.

    Breadth first; empty when no worker with time to spare can be reached.
    """
    came_from: dict[int, tuple[int, int]] = {slowest: (-1, -1)}
    passed_on: set[int] = set()
    has_time = spare.tolist()
    queue = [slowest]
    for giver in queue:
        for partition in owned[giver] - passed_on:
            passed_on.add(partition)
            for taker in holders[partition]:
                if taker in came_from or taker in owners[partition]:
                    continue
                came_from[taker] = giver, partition
                queue.append(taker)
                if has_time[taker]:
                    return _hops(came_from, slowest, taker)
    return []


def _hops(
    came_from: dict[int, tuple[int, int]], slowest: int, last: int
) -> list[tuple[int, int, int]]:
    """Follow the search back from the last taker."""
    hops = []
    while last != slowest:
        giver, partition = came_from[last]
        hops.append((giver, partition, last))
        last = giver
    return hops
