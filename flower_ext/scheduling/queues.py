"""What all schedulers share: backlogs, batteries, and the books about the last slot.

A scheduler adds its rule for one slot, :meth:`QueueScheduler._decide`. Here the fleet
is taken on, observations are checked, queues and batteries move on, the last slot is
settled, and the state is saved and restored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling.scheduler import (
    CARRIERS,
    Decision,
    Observation,
    State,
    WorkerLimits,
)

__all__ = ["QueueScheduler"]

Floats = NDArray[np.float64]


class Plan(NamedTuple):
    """The part of a :class:`Decision` that a rule decides."""

    admitted: Floats
    auxiliary: Floats
    shares: Floats
    powers: Floats
    service: Floats


class _Slot(NamedTuple):
    """The queues before the last slot and what was decided: enough to settle it."""

    backlog: Floats
    virtual: Floats
    battery: Floats
    admitted: Floats
    auxiliary: Floats
    powers: Floats
    service: Floats
    harvest: Floats


class QueueScheduler(ABC):
    """Base of the schedulers: Q, H and E, and everything but the rule itself.

    Q⁺ = max(Q − service, 0) + a; H⁺ = max(H + γ − a, 0);
    E⁺ = min(E − e·q − c·a + available, capacity).

    The harvest of a slot is what is available and fits beside what the slot has left
    of the battery, h = min(available, capacity − (E − e·q − c·a)); so E⁺ never exceeds
    the capacity. There is no clamp at zero: a rule must not spend what is not there.
    The slot's own harvest cannot be spent in it.

    Parameters
    ----------
    carrier : str
        One of :data:`CARRIERS`.

    Raises
    ------
    InvalidInputError
        If there is no such carrier.
    """

    def __init__(self, carrier: str) -> None:
        if carrier not in CARRIERS:
            raise InvalidInputError(
                f"carrier must be one of {', '.join(CARRIERS)}, got {carrier!r}."
            )
        self.carrier = carrier
        self._limits: WorkerLimits | None = None
        self._backlog = self._virtual = self._battery = _NONE
        self._mains: NDArray[np.bool_] = _NONE > 0
        self._last: _Slot | None = None

    @abstractmethod
    def _decide(
        self, rates: Floats, offered: Floats, waiting: Floats, snr: Floats
    ) -> Plan:
        """Decide for one slot, in which so much of the backlogs can be sent.

        `snr` is empty on a time-shared carrier.
        """

    def begin(
        self, limits: WorkerLimits, keep: NDArray[np.int64] | None = None
    ) -> None:
        """Take on a fleet; see :meth:`Scheduler.begin`.

        A kept battery that exceeds its new capacity is full; a worker that was on
        mains before starts from `limits.battery`.
        """
        if self.carrier == "ofdma" and limits.max_snr is None:
            raise InvalidInputError(
                "An OFDMA carrier needs max_snr: give one value per worker."
            )
        count = len(limits)
        backlog, virtual = np.zeros(count), np.zeros(count)
        battery = limits.battery.copy()
        if keep is not None:
            before = 0 if self._limits is None else len(self._limits)
            new, old = _kept(keep, count, before)
            if len(new):
                backlog[new] = self._backlog[old]
                virtual[new] = self._virtual[old]
                charged = ~self._mains[old]
                battery[new[charged]] = self._battery[old[charged]]
        self._limits = limits
        # On mains energy costs nothing and the battery stands still at an empty zero:
        # finite numbers, so that no step has to tell the two kinds apart.
        self._mains = np.isinf(limits.capacity)
        self._capacity = np.where(self._mains, 0.0, limits.capacity)
        self._transmit = np.where(self._mains, 0.0, limits.transmit_energy)
        self._compute = np.where(self._mains, 0.0, limits.compute_energy)
        self._backlog = backlog
        self._virtual = virtual
        self._battery = np.minimum(battery, self._capacity)
        self._last = None

    def step(self, observation: Observation) -> Decision:
        """Decide for one slot; see :meth:`Scheduler.step`."""
        limits = self._fleet()
        rates = self._checked("rates", observation.rates, limits.max_rate)
        offered = self._checked("offered", observation.offered, limits.max_admission)
        harvest = self._checked("harvest", observation.harvest, _FINITE).copy()
        snr = _NONE
        if self.carrier == "ofdma":
            if observation.snr is None or limits.max_snr is None:
                raise InvalidInputError(
                    "An OFDMA carrier needs the snr of every slot: give one value per "
                    "worker."
                )
            snr = self._checked("snr", observation.snr, limits.max_snr, _TINY)
        waiting = self._backlog
        if observation.sendable is not None:
            sendable = self._checked("sendable", observation.sendable, _FINITE)
            waiting = np.minimum(waiting, sendable)
        plan = self._decide(rates, offered, waiting, snr)
        admitted, auxiliary, shares, powers, service = plan
        for array in plan:
            array.flags.writeable = False
        self._last = _Slot(
            self._backlog,
            self._virtual,
            self._battery,
            admitted,
            auxiliary,
            powers,
            service,
            harvest,
        )
        harvested = self._move(self._last, admitted, service)
        return Decision(admitted, auxiliary, shares, powers, service, harvested)

    def settle(
        self,
        *,
        admitted: Floats | None = None,
        served: Floats | None = None,
        battery: Floats | None = None,
    ) -> None:
        """Correct the last step; see :meth:`Scheduler.settle`."""
        limits = self._fleet()
        last = self._last
        if last is None:
            raise InvalidInputError(
                "There is no slot to settle: call step() first, and settle before "
                "begin() takes on another fleet."
            )
        if admitted is None:
            admitted = last.admitted
        else:
            admitted = self._checked("admitted", admitted, last.admitted)
        if served is None:
            served = last.service
        else:
            served = self._checked("served", served, _FINITE)
        measured = None
        if battery is not None:
            given = np.asarray(battery, dtype=np.float64)
            known = ~np.isnan(given)
            filled = np.where(known, given, 0.0)
            measured = self._checked("battery", filled, limits.capacity)
        self._move(last, admitted, served)
        if measured is not None:
            self._battery = np.where(known & ~self._mains, measured, self._battery)

    def _move(self, slot: _Slot, admitted: Floats, served: Floats) -> Floats:
        """Move the queues on from before a slot; return the joules harvested."""
        self._backlog = np.maximum(slot.backlog - served, 0.0) + admitted
        self._virtual = np.maximum(slot.virtual + slot.auxiliary - admitted, 0.0)
        spent = self._transmit * slot.powers + self._compute * admitted
        left = slot.battery - spent
        self._battery = np.minimum(left + slot.harvest, self._capacity)
        harvested: Floats = self._battery - left
        return harvested

    @property
    def backlog(self) -> Floats:
        """Q: admitted units that wait to be sent, shape (workers,)."""
        self._fleet()
        return self._backlog.copy()

    @property
    def battery(self) -> Floats:
        """E: joules in each worker's battery, inf on mains, shape (workers,)."""
        self._fleet()
        return self._joules(self._battery)

    def state(self) -> State:
        """Return everything that changes from slot to slot, as named copies."""
        count = len(self._fleet())
        last = self._last or _Slot(*(np.zeros(count) for _ in _Slot._fields))
        state = {"backlog": self._backlog, "virtual": self._virtual}
        state |= {f"last_{name}": array for name, array in last._asdict().items()}
        state = {name: array.copy() for name, array in state.items()}
        state["battery"] = self._joules(self._battery)
        state["last_battery"] = self._joules(last.battery)
        state["settleable"] = np.array([float(self._last is not None)])
        return state

    def restore(self, state: Mapping[str, Floats]) -> None:
        """Continue from a :meth:`state`; see :meth:`Scheduler.restore`."""
        limits = self._fleet()
        bounds = {
            "battery": limits.capacity,
            "last_battery": limits.capacity,
            "last_powers": np.ones(len(limits)),
            "last_admitted": limits.max_admission,
        }
        names = ["backlog", "virtual", "battery", *(f"last_{n}" for n in _Slot._fields)]
        arrays = {}
        for name in names:
            # A battery that the arithmetic has left at -1e-17 is fine.
            high = bounds.get(name, _FINITE)
            low = -1e-9 * self._capacity if name.endswith("battery") else _ZERO
            arrays[name] = self._checked(name, _taken(state, name), high, low).copy()
        settleable = _taken(state, "settleable")
        for name in ("battery", "last_battery"):
            arrays[name][self._mains] = 0.0
        self._backlog = arrays["backlog"]
        self._virtual = arrays["virtual"]
        self._battery = arrays["battery"]
        last = _Slot(*(arrays[f"last_{name}"] for name in _Slot._fields))
        self._last = last if settleable.any() else None

    def _fleet(self) -> WorkerLimits:
        """Return the limits, or say that there are none yet."""
        if self._limits is None:
            raise InvalidInputError(
                "The scheduler has no workers yet: call begin() with their limits."
            )
        return self._limits

    def _joules(self, battery: Floats) -> Floats:
        return np.where(self._mains, np.inf, battery)

    def _checked(
        self, name: str, values: Floats, high: Floats, low: Floats | None = None
    ) -> Floats:
        """Return values as an array after checking low <= values <= high."""
        low = _ZERO if low is None else low
        array = np.asarray(values, dtype=np.float64)
        count = len(self._backlog)
        if array.shape == (count,):
            good = (array >= low) & (array <= high)
            if np.count_nonzero(good) == count:
                return array
            i = int(np.flatnonzero(~good)[0])
            least, most = (np.broadcast_to(b, (count,))[i] for b in (low, high))
            span = "finite" if most == _FINITE else f"at most {most:g}"
            start = "positive" if least == _TINY else f"at least {least:g}"
            raise InvalidInputError(
                f"{name} of worker {i} must be {start} and {span}, got {array[i]}."
            )
        raise InvalidInputError(
            f"{name} needs one value for each of {count} workers, got an array of "
            f"shape {array.shape}."
        )


