"""Delay models: how long a worker computes and uploads.

A delay model is a pure function of who works on what and when, so the same experiment
can be slept through on a wall clock, added up by a virtual one, and repeated. All
times are seconds. :mod:`flower_ext.network.random_delays` has the models that draw.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from flower_ext.errors import InvalidInputError

__all__ = [
    "DelayModel",
    "RecordedDelays",
    "SpeedProfile",
    "check_seconds",
]


@runtime_checkable
class DelayModel(Protocol):
    """Anything that says how many seconds a worker's computing and uploading take."""

    def compute_seconds(self, worker: int, server_round: int, partition: int) -> float:
        """Return the seconds that ``worker`` takes to train on ``partition``.

        Parameters
        ----------
        worker : int
            The worker, at least 0.
        server_round : int
            The round, at least 0 (0: unknown).
        partition : int
            The partition, at least 0.

        Returns
        -------
        float
            Seconds, finite and at least 0.
        """
        ...

    def upload_seconds(self, worker: int, server_round: int) -> float:
        """Return the seconds that ``worker`` takes to upload one reply.

        Parameters
        ----------
        worker : int
            The worker, at least 0.
        server_round : int
            The round, at least 0 (0: unknown).

        Returns
        -------
        float
            Seconds, finite and at least 0.
        """
        ...


@dataclass(frozen=True)
class SpeedProfile:
    """Workers of constant, different speeds.

    Parameters
    ----------
    speeds : Sequence[float]
        Seconds per partition of worker i, at ``i`` modulo the length; each finite and
        at least 0; at least one.
    upload : float (default: 0.0)
        Seconds per upload, finite and at least 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> delays = SpeedProfile((1.0, 4.0))
    >>> [delays.compute_seconds(w, server_round=1, partition=0) for w in range(3)]
    [1.0, 4.0, 1.0]
    """

    speeds: Sequence[float]
    upload: float = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        object.__setattr__(self, "speeds", _seconds_list("speeds", self.speeds))
        check_seconds("upload", self.upload)

    def compute_seconds(self, worker: int, server_round: int, partition: int) -> float:
        """Return the worker's seconds per partition."""
        return self.speeds[worker % len(self.speeds)]

    def upload_seconds(self, worker: int, server_round: int) -> float:
        """Return the seconds per upload."""
        return self.upload


@dataclass(frozen=True)
class RecordedDelays:
    """Recorded compute times, replayed.

    Parameters
    ----------
    times : Mapping[int, Sequence[float]] | Sequence[Sequence[float]]
        Seconds per partition of each worker, one entry per round, from round 1; after
        the last the record starts again. A mapping must name every worker; in a
        sequence, worker i has the entry ``i`` modulo the length. Each time is finite
        and at least 0; at least one worker and one time for each.
    upload : float (default: 0.0)
        Seconds per upload, finite and at least 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range, or a mapping does not know a worker.

    Examples
    --------
    >>> delays = RecordedDelays({0: [1.0, 5.0], 1: [2.0]})
    >>> [delays.compute_seconds(0, server_round, 0) for server_round in (1, 2, 3)]
    [1.0, 5.0, 1.0]
    """

    times: Mapping[int, Sequence[float]] | Sequence[Sequence[float]]
    upload: float = 0.0

    def __post_init__(self) -> None:
        """Check every field and keep copies of the recorded times."""
        if not self.times:
            raise InvalidInputError("times must hold at least one worker's record.")
        times: object
        if isinstance(self.times, Mapping):
            times = {w: _seconds_list("times", t) for w, t in self.times.items()}
        else:
            times = tuple(_seconds_list("times", t) for t in self.times)
        object.__setattr__(self, "times", times)
        check_seconds("upload", self.upload)

    def compute_seconds(self, worker: int, server_round: int, partition: int) -> float:
        """Return the worker's recorded seconds in this round, for any partition."""
        if not isinstance(self.times, Mapping):
            recorded = self.times[worker % len(self.times)]
        elif worker in self.times:
            recorded = self.times[worker]
        else:
            raise InvalidInputError(
                f"No times were recorded for worker {worker}; times has workers "
                f"{sorted(self.times)}."
            )
        return recorded[(server_round - 1) % len(recorded)]

    def upload_seconds(self, worker: int, server_round: int) -> float:
        """Return the seconds per upload."""
        return self.upload


def check_seconds(name: str, value: float) -> None:
    """Check that a parameter is a finite number of seconds, at least 0.

    Parameters
    ----------
    name : str
        The parameter's name, for the message of an error.
    value : float
        Seconds.

    Raises
    ------
    InvalidInputError
        If ``value`` is negative or not finite.
    """
    if not (math.isfinite(value) and value >= 0):
        raise InvalidInputError(
            f"{name} must be a finite number of seconds, at least 0, got {value}."
        )


def _seconds_list(name: str, values: Sequence[float]) -> tuple[float, ...]:
    """Return ``values`` as a tuple of valid seconds."""
    seconds = tuple(float(value) for value in values)
    if not seconds:
        raise InvalidInputError(f"{name} must hold at least one number of seconds.")
    for value in seconds:
        check_seconds(name, value)
    return seconds
