"""What a round's scheduler is told of workers, and what it answers a strategy with."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from flower_ext.network.device import Device

__all__ = ["Admission", "Candidate", "RoundStatistics"]


@dataclass(frozen=True)
class Candidate:
    """A worker as a round begins, busy or not.

    Parameters
    ----------
    worker : int
        Its id.
    holdings : Collection[int]
        The partitions that it holds.
    idle : bool (default: True)
        Whether it can begin now.
    rate : float, optional
        Bytes per second that it could send now with the whole carrier to itself, where
        that is known. Otherwise it is measured from replies, taking it that those who
        took part in a round shared the carrier equally.
    download : float, optional
        Seconds that its download takes, where that is known.
    harvest : float (default: 0.0)
        Joules that it could harvest in a slot from now.
    device : Device, optional
        Its energy; by default it runs on mains.
    battery : float, optional
        Joules in its battery now, where that is known; by default the device's.
    """

    worker: int
    holdings: Collection[int]
    idle: bool = True
    rate: float | None = None
    download: float | None = None
    harvest: float = 0.0
    device: Device | None = None
    battery: float | None = None


@dataclass(frozen=True)
class Admission:
    """Who takes part in a round.

    Parameters
    ----------
    limits : dict[int, int]
        Partitions that each worker should be given at most, by worker; others take no
        part. Busy ones are among them, for when they are free.
    ceilings : dict[int, int]
        Partitions that the battery of each pays for, of those that have one.
    shares : dict[int, float]
        Shares of the carrier of the same workers, summing to 1.
    airtime : dict[int, float]
        Seconds of the whole carrier that a reply of each takes.
    download : dict[int, float]
        Seconds that the download takes each of whom that is known.
    open : bool
        Whether anybody can begin.
    """

    limits: dict[int, int] = field(default_factory=dict)
    ceilings: dict[int, int] = field(default_factory=dict)
    shares: dict[int, float] = field(default_factory=dict)
    airtime: dict[int, float] = field(default_factory=dict)
    download: dict[int, float] = field(default_factory=dict)
    open: bool = True


@dataclass(frozen=True)
class RoundStatistics:
    """What a round did to the queues.

    Parameters
    ----------
    admitted : dict[int, float]
        Replies admitted in the round, by worker.
    backlog : dict[int, float]
        Replies that wait, after the round.
    fairness : float
        Jain's index of the partitions delivered since the run began, in (0, 1].
    battery : dict[int, float]
        Joules, of the workers with a battery.
    taking_part : int
        How many workers the round began with.
    """

    admitted: dict[int, float]
    backlog: dict[int, float]
    fairness: float
    battery: dict[int, float]
    taking_part: int
