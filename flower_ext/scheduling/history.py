"""What the server remembers of completion times, and what it expects from them.

Every reply leaves one record: how many partitions the worker had, how long it computed,
how long the reply took in all. A worker's typical time is the median of its records,
drawn towards the fleet's median while there are few of them; the spread around it
(noise, stragglers) is pooled over the fleet as the ratio of each record to its worker's
typical time. Expectations are formed by resampling those ratios (the bootstrap), so no
distribution of delays is assumed. It takes the place of the history of past rounds that
TSDCFL (arXiv:2205.07939, section III) predicts its workers from.

The object holds no clock: times are seconds that the caller measured, real or virtual.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError

__all__ = ["CompletionHistory"]

Floats = NDArray[np.float64]

# The fleet before any record: ratios to the typical time of a mildly noisy worker, one
# in sixteen of them a straggler. Four real records replace one of these.
_PRIOR_RATIOS = np.array(
    [
        [10, 0.85, 1.5, 0.92, 1.3, 0.97, 1.2, 1.0],
        [1.15, 0.8, 1.1, 0.9, 1.06, 0.95, 1.03, 1.0],
    ]
).ravel()
_PRIOR_STEADY = _PRIOR_RATIOS[1:]
_SLOW = 2.0  # a worker beyond this multiple of its typical time is slow for the round
_UNFINISHED = 2.0  # a job unfinished so far is expected to take twice as long in all
_DUE = 1.02  # a job that is late by less than this factor is due now, not late
_OWN = 8.0  # a worker's own ratios outweigh the fleet's after this many records
_FRESH, _AGAIN, _CENSORED = range(3)


class _Record(NamedTuple):
    """One job: `reference` is what one partition was expected to take by then.

    `forecast` is the overhead that was announced for it, 0 if none was.
    """

    server_round: int
    kind: int
    seconds: float
    overhead: float
    reference: float
    forecast: float


@dataclass(frozen=True)
class _Tables:
    """The records as arrays, rebuilt when enough new ones have come."""

    index: dict[int, int]
    seconds: Floats  # (workers,) typical seconds per partition
    overhead: Floats  # (workers,) typical overhead
    own: Floats  # (workers, most records) own ratios, the first `count` of each row
    count: NDArray[np.int64]  # (workers,)
    ratios: Floats  # sorted pool of compute ratios
    overhead_ratios: Floats
    again: Floats  # sorted pool of second-job ratios
    fleet_seconds: float
    fleet_overhead: float


class CompletionHistory:
    """Completion times of a federation's workers, for planning rounds.

    Parameters
    ----------
    window : int (default: 32)
        Records kept per worker, at least 1.
    max_age : int (default: 200)
        Records older than this many rounds are forgotten, so that a worker that was
        slow once is tried again. At least 1.
    prior_weight : int (default: 2)
        Number of imagined records at the fleet's median that each worker starts with,
        at least 0. Two of them let no single bad round brand a worker.
    max_workers : int (default: 20000)
        The least recently heard workers are forgotten beyond this number, at least 1.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> history = CompletionHistory(prior_weight=0)
    >>> history.completed(7, server_round=1, load=2, compute_seconds=3.0, elapsed=3.5)
    >>> seconds, overhead = history.typical([7], server_round=2)
    >>> seconds.tolist(), overhead.tolist()
    ([1.5], [0.5])
    """

    def __init__(
        self,
        window: int = 32,
        max_age: int = 200,
        prior_weight: int = 2,
        max_workers: int = 20_000,
    ) -> None:
        for name, value, least in (
            ("window", window, 1),
            ("max_age", max_age, 1),
            ("prior_weight", prior_weight, 0),
            ("max_workers", max_workers, 1),
        ):
            if value < least:
                raise InvalidInputError(
                    f"{name} must be at least {least}, got {value}."
                )
        self.window = window
        self.max_age = max_age
        self.prior_weight = prior_weight
        self.max_workers = max_workers
        self._workers: dict[int, list[_Record]] = {}
        self._cache: _Tables | None = None
        self._new_records = 0
        self._round = 0
        self._declared: dict[int, float] = {}
        self._announced: dict[int, float] = {}
        self._announced_round = 0

    def __len__(self) -> int:
        """Return the number of workers with at least one record."""
        return len(self._workers)

    def begin_run(self) -> None:
        """Count rounds from 1 again; what is known of the workers is kept."""
        past = self._round
        for worker, records in self._workers.items():
            self._workers[worker] = [
                r._replace(server_round=r.server_round - past) for r in records
            ]
        self._round = 0
        self.announce(0, {})

    def state(self) -> dict[str, Any]:
        """Return all that is remembered, for :meth:`restore` in another process.

        Returns
        -------
        dict[str, Any]
            ``workers`` (uint64, least recently heard first), ``counts`` of their
            records, ``records`` (float64, one row each), ``round``, ``declared`` by
            worker, and the ``tables`` made of the records with the number of
            ``new_records`` since.
        """
        records = list(chain.from_iterable(self._workers.values()))
        tables = None
        if self._cache is not None:
            tables = {f.name: getattr(self._cache, f.name) for f in fields(_Tables)}
            tables["index"] = np.array(list(self._cache.index), np.uint64)
        return {
            "workers": np.array(list(self._workers), np.uint64),
            "counts": np.array([len(r) for r in self._workers.values()], np.int64),
            "records": np.array(records, np.float64).reshape(-1, len(_Record._fields)),
            "round": self._round,
            "declared": dict(self._declared),
            "tables": tables,
            "new_records": self._new_records,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the place of what :meth:`state` was asked of.

        Raises
        ------
        InvalidInputError
            If the arrays do not fit together.
        """
        workers, counts = state["workers"].tolist(), state["counts"].tolist()
        rows = state["records"].tolist()
        if len(workers) != len(counts) or sum(counts) != len(rows):
            raise InvalidInputError(
                f"{len(workers)} workers with {sum(counts)} records do not fit "
                f"{len(counts)} counts and {len(rows)} rows."
            )
        ends = np.cumsum([0, *counts]).tolist()
        self._workers = {
            worker: [_Record(int(r[0]), int(r[1]), *r[2:]) for r in rows[start:end]]
            for worker, start, end in zip(workers, ends, ends[1:], strict=False)
        }
        self._round = state["round"]
        self._declared = dict(state["declared"])
        self._cache, self._new_records = None, state["new_records"]
        if state["tables"] is not None:
            index = {w: i for i, w in enumerate(state["tables"]["index"].tolist())}
            self._cache = _Tables(**{**state["tables"], "index": index})
        self.announce(0, {})

    def rename(self, names: Mapping[int, int]) -> None:
        """Know workers by other ids, each of `names` by what it maps to."""
        self._workers = {names.get(w, w): r for w, r in self._workers.items()}
        self._declared = {names.get(w, w): s for w, s in self._declared.items()}
        if self._cache is not None:
            index = {names.get(w, w): i for w, i in self._cache.index.items()}
            self._cache = replace(self._cache, index=index)

    def declare(self, worker: int, seconds: float) -> None:
        """Tell how long a partition takes a worker, as far as nothing is recorded.

        Parameters
        ----------
        worker : int
            The worker.
        seconds : float
            Seconds per partition, finite and positive.

        Raises
        ------
        InvalidInputError
            If the seconds are out of range.
        """
        if not 0 < seconds < np.inf:
            raise InvalidInputError(
                f"The seconds declared for worker {worker} must be positive and "
                f"finite, got {seconds}."
            )
        self._declared[worker] = seconds

    def announce(self, server_round: int, overhead: Mapping[int, float]) -> None:
        """Tell what replies of a round will cost beyond computing, where that is known.

        A scheduler that gives out shares of the carrier knows how long uploads should
        take. For the workers named, it takes the place of their typical overhead in
        everything that is expected of the round; what their replies really take is
        held against it.

        Parameters
        ----------
        server_round : int
            The round; what was announced for another one is forgotten.
        overhead : Mapping[int, float]
            Seconds by worker, finite and positive.

        Raises
        ------
        InvalidInputError
            If a value is out of range.
        """
        for worker, seconds in overhead.items():
            if not 0 < seconds < np.inf:
                raise InvalidInputError(
                    f"The overhead announced for worker {worker} must be positive and "
                    f"finite, got {seconds}."
                )
        self._announced = dict(overhead)
        self._announced_round = server_round

    def _forecast(self, worker: int, server_round: int) -> float:
        """Return the overhead announced for a worker, or 0."""
        if server_round != self._announced_round:
            return 0.0
        return self._announced.get(worker, 0.0)

    def completed(
        self,
        worker: int,
        server_round: int,
        load: int,
        compute_seconds: float,
        elapsed: float,
    ) -> None:
        """Record a reply, on time or late; it replaces a censored record of its round.

        Parameters
        ----------
        worker : int
            Who replied.
        server_round : int
            The round that the job belonged to, from 1.
        load : int
            Partitions in the job, at least 1.
        compute_seconds : float
            Time the worker spent computing all of them, seconds, at least 0.
        elapsed : float
            Time from dispatch to reply, seconds; what exceeds `compute_seconds` is
            overhead.

        Raises
        ------
        InvalidInputError
            If a value is out of range or not finite.
        """
        if load < 1 or not 0 <= compute_seconds < np.inf or not 0 <= elapsed < np.inf:
            raise InvalidInputError(
                "A completion needs load >= 1 and finite times >= 0, got "
                f"load={load}, compute_seconds={compute_seconds}, elapsed={elapsed}."
            )
        compute_seconds = min(compute_seconds, elapsed)
        records = [
            r
            for r in self._workers.get(worker, [])
            if r.server_round != server_round or r.kind != _CENSORED
        ]
        again = any(r.server_round == server_round for r in records)
        reference = self._expected(worker, server_round) if again else 0.0
        self._store(
            worker,
            records,
            _Record(
                server_round,
                _AGAIN if again else _FRESH,
                compute_seconds / load,
                elapsed - compute_seconds,
                reference,
                self._forecast(worker, server_round),
            ),
        )

    def censored(
        self, worker: int, server_round: int, load: int, elapsed: float
    ) -> None:
        """Record that a job was unfinished after `elapsed` seconds.

        Until its reply (if any) tells the truth through :meth:`completed`, the job
        counts as one that takes twice as long.

        Raises
        ------
        InvalidInputError
            If `load` is below 1, or `elapsed` negative or not finite.
        """
        if load < 1 or not 0 <= elapsed < np.inf:
            raise InvalidInputError(
                "A censored record needs load >= 1 and a finite time >= 0, got "
                f"load={load}, elapsed={elapsed}."
            )
        overhead = float(self.typical([worker], server_round)[1][0])
        if elapsed <= overhead:  # it need not even have begun: nothing learnt
            return
        seconds = (_UNFINISHED * elapsed - overhead) / load
        records = self._workers.get(worker, [])
        self._store(
            worker,
            [
                r
                for r in records
                if (r.server_round, r.kind) != (server_round, _CENSORED)
            ],
            _Record(server_round, _CENSORED, seconds, overhead, 0.0, 0.0),
        )

    def typical(
        self, workers: Sequence[int], server_round: int
    ) -> tuple[Floats, Floats]:
        """Return what one partition and one reply typically take, per worker.

        A worker whose reply of this very round was slow beyond twice its typical time
        is taken to stay slow for the round.

        Parameters
        ----------
        workers : Sequence[int]
            Worker ids, known or not.
        server_round : int
            The round being planned.

        Returns
        -------
        tuple[ndarray, ndarray]
            Seconds per partition and seconds of overhead, each of shape (workers,).
            With no record of anybody, one second and none.
        """
        tables = self._tables()
        rows = np.array([tables.index.get(w, -1) for w in workers], dtype=np.int64)
        known = rows >= 0
        seconds = np.full(len(workers), tables.fleet_seconds)
        overhead = np.full(len(workers), tables.fleet_overhead)
        seconds[known] = tables.seconds[rows[known]]
        overhead[known] = tables.overhead[rows[known]]
        if self._announced and server_round == self._announced_round:
            for i, worker in enumerate(workers):
                overhead[i] = self._announced.get(worker, overhead[i])
        for i, worker in enumerate(workers):
            if not known[i] and worker in self._declared:
                seconds[i] = self._declared[worker]
            records = self._workers.get(worker)
            if records and records[-1].server_round == server_round:
                seconds[i] = _slow_for_now(records[-1], seconds[i])
        return seconds, overhead

    def sample(
        self,
        workers: Sequence[int],
        server_round: int,
        size: int,
        rng: np.random.Generator,
    ) -> tuple[Floats, Floats]:
        """Draw the times of a first job in this round, by resampling the records.

        Parameters
        ----------
        workers : Sequence[int]
            Worker ids.
        server_round : int
            The round being planned.
        size : int
            Number of scenarios.
        rng : numpy.random.Generator
            Source of randomness.

        Returns
        -------
        tuple[ndarray, ndarray]
            Seconds per partition and overhead, each of shape (size, workers).
        """
        tables = self._tables()
        seconds, overhead = self.typical(workers, server_round)
        shape = (size, len(workers))
        ratio = rng.choice(tables.ratios, shape)
        rows = np.array([tables.index.get(w, -1) for w in workers], dtype=np.int64)
        count = np.where(rows >= 0, tables.count[rows], 0) if len(tables.count) else 0
        own = rng.random(shape) * (count + _OWN) < count
        if np.any(own):
            pick = (rng.random(shape) * count).astype(np.int64)
            ratio = np.where(own, tables.own[rows[None, :], pick], ratio)
        return seconds * ratio, overhead * rng.choice(tables.overhead_ratios, shape)

    def sample_again(
        self,
        workers: Sequence[int],
        server_round: int,
        size: int,
        rng: np.random.Generator,
    ) -> tuple[Floats, Floats]:
        """Draw the times of a second job for workers that have replied this round.

        As :meth:`sample`, from the ratios of second jobs to what was expected of them
        after the first: whether slowness persists in a round is learnt, not assumed.
        """
        tables = self._tables()
        seconds, overhead = self.typical(workers, server_round)
        shape = (size, len(workers))
        return (
            seconds * rng.choice(tables.again, shape),
            overhead * rng.choice(tables.overhead_ratios, shape),
        )

    def sample_unfinished(
        self,
        workers: Sequence[int],
        server_round: int,
        loads: Sequence[int],
        elapsed: Floats,
        size: int,
        rng: np.random.Generator,
    ) -> Floats:
        """Draw how long jobs will have taken, given that they are not back yet.

        Parameters
        ----------
        workers, server_round, size, rng
            As in :meth:`sample`.
        loads : Sequence[int]
            Partitions of each job.
        elapsed : ndarray of shape (workers,)
            Seconds since each job was dispatched.

        Returns
        -------
        ndarray of shape (size, workers)
            Total durations in seconds, each above `elapsed`.
        """
        tables = self._tables()
        seconds, overhead = self.typical(workers, server_round)
        work = np.maximum(seconds * np.asarray(loads), 1e-12)
        drawn = overhead * rng.choice(tables.overhead_ratios, (size, len(workers)))
        least = (elapsed - drawn) / work
        pool = tables.ratios
        below = np.searchsorted(pool, least / _DUE, side="right")
        pick = below + rng.random(least.shape) * (len(pool) - below)
        ratio = pool[np.minimum(pick.astype(np.int64), len(pool) - 1)]
        # Beyond anything on record: as long again, on the median (Pareto, alpha 1).
        tail = least / np.maximum(rng.random(least.shape), 0.05)
        ratio = np.where(below >= len(pool), tail, ratio)
        durations: Floats = np.maximum(drawn + work * ratio, elapsed * (1 + 1e-9))
        return durations

    def _expected(self, worker: int, server_round: int) -> float:
        """Return the seconds of :meth:`typical` for one worker, without arrays."""
        tables = self._tables()
        row = tables.index.get(worker)
        seconds = tables.fleet_seconds if row is None else float(tables.seconds[row])
        records = self._workers.get(worker)
        if records and records[-1].server_round == server_round:
            return _slow_for_now(records[-1], seconds)
        return seconds

    def _store(self, worker: int, records: list[_Record], record: _Record) -> None:
        """Add a record and keep the bounds on memory."""
        self._round = max(self._round, record.server_round)
        self._workers.pop(worker, None)
        self._workers[worker] = [*records, record][-self.window :]
        self._new_records += 1
        while len(self._workers) > self.max_workers:
            self._workers.pop(next(iter(self._workers)))

    def _tables(self) -> _Tables:
        """Return the records as arrays, at most a tenth of them out of date."""
        if self._cache is None or self._new_records > 0.1 * self._cache.count.sum():
            self._cache = self._build()
            self._new_records = 0
        return self._cache

    def _build(self) -> _Tables:
        """Turn the records into arrays."""
        oldest = self._round - self.max_age
        recent: dict[int, list[_Record]] = {}
        for worker, records in self._workers.items():
            kept = [r for r in records if r.server_round > oldest]
            if kept:
                recent[worker] = kept
        self._workers = recent
        counts = np.array([len(records) for records in recent.values()], dtype=np.int64)
        flat = np.fromiter(
            chain.from_iterable(chain.from_iterable(recent.values())), np.float64
        ).reshape(-1, len(_Record._fields))
        kinds, all_seconds, all_overheads, references, forecasts = flat.T[1:]
        row = np.repeat(np.arange(len(counts)), counts)
        own_seconds = _medians(row, all_seconds, counts)
        own_overhead = _medians(row, all_overheads, counts)
        fleet_seconds = float(np.median(own_seconds)) if recent else 1.0
        fleet_overhead = float(np.median(own_overhead)) if recent else 0.0
        imagined = np.full(self.prior_weight * len(counts), fleet_seconds)
        seconds = _medians(
            np.concatenate([row, np.repeat(np.arange(len(counts)), self.prior_weight)]),
            np.concatenate([all_seconds, imagined]),
            counts + self.prior_weight,
        )
        fresh = kinds != _AGAIN
        expected = seconds[row]
        ratios = np.ones(len(flat))
        np.divide(all_seconds, expected, out=ratios, where=expected > 0)
        count = np.bincount(row[fresh], minlength=len(counts))
        usual = np.where(forecasts > 0, forecasts, own_overhead[row])
        timely = (kinds != _CENSORED) & (usual > 0)
        second = ~fresh & (references > 0)
        return _Tables(
            index={worker: i for i, worker in enumerate(recent)},
            seconds=seconds,
            overhead=own_overhead,
            own=_padded(row[fresh], ratios[fresh], count),
            count=count,
            ratios=_with_prior(ratios[fresh], _PRIOR_RATIOS),
            overhead_ratios=_with_prior(
                all_overheads[timely] / usual[timely], _PRIOR_STEADY
            ),
            again=_with_prior(all_seconds[second] / references[second], _PRIOR_STEADY),
            fleet_seconds=fleet_seconds,
            fleet_overhead=fleet_overhead,
        )


def _slow_for_now(latest: _Record, seconds: float) -> float:
    """Return what to expect in the round of a worker's latest record."""
    return latest.seconds if latest.seconds > _SLOW * seconds else seconds


def _padded(
    row: NDArray[np.int64], values: Floats, counts: NDArray[np.int64]
) -> Floats:
    """Arrange values by row, each row sorted and filled up with inf."""
    order = np.lexsort((values, row))
    column = np.arange(len(values)) - np.repeat(np.cumsum(counts) - counts, counts)
    table = np.full((len(counts), max(counts.max(initial=0), 1)), np.inf)
    table[row[order], column] = values[order]
    return table


def _medians(
    row: NDArray[np.int64], values: Floats, counts: NDArray[np.int64]
) -> Floats:
    """Return the median of every row; none is empty."""
    table = _padded(row, values, counts)
    rows = np.arange(len(counts))
    medians: Floats = (table[rows, (counts - 1) // 2] + table[rows, counts // 2]) / 2
    return medians


def _with_prior(real: Floats, prior: Floats) -> Floats:
    """Return real ratios and what is left of the prior, sorted."""
    left = max(0, len(prior) - len(real) // 4)
    return np.sort(np.concatenate([real, prior[len(prior) - left :]]))
