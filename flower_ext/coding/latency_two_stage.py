"""Expected round times of a two-stage coded round with given T₁ and redundancy s₂.

The model is TSDCFL's (arXiv:2205.07939, sections III and IV) with the rows that this
package's plan gives out. Stage one shares the partitions uncoded. At T₁ the partitions
of the workers whose replies are not there yet are cut into chunks, and each chunk is
given to s₂ + 1 of the workers that have finished (:mod:`flower_ext.coding.spread`);
their second jobs take new, independent times. Late replies of stage one still count.
With too few workers idle for s₂, the redundancy is the largest that they allow; with
none, the round waits for stage one.

Given who is late, all replies to come are independent. Late jobs and chunks that
overlap, directly or through others, form a *component*. In a component every job must
enter the sum with the same weight x and every chunk with 1 - x, or some partition would
not count once; so it decodes as soon as *all* of its jobs have arrived or *all* of its
chunks are known, and not before. The expectation over who is late is exact while few
sets of late workers are likely (alike workers count as one kind), else a mean over a
Sobol sequence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flower_ext.coding.allocation import balance
from flower_ext.coding.gradient_code import check_count
from flower_ext.coding.latency import (
    RoundLatency,
    check_loads,
    merged_times,
    uncoded,
)
from flower_ext.coding.latency_late import (
    Chunk,
    Component,
    all_others,
    late_sets,
    stieltjes,
)
from flower_ext.coding.latency_times import Arrival, Duration, WorkerTimes
from flower_ext.coding.spread import spread_missing
from flower_ext.errors import InvalidInputError

__all__ = ["balanced_loads", "two_stage"]

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_POINTS = 2048


def balanced_loads(workers: Sequence[WorkerTimes], partitions: int) -> Ints:
    """Return loads of stage one by which all are expected to be done alike.

    Parameters
    ----------
    workers : Sequence[WorkerTimes]
        At least one.
    partitions : int
        Number of partitions, K, at least 1.

    Returns
    -------
    ndarray of shape (workers,)
        Partitions of each worker, summing to ``partitions``.
    """
    return balance(partitions, *_typical(workers))


def two_stage(
    workers: Sequence[WorkerTimes],
    partitions: int,
    stop: float,
    redundancy: int,
    loads: Sequence[int] | None = None,
    most_sets: int = 1024,
) -> RoundLatency:
    """Return what to expect of a two-stage round.

    Its ``known`` counts every reply of stage one that has arrived, then every chunk
    that overlaps with none of these; a component whose chunks are all known counts
    whole.

    Parameters
    ----------
    workers : Sequence[WorkerTimes]
        At least one. All hold every partition.
    partitions : int
        Number of partitions, K, at least 1.
    stop : float
        T₁, seconds since the round began, at least 0; inf for no second stage.
    redundancy : int
        s₂, at least 0: stage two computes each chunk s₂ + 1 times.
    loads : Sequence[int], optional
        Partitions of each worker in stage one, at least 0, summing to ``partitions``;
        by default those of :func:`balanced_loads`.
    most_sets : int (default: 1024)
        How many sets of late workers are gone through at most, at least 1; where more
        are likely, 1024 leave an error of some tenths of a per cent in the round time
        and of about 2 % in the transmission.

    Raises
    ------
    InvalidInputError
        If a value is out of range.

    Examples
    --------
    Two workers of one partition each. Who is first takes over from the other at 2 s:

    >>> from flower_ext.coding.latency_times import (
    ...     constant_duration,
    ...     shifted_exponential,
    ... )
    >>> worker = WorkerTimes(
    ...     lambda load: shifted_exponential(load, shift=1.0, mean=1.0),
    ...     constant_duration(0.0),
    ... )
    >>> for stop in (2.0, float("inf")):
    ...     latency = two_stage([worker] * 2, partitions=2, stop=stop, redundancy=0)
    ...     print(round(latency.time.mean, 2), round(latency.work, 2))
    2.41 1.23
    2.5 1.0
    """
    check_count("the number of workers", len(workers), low=1)
    check_count("partitions", partitions, low=1)
    check_count("redundancy", redundancy, low=0)
    check_count("most_sets", most_sets, low=1)
    if not stop >= 0:
        raise InvalidInputError(
            f"stop must be at least 0 seconds, or inf for no second stage, got {stop}."
        )
    jobs = (
        balanced_loads(workers, partitions)
        if loads is None
        else check_loads(workers, partitions, loads)
    )
    if math.isinf(stop):
        return uncoded(workers, partitions, jobs.tolist())
    first = [w.arrival(int(n)) for w, n in zip(workers, jobs, strict=True)]
    return _Round(workers, partitions, stop, redundancy, jobs, first).latency(most_sets)


class _Again(NamedTuple):
    """A chunk of stage two, the late workers whose jobs it overlaps, and who has it."""

    size: int
    overlaps: list[int]
    bringing: list[int]


class _Part(NamedTuple):
    """Late workers and chunks that overlap, directly or through others."""

    late: list[int]
    chunks: list[_Again]


class _Late(NamedTuple):
    """A set of late workers, how likely it is, and what is then to come."""

    probability: float
    missing: int  # partitions not there at T₁
    again: int  # partitions given out in stage two, with repetitions
    parts: list[_Part]


@dataclass(frozen=True)
class _Round:
    """A two-stage round whose parameters have been checked."""

    workers: Sequence[WorkerTimes]
    partitions: int
    stop: float
    redundancy: int
    jobs: Ints
    first: list[Arrival]

    def latency(self, most_sets: int) -> RoundLatency:
        """Sum over who is late."""
        total = self.partitions
        before = merged_times(self.first)
        before = np.append(before[before < self.stop], self.stop)
        by = np.stack([a.by(before) for a in self.first])
        sets = [
            self._late(mask, probability)
            for probability, mask in late_sets(self._kinds(), by[:, -1], most_sets)
        ]
        after, done, known, computation = self._after(sets, by[:, -1])
        for arrival, others in zip(self.first, all_others(by), strict=True):
            computation += stieltjes(others, arrival.computed_by(before))
        times = np.concatenate((before, after))
        cdf = np.concatenate((by.prod(axis=0), done))
        share = np.concatenate((self.jobs @ by, known)) / total
        mean = float(times[0] + np.trapezoid(1.0 - cdf, times))
        return RoundLatency(
            Duration(lambda t: np.interp(t, times, cdf, left=0.0, right=1.0), mean),
            computation,
            mean - computation,
            1.0 + sum(s.probability * s.again for s in sets) / total,
            lambda t: np.interp(t, times, share, left=0.0, right=1.0),
        )

    def _after(
        self, sets: list[_Late], on_time: Floats
    ) -> tuple[Floats, Floats, Floats, float]:
        """Return times from T₁, P(decoded), partitions known, and the computation."""
        second = {
            (id(self.workers[w]), chunk.size): self.workers[w]
            .arrival(chunk.size)
            .begun_at(self.stop)
            for s in sets
            for part in s.parts
            for chunk in part.chunks
            for w in chunk.bringing
        }
        late = {w for s in sets for part in s.parts for w in part.late}
        laws = [*second.values(), *(self.first[w] for w in late)]
        times = merged_times(laws, _POINTS) if laws else np.zeros(0)
        times = np.append(self.stop, times[times > self.stop])
        jobs = {}
        for w in late:
            scale = 1.0 - on_time[w]
            arrived, computed = (
                self.first[w].by(times),
                self.first[w].computed_by(times),
            )
            jobs[w] = (arrived - on_time[w]) / scale, (computed - computed[0]) / scale
        rows = {k: (law.by(times), law.computed_by(times)) for k, law in second.items()}
        done, known = np.zeros(len(times)), np.zeros(len(times))
        computation = 0.0
        for s in sets:
            components = [
                Component(
                    [int(self.jobs[w]) for w in part.late],
                    [jobs[w] for w in part.late],
                    [
                        Chunk(
                            chunk.size,
                            [part.late.index(w) for w in chunk.overlaps],
                            [
                                rows[id(self.workers[w]), chunk.size]
                                for w in chunk.bringing
                            ],
                        )
                        for chunk in part.chunks
                    ],
                )
                for part in s.parts
            ]
            known += s.probability * (self.partitions - s.missing)
            if not components:
                done += s.probability
                continue
            decoded = np.array([component.decoded() for component in components])
            done += s.probability * decoded.prod(axis=0)
            for component, others in zip(components, all_others(decoded), strict=True):
                known += s.probability * component.known()
                computation += s.probability * component.computation(others)
        return times, done, known, computation

    def _kinds(self) -> Ints:
        """Give every worker a number, alike ones the same."""
        numbers: dict[tuple[int, int], int] = {}
        return np.array(
            [
                numbers.setdefault((id(w), int(n)), len(numbers))
                for w, n in zip(self.workers, self.jobs, strict=True)
            ]
        )

    def _late(self, mask: NDArray[np.bool_], probability: float) -> _Late:
        """Spread the partitions of late workers over the others."""
        late, idle = np.flatnonzero(mask).tolist(), np.flatnonzero(~mask).tolist()
        # Partitions are numbered by worker, as stage one shares them.
        owner = np.repeat(np.arange(len(mask)), self.jobs)
        missing = np.flatnonzero(mask[owner]).tolist()
        if not late or not idle:
            return _Late(probability, len(missing), 0, [_Part([w], []) for w in late])
        spread = spread_missing(
            missing,
            [frozenset(missing)] * len(idle),
            *_typical([self.workers[w] for w in idle]),
            min(self.redundancy, len(idle) - 1),
        )
        assert spread is not None  # everybody holds everything
        parts: list[_Part] = []
        for group in spread.groups:
            chunk = spread.rows[group[0]][0]
            overlaps = sorted({int(owner[p]) for p in chunk})
            # Chunks and jobs come in the same order, so only neighbours overlap.
            if not parts or parts[-1].late[-1] < overlaps[0]:
                parts.append(_Part([], []))
            part = parts[-1]
            part.late.extend(w for w in overlaps if w not in part.late)
            bringing = [idle[i] for i in group]
            part.chunks.append(_Again(len(chunk), overlaps, bringing))
        again = sum(len(row) for row, _ in spread.rows)
        return _Late(probability, len(missing), again, parts)


def _typical(workers: Sequence[WorkerTimes]) -> tuple[Floats, Floats]:
    """Return mean seconds per partition and per upload, each of shape (workers,)."""
    seconds = [max(w.compute(1).mean, 1e-9) for w in workers]
    return np.array(seconds), np.array([w.upload.mean for w in workers])
