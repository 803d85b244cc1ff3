"""Who should send when all share one carrier.

Every reply is a model's worth of bytes, however many partitions it combines. On a
shared carrier, one more worker shortens the computing and lengthens everybody's upload,
so that a few workers with more partitions each may be done before many with few.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flower_ext.coding.allocation import balance
from flower_ext.errors import InvalidInputError

__all__ = ["Airtime"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_SIZES = 24  # sizes of a crew that are tried, at most


@dataclass(frozen=True)
class Airtime:
    """What replies need of a carrier that all share, by worker.

    Parameters
    ----------
    seconds : Mapping[int, float]
        Seconds of the whole carrier that a reply takes, finite and positive.
    shares : Mapping[int, float]
        Weights with which uploads at the same time share the carrier, positive.
    before : Mapping[int, float]
        Seconds until a worker begins to compute, such as for the download, finite and
        at least 0; 0 for workers that are not named.

    Raises
    ------
    InvalidInputError
        If a value is out of range, or the workers differ.
    """

    seconds: Mapping[int, float]
    shares: Mapping[int, float]
    before: Mapping[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check every value."""
        if self.seconds.keys() != self.shares.keys():
            raise InvalidInputError(
                f"Airtime needs the same workers in seconds {sorted(self.seconds)} and "
                f"in shares {sorted(self.shares)}."
            )
        for name in ("seconds", "shares"):
            for worker, value in getattr(self, name).items():
                if not 0 < value < np.inf:
                    raise InvalidInputError(
                        f"{name} of worker {worker} must be positive and finite, got "
                        f"{value}."
                    )
        for worker, value in self.before.items():
            if not 0 <= value < np.inf:
                raise InvalidInputError(
                    f"before of worker {worker} must be at least 0 and finite, got "
                    f"{value}."
                )

    def upload_seconds(self, workers: Sequence[int]) -> dict[int, float]:
        """Return how long replies take beyond computing, all uploads begun at once.

        Parameters
        ----------
        workers : Sequence[int]
            Workers, all of them known.

        Returns
        -------
        dict[int, float]
            Seconds by worker, exact for constant rates: whoever is done leaves its
            share to the others.

        Examples
        --------
        >>> airtime = Airtime({0: 1.0, 1: 1.0, 2: 9.0}, {0: 3.0, 1: 1.0, 2: 1.0})
        >>> airtime.upload_seconds([0, 1])
        {0: 1.3333333333333333, 1: 2.0}
        """
        need = np.array([self.seconds[w] for w in workers])
        share = np.array([self.shares[w] for w in workers])
        order = np.argsort(need / share, kind="stable")  # in which they are done
        need, share = need[order], share[order]
        # While the k-th to finish is at work, it and all later ones share the carrier.
        level = need / share
        steps = np.diff(level, prepend=0.0)
        active = np.cumsum(share[::-1])[::-1]
        done = np.cumsum(steps * active)
        result = np.empty(len(workers))
        result[order] = done
        result += self._before(workers)
        return dict(zip(workers, result.tolist(), strict=True))

    def _before(self, workers: Sequence[int]) -> Floats:
        return np.array([self.before.get(w, 0.0) for w in workers])

    def share_out(
        self,
        workers: Sequence[int],
        work: int,
        seconds: Floats,
        limits: Ints | None = None,
    ) -> tuple[Ints, Floats]:
        """Share work so that the last upload is done earliest.

        Uploads follow each other without a gap if the workers are done computing one
        after the other; so who sends first is given less. With uploads in a given
        order, worker k must be done when all uploads from its own on still fit in; of
        two neighbours the one with the larger product of airtime and seconds per
        partition goes first, by exchanging them.

        Parameters
        ----------
        workers : Sequence[int]
            Who may be chosen; all of them known, at least one.
        work : int
            Interchangeable partitions to be computed, at least 1.
        seconds : ndarray of shape (workers,)
            Seconds per partition, positive.
        limits : ndarray of shape (workers,), optional
            The most partitions that each worker may have; they leave room for all.

        Returns
        -------
        tuple[ndarray, ndarray]
            Partitions per worker, summing to `work`, and what its reply should take
            beyond computing, seconds, both of shape (workers,).

        Examples
        --------
        Two workers, two seconds of airtime each: the first to send does less.

        >>> airtime = Airtime({0: 2.0, 1: 2.0}, {0: 0.5, 1: 0.5})
        >>> loads, uploads = airtime.share_out([0, 1], 6, np.array([1.0, 1.0]))
        >>> loads.tolist(), uploads.tolist()
        ([2, 4], [2.0, 2.0])
        """
        air = np.array([self.seconds[w] for w in workers])
        before = self._before(workers)
        most = np.full(len(workers), work) if limits is None else limits
        usual = max(work / len(workers), 1.0)
        ranked = np.argsort(before + air + usual * seconds, kind="stable")
        ranked = ranked[most[ranked] > 0]
        sizes = np.unique(
            np.linspace(1, min(len(ranked), work), _SIZES).round().astype(int)
        )
        best_time, best = np.inf, np.zeros(len(workers), dtype=np.int64)
        for size in sizes:
            crew = ranked[:size]
            crew = crew[np.argsort(-air[crew] * seconds[crew], kind="stable")]
            if most[crew].sum() < work:
                continue
            time, loads = _shared_by(
                work, before[crew], air[crew], seconds[crew], most[crew]
            )
            if time < best_time:
                best_time = time
                best = np.zeros(len(workers), dtype=np.int64)
                best[crew] = loads
        # Whole partitions can be too coarse to stagger.
        balanced = balance(work, seconds, before + air, most)
        sent = _sent(before + balanced * seconds, air, balanced > 0)
        if sent.max() < best_time:
            best = balanced
        computed = best * seconds
        return best, _sent(before + computed, air, best > 0) - computed

    def crew(
        self,
        workers: Sequence[int],
        work: int,
        seconds: Floats,
        redundancy: int,
        limits: Ints | None = None,
    ) -> list[int]:
        """Return who should compute work that each of several workers does in full.

        Parameters
        ----------
        workers, work, seconds
            As in :meth:`share_out`.
        redundancy : int
            How many times more each partition is computed, at least 0.
        limits : ndarray of shape (workers,), optional
            The most partitions that each worker may have.

        Returns
        -------
        list[int]
            Indices into `workers`, as many as shorten the time until the last upload;
            all of them where the limits leave no room for so much work.
        """
        air = np.array([self.seconds[w] for w in workers])
        before = self._before(workers)
        copies = redundancy + 1
        usual = max(work * copies / len(workers), 1.0)
        ranked = np.argsort(before + air + usual * seconds, kind="stable")
        sizes = np.arange(copies, min(len(workers), work * copies) + 1, copies)
        if len(sizes) > _SIZES:
            sizes = sizes[np.linspace(0, len(sizes) - 1, _SIZES).astype(int)]
        best, best_time = ranked, np.inf
        for size in sizes:
            crew = ranked[:size]
            most = None if limits is None else limits[crew]
            loads = balance(work * copies, seconds[crew], (before + air)[crew], most)
            if loads.sum() < work * copies:
                continue
            computed = before[crew] + loads * seconds[crew]
            time = float(_sent(computed, air[crew], loads > 0).max())
            if time < best_time:
                best, best_time = crew, time
        return [int(i) for i in best]


