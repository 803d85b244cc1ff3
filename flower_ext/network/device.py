"""A worker's device: its speed, what computing and sending cost it, its battery."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flower_ext.errors import InvalidInputError
from flower_ext.network.delays import check_seconds
from flower_ext.network.harvest import ConstantHarvest, Harvest, check_watts

__all__ = ["Device", "DeviceDelays"]


@dataclass(frozen=True, init=False)
class Device:
    """What a device needs for its work: seconds and joules.

    Parameters
    ----------
    seconds_per_partition : float
        Seconds to train on one partition, finite and at least 0.
    compute_watts : float
        Power while it trains, finite and at least 0; a phone's CPU 2 to 4 W.
    transmit_watts : float
        Power while it sends, finite and at least 0; a phone's radio 1 to 2 W.
    capacity_joules : float (default: inf)
        What the battery holds, at least 0; a phone's 4000 mAh at 3.85 V are 55 kJ. inf:
        it hangs on the mains.
    harvest : Harvest | float (default: 0.0)
        The energy that comes in: a model, or constant watts (finite, at least 0).
    battery_joules : float | None (default: None)
        The charge at the start, in [0, capacity_joules]; None: full.

    The attributes ``harvest`` and ``battery_joules`` always are a model and a number.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> device = Device(2.0, compute_watts=3.0, transmit_watts=1.5, harvest=0.5)
    >>> device.compute_joules(2.0), device.transmit_joules(2.0)
    (6.0, 3.0)
    >>> device.harvest_joules(10.0, 14.0), device.battery_joules
    (2.0, inf)
    """

    seconds_per_partition: float
    compute_watts: float
    transmit_watts: float
    capacity_joules: float
    harvest: Harvest
    battery_joules: float

    def __init__(
        self,
        seconds_per_partition: float,
        compute_watts: float,
        transmit_watts: float,
        capacity_joules: float = math.inf,
        harvest: Harvest | float = 0.0,
        battery_joules: float | None = None,
    ) -> None:
        check_seconds("seconds_per_partition", seconds_per_partition)
        for name, watts in (
            ("compute_watts", compute_watts),
            ("transmit_watts", transmit_watts),
        ):
            check_watts(name, watts)
            object.__setattr__(self, name, watts)
        if not capacity_joules >= 0:
            raise InvalidInputError(
                f"capacity_joules must be at least 0, got {capacity_joules}."
            )
        if battery_joules is None:
            battery_joules = capacity_joules
        if not 0 <= battery_joules <= capacity_joules:
            raise InvalidInputError(
                f"battery_joules must lie in [0, capacity_joules = {capacity_joules}], "
                f"got {battery_joules}; None means full."
            )
        if not isinstance(harvest, Harvest):
            harvest = ConstantHarvest(float(harvest))
        object.__setattr__(self, "seconds_per_partition", seconds_per_partition)
        object.__setattr__(self, "capacity_joules", capacity_joules)
        object.__setattr__(self, "harvest", harvest)
        object.__setattr__(self, "battery_joules", battery_joules)

    def compute_joules(self, seconds: float) -> float:
        """Return the joules of training for that many seconds (finite, >= 0)."""
        check_seconds("seconds", seconds)
        return self.compute_watts * seconds

    def transmit_joules(self, seconds: float) -> float:
        """Return the joules of sending for that many seconds (finite, >= 0)."""
        check_seconds("seconds", seconds)
        return self.transmit_watts * seconds

    def harvest_joules(self, start: float, end: float) -> float:
        """Return the joules that come in over [start, end], in seconds."""
        return self.harvest.joules_between(start, end)


@dataclass(frozen=True)
class DeviceDelays:
    """The delays of devices: a delay model, for a slowdown to be based on too.

    Parameters
    ----------
    devices : Sequence[Device]
        The device of worker i, at ``i`` modulo the length; at least one.
    upload : float (default: 0.0)
        Seconds per upload, finite and at least 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> delays = DeviceDelays([Device(1.0, 3.0, 1.5), Device(4.0, 3.0, 1.5)])
    >>> [delays.compute_seconds(w, server_round=1, partition=0) for w in range(3)]
    [1.0, 4.0, 1.0]
    """

    devices: Sequence[Device]
    upload: float = 0.0

    def __post_init__(self) -> None:
        """Check every field and keep a copy of the devices."""
        object.__setattr__(self, "devices", tuple(self.devices))
        if not self.devices:
            raise InvalidInputError("devices must hold at least one device.")
        check_seconds("upload", self.upload)

    def compute_seconds(self, worker: int, server_round: int, partition: int) -> float:
        """Return the seconds per partition of the worker's device."""
        return self.devices[worker % len(self.devices)].seconds_per_partition

    def upload_seconds(self, worker: int, server_round: int) -> float:
        """Return the seconds per upload."""
        return self.upload
