"""What every scheduler of a wireless edge is told, and what it decides.

Time runs in slots; in a federation a slot is a round. The unit of data is one reply, a
model's worth of bytes. In every slot a scheduler decides how much of the offered data
each worker may admit to its backlog, who transmits on the shared carrier, and who
harvests energy. Energies are joules, arrays have one entry per worker.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError

__all__ = [
    "CARRIERS",
    "Decision",
    "Observation",
    "Scheduler",
    "WorkerLimits",
    "check_values",
    "jains_index",
]

Floats = NDArray[np.float64]
State = dict[str, Floats]

CARRIERS = ("time-shared", "ofdma")
"""How workers share the carrier: one after the other, or in parallel sub-bands."""


@dataclass(frozen=True)
class WorkerLimits:
    """What bounds each worker, slot after slot; arrays of shape (workers,).

    Parameters
    ----------
    max_rate : ndarray
        Units that a worker could send in a slot if it had the whole carrier, at most,
        ever; positive and finite.
    max_admission : ndarray
        A_max: units that may be offered in one slot at most; positive and finite.
    transmit_energy : ndarray
        e: joules for transmitting a whole slot at full power; finite, at least 0.
    compute_energy : ndarray
        c: joules for computing one unit; finite, at least 0.
    capacity : ndarray
        Joules that the battery holds, positive; inf for a worker on mains.
    battery : ndarray
        Joules in the battery at the start, in [0, capacity]; inf where capacity is.
    max_snr : ndarray, optional
        Signal-to-noise ratio over the whole band at full power, at most, ever;
        positive and finite. Needed on an OFDMA carrier only.

    Raises
    ------
    InvalidInputError
        If an array is out of range or of another shape than `max_rate`.
    """

    max_rate: Floats
    max_admission: Floats
    transmit_energy: Floats
    compute_energy: Floats
    capacity: Floats
    battery: Floats
    max_snr: Floats | None = None

    def __post_init__(self) -> None:
        """Check every array."""
        count = np.size(self.max_rate)
        for field in fields(self):
            values = getattr(self, field.name)
            if values is None:
                continue
            low = (
                0.0
                if field.name in ("transmit_energy", "compute_energy", "battery")
                else None
            )
            may_be_infinite = field.name in ("capacity", "battery")
            checked = check_values(
                field.name, values, count, low=low, finite=not may_be_infinite
            )
            object.__setattr__(self, field.name, checked)
        over = np.flatnonzero(self.battery > self.capacity)
        if len(over):
            i = int(over[0])
            raise InvalidInputError(
                f"battery of worker {i} is {self.battery[i]:g} J, more than its "
                f"capacity of {self.capacity[i]:g} J."
            )
        mains = np.isinf(self.capacity) & ~np.isinf(self.battery)
        if mains.any():
            i = int(np.flatnonzero(mains)[0])
            raise InvalidInputError(
                f"Worker {i} has an infinite capacity but a battery of "
                f"{self.battery[i]:g} J: give both, or neither."
            )

    def __len__(self) -> int:
        """Return the number of workers."""
        return len(self.max_rate)


@dataclass(frozen=True)
class Observation:
    """What is known when a slot begins; arrays of shape (workers,).

    Parameters
    ----------
    rates : ndarray
        Units that each worker could send in this slot if it had the whole carrier (at
        full power), in [0, max_rate].
    offered : ndarray
        A: units that each worker could admit now, in [0, max_admission].
    harvest : ndarray
        Joules that each worker could harvest in this slot, finite, at least 0.
    snr : ndarray, optional
        Signal-to-noise ratio over the whole band at full power, in (0, max_snr].
        Needed on an OFDMA carrier only.
    sendable : ndarray, optional
        Units of its backlog that each worker could send in this slot at most, finite,
        at least 0; by default all of it.
    """

    rates: Floats
    offered: Floats
    harvest: Floats
    snr: Floats | None = None
    sendable: Floats | None = None


@dataclass(frozen=True)
class Decision:
    """What a scheduler decides for a slot; arrays of shape (workers,).

    Parameters
    ----------
    admitted : ndarray
        a: units admitted to the backlogs, 0 or all that is offered.
    auxiliary : ndarray
        γ: the rate that the utility asks for, units per slot (zeros for schedulers
        without a utility).
    shares : ndarray
        x: shares of the carrier (of the slot, or of the band); at least 0, their sum
        at most 1.
    powers : ndarray
        Transmit energy spent, as a share of `transmit_energy`, in [0, 1]. On a
        time-shared carrier this is x.
    service : ndarray
        Units that those shares can carry; r x on a time-shared carrier.
    harvested : ndarray
        Joules harvested.
    """

    admitted: Floats
    auxiliary: Floats
    shares: Floats
    powers: Floats
    service: Floats
    harvested: Floats


@runtime_checkable
class Scheduler(Protocol):
    """Decides, slot by slot, who is admitted, who transmits and who harvests."""

    def begin(
        self, limits: WorkerLimits, keep: NDArray[np.int64] | None = None
    ) -> None:
        """Take on a fleet of workers.

        Parameters
        ----------
        limits : WorkerLimits
            One entry per worker.
        keep : ndarray of shape (workers,), optional
            For each worker its index in the fleet before, whose queues and battery it
            keeps, or -1 for one that is new. By default everybody is new.

        Raises
        ------
        InvalidInputError
            If the limits do not fit the scheduler's parameters.
        """
        ...

    def step(self, observation: Observation) -> Decision:
        """Decide for one slot, and move the queues and batteries on accordingly.

        Raises
        ------
        InvalidInputError
            If :meth:`begin` was not called, or an array of the observation is out of
            range.
        """
        ...

    def settle(
        self,
        *,
        admitted: Floats | None = None,
        served: Floats | None = None,
        battery: Floats | None = None,
    ) -> None:
        """Correct what the last step assumed by what has really happened.

        Every call starts from the decision again: what it does not name is as decided,
        whatever an earlier call for the same slot has said.

        Parameters
        ----------
        admitted : ndarray of shape (workers,), optional
            Units really admitted in the last slot, in place of those decided; never
            more than those, or batteries could be overdrawn.
        served : ndarray of shape (workers,), optional
            Units really sent, in place of those that the shares could carry; at least
            0. The energy of sending stays as decided.
        battery : ndarray of shape (workers,), optional
            Joules measured at the end of the slot, in [0, capacity]; nan where nothing
            was measured; ignored on mains.

        Raises
        ------
        InvalidInputError
            If there was no step since :meth:`begin`, or an array is out of range.
        """
        ...

    @property
    def backlog(self) -> Floats:
        """Q: admitted units that wait to be sent, shape (workers,)."""
        ...

    @property
    def battery(self) -> Floats:
        """E: joules in each worker's battery, inf on mains, shape (workers,)."""
        ...

    def state(self) -> State:
        """Return everything that changes from slot to slot, as named copies."""
        ...

    def restore(self, state: Mapping[str, Floats]) -> None:
        """Continue from what :meth:`state` returned, for the same fleet, bit for bit.

        Raises
        ------
        InvalidInputError
            If the state lacks an array or does not fit the fleet.
        """
        ...