def _shared_by(
    work: int, before: Floats, air: Floats, seconds: Floats, most: Ints
) -> tuple[float, Ints]:
    """Return the least time until all have sent, one after the other, and the loads."""
    tail = np.cumsum(air[::-1])[::-1]  # from the begin of each upload to the end of all

    def loads_by(time: float) -> Ints:
        room = np.floor((time - tail - before) / seconds * (1 + 1e-12))
        return np.clip(room, 0, most).astype(np.int64)

    low, high = float(tail[-1]), float(tail[0] + (before + work * seconds).max())
    for _ in range(50):
        middle = (low + high) / 2
        if loads_by(middle).sum() < work:
            low = middle
        else:
            high = middle
    loads = loads_by(high)
    for k in np.argsort(-seconds, kind="stable"):  # what is too much, from the slowest
        surplus = int(loads.sum()) - work
        loads[k] -= min(surplus, int(loads[k]))
    return float(_sent(before + loads * seconds, air, loads > 0).max()), loads


def _sent(computed: Floats, air: Floats, used: NDArray[np.bool_]) -> Floats:
    """Return when uploads are done that take the carrier first come, first served."""
    done = np.zeros(len(computed))
    free = 0.0
    for k in np.argsort(np.where(used, computed, np.inf), kind="stable"):
        if used[k]:
            free = max(free, float(computed[k])) + float(air[k])
            done[k] = free
    return done
