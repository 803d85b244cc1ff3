"""Random times of a worker: computing its load, uploading a reply, and their sum.

Computing follows the shifted exponential law of Lee et al., "Speeding Up Distributed
Machine Learning Using Codes" (arXiv:1512.02673); uploading has a constant rate, or
Shannon's over a Rayleigh channel whose gain stays for the whole upload (block fading).
Any other law enters as a :class:`Duration`, which is no more than its distribution
function and its mean. All times are seconds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.special import expit, gammainc

from flower_ext.coding.gradient_code import check_count
from flower_ext.errors import InvalidInputError

__all__ = [
    "Arrival",
    "Duration",
    "WorkerTimes",
    "constant_duration",
    "rayleigh_upload",
    "shifted_exponential",
]

Floats = NDArray[np.float64]

_POINTS = 1024  # of a tabulated law
_NODES = 512  # of the sum over the laws of computing
# Spaced by their odds, so that both tails of any law are resolved alike.
_LEVELS = expit(np.linspace(-23.0, 23.0, _POINTS))


@dataclass(frozen=True)
class Duration:
    """A random time, at least 0.

    Parameters
    ----------
    cdf : Callable[[ndarray], ndarray]
        The distribution function: takes seconds of any shape and returns the
        probabilities, in [0, 1], that the time is no longer.
    mean : float
        The expected time in seconds, finite and at least 0.

    Raises
    ------
    InvalidInputError
        If ``mean`` is out of range.

    Examples
    --------
    >>> uniform = Duration(lambda seconds: np.clip(seconds, 0.0, 1.0), mean=0.5)
    >>> uniform.quantile(np.array([0.25, 0.75])).round(6)
    array([0.25, 0.75])
    """

    cdf: Callable[[Floats], Floats]
    mean: float

    def __post_init__(self) -> None:
        """Check the mean."""
        if not (math.isfinite(self.mean) and self.mean >= 0):
            raise InvalidInputError(
                f"mean must be a finite number of seconds, at least 0, got {self.mean}."
            )

    def quantile(self, levels: Floats) -> Floats:
        """Return the least times by which the probability reaches given levels.

        Parameters
        ----------
        levels : ndarray
            Probabilities in (0, 1).

        Returns
        -------
        ndarray
            Seconds, of the shape of ``levels``.

        Raises
        ------
        InvalidInputError
            If the distribution function does not reach a level.
        """
        low = np.zeros_like(levels)
        high = np.full_like(levels, self.mean or 1.0)
        for _ in range(64):  # by Markov's inequality 2^64 means are enough
            short = self.cdf(high) < levels
            if not short.any():
                break
            high[short] *= 2.0
        else:
            raise InvalidInputError(
                f"cdf stays below {levels.max()} for ever; it must rise to 1 (a time "
                "that may be infinite cannot be used), and 'mean' must be its mean."
            )
        for _ in range(60):
            middle = 0.5 * (low + high)
            reached = self.cdf(middle) >= levels
            high = np.where(reached, middle, high)
            low = np.where(reached, low, middle)
        return high


@dataclass(frozen=True)
class Arrival:
    """When a reply arrives, and how much of that time went into computing it.

    Parameters
    ----------
    times : ndarray of shape (points,)
        Seconds, increasing.
    probability : ndarray of shape (points,)
        The probability that the reply has arrived by then; from there to the next
        point it rises linearly, before the first it is 0 and after the last 1.
    computed : ndarray of shape (points,)
        The expectation of (when the computing ended) × (1 if the reply has arrived by
        then, else 0), in seconds.
    """

    times: Floats
    probability: Floats
    computed: Floats

    def by(self, times: Floats) -> Floats:
        """Return the probability that the reply has arrived by given times."""
        return np.interp(times, self.times, self.probability, left=0.0, right=1.0)

    def computed_by(self, times: Floats) -> Floats:
        """Return `computed` at given times."""
        return np.interp(times, self.times, self.computed, left=0.0)

    def begun_at(self, start: float) -> Arrival:
        """Return the same for a reply whose computing begins at ``start`` seconds."""
        return Arrival(
            self.times + start,
            self.probability,
            self.computed + start * self.probability,
        )


@dataclass(frozen=True)
class WorkerTimes:
    """How long a worker computes and uploads, independently from reply to reply.

    Workers that are the same object are treated as alike, which saves much time.

    Parameters
    ----------
    compute : Callable[[int], Duration]
        Seconds for computing a reply over so many partitions, at least 1.
    upload : Duration
        Seconds for uploading a reply, independent of its computing.

    Examples
    --------
    >>> worker = WorkerTimes(
    ...     lambda load: shifted_exponential(load, shift=1.0, mean=0.5),
    ...     constant_duration(2.0),
    ... )
    >>> worker.arrival(4).by(np.array([6.0, 8.0, 50.0])).round(3)
    array([0.   , 0.567, 1.   ])
    """

    compute: Callable[[int], Duration]
    upload: Duration

    def arrival(self, load: int) -> Arrival:
        """Return when a reply over ``load`` partitions arrives; at once for none."""
        return _arrival(self, load)


def constant_duration(seconds: float) -> Duration:
    """Return a time that is always the same, such as ``8 * size / rate`` of an upload.

    Parameters
    ----------
    seconds : float
        Finite and at least 0.

    Raises
    ------
    InvalidInputError
        If ``seconds`` is out of range.

    Examples
    --------
    >>> constant_duration(2.0).cdf(np.array([1.9, 2.0]))
    array([0., 1.])
    """
    return Duration(lambda t: np.where(t >= seconds, 1.0, 0.0), float(seconds))


def shifted_exponential(
    load: int, shift: float, mean: float, per_partition: bool = True
) -> Duration:
    """Return the time for computing ``load`` partitions.

    It takes at least ``load * shift`` seconds; the random rest is either the sum of
    ``load`` independent exponential times (Erlang's law, and what
    :class:`flower_ext.network.ShiftedExponential` draws), or, as in Lee et al.
    (arXiv:1512.02673), one exponential time scaled by the load.

    Parameters
    ----------
    load : int
        Partitions, at least 0.
    shift, mean : float
        Seconds per partition: the least, and the mean of the random rest; finite and
        at least 0.
    per_partition : bool (default: True)
        Whether each partition has an exponential time of its own.

    Raises
    ------
    InvalidInputError
        If a value is out of range.

    Examples
    --------
    >>> shifted_exponential(load=3, shift=1.0, mean=0.5).mean
    4.5
    >>> one = shifted_exponential(3, shift=1.0, mean=0.5, per_partition=False)
    >>> round(float(one.cdf(np.array(4.5))), 3)  # 1 - 1/e
    0.632
    """
    load = check_count("load", load, low=0)
    for name, value in (("shift", shift), ("mean", mean)):
        if not (math.isfinite(value) and value >= 0):
            raise InvalidInputError(
                f"{name} must be a finite number of seconds, at least 0, got {value}."
            )
    if load == 0 or mean == 0:
        return constant_duration(load * shift)
    shape, scale = (load, mean) if per_partition else (1, load * mean)

    def cdf(seconds: Floats) -> Floats:
        rest = np.maximum(seconds - load * shift, 0.0)
        return np.asarray(gammainc(shape, rest / scale), dtype=np.float64)

    return Duration(cdf, load * (shift + mean))


def rayleigh_upload(
    size: float, bandwidth: float, snr: float, least_rate: float
) -> Duration:
    """Return the time for uploading a reply over a Rayleigh channel.

    The rate is ``max(bandwidth * log2(1 + snr * g), least_rate)`` with a power gain g
    that is exponential with mean 1 and stays for the whole upload, hence P(T ≤ t) =
    exp(-(2^(8 size / (bandwidth t)) - 1) / snr) until ``8 * size / least_rate``
    seconds, and 1 from there. The tail before is as heavy as 1/t.

    Parameters
    ----------
    size : float
        Bytes of a reply.
    bandwidth : float
        Hertz.
    snr : float
        Mean ratio of received power to noise, linear.
    least_rate : float
        Bits per second, below which the rate never falls. Without it the mean would
        be infinite. All four are positive and finite.

    Raises
    ------
    InvalidInputError
        If a value is out of range.

    Examples
    --------
    >>> upload = rayleigh_upload(1e6, bandwidth=1e6, snr=10.0, least_rate=1e5)
    >>> upload.cdf(np.array([1.0, 4.0, 79.9, 80.0])).round(3)
    array([0.   , 0.741, 0.993, 1.   ])
    >>> round(upload.mean, 3)
    4.9
    """
    channel = {"bandwidth": bandwidth, "snr": snr, "least_rate": least_rate}
    for name, value in {"size": size, **channel}.items():
        if not (math.isfinite(value) and value > 0):
            raise InvalidInputError(f"{name} must be positive and finite, got {value}.")
    bits, longest = 8.0 * size, 8.0 * size / least_rate

    def cdf(seconds: Floats) -> Floats:
        spectral = bits / bandwidth / np.maximum(seconds, 1e-300)
        # 2^700 is out of any reach already.
        least_gain = np.expm1(math.log(2.0) * np.minimum(spectral, 700.0)) / snr
        return np.where(seconds >= longest, 1.0, np.exp(-least_gain))

    lowest = math.expm1(math.log(2.0) * least_rate / bandwidth) / snr

    def slowness(log_gain: float) -> float:
        gain = math.exp(log_gain)
        return bits * gain * math.exp(-gain) / (bandwidth * math.log2(1 + snr * gain))

    capped = longest * -math.expm1(-lowest)
    start, end = math.log(lowest), math.log(50.0)  # exp(-50) is left out
    free = quad(slowness, start, end, limit=500)[0] if start < end else 0.0
    return Duration(cdf, capped + free)


@functools.lru_cache(maxsize=1024)
def _arrival(worker: WorkerTimes, load: int) -> Arrival:
    """Tabulate the sum of computing and uploading."""
    if load == 0:
        return Arrival(np.zeros(1), np.ones(1), np.zeros(1))
    compute, upload = worker.compute(load), worker.upload
    first, second = compute.quantile(_LEVELS), upload.quantile(_LEVELS)
    if _is_constant(first) and _is_constant(second):
        end = first[-1] + second[-1]
        step = np.array([np.nextafter(end, 0.0), end])  # between any other times
        return Arrival(step, np.arange(2.0), first[-1] * np.arange(2.0))
    # Two times that grow together leave no tail of the sum out.
    times = np.unique(first + second)
    if _is_constant(second):
        probability = compute.cdf(times - second[-1])
        steps = np.diff(probability, prepend=0.0)
        middles = 0.5 * (times + np.concatenate((times[:1], times[:-1]))) - second[-1]
        computed = np.cumsum(middles * steps)
    else:
        if _is_constant(first):
            nodes, masses = first[-1:], np.ones(1)
        else:
            # Cells that are narrower towards both ends, where the law is flat.
            edges = 0.5 * (1.0 - np.cos(np.linspace(0.0, np.pi, _NODES + 1)))
            masses = np.diff(edges)
            nodes = compute.quantile(0.5 * (edges[1:] + edges[:-1]))
        known = upload.cdf(np.maximum(times[:, None] - nodes, 0.0))
        known[times[:, None] < nodes] = 0.0
        probability, computed = known @ masses, known @ (masses * nodes)
    probability[-1] = 1.0
    return Arrival(times, probability, computed)


def _is_constant(quantiles: Floats) -> bool:
    return bool(np.ptp(quantiles) <= 1e-9 * quantiles[-1])