_NONE = np.zeros(0)
_ZERO = np.array(0.0)
_TINY = np.array(np.finfo(np.float64).tiny)
_FINITE = np.array(np.finfo(np.float64).max)


def _taken(state: Mapping[str, Floats], name: str) -> Floats:
    """Return an array of a state, or say that it lacks it."""
    if name not in state:
        raise InvalidInputError(
            f"The state has no array {name!r}; it has {', '.join(sorted(state))}."
        )
    return np.asarray(state[name], dtype=np.float64)


def _kept(
    keep: NDArray[np.int64], count: int, before: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the new indices of the workers that stay, and their old ones."""
    indices = np.asarray(keep)
    if indices.shape != (count,) or not np.issubdtype(indices.dtype, np.integer):
        raise InvalidInputError(
            f"keep needs one whole number for each of {count} workers, got an array of "
            f"shape {indices.shape} and type {indices.dtype}."
        )
    bad = np.flatnonzero((indices < -1) | (indices >= before))
    if len(bad):
        raise InvalidInputError(
            f"keep of worker {bad[0]} is {indices[bad[0]]}: it must be an index into "
            f"the fleet before, which had {before} workers, or -1 for a new worker."
        )
    new = np.flatnonzero(indices >= 0)
    old = indices[new].astype(np.int64)
    values, times = np.unique(old, return_counts=True)
    if (times > 1).any():
        raise InvalidInputError(
            f"keep names worker {values[times > 1][0]} of the fleet before more than "
            f"once; every worker can keep its queues once."
        )
    return new, old
