"""One round as a state machine: what happened goes in, what to dispatch comes out.

A plan knows nothing of messages or clocks. Whoever drives it (a Flower grid on the
wall clock, a virtual clock, a test) calls it with the seconds since the round began and
pushes the dispatches that it answers with.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from flower_ext.coding.decoding import decode, decode_least_squares
from flower_ext.coding.gradient_code import check_count
from flower_ext.coding.incremental import IncrementalDecoder
from flower_ext.coding.spares import parts_of, telling_rows
from flower_ext.errors import InvalidInputError
from flower_ext.scheduling.history import CompletionHistory

__all__ = ["LEAST_DEADLINE", "Dispatch", "Outcome", "RoundPlan"]

LEAST_DEADLINE = 10.0
"""Seconds below which no deadline is derived: a partial round is worse than a wait."""


@dataclass(frozen=True)
class Dispatch:
    """A row of the encoding matrix on its way to a worker.

    Parameters
    ----------
    key : int
        Identifies the dispatch within its plan.
    worker : int
        Who shall compute it.
    stage : int
        1 or 2.
    partitions : tuple[int, ...]
        Partition ids, the row's support.
    coefficients : tuple[float, ...]
        One per partition.
    """

    key: int
    worker: int
    stage: int
    partitions: tuple[int, ...]
    coefficients: tuple[float, ...]


class Outcome(NamedTuple):
    """How the replies of a round combine.

    Parameters
    ----------
    weights : dict[int, float]
        Decoding weight of each reply that is used, by dispatch key.
    combination : dict[int, float]
        c_k, what each partition enters the update with; all ones when exact.
    exact : bool
        Whether the replies decode.
    residual : float
        Euclidean norm of c - 1.
    """

    weights: dict[int, float]
    combination: dict[int, float]
    exact: bool
    residual: float


class RoundPlan(ABC):
    """What every plan of a coded round has in common.

    Parameters
    ----------
    partitions : Sequence[int]
        Ids of the partitions to be trained on in this round, distinct, at least one.
    idle : Mapping[int, Collection[int]]
        The workers that may be given work, and the partitions that each holds.
    history : CompletionHistory
        Read for predictions, and told of every completion.
    server_round : int
        The round, from 1.
    deadline : float, optional
        Seconds after which the round ends with what it has; by default the plan
        derives it from the history.
    limits : Mapping[int, int], optional
        The workers that a scheduler admits, and how many partitions each should be
        given in the round at most, at least 0; others are given none. By default
        everybody is admitted.
    ceilings : Mapping[int, int], optional
        Partitions beyond which workers cannot be given any, whatever becomes of the
        round: what their batteries pay for. None for a worker that is not named.

    Raises
    ------
    InvalidInputError
        If there is no partition, the deadline is not positive, or a limit negative.
    """

    def __init__(
        self,
        partitions: Sequence[int],
        idle: Mapping[int, Collection[int]],
        history: CompletionHistory,
        server_round: int,
        deadline: float | None = None,
        limits: Mapping[int, int] | None = None,
        ceilings: Mapping[int, int] | None = None,
    ) -> None:
        if not partitions or len(set(partitions)) != len(partitions):
            raise InvalidInputError(
                f"A round needs distinct partitions, got {list(partitions)}."
            )
        if deadline is not None and not deadline > 0:
            raise InvalidInputError(
                f"deadline must be a positive number of seconds, got {deadline}."
            )
        if limits is not None:
            for worker, limit in limits.items():
                if limit < 0:
                    raise InvalidInputError(
                        f"The limit of worker {worker} must be at least 0, got {limit}."
                    )
            idle = {w: held for w, held in idle.items() if w in limits}
        self.partitions = tuple(partitions)
        self.history = history
        self.server_round = server_round
        self.dispatches: list[Dispatch] = []
        self.outstanding: dict[int, float] = {}
        self.received: list[int] = []
        self._column = {p: k for k, p in enumerate(self.partitions)}
        self._idle: dict[int, Collection[int]] = dict(idle)
        self._holdings: dict[int, Collection[int]] = dict(idle)
        self._replied: set[int] = set()
        self._faulty: set[int] = set()
        self._decoder = IncrementalDecoder(len(self.partitions))
        # Whether partitions wait for another worker, to be given out as it comes.
        self.hungry = False
        # Why nothing can be given out although there are workers, if so.
        self.problem = ""
        self.stage_two_at: float | None = None
        self._given_deadline = deadline
        self._deadline = math.inf
        # Partitions that admitted workers may still be given; None: no limits.
        self._left = None if limits is None else dict(limits)
        self._ceilings = dict(ceilings or {})
        # Why nobody may be given work in this round, if so.
        self.closed = ""
        # The replies shall decode without those of any so many workers: as many as may
        # lie, less the liars among the doubted, whose replies are left out already.
        self.spare = 0
        self._may_lie = 0
        self.doubted: frozenset[int] = frozenset()
        self._suspects: frozenset[int] = frozenset()
        self._over = False
        self._answered: list[int] = []

    def verify(self, may_lie: int) -> None:
        """Let the round last, before it starts, until its replies are verified.

        Parameters
        ----------
        may_lie : int
            The replies shall decode without those of any so many workers, at least 0:
            so many liars are then detected.
        """
        self._may_lie = self.spare = check_count("may_lie", may_lie, low=0)

    # -- what the driver tells --------------------------------------------------------

    @abstractmethod
    def start(self) -> list[Dispatch]:
        """Begin the round at time zero and return the first dispatches."""

    def reply(self, key: int, at: float, compute_seconds: float) -> list[Dispatch]:
        """Tell of a usable reply.

        Parameters
        ----------
        key : int
            The dispatch it answers.
        at : float
            Seconds since the round began.
        compute_seconds : float
            What the worker spent computing, seconds.

        Returns
        -------
        list[Dispatch]
            What to push now.
        """
        sent_at = self.outstanding.pop(key)
        dispatch = self.dispatches[key]
        self.history.completed(
            dispatch.worker,
            self.server_round,
            len(dispatch.partitions),
            compute_seconds,
            max(at - sent_at, 0.0),
        )
        self._answered.append(key)
        if dispatch.worker in self.doubted:
            return []
        self._replied.add(dispatch.worker)
        if dispatch.worker in self._holdings:  # it has not left
            self._idle[dispatch.worker] = self._holdings[dispatch.worker]
        self._count(key)
        return [] if self.complete else self._freed(at)

    def doubt(
        self, liars: Collection[int], suspects: Collection[int], least: int, at: float
    ) -> list[Dispatch]:
        """Tell whose replies contradict others; each call replaces the one before it.

        Their replies are left out. Liars are given nothing more in this round;
        suspects are not as long as they are suspects.

        Parameters
        ----------
        liars : Collection[int]
            Workers that have lied for certain.
        suspects : Collection[int]
            Workers of whom some others have.
        least : int
            How many of them have at least, together.
        at : float
            Seconds since the round began.

        Returns
        -------
        list[Dispatch]
            What to push now.
        """
        cleared = self.doubted.difference(liars, suspects)
        self.doubted = frozenset([*liars, *suspects])
        self._suspects = frozenset(suspects if least else ())
        self.spare = max(self._may_lie - least, 0)
        for worker in self.doubted:
            self._idle.pop(worker, None)
        for worker in liars:
            self._faulty.add(worker)
            self._holdings.pop(worker, None)
        busy = {self.dispatches[key].worker for key in self.outstanding}
        for worker in cleared.intersection(self._holdings) - busy:
            self._idle[worker] = self._holdings[worker]
        self._decoder = IncrementalDecoder(len(self.partitions))
        self.received = []
        for key in self._answered:
            if self.dispatches[key].worker not in self.doubted:
                self._count(key)
        return [] if self.complete else self._failed(at)

    def settle(self, at: float) -> list[Dispatch]:
        """End the round, and ask who of the suspects lied if that is not known.

        What one of them has computed that no others' replies bear on, nor will, is
        computed once more, by as many as an honest one is sure to be among. The round
        does not wait for it: who lied is known some rounds later. Nothing that fails
        from now on is replaced.

        Parameters
        ----------
        at : float
            Seconds since the round began.

        Returns
        -------
        list[Dispatch]
            What to push now; empty if there are no suspects, or nobody can tell.
        """
        self._over = True
        return self._question(self._idle, at, self.outstanding)

    def failure(self, key: int, at: float) -> list[Dispatch]:
        """Tell that a dispatch will bring nothing: an error, a bad reply, a dead node.

        Its worker is given nothing more in this round.
        """
        self.outstanding.pop(key)
        worker = self.dispatches[key].worker
        self._faulty.add(worker)
        self._holdings.pop(worker, None)
        return [] if self.complete or self._over else self._failed(at)

    def idle(self, worker: int, holdings: Collection[int], at: float) -> list[Dispatch]:
        """Tell that a worker joined, or answered an earlier round, and may be used.

        It changes nothing for a worker that is not admitted, is in use already or has
        failed; one that left during a dispatch is used again once that is answered.
        """
        if worker in self._holdings or worker in self._faulty:
            return []
        if self._left is not None and worker not in self._left:
            return []
        self._holdings[worker] = holdings
        if any(self.dispatches[key].worker == worker for key in self.outstanding):
            return []
        if worker in self.doubted:
            return []
        self._idle[worker] = holdings
        return [] if self.complete else self._freed(at)

    def leave(self, worker: int) -> None:
        """Tell that a worker is offline: it is given nothing more until :meth:`idle`.

        A reply that it has sent before still counts.
        """
        self._idle.pop(worker, None)
        self._holdings.pop(worker, None)

    @abstractmethod
    def wake(self, at: float) -> list[Dispatch]:
        """Tell that `wake_at` has come; return what to push now."""

    # -- what the driver asks ---------------------------------------------------------

    @property
    @abstractmethod
    def wake_at(self) -> float:
        """When the plan wants :meth:`wake`, seconds since the round began, or inf."""

    @property
    def deadline(self) -> float:
        """When the round ends with what it has, seconds since it began, or inf.

        The given deadline, else one derived from the history.
        """
        given = self._given_deadline
        return self._deadline if given is None else given

    @property
    def decodable(self) -> bool:
        """Whether the replies so far give the exact update."""
        return self._decoder.decodable

    @property
    def complete(self) -> bool:
        """Whether they give it without those of any `spare` workers, too."""
        return self.decodable and (not self.spare or self._spares())

    def finished(self, at: float) -> bool:
        """Return whether there is nothing left to wait for at this time.

        A plan that could give out nothing yet, for want of workers, waits for some.
        """
        if self.complete or at >= self.deadline:
            return True
        if not self.dispatches:
            return False
        return not self.outstanding and self.wake_at == math.inf

    @property
    def work(self) -> int:
        """Partitions assigned so far, over all dispatches."""
        return sum(len(d.partitions) for d in self.dispatches)

    def outcome(self) -> Outcome:
        """Return how the replies combine: exactly, or as the constrained fit.

        Where replies are to be verified, only those that are count.
        """
        if self._may_lie and not self.complete:
            return self._verified_outcome()
        if self.decodable:
            weights = self._decoder.weights
            combination, residual = np.ones(len(self.partitions)), 0.0
        elif self.received:
            rows = [self._row(self.dispatches[key]) for key in self.received]
            fit = decode_least_squares(np.array(rows), range(len(rows)))
            weights, residual = fit.weights, fit.residual
            combination = fit.combination
        else:
            weights = np.zeros(0)
            combination = np.zeros(len(self.partitions))
            residual = math.sqrt(len(self.partitions))
        return Outcome(
            {k: float(w) for k, w in zip(self.received, weights, strict=True) if w},
            dict(zip(self.partitions, combination.tolist(), strict=True)),
            self.decodable,
            float(residual),
        )

    def verified(self) -> list[int]:
        """Return the keys of the replies that bear each other out."""
        rows = [self.dispatches[key] for key in self.received]
        return [
            self.received[i]
            for part in parts_of(rows, self.spare)
            if part.spares >= self.spare
            for i in part.rows
        ]

    def _verified_outcome(self) -> Outcome:
        """Return how verified replies combine, for want of all."""
        keys = self.verified()
        within = {p for key in keys for p in self.dispatches[key].partitions}
        combination = {p: float(p in within) for p in self.partitions}
        weights = {}
        if keys:
            covered = [k for k, p in enumerate(self.partitions) if p in within]
            rows = np.array([self._row(self.dispatches[key])[covered] for key in keys])
            found = decode(rows, range(len(rows))).tolist()
            weights = {k: w for k, w in zip(keys, found, strict=True) if w}
        lacking = len(self.partitions) - len(within)
        return Outcome(weights, combination, False, math.sqrt(lacking))

    # -- for the plans ----------------------------------------------------------------

    @abstractmethod
    def _freed(self, at: float) -> list[Dispatch]:
        """React to a worker that has become free."""

    @abstractmethod
    def _failed(self, at: float) -> list[Dispatch]:
        """React to a dispatch that will bring nothing."""

    def _question(
        self,
        judges: Mapping[int, Collection[int]],
        at: float,
        expected: Collection[int] = (),
    ) -> list[Dispatch]:
        """Have rows of a suspect computed by judges, whose holdings are given.

        Nobody judges itself, or the same row twice. Replies that are expected, by
        their keys, are not asked for again.
        """
        if not self._suspects:
            return []
        rows = [self.dispatches[key] for key in (*self._answered, *expected)]
        found: list[tuple[int, Dispatch]] = []
        for places in telling_rows(rows, self._suspects, self.doubted):
            wanted = [rows[i] for i in places for _ in range(self.spare + 1)]
            able = self._judged(wanted, judges)
            if len(able) > len(found):
                found = able
            if len(able) == len(wanted):
                break
        return [
            self._dispatch(judge, 2, row.partitions, row.coefficients, at)
            for judge, row in found
        ]

    def _judged(
        self, rows: Sequence[Dispatch], judges: Mapping[int, Collection[int]]
    ) -> list[tuple[int, Dispatch]]:
        """Return who should compute which of the rows, each one of them at most."""
        free, found = dict(judges), []
        for row in rows:
            asked = {
                d.worker
                for d in self.dispatches
                if (d.partitions, d.coefficients) == (row.partitions, row.coefficients)
            }
            load = len(row.partitions)
            able = [
                worker
                for worker, held in free.items()
                if worker not in asked | {row.worker}
                and set(row.partitions) <= set(held)
                and self._may_take(worker, load)
            ]
            if able:
                seconds, overhead = self.history.typical(able, self.server_round)
                judge = able[int(np.argmin(overhead + seconds * load))]
                del free[judge]
                found.append((judge, row))
        return found

    def _may_take(self, worker: int, load: int) -> bool:
        """Return whether a worker may be given so many partitions more."""
        left = load if self._left is None else self._left[worker]
        return load <= min(left, self._ceilings.get(worker, load))

    def _dispatch(
        self,
        worker: int,
        stage: int,
        partitions: Sequence[int],
        coefficients: Sequence[float],
        at: float,
    ) -> Dispatch:
        """Give a row to a worker that has nothing to do."""
        self._idle.pop(worker, None)
        if self._left is not None:
            self._left[worker] = max(self._left[worker] - len(partitions), 0)
        if worker in self._ceilings:
            self._ceilings[worker] -= len(partitions)
        dispatch = Dispatch(
            len(self.dispatches), worker, stage, tuple(partitions), tuple(coefficients)
        )
        self.dispatches.append(dispatch)
        self.outstanding[dispatch.key] = at
        return dispatch

    def _count(self, key: int) -> None:
        """Let a reply count."""
        dispatch = self.dispatches[key]
        self.received.append(key)
        columns = [self._column[p] for p in dispatch.partitions]
        self._decoder.add(dispatch.coefficients, columns)

    def _spares(self) -> bool:
        """Return whether the replies decode without those of any `spare` workers."""
        rows = [self.dispatches[key] for key in self.received]
        copies = Counter(p for row in rows for p in row.partitions)
        if min(copies[p] for p in self.partitions) <= self.spare:
            return False
        return all(part.spares >= self.spare for part in parts_of(rows, self.spare))

    def _row(self, dispatch: Dispatch) -> np.ndarray:
        """Return the dispatch as a row over this round's partitions."""
        row = np.zeros(len(self.partitions))
        row[[self._column[p] for p in dispatch.partitions]] = dispatch.coefficients
        return row
