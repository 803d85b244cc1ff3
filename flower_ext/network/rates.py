"""Rates: how fast a link is at every moment, with exact integrals and inverses.

A rate is a pure function of time. Time is in seconds from the start of the
experiment, sizes are in bytes and rates in bytes per second.
:mod:`flower_ext.network.rayleigh` has the rate of a fading radio channel.
"""

from __future__ import annotations

import copy
import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from flower_ext.errors import InvalidInputError
from flower_ext.network.keyed import check_span

__all__ = ["ConstantRate", "Rate", "TraceRate", "check_size"]

# What sums of floats are off by, in parts of the sum.
_ROUNDING = 8 * float(np.finfo(np.float64).eps)


@runtime_checkable
class Rate(Protocol):
    """Anything that says how many bytes per second a link carries, and when."""

    def at(self, t: float) -> float:
        """Return the bytes per second at time ``t``.

        Parameters
        ----------
        t : float
            Seconds, finite and at least 0.

        Returns
        -------
        float
            Bytes per second, finite and at least 0.
        """
        ...

    def bytes_between(self, start: float, end: float) -> float:
        """Return the bytes carried over [start, end], the exact integral.

        Parameters
        ----------
        start, end : float
            Seconds, finite, with 0 <= start <= end.

        Returns
        -------
        float
            Bytes, at least 0.
        """
        ...

    def seconds_for(self, size: float, at: float) -> float:
        """Return how long ``size`` bytes take from time ``at`` on.

        Parameters
        ----------
        size : float
            Bytes, finite and at least 0.
        at : float
            Seconds, finite and at least 0.

        Returns
        -------
        float
            The least s with ``bytes_between(at, at + s) >= size`` up to rounding; inf
            if there is none.
        """
        ...


@dataclass(frozen=True)
class ConstantRate:
    """The same rate at all times.

    Parameters
    ----------
    bytes_per_second : float
        Finite and at least 0. At 0 nothing ever arrives.

    Raises
    ------
    InvalidInputError
        If the rate is out of range.

    Examples
    --------
    >>> ConstantRate(100.0).seconds_for(250.0, at=7.0)
    2.5
    """

    bytes_per_second: float

    def __post_init__(self) -> None:
        """Check the rate."""
        _check_rate(self.bytes_per_second)

    def at(self, t: float) -> float:
        """Return the rate."""
        check_span(t, t)
        return self.bytes_per_second

    def bytes_between(self, start: float, end: float) -> float:
        """Return the rate times the span."""
        check_span(start, end)
        return self.bytes_per_second * (end - start)

    def seconds_for(self, size: float, at: float) -> float:
        """Return the size divided by the rate."""
        check_size(size)
        check_span(at, at)
        if size == 0:
            return 0.0
        return size / self.bytes_per_second if self.bytes_per_second else math.inf


