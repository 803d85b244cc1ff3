"""Energy harvesting: how many joules a device takes in, as functions of time.

Time is in seconds from the start of the experiment, power in watts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, runtime_checkable

import numpy as np

from flower_ext.errors import InvalidInputError
from flower_ext.network.keyed import Floats, SlotSeries, check_seed, check_span

__all__ = [
    "BernoulliHarvest",
    "ConstantHarvest",
    "DiurnalHarvest",
    "Harvest",
    "check_watts",
]

_HARVEST_DRAW = 5


@runtime_checkable
class Harvest(Protocol):
    """Anything that says how much energy comes in, and when."""

    def joules_between(self, start: float, end: float) -> float:
        """Return the energy that comes in over [start, end].

        Parameters
        ----------
        start, end : float
            Seconds, finite, with 0 <= start <= end.

        Returns
        -------
        float
            Joules, at least 0; whether a battery has room for them is not asked.
        """
        ...


@dataclass(frozen=True)
class ConstantHarvest:
    """The same power at all times.

    Parameters
    ----------
    watts : float
        Finite and at least 0; a small solar panel indoors 0.001, a charger 5 to 20.

    Raises
    ------
    InvalidInputError
        If ``watts`` is out of range.
    """

    watts: float

    def __post_init__(self) -> None:
        """Check the power."""
        check_watts("watts", self.watts)

    def joules_between(self, start: float, end: float) -> float:
        """Return the power times the span."""
        check_span(start, end)
        return self.watts * (end - start)


@dataclass(frozen=True)
class BernoulliHarvest:
    """Power that comes in slots: all of it or none, independently for every slot.

    Parameters
    ----------
    watts : float
        The power in a slot that has it, finite and at least 0.
    probability : float
        The probability that a slot has it, in [0, 1].
    slot_seconds : float
        Seconds per slot, finite and above 0.
    seed : int (default: 0)
        Keys the draws, at least 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    """

    watts: float
    probability: float
    slot_seconds: float
    seed: int = 0
    _slots: SlotSeries = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every field."""
        check_watts("watts", self.watts)
        if not 0 <= self.probability <= 1:
            raise InvalidInputError(
                f"probability must lie in [0, 1], got {self.probability}."
            )
        if not 0 < self.slot_seconds < math.inf:
            raise InvalidInputError(
                f"slot_seconds must be finite and > 0, got {self.slot_seconds}."
            )
        check_seed(self.seed)
        draw = partial(_draw_slots, self.watts, self.probability)
        slots = SlotSeries(self.slot_seconds, draw, self.seed, _HARVEST_DRAW)
        object.__setattr__(self, "_slots", slots)

    def joules_between(self, start: float, end: float) -> float:
        """Return the power times the seconds of the span in slots that have it."""
        check_span(start, end)
        return self._slots.between(start, end)


@dataclass(frozen=True)
class DiurnalHarvest:
    """Sunshine: half a sine by day, nothing by night.

    Parameters
    ----------
    peak_watts : float
        The power at noon, finite and at least 0.
    period_seconds : float (default: 86400.0)
        Seconds per day and night, finite and above 0; the first half is day.
    phase : float (default: 0.0)
        Seconds after sunrise at time 0, finite and at least 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> sun = DiurnalHarvest(peak_watts=3.141592653589793, period_seconds=24.0)
    >>> round(sun.joules_between(0.0, 6.0), 9), round(sun.joules_between(6.0, 24.0), 9)
    (12.0, 12.0)
    """

    peak_watts: float
    period_seconds: float = 86400.0
    phase: float = 0.0

    def __post_init__(self) -> None:
        """Check every field."""
        check_watts("peak_watts", self.peak_watts)
        if not 0 < self.period_seconds < math.inf:
            raise InvalidInputError(
                f"period_seconds must be finite and > 0, got {self.period_seconds}."
            )
        if not 0 <= self.phase < math.inf:
            raise InvalidInputError(
                f"phase must be finite and at least 0 seconds, got {self.phase}."
            )

    def joules_between(self, start: float, end: float) -> float:
        """Return the exact integral of the half sines."""
        check_span(start, end)
        day, since_sunrise = divmod(start + self.phase, self.period_seconds)
        last_day, last_since = divmod(end + self.phase, self.period_seconds)
        whole_day = self.peak_watts * self.period_seconds / math.pi
        part = self._since_sunrise(last_since) - self._since_sunrise(since_sunrise)
        return max(0.0, (last_day - day) * whole_day + part)

    def _since_sunrise(self, seconds: float) -> float:
        """Return the joules of one day until that many seconds after sunrise."""
        angle = min(2 * math.pi * seconds / self.period_seconds, math.pi)
        scale = self.peak_watts * self.period_seconds / (2 * math.pi)
        return scale * (1 - math.cos(angle))


def check_watts(name: str, watts: float) -> None:
    """Check that a parameter is a power.

    Parameters
    ----------
    name : str
        The parameter's name, for the message of an error.
    watts : float
        Watts.

    Raises
    ------
    InvalidInputError
        If ``watts`` is negative or not finite.
    """
    if not 0 <= watts < math.inf:
        raise InvalidInputError(f"{name} must be finite and at least 0, got {watts}.")


def _draw_slots(
    watts: float, probability: float, generator: np.random.Generator, count: int
) -> Floats:
    """Draw the power of ``count`` slots."""
    powers: Floats = np.where(generator.random(count) < probability, watts, 0.0)
    return powers