def jains_index(values: Floats) -> float:
    """Return Jain's fairness index (Σ y)² / (n Σ y²), in [1/n, 1].

    Jain, Chiu and Hawe 1984. 1 when all are equal, and when all are zero.

    Examples
    --------
    >>> jains_index(np.array([1.0, 1.0])), jains_index(np.array([1.0, 0.0]))
    (1.0, 0.5)
    """
    values = np.asarray(values, dtype=np.float64)
    squares = float(np.square(values).sum())
    return float(values.sum()) ** 2 / (len(values) * squares) if squares > 0 else 1.0


def check_values(
    name: str,
    values: Floats,
    count: int,
    low: float | None = None,
    finite: bool = True,
) -> Floats:
    """Return a parameter as a new float array after checking it.

    Parameters
    ----------
    name : str
        What the message of an error calls it.
    values : array_like
        One value per worker.
    count : int
        Number of workers, at least 1.
    low : float, optional
        The least value allowed; by default values must be positive.
    finite : bool (default: True)
        Whether inf is refused.

    Raises
    ------
    InvalidInputError
        If the shape is not (count,), or a value is NaN or out of range.
    """
    array = np.array(values, dtype=np.float64)
    if array.shape != (count,) or count < 1:
        raise InvalidInputError(
            f"{name} needs one value for each of {count} workers (at least one), got "
            f"an array of shape {array.shape}."
        )
    good = (array > 0) if low is None else (array >= low)
    if finite:
        good &= np.isfinite(array)
    if not good.all():
        i = int(np.flatnonzero(~good)[0])
        wanted = "positive" if low is None else f"at least {low:g}"
        raise InvalidInputError(
            f"{name} of worker {i} must be {wanted}{' and finite' if finite else ''}, "
            f"got {array[i]}."
        )
    return array
