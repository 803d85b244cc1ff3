"""The simulated edge of a federation: its links, its carrier, its devices' energy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flower_ext.errors import InvalidInputError
from flower_ext.network.device import Device
from flower_ext.network.link import Link

__all__ = ["EdgeNetwork", "EnergyLedger"]


@dataclass(frozen=True)
class EdgeNetwork:
    """Links and devices of a federation's workers.

    Parameters
    ----------
    links : Sequence[Link], optional
        Worker i has the link ``i`` modulo the length. They are simulated: replies are
        downloaded and uploaded at their rates, on a virtual clock. By default uploads
        take what the clients report.
    devices : Sequence[Device], optional
        Worker i has the device ``i`` modulo the length. By default everybody is on
        mains.
    shared : bool (default: True)
        Whether all uploads share the airtime of one carrier. False: every worker has
        its link to itself.

    Raises
    ------
    InvalidInputError
        If there is neither a link nor a device.

    Examples
    --------
    >>> network = EdgeNetwork(links=[Link(up=1e6), Link(up=2e5)])
    >>> network.link(3).up.at(0.0)
    200000.0
    """

    links: Sequence[Link] | None = None
    devices: Sequence[Device] | None = None
    shared: bool = True

    def __post_init__(self) -> None:
        """Check that there is something, and keep copies."""
        for name, kind in (("links", Link), ("devices", Device)):
            values = getattr(self, name)
            if values is None:
                continue
            if not values or not all(isinstance(v, kind) for v in values):
                raise InvalidInputError(
                    f"{name} must hold at least one {kind.__name__} and nothing else, "
                    f"got {values!r}."
                )
            object.__setattr__(self, name, tuple(values))
        if self.links is None and self.devices is None:
            raise InvalidInputError("An EdgeNetwork needs links, devices or both.")

    def link(self, worker: int) -> Link | None:
        """Return a worker's link, or None if links are not simulated."""
        return self.links[worker % len(self.links)] if self.links else None

    def device(self, worker: int) -> Device | None:
        """Return a worker's device, or None if everybody is on mains."""
        return self.devices[worker % len(self.devices)] if self.devices else None


class EnergyLedger:
    """What each worker's battery holds, by what it computed, sent and harvested.

    A battery that is asked for more than it holds goes below zero, and says so: the
    ledger only counts. Harvesting stops at the capacity.

    Parameters
    ----------
    network : EdgeNetwork
        With the devices.

    Examples
    --------
    >>> phone = Device(
    ...     seconds_per_partition=1.0,
    ...     compute_watts=2.0,
    ...     transmit_watts=1.0,
    ...     capacity_joules=100.0,
    ... )
    >>> ledger = EnergyLedger(EdgeNetwork(devices=[phone]))
    >>> ledger.spend(0, compute_seconds=3.0, airtime=4.0)
    >>> ledger.level(0), ledger.spent
    (90.0, 10.0)
    """

    def __init__(self, network: EdgeNetwork) -> None:
        self.network = network
        self._levels: dict[int, float] = {}
        self._now = 0.0
        # By worker, for sums that do not depend on the order in which replies come.
        self._spent: dict[int, float] = {}
        self._airtime: dict[int, float] = {}
        self._compute_seconds: dict[int, float] = {}

    @property
    def spent(self) -> float:
        """Joules that all workers have spent."""
        return math.fsum(self._spent.values())

    @property
    def airtime(self) -> float:
        """Seconds of the whole carrier that all workers have sent for."""
        return math.fsum(self._airtime.values())

    @property
    def compute_seconds(self) -> float:
        """Seconds that all workers have computed."""
        return math.fsum(self._compute_seconds.values())

    def level(self, worker: int) -> float:
        """Return the joules in a worker's battery; inf on mains."""
        device = self.network.device(worker)
        if device is None:
            return math.inf
        return self._levels.setdefault(worker, device.battery_joules)

    def spend(self, worker: int, compute_seconds: float, airtime: float) -> None:
        """Charge a worker for seconds of computing and of the whole carrier."""
        device = self.network.device(worker)
        if device is not None:
            joules = device.compute_joules(compute_seconds)
            joules += device.transmit_joules(airtime)
            self._spent[worker] = self._spent.get(worker, 0.0) + joules
            self._levels[worker] = self.level(worker) - joules
        for totals, seconds in (
            (self._compute_seconds, compute_seconds),
            (self._airtime, airtime),
        ):
            totals[worker] = totals.get(worker, 0.0) + seconds

    def harvest(self, workers: Sequence[int], until: float) -> None:
        """Let workers harvest what there was since the last call, as far as it fits."""
        for worker in set(workers):
            device = self.network.device(worker)
            if device is not None:
                harvested = device.harvest_joules(self._now, until)
                self._levels[worker] = min(
                    self.level(worker) + harvested, device.capacity_joules
                )
        self._now = until

    def state(self) -> dict[str, Any]:
        """Return what changes, for :meth:`restore` in another process."""
        return {
            "levels": dict(self._levels),
            "now": self._now,
            "spent": dict(self._spent),
            "airtime": dict(self._airtime),
            "compute_seconds": dict(self._compute_seconds),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`."""
        self._levels = dict(state["levels"])
        self._now = state["now"]
        self._spent = dict(state["spent"])
        self._airtime = dict(state["airtime"])
        self._compute_seconds = dict(state["compute_seconds"])

    @property
    def lowest(self) -> float:
        """Joules in the emptiest battery seen so far; inf where all are on mains."""
        return min(self._levels.values(), default=math.inf)
