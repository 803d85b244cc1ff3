"""Schedulers to compare with: greatest throughput, turn by turn, at random.

They admit whatever is offered while the backlog is short, and never spend what is not
there: a worker takes part in a slot only if its battery holds what a whole slot can
take, e + c·A_max.
"""

from __future__ import annotations

import json
import math
from abc import abstractmethod
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling.queues import Plan, QueueScheduler
from flower_ext.scheduling.scheduler import State, WorkerLimits
from flower_ext.scheduling.shares import in_order

__all__ = ["MaxThroughput", "Random", "RoundRobin"]

Floats = NDArray[np.float64]


class _Baseline(QueueScheduler):
    """Admission and the battery rule; who sends is left to the rule.

    Workers send one after the other, at power 1 over the whole band, which both
    carriers allow (on OFDMA: R(x, x) = r x).

    Parameters
    ----------
    backlog_slots : float (default: 4.0)
        Data is admitted while the backlog is below this many times A_max, so that no
        backlog exceeds (backlog_slots + 1)·A_max; positive and finite.

    Raises
    ------
    InvalidInputError
        If the parameter is out of range.
    """

    def __init__(self, backlog_slots: float = 4.0) -> None:
        super().__init__("time-shared")
        if not (math.isfinite(backlog_slots) and backlog_slots > 0):
            raise InvalidInputError(
                f"backlog_slots must be positive and finite, got {backlog_slots}."
            )
        self.backlog_slots = float(backlog_slots)

    @abstractmethod
    def _order(
        self, ready: NDArray[np.int64], rates: Floats, count: int
    ) -> NDArray[np.int64]:
        """Return who sends, first to last; `ready` have a backlog and energy."""

    def _decide(
        self, rates: Floats, offered: Floats, waiting: Floats, snr: Floats
    ) -> Plan:
        """Admit what there is room and energy for, and send in the rule's order."""
        most = self._fleet().max_admission
        slot = self._transmit + self._compute * most
        powered = self._battery >= slot
        room = self._backlog < self.backlog_slots * most
        admitted = np.where(powered & room, offered, 0.0)
        ready = np.flatnonzero(powered & (waiting > 0) & (rates > 0))
        order = self._order(ready, rates, len(rates))
        shares = in_order(order, waiting, rates)
        return Plan(admitted, np.zeros(len(rates)), shares, shares, rates * shares)


class MaxThroughput(_Baseline):
    """The best rate first: the most data per slot, whoever it comes from.

    Parameters
    ----------
    backlog_slots : float (default: 4.0)
        Data is admitted while the backlog is below this many times A_max; positive
        and finite.

    Raises
    ------
    InvalidInputError
        If the parameter is out of range.
    """

    def _order(
        self, ready: NDArray[np.int64], rates: Floats, count: int
    ) -> NDArray[np.int64]:
        """Return the ready by falling rate; ties go to the lower index."""
        return ready[(-rates[ready]).argsort(kind="stable")]


class RoundRobin(_Baseline):
    """Slots in turn; what a worker cannot use of its slot passes on to the next.

    Parameters
    ----------
    backlog_slots : float (default: 4.0)
        Data is admitted while the backlog is below this many times A_max; positive
        and finite.

    Raises
    ------
    InvalidInputError
        If the parameter is out of range.
    """

    _turn = 0

    def begin(
        self, limits: WorkerLimits, keep: NDArray[np.int64] | None = None
    ) -> None:
        """Take on a fleet; the turn stays with a worker that is kept."""
        super().begin(limits, keep)
        stays = np.flatnonzero(np.asarray(() if keep is None else keep) == self._turn)
        self._turn = int(stays[0]) if len(stays) else 0

    def _order(
        self, ready: NDArray[np.int64], rates: Floats, count: int
    ) -> NDArray[np.int64]:
        """Return the ready in a circle from the worker whose turn it is."""
        order: NDArray[np.int64] = np.roll(ready, -np.searchsorted(ready, self._turn))
        if len(order):
            self._turn = (int(order[0]) + 1) % count
        return order

    def state(self) -> State:
        """Return everything that changes from slot to slot, as named copies."""
        return {**super().state(), "turn": np.array([float(self._turn)])}

    def restore(self, state: Mapping[str, Floats]) -> None:
        """Continue from a :meth:`state`; see :meth:`Scheduler.restore`."""
        count = len(self._fleet())
        turn = np.asarray(state.get("turn", np.zeros(0)), dtype=np.float64)
        if turn.shape != (1,) or turn[0] not in range(count):
            raise InvalidInputError(
                f"The state's turn must be one index of {count} workers, got {turn}."
            )
        super().restore(state)
        self._turn = int(turn[0])


class Random(_Baseline):
    """A new order every slot, drawn uniformly.

    Parameters
    ----------
    rng : numpy.random.Generator
        Where the orders come from; its state is part of :meth:`state`.
    backlog_slots : float (default: 4.0)
        Data is admitted while the backlog is below this many times A_max; positive
        and finite.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    """

    def __init__(self, rng: np.random.Generator, backlog_slots: float = 4.0) -> None:
        super().__init__(backlog_slots)
        self._rng = rng

    def _order(
        self, ready: NDArray[np.int64], rates: Floats, count: int
    ) -> NDArray[np.int64]:
        """Return the ready in a random order."""
        return self._rng.permutation(ready)

    def state(self) -> State:
        """Return everything that changes; the generator's state as JSON characters."""
        text = json.dumps(self._rng.bit_generator.state, default=np.ndarray.tolist)
        generator = np.frombuffer(text.encode(), dtype=np.uint8).astype(np.float64)
        return {**super().state(), "generator": generator}

    def restore(self, state: Mapping[str, Floats]) -> None:
        """Continue from a :meth:`state`; see :meth:`Scheduler.restore`."""
        kind = type(self._rng.bit_generator).__name__
        try:
            text = bytes(np.asarray(state["generator"]).astype(np.uint8)).decode()
            generator = json.loads(text)
            fits = generator["bit_generator"] == kind
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise InvalidInputError(
                f"The state's array 'generator' is missing, or not that of a {kind}: "
                f"restore into a scheduler whose rng is of the same kind."
            )
        super().restore(state)
        self._rng.bit_generator.state = generator
