"""A scheduler of slots, applied to the rounds of a federation.

A slot is a round. A unit of data is one reply that carries a fair share of the round's
partitions, K over the number of workers. What a scheduler has admitted to a worker's
backlog is what the worker may be given partitions for; what arrives from it leaves the
backlog; and the workers that it gives a share of the carrier are the ones that take
part. Rates are bytes per second, measured from replies where nobody knows them.

The first round is everybody's unless the length of a slot is given: from it come the
first rates, and its length is the slot.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.network.device import Device
from flower_ext.scheduling.scheduler import (
    Decision,
    Observation,
    Scheduler,
    WorkerLimits,
    jains_index,
)

__all__ = ["Admission", "Candidate", "RoundScheduler", "RoundStatistics"]

Floats = NDArray[np.float64]

_FORGET = 0.7  # how much of the rate's old estimate survives a new measurement
_SPARE = 4.0  # a rate may grow so many times beyond the first one seen
_MAINS = Device(
    seconds_per_partition=1.0, compute_watts=0.0, transmit_watts=0.0
)  # a worker about whose energy nothing is known


@dataclass(frozen=True)
class Candidate:
    """A worker as a round begins, busy or not.

    Parameters
    ----------
    worker : int
        Its id.
    holdings : Collection[int]
        The partitions that it holds.
    rate : float, optional
        Bytes per second that it could send now with the whole carrier to itself, where
        that is known. Otherwise it is measured from replies, taking it that those who
        took part in a round shared the carrier equally.
    harvest : float (default: 0.0)
        Joules that it could harvest in a slot from now.
    device : Device, optional
        Its energy; by default it runs on mains.
    """

    worker: int
    holdings: Collection[int]
    rate: float | None = None
    harvest: float = 0.0
    device: Device | None = None


@dataclass(frozen=True)
class Admission:
    """Who takes part in a round.

    Parameters
    ----------
    limits : dict[int, int]
        Partitions that each worker may be given, by worker; others take no part.
    shares : dict[int, float]
        Shares of the carrier of the same workers, summing to 1.
    upload_seconds : dict[int, float]
        What a reply should take to upload, seconds: with those shares where the
        worker's rate was given; with an equal one where it was measured, since then
        nobody enforces shares.
    """

    limits: dict[int, int]
    shares: dict[int, float]
    upload_seconds: dict[int, float]


@dataclass(frozen=True)
class RoundStatistics:
    """What a round did to the queues.

    Parameters
    ----------
    admitted : dict[int, float]
        Units admitted in the round, by worker.
    backlog : dict[int, float]
        Units that wait, after the round.
    fairness : float
        Jain's index of the data served since the run began, in (0, 1].
    battery : dict[int, float]
        Joules, of the workers with a battery.
    """

    admitted: dict[int, float]
    backlog: dict[int, float]
    fairness: float
    battery: dict[int, float]


@dataclass
class _Known:
    """What is remembered of a worker."""

    rate: float = math.nan  # bytes per second with the whole carrier
    served: float = 0.0  # units since the run began
    arrived: int = 0  # partitions in this round
    battery: float = math.nan  # joules, measured in this round
    participants: int = 1  # who shared the carrier in its last round


@dataclass
class RoundScheduler:
    """Applies a scheduler to rounds.

    Parameters
    ----------
    scheduler : Scheduler
        Decides about slots; its carrier must be time-shared.
    slot_seconds : float, optional
        The length of a slot, finite and positive; by default the first round's.
    max_admission : float (default: 4.0)
        A_max: fair shares of the partitions that a worker may be given in a round, at
        least 1. 1 makes all workers do the same; large values let fast ones do more.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    """

    scheduler: Scheduler
    slot_seconds: float | None = None
    max_admission: float = 4.0
    _fleet: dict[int, int] = field(default_factory=dict, repr=False)
    _known: dict[int, _Known] = field(default_factory=dict, repr=False)
    _slot: float = field(default=math.nan, repr=False)
    _fair: float = field(default=1.0, repr=False)
    _decision: Decision | None = field(default=None, repr=False)
    _limits: WorkerLimits | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        """Check every parameter."""
        needed = ("begin", "step", "settle", "backlog", "battery")
        if not all(hasattr(type(self.scheduler), name) for name in needed):
            raise InvalidInputError(
                "scheduler must be one of flower_ext.scheduling (LyapunovScheduler, "
                "MaxThroughput, RoundRobin, Random) or have their methods, got "
                f"{self.scheduler!r}."
            )
        if getattr(self.scheduler, "carrier", "time-shared") != "time-shared":
            raise InvalidInputError(
                f"A federation's rounds share one carrier in time, got carrier "
                f"{getattr(self.scheduler, 'carrier', None)!r}: give the scheduler "
                "carrier='time-shared'."
            )
        if self.slot_seconds is not None:
            if not 0 < self.slot_seconds < math.inf:
                raise InvalidInputError(
                    "slot_seconds must be a positive number of seconds, got "
                    f"{self.slot_seconds}."
                )
            self._slot = self.slot_seconds
        if not 1 <= self.max_admission < math.inf:
            raise InvalidInputError(
                f"max_admission must be at least 1, got {self.max_admission}."
            )

    @property
    def slot(self) -> float:
        """The length of a slot in seconds; 0 until it is known."""
        return 0.0 if math.isnan(self._slot) else self._slot

    # -- the course of a round --------------------------------------------------------

    def begin_round(
        self,
        candidates: Sequence[Candidate],
        partitions: Sequence[int],
        reply_bytes: int,
    ) -> Admission | None:
        """Decide who takes part.

        Parameters
        ----------
        candidates : Sequence[Candidate]
            All workers that are known, at least one.
        partitions : Sequence[int]
            The partitions of the round.
        reply_bytes : int
            Bytes of one reply, positive.

        Returns
        -------
        Admission or None
            None where too little is known yet: then everybody takes part.

        Raises
        ------
        InvalidInputError
            If the scheduler refuses the fleet, for example because a battery is too
            small for its V.
        """
        for candidate in candidates:
            known = self._known.setdefault(candidate.worker, _Known())
            known.arrived, known.battery = 0, math.nan
            known.participants = len(candidates)
            if candidate.rate is not None and candidate.rate > 0:
                known.rate = candidate.rate
        rates = np.array([self._known[c.worker].rate for c in candidates])
        self._decision = None
        if math.isnan(self._slot) or np.isnan(rates).all():
            return None
        rates[np.isnan(rates)] = np.nanmedian(rates)
        self._fair = len(partitions) / len(candidates)
        wanted = set(partitions)
        held = [wanted.intersection(c.holdings) for c in candidates]
        units = self._enlist(candidates, rates * self._slot / reply_bytes)
        most = self.max_admission
        observation = Observation(
            rates=units,
            offered=np.array([most if h else 0.0 for h in held]),
            harvest=np.array([c.harvest for c in candidates]),
        )
        backlog = self.scheduler.backlog
        self._decision = self.scheduler.step(observation)
        weights = backlog * units
        taking_part = (self._decision.shares > 0) & [bool(h) for h in held]
        self._cover(taking_part, weights, held, len(partitions))
        if not taking_part.any():
            return Admission({}, {}, {})
        bounds = np.where(backlog > 0, np.minimum(backlog, most), most)
        # Whoever helps out without a share of its own is given a middling one.
        shares = np.where(taking_part, self._decision.shares, 0.0)
        granted = shares[shares > 0]
        shares[taking_part & (shares == 0)] = granted.mean() if len(granted) else 1.0
        shares /= shares.sum()
        admission = Admission({}, {}, {})
        for i in map(int, np.flatnonzero(taking_part)):
            worker, share = candidates[i].worker, float(shares[i])
            self._known[worker].participants = int(taking_part.sum())
            admission.limits[worker] = math.ceil(bounds[i] * self._fair)
            admission.shares[worker] = share
            if candidates[i].rate is None:
                share = 1.0 / int(taking_part.sum())
            admission.upload_seconds[worker] = float(
                reply_bytes / (max(rates[i], 1e-9) * share)
            )
        return admission

    def replied(
        self, worker: int, partitions: int, upload_seconds: float, reply_bytes: int
    ) -> None:
        """Tell of a reply that has arrived, on time or late.

        Parameters
        ----------
        worker : int
            Who replied.
        partitions : int
            How many partitions its reply combines.
        upload_seconds : float
            What the reply took beyond computing, seconds, at least 0.
        reply_bytes : int
            Its size.
        """
        known = self._known.setdefault(worker, _Known())
        known.arrived += partitions
        if upload_seconds > 0:
            measured = reply_bytes * known.participants / upload_seconds
            old = measured if math.isnan(known.rate) else known.rate
            known.rate = old**_FORGET * measured ** (1 - _FORGET)

    def measured_battery(self, worker: int, joules: float) -> None:
        """Tell what is in a worker's battery, joules, at the end of the round."""
        self._known.setdefault(worker, _Known()).battery = joules

    def end_round(self, elapsed: float) -> RoundStatistics | None:
        """Settle the queues by what has happened in the round.

        Parameters
        ----------
        elapsed : float
            Seconds that the round took.

        Returns
        -------
        RoundStatistics or None
            None where the round was everybody's.
        """
        if self._decision is None:
            if math.isnan(self._slot) and elapsed > 0:
                self._slot = elapsed
            return None
        known = [self._known[worker] for worker in self._fleet]
        served = np.array([k.arrived for k in known]) / self._fair
        for entry, units in zip(known, served, strict=True):
            entry.served += float(units)
        assert self._limits is not None
        measured = np.array([k.battery for k in known])
        measured[np.isinf(self._limits.capacity)] = math.nan
        measured = np.clip(measured, 0.0, self._limits.capacity)
        self.scheduler.settle(served=served, battery=measured)
        battery = self.scheduler.battery
        return RoundStatistics(
            dict(zip(self._fleet, self._decision.admitted.tolist(), strict=True)),
            dict(zip(self._fleet, self.scheduler.backlog.tolist(), strict=True)),
            jains_index(np.array([k.served for k in known])),
            {
                w: float(battery[i])
                for w, i in self._fleet.items()
                if battery[i] < np.inf
            },
        )

    # -- the fleet --------------------------------------------------------------------

    def _enlist(self, candidates: Sequence[Candidate], units: Floats) -> Floats:
        """Tell the scheduler of workers that came or left; return rates in bounds."""
        workers = [c.worker for c in candidates]
        if workers != list(self._fleet) or self._limits is None:
            keep = np.array([self._fleet.get(w, -1) for w in workers], dtype=np.int64)
            fresh = self._limits is None
            self._limits = self._worker_limits(candidates, units, keep)
            self.scheduler.begin(self._limits, None if fresh else keep)
            self._fleet = {w: i for i, w in enumerate(workers)}
            if fresh:
                self._prime(candidates, units)
        return np.minimum(units, self._limits.max_rate)

    def _worker_limits(
        self,
        candidates: Sequence[Candidate],
        units: Floats,
        keep: NDArray[np.int64],
    ) -> WorkerLimits:
        devices = [c.device or _MAINS for c in candidates]
        # Faster than this, a link never delays anybody's replies.
        ample = 4.0 * len(candidates) * self.max_admission
        max_rate = np.clip(_SPARE * units, 1e-6, ample)
        if self._limits is not None:
            old = keep >= 0
            max_rate[old] = self._limits.max_rate[keep[old]]
        capacity = np.array([d.capacity_joules for d in devices])
        charge = np.array(
            [
                d.capacity_joules if d.battery_joules is None else d.battery_joules
                for d in devices
            ]
        )
        unit_seconds = [d.seconds_per_partition * self._fair for d in devices]
        return WorkerLimits(
            max_rate=max_rate,
            max_admission=np.full(len(candidates), self.max_admission),
            transmit_energy=np.array([d.transmit_joules(self._slot) for d in devices]),
            compute_energy=np.array(
                [
                    d.compute_joules(seconds)
                    for d, seconds in zip(devices, unit_seconds, strict=True)
                ]
            ),
            capacity=capacity,
            battery=charge,
        )

    def _prime(self, candidates: Sequence[Candidate], units: Floats) -> None:
        """Let the first data into the backlogs, from which the first round is served.

        A scheduler serves what was admitted in slots before. Nothing is sent, computed
        or harvested in these.
        """
        assert self._limits is not None
        charge = self.scheduler.battery
        charge[np.isinf(charge)] = math.nan
        for _ in range(2):
            self.scheduler.step(
                Observation(
                    rates=np.minimum(units, self._limits.max_rate),
                    offered=self._limits.max_admission,
                    harvest=np.zeros(len(candidates)),
                )
            )
            self.scheduler.settle(served=np.zeros(len(candidates)), battery=charge)

    def _cover(
        self,
        taking_part: NDArray[np.bool_],
        weights: Floats,
        held: Sequence[Collection[int]],
        count: int,
    ) -> None:
        """Have more workers take part, best first, until all partitions have a place.

        A round is exact only if every partition is computed by somebody, so that a
        scheduler's refusal gives way to it; an empty battery does not.
        """
        assert self._limits is not None
        spare = self.scheduler.battery >= (
            self._limits.transmit_energy
            + self._limits.compute_energy * self._limits.max_admission
        )
        room = math.ceil(self.max_admission * self._fair)
        covered: set[int] = set().union(*(held[i] for i in np.flatnonzero(taking_part)))
        wanted = set().union(*held)
        places = room * int(taking_part.sum())
        for i in map(int, np.argsort(-weights, kind="stable")):
            if covered >= wanted and places >= count:
                break
            if taking_part[i] or not spare[i]:
                continue
            if covered >= wanted or not covered.issuperset(held[i]):
                taking_part[i] = True
                covered |= set(held[i])
                places += room
