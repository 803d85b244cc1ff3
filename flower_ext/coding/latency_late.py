"""Who is late in a two-stage round, and the parts in which the rest then decodes.

A component is made of late jobs of stage one and of the chunks that overlap with them:
it decodes with all of the jobs or with all of the chunks. Used by
:mod:`flower_ext.coding.latency_two_stage`, which says why.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom, qmc

__all__ = ["Chunk", "Component", "Law", "all_others", "late_sets", "stieltjes"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Law = tuple[Floats, Floats]
"""P(arrived by t) and E[computing done at; arrived by t], both of shape (times,)."""

_COVERED = 1.0 - 1e-4  # of the probability of who is late


@dataclass(frozen=True)
class Chunk:
    """Partitions that several workers compute; known with the first of their replies.

    Parameters
    ----------
    size : int
        Number of partitions.
    overlaps : list[int]
        The jobs of its component that share partitions with it, as indices.
    rows : list[Law]
        The replies that bring it.
    """

    size: int
    overlaps: list[int]
    rows: list[Law]

    def known(self) -> Floats:
        """Return the probability that a reply has come, shape (times,)."""
        absent = np.array([1.0 - arrived for arrived, _ in self.rows])
        return np.asarray(1.0 - absent.prod(axis=0))


@dataclass(frozen=True)
class Component:
    """Jobs and chunks that overlap, directly or through others.

    Parameters
    ----------
    loads : list[int]
        Partitions of each late job.
    jobs : list[Law]
        Their replies, given that they were late.
    chunks : list[Chunk]
        What stage two computes, over the same partitions; empty where nobody can.
    """

    loads: list[int]
    jobs: list[Law]
    chunks: list[Chunk]

    def decoded(self) -> Floats:
        """Return the probability that it decodes, shape (times,)."""
        jobs, chunks = self._arrived()
        return np.asarray(1.0 - (1.0 - jobs.prod(axis=0)) * (1.0 - _whole(chunks)))

    def known(self) -> Floats:
        """Return the expected number of its partitions known, shape (times,).

        All replies to jobs count, then the chunks that overlap with none of them; all
        of the partitions do when all of the chunks are known.
        """
        jobs, chunks = self._arrived()
        loads = np.array(self.loads, dtype=np.float64)
        from_jobs = loads @ jobs
        total = from_jobs.copy()
        instead = from_jobs.copy()  # the same if all chunks were known
        for chunk, arrived in zip(self.chunks, chunks, strict=True):
            free = chunk.size * (1.0 - jobs[chunk.overlaps]).prod(axis=0)
            total += free * arrived
            instead += free
        return np.asarray(total + _whole(chunks) * (loads.sum() - instead))

    def computation(self, weight: Floats) -> float:
        """Return the expected computing time of the reply that ends the round.

        Parameters
        ----------
        weight : ndarray of shape (times,)
            The probability that everything else is decoded.

        Returns
        -------
        float
            Seconds since the round began, times the probability that the last reply
            is one of this component.
        """
        jobs, chunks = self._arrived()
        total = 0.0
        without_chunks = weight * (1.0 - _whole(chunks))
        for (_, computed), others in zip(self.jobs, all_others(jobs), strict=True):
            total += stieltjes(without_chunks * others, computed)
        if not self.chunks:
            return total
        without_jobs = weight * (1.0 - jobs.prod(axis=0))
        for chunk, others in zip(self.chunks, all_others(chunks), strict=True):
            absent = np.array([1.0 - arrived for arrived, _ in chunk.rows])
            for (_, computed), alone in zip(
                chunk.rows, all_others(absent), strict=True
            ):
                total += stieltjes(without_jobs * others * alone, computed)
        return total

    def _arrived(self) -> tuple[Floats, Floats]:
        """Return P(arrived) of the jobs and of the chunks, each over time."""
        jobs = np.array([arrived for arrived, _ in self.jobs])
        chunks = np.array([chunk.known() for chunk in self.chunks])
        return jobs, chunks.reshape(len(self.chunks), jobs.shape[1])


def _whole(chunks: Floats) -> Floats:
    """Return the probability that all chunks are known, which none never are."""
    if not len(chunks):
        return np.zeros(chunks.shape[1])
    return np.asarray(chunks.prod(axis=0))


def all_others(factors: Floats) -> Floats:
    """Return for each row the product of all other rows.

    Parameters
    ----------
    factors : ndarray of shape (rows, times)
        At least one row.

    Returns
    -------
    ndarray of shape (rows, times)
        Without a division, so that factors may be 0.

    Examples
    --------
    >>> all_others(np.array([[2.0], [3.0], [0.0]])).ravel()
    array([0., 0., 6.])
    """
    ones = np.ones((1, factors.shape[1]))
    before = np.cumprod(np.concatenate((ones, factors[:-1])), axis=0)
    after = np.cumprod(np.concatenate((ones, factors[:0:-1])), axis=0)[::-1]
    return np.asarray(before * after)


def stieltjes(integrand: Floats, measure: Floats) -> float:
    """Integrate one function over time against another, by the trapezoidal rule.

    Parameters
    ----------
    integrand, measure : ndarray of shape (times,)
        Values at the same times; `measure` has grown from 0 at the first of them.

    Examples
    --------
    >>> stieltjes(np.array([1.0, 1.0, 3.0]), np.array([0.5, 1.0, 2.0]))
    3.0
    """
    middle = 0.5 * (integrand[1:] + integrand[:-1])
    return float(integrand[0] * measure[0] + middle @ np.diff(measure))


def late_sets(
    kinds: Ints, on_time: Floats, most_sets: int
) -> list[tuple[float, NDArray[np.bool_]]]:
    """Return sets of late workers with their probabilities.

    Who of alike workers is late makes no difference, so only their number counts. The
    most probable sets are gone through until next to nothing is left out; where that
    takes too many, the sets are those at the points of a Sobol sequence instead.

    Parameters
    ----------
    kinds : ndarray of shape (workers,)
        The kind of each worker, from 0; workers of one kind are alike.
    on_time : ndarray of shape (workers,)
        The probability that each is not late.
    most_sets : int
        The most sets to be returned, at least 1.

    Returns
    -------
    list[tuple[float, ndarray]]
        Probabilities that sum to 1, and masks of shape (workers,), True where late.

    Examples
    --------
    >>> sets = late_sets(np.array([0, 0]), np.array([0.5, 0.5]), most_sets=8)
    >>> [(round(probability, 6), mask.tolist()) for probability, mask in sets]
    [(0.25, [False, False]), (0.5, [True, False]), (0.25, [True, True])]
    """
    sizes = np.bincount(kinds)
    late = np.array([1.0 - on_time[kinds == kind][0] for kind in range(len(sizes))])
    laws = [
        np.asarray(binom.pmf(np.arange(n + 1), n, q))
        for n, q in zip(sizes, late, strict=True)
    ]
    found = None
    for least in 10.0 ** -np.arange(3, 12):
        found = _most_probable(laws, float(least), most_sets)
        if found is None or found[1].sum() >= _COVERED:
            break
    if found is None:
        exponent = int(math.log2(most_sets))
        points = qmc.Sobol(len(sizes), scramble=False).random_base2(exponent)
        points += 0.5 / len(points)  # to the middles, as the first point is 0
        drawn = np.asarray(binom.ppf(points, sizes, late), dtype=np.int64)
        counts, repeats = np.unique(drawn, axis=0, return_counts=True)
        found = counts, repeats.astype(np.float64)
    counts, weights = found
    rank = np.array([np.sum(kinds[:i] == kind) for i, kind in enumerate(kinds)])
    masks = rank < counts[:, kinds]
    return list(zip((weights / weights.sum()).tolist(), masks, strict=True))


def _most_probable(
    laws: list[Floats], least: float, most_sets: int
) -> tuple[Ints, Floats] | None:
    """Combine independent counts that are at least so probable; None if too many."""
    counts, weights = np.zeros((1, 0), dtype=np.int64), np.ones(1)
    for law in laws:
        grown = weights[:, None] * law
        kept, added = np.nonzero(grown >= least)
        if len(kept) > most_sets:
            return None
        counts = np.column_stack((counts[kept], added))
        weights = grown[kept, added]
    return counts, weights
