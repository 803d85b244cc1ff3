"""The rate of a radio channel with Rayleigh fading: Shannon's, block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from flower_ext.errors import InvalidInputError
from flower_ext.network.keyed import Floats, SlotSeries, check_seed, check_span
from flower_ext.network.rates import check_size

__all__ = ["RayleighRate"]

_GAIN_DRAW = 2


@dataclass(frozen=True)
class RayleighRate:
    """Shannon's rate over a channel whose gain is redrawn every coherence time.

    The gain g of each interval is exponential with mean 1 (Rayleigh block fading), the
    signal-to-noise ratio is ``snr * g`` and the rate is ``bandwidth * log2(1 + snr *
    g)``, but at least ``least_rate``. The draws are keyed by (seed, interval): the
    order of the calls changes nothing.

    Parameters
    ----------
    bandwidth : float
        Hz, finite and above 0.
    power : float
        What the sender radiates, in W, finite and above 0; a phone 0.01 to 0.2.
    path_loss_db : float
        Mean loss on the way in dB, finite; about 80 near a cell's mast, 130 at its
        edge.
    noise_density : float (default: 4.0e-21)
        Noise in W/Hz, finite and above 0; the default is thermal noise at 290 K
        (-174 dBm/Hz).
    coherence_seconds : float (default: 1.0)
        How long a gain lasts, finite and above 0: at 2 GHz about 0.04 s at walking
        pace, seconds for a device that lies still.
    least_rate : float (default: 1.0e4)
        The rate of the slowest modulation that keeps the link, in bits per second,
        finite and at least 0. In a deep fade a modem does not stop: it falls back to
        its most robust scheme (with repetitions), and this is what that one carries.
    seed : int (default: 0)
        Keys the draws, at least 0.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range, or the link carries under 1 bit per second.

    Examples
    --------
    >>> rate = RayleighRate(bandwidth=1.0e6, power=0.1, path_loss_db=120.0)
    >>> round(rate.snr, 3)
    25.0
    >>> rate.at(0.2) == rate.at(0.9), rate.at(0.2) == rate.at(1.2)
    (True, False)
    """

    bandwidth: float
    power: float
    path_loss_db: float
    noise_density: float = 4.0e-21
    coherence_seconds: float = 1.0
    least_rate: float = 1.0e4
    seed: int = 0
    _gains: SlotSeries = field(init=False, repr=False, compare=False)
    _rates: SlotSeries = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check every field."""
        for name in ("bandwidth", "power", "noise_density", "coherence_seconds"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise InvalidInputError(f"{name} must be finite and > 0, got {value}.")
        if not math.isfinite(self.path_loss_db):
            raise InvalidInputError(
                f"path_loss_db must be finite, got {self.path_loss_db}."
            )
        if not 0 <= self.least_rate < math.inf:
            raise InvalidInputError(
                f"least_rate must be finite and at least 0, got {self.least_rate}."
            )
        check_seed(self.seed)
        shannon = self.bandwidth * math.log1p(self.snr) / math.log(2)
        if max(shannon, self.least_rate) < 1:
            raise InvalidInputError(
                f"At a mean signal-to-noise ratio of {self.snr} the link carries under "
                "1 bit per second; raise power or least_rate, or lower path_loss_db."
            )
        draw = partial(_draw_rates, self.bandwidth, self.snr, self.least_rate)
        for name, series in (("_gains", _draw_gains), ("_rates", draw)):
            slots = SlotSeries(self.coherence_seconds, series, self.seed, _GAIN_DRAW)
            object.__setattr__(self, name, slots)

    @property
    def snr(self) -> float:
        """The mean signal-to-noise ratio: a plain ratio, not in dB."""
        received = self.power * 10 ** (-self.path_loss_db / 10)
        return received / (self.noise_density * self.bandwidth)

    def snr_at(self, t: float) -> float:
        """Return the signal-to-noise ratio at time ``t`` (s), a plain ratio."""
        return self.snr * self._gains.at(t)

    def at(self, t: float) -> float:
        """Return the bytes per second at time ``t``."""
        return self._rates.at(t)

    def bytes_between(self, start: float, end: float) -> float:
        """Return the exact integral over the intervals."""
        check_span(start, end)
        return self._rates.between(start, end)

    def seconds_for(self, size: float, at: float) -> float:
        """Return the exact inverse of the integral."""
        check_size(size)
        return self._rates.seconds_for(size, at)


def _draw_gains(generator: np.random.Generator, count: int) -> Floats:
    """Draw ``count`` power gains of mean 1."""
    return generator.exponential(size=count)


def _draw_rates(
    bandwidth: float,
    snr: float,
    least_rate: float,
    generator: np.random.Generator,
    count: int,
) -> Floats:
    """Return the bytes per second at the gains that the generator draws."""
    bits = bandwidth * np.log1p(snr * _draw_gains(generator, count)) / math.log(2)
    rates: Floats = np.maximum(bits, least_rate) / 8
    return rates
