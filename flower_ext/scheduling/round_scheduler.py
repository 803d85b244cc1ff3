"""A scheduler of slots, applied to the rounds of a federation.

A slot is a round, a unit of data one reply. In every round each worker is offered one
more; what a scheduler has admitted waits in the worker's backlog, and the workers that
it gives a share of the carrier take part in the round. Whoever takes part may be given
so many partitions, in both stages together, and uses up a unit of its backlog, whether
the plan has work for it or not. Rates are bytes per second, measured from replies where
nobody knows them.

Where rates must be measured, the first round is everybody's.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.network.device import Device
from flower_ext.scheduling.admission import Admission, Candidate, RoundStatistics
from flower_ext.scheduling.scheduler import (
    Decision,
    Observation,
    Scheduler,
    WorkerLimits,
    jains_index,
)

__all__ = ["RoundScheduler"]

Floats = NDArray[np.float64]

_FORGET = 0.7  # how much of the rate's old estimate survives a new measurement
_UNITS = 24  # of energy that are tried, each a quarter of the one before
_PRIMING = 8  # slots before the first round
_SPARE = 4.0  # a rate may grow so many times beyond the first one seen
_GONE = 64  # workers that are gone are remembered, or as many as there are, if more
_MAINS = Device(
    seconds_per_partition=1.0, compute_watts=0.0, transmit_watts=0.0
)  # a worker about whose energy nothing is known


@dataclass
class _Known:
    """What is remembered of a worker."""

    rate: float = math.nan  # bytes per second with the whole carrier
    participants: int = 1  # who took part in its last round
    delivered: float = 0.0  # partitions since the run began
    arrived: int = 0  # replies in this round
    battery: float = math.nan  # joules, measured in this round


@dataclass
class RoundScheduler:
    """Applies a scheduler to rounds.

    A strategy is given it and calls its methods itself::

        TwoStageCoded(scheduler=RoundScheduler(LyapunovScheduler(v=20.0), max_load=4.0))

    Parameters
    ----------
    scheduler : Scheduler
        Decides about slots; its carrier must be time-shared.
    slot_seconds : float, optional
        The length of a slot, finite and positive; by default the time in which, at the
        first rates known, everybody whose link is not dead could send one reply.
    max_load : float (default: 8.0)
        How many times its fair share, K partitions over the number of workers, a
        worker may be given in a round; at least 1. 1 makes all workers do the same,
        large values let fast ones do more.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    """

    scheduler: Scheduler
    slot_seconds: float | None = None
    max_load: float = 8.0
    _fleet: dict[int, int] = field(default_factory=dict, init=False, repr=False)
    _known: dict[int, _Known] = field(default_factory=dict, init=False, repr=False)
    _slot: float = field(default=math.nan, init=False, repr=False)
    _fair: float = field(default=1.0, init=False, repr=False)
    _decision: Decision | None = field(default=None, init=False, repr=False)
    _taking_part: NDArray[np.bool_] = field(
        default_factory=lambda: np.zeros(0, dtype=bool), init=False, repr=False
    )
    _joules: float = field(default=1.0, init=False, repr=False)  # per unit of energy
    _limits: WorkerLimits | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        """Check every parameter."""
        needed = ("begin", "step", "settle", "backlog", "battery")
        if not all(hasattr(type(self.scheduler), name) for name in needed):
            raise InvalidInputError(
                "scheduler must be an instance of one of flower_ext.scheduling, such "
                "as LyapunovScheduler(v=20.0), or a RoundScheduler, got "
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
        if not 1 <= self.max_load < math.inf:
            raise InvalidInputError(
                f"max_load must be at least 1, got {self.max_load}."
            )

    @property
    def slot(self) -> float:
        """The length of a slot in seconds; 0 until it is known."""
        return 0.0 if math.isnan(self._slot) else self._slot

    def begin_run(self) -> None:
        """Begin with empty queues; what is known of the workers' links is kept."""
        self._slot = math.nan if self.slot_seconds is None else self.slot_seconds
        self._fleet, self._limits, self._decision = {}, None, None
        for known in self._known.values():
            known.delivered = 0.0

    # -- the course of a round --------------------------------------------------------

    def begin_round(
        self,
        candidates: Sequence[Candidate],
        partitions: Sequence[int],
        reply_bytes: int,
        copies: int = 1,
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
        copies : int (default: 1)
            By how many of those who take part each partition should be held, where as
            many hold it.

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
        rates = self._rates(candidates)
        self._decision = None
        if rates is None:
            return None
        if math.isnan(self._slot):
            alive = rates[rates > 0]
            if not len(alive):
                return None
            self._slot = float(np.sum(reply_bytes / alive))
        self._fair = len(partitions) / len(candidates)
        held = _wanted_of(candidates, partitions)
        holding = np.array([bool(h) for h in held])
        idle = np.array([c.idle for c in candidates])
        able = holding & idle
        units = self._enlist(candidates, rates * self._slot / reply_bytes)
        backlog, battery = self.scheduler.backlog, self.scheduler.battery
        assert self._limits is not None
        charged = battery >= self._limits.transmit_energy + self._limits.compute_energy
        self._decision = self.scheduler.step(
            Observation(
                rates=units,
                offered=holding.astype(float),
                harvest=np.array([c.harvest for c in candidates]) / self._joules,
                sendable=able.astype(float),
            )
        )
        taking_part = (self._decision.shares > 0) & able
        order = np.argsort(-backlog * units, kind="stable")
        spare = [i for i in map(int, order) if able[i] & charged[i] & (rates[i] > 0)]
        self._cover(taking_part, spare, held, len(partitions), copies)
        self._taking_part = taking_part
        # What nobody asked for is shared equally, also with those who only help out:
        # to complete the round, or when they are free.
        admitted = taking_part | (holding & ~idle & charged)
        count = max(int(admitted.sum()), 1)
        left = max(1.0 - float(self._decision.shares[admitted].sum()), 1e-3)
        shares = np.where(admitted, self._decision.shares + left / count, 0.0)
        shares /= max(float(shares.sum()), 1e-300)
        admission = Admission(open=bool(taking_part.any()))
        paid = self._paid_for(candidates, battery)
        for i in map(int, np.flatnonzero(admitted)):
            worker = candidates[i].worker
            if taking_part[i]:  # a busy one still sends among those of its own round
                self._known[worker].participants = int(taking_part.sum())
            admission.limits[worker] = math.ceil(self.max_load * self._fair)
            if paid[i] < math.inf:
                admission.ceilings[worker] = int(paid[i])
            admission.shares[worker] = float(shares[i])
            admission.airtime[worker] = float(reply_bytes / max(rates[i], 1e-9))
            download = candidates[i].download
            if download is not None and download < math.inf:
                admission.download[worker] = download
        return admission

    # -- between processes -------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Return what changes from round to round, for :meth:`restore`."""
        begun = self._limits is not None
        return {
            "fleet": list(self._fleet),
            "known": {worker: astuple(k) for worker, k in self._known.items()},
            "slot": self._slot,
            "fair": self._fair,
            "joules": self._joules,
            "limits": asdict(self._limits) if self._limits is not None else None,
            "scheduler": self.scheduler.state() if begun else None,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`, of a scheduler with the same parameters."""
        self._fleet = {worker: i for i, worker in enumerate(state["fleet"])}
        self._known = {w: _Known(*values) for w, values in state["known"].items()}
        self._slot, self._fair = state["slot"], state["fair"]
        self._joules, self._decision = state["joules"], None
        self._limits = None
        if state["limits"] is not None:
            self._limits = WorkerLimits(**state["limits"])
            self.scheduler.begin(self._limits)
            self.scheduler.restore(state["scheduler"])

    def rename(self, names: Mapping[int, int]) -> None:
        """Know workers by other ids, each of `names` by what it maps to."""
        self._fleet = {names.get(w, w): i for w, i in self._fleet.items()}
        self._known = {names.get(w, w): known for w, known in self._known.items()}

    def _paid_for(self, candidates: Sequence[Candidate], battery: Floats) -> Floats:
        """Return how many partitions each battery pays for, beside a slot's sending."""
        assert self._limits is not None
        each = np.array(
            [
                c.device.compute_joules(c.device.seconds_per_partition)
                if c.device
                else 0.0
                for c in candidates
            ]
        )
        left = np.maximum(battery - self._limits.transmit_energy, 0.0) * self._joules
        paid = np.full(len(candidates), np.inf)
        np.divide(left, each, out=paid, where=(each > 0) & np.isfinite(left))
        whole: Floats = np.floor(paid)
        return whole

    def _rates(self, candidates: Sequence[Candidate]) -> Floats | None:
        """Return rates in bytes per second; None where none is known."""
        for candidate in candidates:
            new = _Known(participants=len(candidates))
            known = self._known.pop(candidate.worker, new)
            self._known[candidate.worker] = known  # now the last, as all candidates
            known.arrived, known.battery = 0, math.nan
            if candidate.rate is not None:
                known.rate = candidate.rate
        gone = len(self._known) - len(candidates)
        for worker in [*self._known][: max(gone - max(len(candidates), _GONE), 0)]:
            del self._known[worker]
        rates = np.array([self._known[c.worker].rate for c in candidates])
        if np.isnan(rates).all():
            return None
        return np.where(np.isnan(rates), np.nanmedian(rates), rates)

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
        known.arrived += 1
        known.delivered += partitions
        if upload_seconds > 0:
            speed = reply_bytes / upload_seconds
            # Not by its share, which nothing enforces where rates must be measured: a
            # small share would then look like a fast link, and be made smaller yet.
            known.rate = _updated(known.rate, speed * known.participants)

    def measured_battery(self, worker: int, joules: float) -> None:
        """Tell what is in a worker's battery, joules, at the end of the round."""
        self._known.setdefault(worker, _Known()).battery = joules

    def end_round(self) -> RoundStatistics | None:
        """Settle the queues by what has happened in the round.

        Returns
        -------
        RoundStatistics or None
            None where the round was everybody's.
        """
        if self._decision is None:
            return None
        known = [self._known[worker] for worker in self._fleet]
        arrived = np.array([k.arrived for k in known])
        served = np.maximum(arrived, self._taking_part)
        assert self._limits is not None
        measured = np.array([k.battery for k in known]) / self._joules
        measured[np.isinf(self._limits.capacity)] = math.nan
        measured = np.clip(measured, 0.0, self._limits.capacity)
        self.scheduler.settle(served=served, battery=measured)
        battery = self.scheduler.battery * self._joules
        return RoundStatistics(
            dict(zip(self._fleet, self._decision.admitted.tolist(), strict=True)),
            dict(zip(self._fleet, self.scheduler.backlog.tolist(), strict=True)),
            jains_index(np.array([k.delivered for k in known])),
            {
                w: float(battery[i])
                for w, i in self._fleet.items()
                if battery[i] < np.inf
            },
            int(self._taking_part.sum()),
        )

    # -- the fleet --------------------------------------------------------------------

    def _enlist(self, candidates: Sequence[Candidate], units: Floats) -> Floats:
        """Tell the scheduler of workers that came or left; return rates in bounds."""
        workers = [c.worker for c in candidates]
        if workers != list(self._fleet) or self._limits is None:
            keep = np.array([self._fleet.get(w, -1) for w in workers], dtype=np.int64)
            fresh = self._limits is None or not self._fits(candidates, units, keep)
            if fresh:
                self._limits = None
                self._find_unit(candidates, units)
            self._fleet = {w: i for i, w in enumerate(workers)}
            if fresh:
                self._prime(candidates, units)
        assert self._limits is not None
        return np.minimum(units, self._limits.max_rate)

    def _fits(
        self,
        candidates: Sequence[Candidate],
        units: Floats,
        keep: NDArray[np.int64],
    ) -> bool:
        """Have the scheduler take on a changed fleet; return whether it could."""
        try:
            self._begin(candidates, units, keep)
        except InvalidInputError:
            return False
        return True

    def _find_unit(self, candidates: Sequence[Candidate], units: Floats) -> None:
        """Begin with energies in the largest unit that the batteries allow.

        A smaller unit makes energy dearer beside data: a price that rises more steeply,
        over a smaller part of the battery.
        """
        refused: InvalidInputError | None = None
        for quarterings in range(_UNITS):
            self._joules = 4.0**-quarterings
            try:
                self._begin(candidates, units, np.full(len(candidates), -1))
                return
            except InvalidInputError as error:
                refused = refused or error  # the first one speaks of joules
        assert self._limits is None
        least = self._worker_limits(candidates, units, np.full(len(candidates), -1))
        slot = (least.transmit_energy + least.compute_energy) * self._joules
        raise InvalidInputError(
            f"{refused} A round may take {slot.max():.4g} J of a battery (max_load = "
            f"{self.max_load:g} fair shares of computing, a slot of sending): give the "
            "devices a larger capacity_joules, or lower max_load or slot_seconds."
        )

    def _begin(
        self,
        candidates: Sequence[Candidate],
        units: Floats,
        keep: NDArray[np.int64],
    ) -> None:
        """Have the scheduler take on the fleet."""
        limits = self._worker_limits(candidates, units, keep)
        self.scheduler.begin(limits, None if self._limits is None else keep)
        self._limits = limits

    def _worker_limits(
        self,
        candidates: Sequence[Candidate],
        units: Floats,
        keep: NDArray[np.int64],
    ) -> WorkerLimits:
        devices = [c.device or _MAINS for c in candidates]
        # Faster than this, a link never delays anybody's replies. A link that is dead
        # at first may come to life.
        ample = 4.0 * len(candidates)
        max_rate = np.clip(_SPARE * np.maximum(units, np.median(units)), 1e-6, ample)
        most = math.ceil(self.max_load * self._fair)
        compute = np.array(
            [d.compute_joules(d.seconds_per_partition * most) for d in devices]
        )
        compute /= self._joules
        if self._limits is not None:
            # A battery that was large enough does not become too small as others leave.
            old = keep >= 0
            max_rate[old] = self._limits.max_rate[keep[old]]
            compute[old] = self._limits.compute_energy[keep[old]]
        capacity = np.array([d.capacity_joules for d in devices])
        known = [
            d.battery_joules if c.battery is None else c.battery
            for c, d in zip(candidates, devices, strict=True)
        ]
        return WorkerLimits(
            max_rate=max_rate,
            max_admission=np.ones(len(candidates)),
            transmit_energy=np.array([d.transmit_joules(self._slot) for d in devices])
            / self._joules,
            compute_energy=compute,
            capacity=capacity / self._joules,
            battery=np.clip(known, 0.0, capacity) / self._joules,
        )

    def _prime(self, candidates: Sequence[Candidate], units: Floats) -> None:
        """Let the queues find their level before the first round.

        A scheduler serves what was admitted in slots before. In these all that waits
        is served, and nothing is spent or harvested.
        """
        assert self._limits is not None
        charge = self.scheduler.battery
        charge[np.isinf(charge)] = math.nan
        for _ in range(_PRIMING):
            backlog = self.scheduler.backlog
            self.scheduler.step(
                Observation(
                    rates=np.minimum(units, self._limits.max_rate),
                    offered=self._limits.max_admission,
                    harvest=np.zeros(len(candidates)),
                )
            )
            self.scheduler.settle(served=backlog, battery=charge)

    def _cover(
        self,
        taking_part: NDArray[np.bool_],
        spare: Sequence[int],
        held: Sequence[Collection[int]],
        count: int,
        copies: int,
    ) -> None:
        """Have more workers take part, best first, until all partitions have a place.

        A round is exact only if every partition is computed by somebody, and is held
        by more if that one straggles; a scheduler's refusal gives way to that.
        """
        room = math.ceil(self.max_load * self._fair)
        lacking = dict.fromkeys(set().union(*held), copies)

        def takes_part(i: int) -> None:
            for partition in held[i]:
                lacking[partition] -= 1

        for i in map(int, np.flatnonzero(taking_part)):
            takes_part(i)
        places = room * int(taking_part.sum())
        for i in spare:
            covered = max(lacking.values(), default=0) <= 0
            if covered and places >= count:
                break
            if not taking_part[i] and (
                covered or any(lacking[partition] > 0 for partition in held[i])
            ):
                taking_part[i] = True
                takes_part(i)
                places += room


def _wanted_of(
    candidates: Sequence[Candidate], partitions: Sequence[int]
) -> list[set[int]]:
    """Return which of the partitions each holds; read once where workers share them."""
    wanted = set(partitions)
    distinct = {id(c.holdings): c.holdings for c in candidates}
    read = {key: wanted.intersection(held) for key, held in distinct.items()}
    return [read[id(c.holdings)] for c in candidates]


def _updated(old: float, measured: float) -> float:
    """Return the geometric moving average of measurements above 0."""
    if not old > 0:
        return measured
    return math.exp(
        _FORGET * math.log(old) + (1 - _FORGET) * math.log(max(measured, 1e-300))
    )
