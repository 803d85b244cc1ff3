"""Stage two's rows: the missing partitions over the idle workers, each s₂ + 1 times.

Where every idle worker holds all that is missing, workers form groups that share a
chunk (fractional repetition): for the same loads a group's chunk is known with the
first of its members, so groups decode no later than any other code with that
redundancy. Where holdings differ, the heterogeneity-aware code takes over.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flower_ext.coding.allocation import allocate, balance
from flower_ext.coding.heterogeneity_aware import HeterogeneityAware

__all__ = ["Spread", "spread_missing"]

Floats = NDArray[np.float64]
Row = tuple[list[int], list[float]]


@dataclass(frozen=True)
class Spread:
    """Rows for stage two.

    Parameters
    ----------
    rows : list[tuple[list[int], list[float]]]
        Per worker its partitions and coefficients; empty for a worker left idle.
    groups : list[list[int]]
        Workers (as indices into `rows`) of which any one reply suffices.
    stragglers : int
        How many rows may stay away where `groups` is empty (a general code).
    covered : frozenset[int]
        The partitions that the rows recompute.
    """

    rows: list[Row]
    groups: list[list[int]]
    stragglers: int
    covered: frozenset[int]

    def completion(
        self, done: Floats, arrivals: Floats, jobs: Sequence[Sequence[int]]
    ) -> Floats:
        """Return when the round decodes in each scenario.

        Parameters
        ----------
        done : ndarray of shape (scenarios, workers)
            When each row's reply arrives; inf for a worker without a row.
        arrivals : ndarray of shape (scenarios, jobs)
            When each job of stage one that is still out arrives.
        jobs : Sequence[Sequence[int]]
            The partitions of those jobs.

        Returns
        -------
        ndarray of shape (scenarios,)
            Completion times, a slight overestimate for a general code.
        """
        out = {p for job in jobs for p in job}
        if not self.groups:
            used = sum(1 for row, _ in self.rows if row)
            known = np.sort(done, axis=1)[:, used - self.stragglers - 1]
            if out >= self.covered:
                np.minimum(known, arrivals.max(axis=1), out=known)
            return np.asarray(known)
        chunk_known = np.stack([done[:, g].min(axis=1) for g in self.groups], axis=1)
        chunk_of = {p: i for i, g in enumerate(self.groups) for p in self.rows[g[0]][0]}
        # What no job still holds must be recomputed.
        alone = sorted({chunk_of[p] for p in self.covered - out})
        completion: Floats = chunk_known[:, alone].max(axis=1, initial=0.0)
        for column, job in enumerate(jobs):
            chunks = sorted({chunk_of[p] for p in job if p in chunk_of})
            replaced = chunk_known[:, chunks].max(axis=1, initial=0.0)
            if any(p not in chunk_of for p in job):
                replaced = arrivals[:, column]
            np.maximum(
                completion, np.minimum(arrivals[:, column], replaced), out=completion
            )
        return completion


def spread_missing(
    missing: Sequence[int],
    holdings: Sequence[Collection[int]],
    seconds: Floats,
    overhead: Floats,
    redundancy: int,
    limits: NDArray[np.int64] | None = None,
) -> Spread | None:
    """Spread partitions over workers so that any `redundancy` of them may stay away.

    Parameters
    ----------
    missing : Sequence[int]
        Partition ids; those that no worker holds are not covered.
    holdings : Sequence[Collection[int]]
        What each worker holds.
    seconds, overhead : ndarray of shape (workers,)
        Typical seconds per partition and per reply.
    redundancy : int
        s₂, at least 0.
    limits : ndarray of shape (workers,), optional
        The most partitions that each worker may have, at least 0.

    Returns
    -------
    Spread or None
        None where too few workers hold a partition for this redundancy, or the limits
        do not allow it.

    Examples
    --------
    >>> both = spread_missing([4], [{4}, {4}], np.ones(2), np.zeros(2), redundancy=1)
    >>> both.rows
    [([4], [1.0]), ([4], [1.0])]
    """
    if redundancy >= len(holdings):
        return None
    # Workers often share one object of holdings, which is then read once.
    distinct = {id(h): h for h in holdings}
    if not any(set(missing).difference(h) for h in distinct.values()):
        return _grouped(missing, seconds, overhead, redundancy, limits)
    if redundancy == 0:
        jobs = allocate(missing, holdings, seconds, overhead, limits)
        rows: list[Row] = [(job, [1.0] * len(job)) for job in jobs]
        groups = [[i] for i, job in enumerate(jobs) if job]
        return Spread(rows, groups, 0, frozenset(p for job in jobs for p in job))
    held = [[k for k, p in enumerate(missing) if p in h] for h in holdings]
    copies = np.bincount([k for h in held for k in h], minlength=len(missing))
    if copies.min() <= redundancy:
        return None
    if limits is not None:
        held = [h if limit else [] for h, limit in zip(held, limits, strict=True)]
        copies = np.bincount([k for h in held for k in h], minlength=len(missing))
        if copies.min() <= redundancy:
            return None
    matrix = HeterogeneityAware(held, 1.0 / (seconds + overhead), redundancy).matrix
    if limits is not None and (np.count_nonzero(matrix, axis=1) > limits).any():
        return None
    coded: list[Row] = []
    for row in matrix:
        support = np.flatnonzero(row)
        coded.append(([missing[int(k)] for k in support], row[support].tolist()))
    return Spread(coded, [], redundancy, frozenset(missing))


def _grouped(
    missing: Sequence[int],
    seconds: Floats,
    overhead: Floats,
    redundancy: int,
    limits: NDArray[np.int64] | None,
) -> Spread | None:
    """Give each chunk to a fast worker and to `redundancy` slower ones behind it."""
    workers = len(seconds)
    order = np.argsort(overhead + seconds, kind="stable").tolist()
    if limits is not None:
        order = [i for i in order if limits[i] > 0]
    count = min(len(missing), len(order) // (redundancy + 1))
    leaders = order[:count]
    most = None
    if limits is not None:  # a chunk is as large as the least of its group may have
        members = order[: count * (redundancy + 1)]
        most = limits[members].reshape(redundancy + 1, count).min(axis=0)
    loads = balance(len(missing), seconds[leaders], overhead[leaders], most)
    if loads.sum() < len(missing):
        return None
    ends = np.cumsum(loads)
    rows: list[Row] = [([], []) for _ in range(workers)]
    groups = []
    for g, (end, load) in enumerate(zip(ends, loads, strict=True)):
        if load:
            chunk = list(missing[end - load : end])
            groups.append([order[g + r * count] for r in range(redundancy + 1)])
            for worker in groups[-1]:
                rows[worker] = (chunk, [1.0] * int(load))
    return Spread(rows, groups, redundancy, frozenset(missing))
