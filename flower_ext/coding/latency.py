"""Expected round times of one-stage coded rounds, without drawing a single delay.

A round ends with the reply that makes the replies decode. Under a one-stage code each
worker is given its row at once, so whether the replies decode by a time t depends on
which independent workers have arrived by t: all of them (uncoded), any n - s (cyclic
repetition), one of every group (fractional repetition; both Tandon et al.,
arXiv:1612.03301). Order statistics of workers that differ come from the
Poisson-binomial law. For the two-stage round of TSDCFL (arXiv:2205.07939) see
:mod:`flower_ext.coding.latency_two_stage`.

The expected round time is split into *computation*, when the computing of the reply
that ends the round was done, and *transmission*, the seconds of that reply's upload.
With H(F_1, ..., F_n) the probability that the replies decode, given each one's
probability of having arrived, worker i is the one that ends the round at t with density
(∂H/∂F_i) dF_i(t), since H is linear in every F_i (Birnbaum's importance).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flower_ext.coding.gradient_code import check_count
from flower_ext.coding.latency_times import Arrival, Duration, WorkerTimes
from flower_ext.errors import InvalidInputError

__all__ = ["RoundLatency", "cyclic", "fractional", "merged_times", "uncoded"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_POINTS = 4096


@dataclass(frozen=True)
class RoundLatency:
    """What to expect of a round.

    Parameters
    ----------
    time : Duration
        When the replies decode, seconds since the round began.
    computation : float
        Expected time, since the round began, at which the computing of the reply that
        ends the round is done, in seconds.
    transmission : float
        Expected seconds of that reply's upload; the two add up to ``time.mean``.
    work : float
        Expected number of partitions given out, with every repetition, divided by the
        number of partitions; at least 1.
    known : Callable[[ndarray], ndarray]
        The expected share of the partitions, in [0, 1], whose updates can be summed
        from the replies that have arrived by given times.
    """

    time: Duration
    computation: float
    transmission: float
    work: float
    known: Callable[[Floats], Floats]

    def known_by(self, deadline: float) -> float:
        """Return the expected share of the partitions known at a deadline."""
        return float(self.known(np.array([deadline]))[0])


def uncoded(
    workers: Sequence[WorkerTimes], partitions: int, loads: Sequence[int] | None = None
) -> RoundLatency:
    """Return what to expect of a round that needs every worker's reply.

    Parameters
    ----------
    workers : Sequence[WorkerTimes]
        At least one.
    partitions : int
        Number of partitions, K, at least 1.
    loads : Sequence[int], optional
        Partitions of each worker, at least 0, summing to ``partitions``; by default
        as equal as can be.

    Raises
    ------
    InvalidInputError
        If a value is out of range.

    Examples
    --------
    The mean of the largest of three exponential times is 1 + 1/2 + 1/3:

    >>> from flower_ext.coding.latency_times import (
    ...     constant_duration,
    ...     shifted_exponential,
    ... )
    >>> worker = WorkerTimes(
    ...     lambda load: shifted_exponential(load, shift=0.0, mean=1.0),
    ...     constant_duration(2.0),
    ... )
    >>> latency = uncoded([worker] * 3, partitions=3)
    >>> round(latency.computation, 3), round(latency.transmission, 3)
    (1.833, 2.0)
    """
    blocks = _blocks(workers, partitions)
    own = blocks if loads is None else check_loads(workers, partitions, loads)
    share = own / partitions
    return _one_stage(
        workers, own, partitions, lambda by: by.prod(axis=0), lambda by: share @ by
    )


def cyclic(
    workers: Sequence[WorkerTimes],
    partitions: int,
    stragglers: int,
    early: bool = False,
) -> RoundLatency:
    """Return what to expect of a round coded by cyclic repetition.

    The round ends with the (n - s)-th reply, and before that nothing is known. With
    ``early`` it is the code of :class:`~flower_ext.coding.CyclicRepetition` for s + 1
    that divides n: its coefficients are all 1, and it decodes as soon as every
    (s + 1)-th worker of the circle has replied, from any start, and only then.

    Parameters
    ----------
    workers, partitions
        As in :func:`uncoded`. Where the workers do not divide the partitions, a
        column of the code is a block of neighbours, as equal as can be.
    stragglers : int
        s, in [0, workers - 1].
    early : bool (default: False)
        Whether to count on fewer than n - s replies.

    Raises
    ------
    InvalidInputError
        If a value is out of range, or ``early`` is asked for where s + 1 does not
        divide the number of workers.

    Examples
    --------
    The second of three exponential times comes after 1/3 + 1/2:

    >>> from flower_ext.coding.latency_times import (
    ...     constant_duration,
    ...     shifted_exponential,
    ... )
    >>> worker = WorkerTimes(
    ...     lambda load: shifted_exponential(load, 0.0, 0.5, per_partition=False),
    ...     constant_duration(0.0),
    ... )
    >>> latency = cyclic([worker] * 3, partitions=3, stragglers=1)
    >>> round(latency.time.mean, 3), latency.work
    (0.833, 2.0)
    """
    count = len(workers)
    blocks = _blocks(workers, partitions)
    s = check_count("stragglers", stragglers, low=0, high=count - 1)
    if early and count % (s + 1):
        raise InvalidInputError(
            f"early needs 'stragglers' + 1 to divide the workers, got {count} workers "
            f"and {s} stragglers. Leave it out: the code then needs n - s replies."
        )
    loads = sum(np.roll(blocks, -step) for step in range(s + 1))

    def decoded(by: Floats) -> Floats:
        if early:
            cosets = by.reshape(count // (s + 1), s + 1, -1).prod(axis=0)
            return np.asarray(1.0 - (1.0 - cosets).prod(axis=0))
        return _at_most_missing(by, s)

    return _one_stage(workers, np.asarray(loads), partitions, decoded, decoded)


def fractional(
    workers: Sequence[WorkerTimes], partitions: int, stragglers: int
) -> RoundLatency:
    """Return what to expect of a round coded by fractional repetition.

    Workers i, i + n/(s+1), i + 2n/(s+1), ... form a group and compute the same; the
    first reply of each group counts, and a group is known with it.

    Parameters
    ----------
    workers, partitions
        As in :func:`cyclic`; ``stragglers + 1`` divides the number of workers.
    stragglers : int
        s, in [0, workers - 1].

    Raises
    ------
    InvalidInputError
        If a value is out of range, or s + 1 does not divide the number of workers.
    """
    count = len(workers)
    blocks = _blocks(workers, partitions)
    copies = check_count("stragglers", stragglers, low=0, high=count - 1) + 1
    if count % copies:
        raise InvalidInputError(
            "fractional needs 'stragglers' + 1 to divide the workers, got "
            f"{count} workers and {stragglers} stragglers."
        )
    loads = blocks.reshape(-1, copies).sum(axis=1)
    share = loads / partitions

    def groups(by: Floats) -> Floats:
        missing = 1.0 - by.reshape(copies, len(loads), -1)
        return np.asarray(1.0 - missing.prod(axis=0))

    return _one_stage(
        workers,
        np.tile(loads, copies),
        partitions,
        lambda by: groups(by).prod(axis=0),
        lambda by: share @ groups(by),
    )


def merged_times(arrivals: Sequence[Arrival], points: int = _POINTS) -> Floats:
    """Return times at which all of these laws are resolved, at most ``points``.

    Parameters
    ----------
    arrivals : Sequence[Arrival]
        At least one.
    points : int (default: 4096)
        At least 2.

    Returns
    -------
    ndarray of shape (times,)
        Seconds, increasing.
    """
    distinct = {id(a.times): a.times for a in arrivals}
    times = np.unique(np.concatenate(list(distinct.values())))
    if len(times) <= points:
        return times
    return times[np.linspace(0, len(times) - 1, points).round().astype(np.int64)]


def check_loads(
    workers: Sequence[WorkerTimes], partitions: int, loads: Sequence[int]
) -> Ints:
    """Return loads as an array, after checking them.

    Raises
    ------
    InvalidInputError
        If there is not one load per worker, at least 0, or they do not sum to
        ``partitions``.
    """
    checked = [check_count("load", load, low=0) for load in loads]
    if len(checked) != len(workers) or sum(checked) != partitions:
        raise InvalidInputError(
            f"loads must hold {len(workers)} numbers that sum to {partitions}, the "
            f"workers and the partitions, got {checked}."
        )
    return np.array(checked, dtype=np.int64)


def _blocks(workers: Sequence[WorkerTimes], partitions: int) -> Ints:
    """Return how many partitions each column of a code stands for."""
    count = check_count("the number of workers", len(workers), low=1)
    check_count("partitions", partitions, low=1)
    edges = np.linspace(0, partitions, count + 1).round().astype(np.int64)
    return np.diff(edges)


def _at_most_missing(by: Floats, stragglers: int) -> Floats:
    """Return the probability that at most so many have not arrived (over axis 0)."""
    missing = np.zeros((stragglers + 1, by.shape[1]))
    missing[0] = 1.0
    for arrived in by:
        fewer = missing[:-1] * (1.0 - arrived)
        missing *= arrived
        missing[1:] += fewer
    return np.asarray(missing.sum(axis=0))


def _one_stage(
    workers: Sequence[WorkerTimes],
    loads: Ints,
    partitions: int,
    decoded: Callable[[Floats], Floats],
    known: Callable[[Floats], Floats],
) -> RoundLatency:
    """Put a round together from what arrivals, shape (workers, times), bring."""
    arrivals = [w.arrival(int(n)) for w, n in zip(workers, loads, strict=True)]
    times = merged_times(arrivals)
    by = np.stack([a.by(times) for a in arrivals])
    done = decoded(by)
    computation = ends = 0.0
    for i, arrival in enumerate(arrivals):
        row = by[i].copy()
        by[i] = 1.0
        importance = decoded(by)
        by[i] = 0.0
        importance -= decoded(by)
        by[i] = row
        weight = 0.5 * (importance[1:] + importance[:-1])
        ends += importance[0] * row[0] + float(weight @ np.diff(row))
        computed = arrival.computed_by(times)
        computation += importance[0] * computed[0] + float(weight @ np.diff(computed))
    computation = float(computation / ends)  # ends is 1, but for the quadrature
    mean = float(times[0] + np.trapezoid(1.0 - done, times))
    time = Duration(lambda t: np.interp(t, times, done, left=0.0, right=1.0), mean)
    return RoundLatency(
        time,
        computation,
        mean - computation,
        float(loads.sum()) / partitions,
        lambda t: np.asarray(known(np.stack([a.by(t) for a in arrivals]))),
    )