@dataclass(frozen=True)
class TraceRate:
    """A measured rate, replayed: constant between samples, and looping.

    Parameters
    ----------
    times : Sequence[float]
        When each sample begins: seconds, finite and increasing; the first counts as 0.
        At least one. The last sample lasts as long as the median interval (a single
        one: for ever), then the trace starts again.
    bytes_per_second : Sequence[float]
        The rate of each sample, finite and at least 0, not everywhere 0.
    offset : float (default: 0.0)
        Seconds into the trace at time 0, finite and at least 0; loops.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Notes
    -----
    Integrals and inverses take O(log n) time for n samples.

    Examples
    --------
    >>> rate = TraceRate(times=(0.0, 1.0, 2.0), bytes_per_second=(10.0, 0.0, 30.0))
    >>> rate.bytes_between(0.5, 2.5), rate.seconds_for(6.0, at=0.5)
    (20.0, 1.5333333333333332)
    """

    times: Sequence[float] = field(repr=False)
    bytes_per_second: Sequence[float] = field(repr=False)
    offset: float = 0.0
    _edges: list[float] = field(init=False, repr=False, compare=False)
    _totals: list[float] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every field and add the trace up."""
        times = np.asarray(self.times, np.float64)
        rates = np.asarray(self.bytes_per_second, np.float64)
        _check_samples(times, rates)
        _check_offset(self.offset)
        lengths = np.diff(times)
        last = float(np.median(lengths)) if lengths.size else 1.0
        edges = np.append(times - times[0], times[-1] - times[0] + last)
        totals = np.append(0.0, np.cumsum(rates * np.append(lengths, last)))
        object.__setattr__(self, "times", tuple(times.tolist()))
        object.__setattr__(self, "bytes_per_second", tuple(rates.tolist()))
        object.__setattr__(self, "_edges", edges.tolist())
        object.__setattr__(self, "_totals", totals.tolist())

    @property
    def seconds(self) -> float:
        """How long the trace lasts before it starts again."""
        return self._edges[-1]

    def shifted(self, offset: float) -> TraceRate:
        """Return the trace with another ``offset``; both share one copy of it."""
        _check_offset(offset)
        other = copy.copy(self)
        object.__setattr__(other, "offset", offset)
        return other

    def at(self, t: float) -> float:
        """Return the rate of the sample that holds at ``t``."""
        check_span(t, t)
        phase = (t + self.offset) % self.seconds
        return self.bytes_per_second[bisect_right(self._edges, phase) - 1]

    def bytes_between(self, start: float, end: float) -> float:
        """Return the exact integral over the samples."""
        check_span(start, end)
        loop, begun = self._carried(start)
        other_loop, done = self._carried(end)
        return max(0.0, (other_loop - loop) * self._totals[-1] + (done - begun))

    def seconds_for(self, size: float, at: float) -> float:
        """Return the exact inverse of the integral."""
        check_size(size)
        check_span(at, at)
        if size == 0:
            return 0.0
        totals, edges = self._totals, self._edges
        target = size + self._carried(at)[1]
        loops, rest = divmod(target, totals[-1])
        # What is missing after rounding must not wait for the end of a sample of 0.
        slack = _ROUNDING * target
        if rest <= slack and loops:
            loops, rest = loops - 1, totals[-1]
        index = max(1, bisect_left(totals, rest - slack))
        begin = index - 1
        rate = self.bytes_per_second[begin]
        part = (rest - totals[begin]) / rate if rate else 0.0
        reached = min(edges[begin] + part, edges[index])
        phase = (at + self.offset) % edges[-1]
        return max(0.0, loops * edges[-1] + reached - phase)

    def _carried(self, t: float) -> tuple[float, float]:
        """Return the loop of time ``t`` and the bytes from its start until then."""
        edges = self._edges
        loop, phase = divmod(t + self.offset, edges[-1])
        sample = bisect_right(edges, phase) - 1
        rate = self.bytes_per_second[sample]
        return loop, self._totals[sample] + rate * (phase - edges[sample])


def check_size(size: float) -> None:
    """Check that ``size`` is a number of bytes.

    Raises
    ------
    InvalidInputError
        If ``size`` is negative or not finite.
    """
    if not 0 <= size < math.inf:
        raise InvalidInputError(
            f"size must be a finite number of bytes, at least 0, got {size}."
        )


def _check_rate(rate: float) -> None:
    """Raise unless ``rate`` is a rate."""
    if not 0 <= rate < math.inf:
        raise InvalidInputError(
            f"bytes_per_second must be finite and at least 0, got {rate}."
        )


def _check_offset(offset: float) -> None:
    """Raise unless ``offset`` is one into a trace."""
    if not 0 <= offset < math.inf:
        raise InvalidInputError(
            f"offset must be finite and at least 0 seconds, got {offset}."
        )


def _check_samples(times: np.ndarray, rates: np.ndarray) -> None:
    """Raise unless these are the samples of a trace."""
    if times.ndim != 1 or times.shape != rates.shape or not times.size:
        raise InvalidInputError(
            "A trace needs as many times as rates, and at least one, got shapes "
            f"{times.shape} and {rates.shape}."
        )
    if not np.isfinite(times).all():
        raise InvalidInputError("The times of a trace must be finite.")
    for index in np.flatnonzero(np.diff(times) <= 0)[:1].tolist():
        raise InvalidInputError(
            f"The times of a trace must increase, got {times[index + 1]} after "
            f"{times[index]}."
        )
    for rate in rates.tolist():
        _check_rate(rate)
    if not rates.any():
        raise InvalidInputError(
            "A trace must not be 0 everywhere: nothing would ever arrive."
        )
