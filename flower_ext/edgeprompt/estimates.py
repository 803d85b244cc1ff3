"""What a device has learned of its own speed and of its link, from what it measured.

Both are told of what happened and predict what comes next; neither looks at a clock.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from flower_ext.edgeprompt.precision import Precision
from flower_ext.errors import InvalidInputError
from flower_ext.network.link import Link

__all__ = ["DECODING", "DeviceSpeed", "Forecast", "KnownLink", "LinkEstimate"]

DECODING: dict[Precision, float] = {
    Precision.EXACT: 0.25e-9,
    Precision.FP16: 0.5e-9,
    Precision.BF16: 0.5e-9,
    Precision.INT8: 1e-9,
    Precision.INT4: 2e-9,
}
"""Seconds per encoded byte, until it has been measured: one core of a phone's CPU."""

_Row = tuple[float, float, float]
_KEPT = 48
# How much a measurement says beside the newest one, per measurement in between: a
# device that has become hot is believed after about ten blocks.
_FADING = 0.9
# Residuals beyond this share of a measured time count no more if they grow.
_HUBER = 0.2
_ROUNDS = 6
# What keeps the three costs in their usual proportion until blocks at several
# positions tell them apart.
_RIDGE = 0.03
_WINDOW_SECONDS = 0.7


class Forecast(Protocol):
    """Anything that says how long a download will take."""

    def fetch_seconds(self, nbytes: float, at: float) -> float:
        """Return the seconds from a request at ``at`` until that many bytes have come.

        Parameters
        ----------
        nbytes : float
            At least 0.
        at : float
            When it is asked for, in seconds.

        Returns
        -------
        float
            At least 0; inf if they never come.
        """
        ...


class KnownLink:
    """A link that is perfectly known, also in times to come.

    Parameters
    ----------
    link : Link
        Blocks come down it; the request takes half of its round-trip time.

    Examples
    --------
    >>> KnownLink(Link(up=100.0, rtt=0.5)).fetch_seconds(200.0, at=0.0)
    2.5
    """

    def __init__(self, link: Link) -> None:
        self.link = link

    def fetch_seconds(self, nbytes: float, at: float) -> float:
        """Return the request's half round trip and the download's time."""
        request = self.link.rtt / 2
        return request + self.link.receive(nbytes, at + request)


class LinkEstimate:
    """A link as its arrivals have shown it.

    Its rate is that of the last second: an average of arrivals whose weight fades by
    e within 0.7 s, or the last one's alone where they are rarer.

    Parameters
    ----------
    bytes_per_second : float (default: 2.5e6)
        What to believe until something has been measured, above 0 and finite.
    round_trip : float (default: 0.05)
        Seconds, likewise; at least 0 and finite.

    Raises
    ------
    InvalidInputError
        If a parameter or a measurement is out of range.

    Examples
    --------
    >>> link = LinkEstimate()
    >>> link.first_bytes(100.0, seconds=0.3)
    >>> link.arrived(200.0, seconds=0.2)
    >>> link.bytes_per_second, round(link.round_trip, 3)
    (1000.0, 0.2)
    """

    def __init__(
        self, bytes_per_second: float = 2.5e6, round_trip: float = 0.05
    ) -> None:
        if not 0 < bytes_per_second < math.inf:
            raise InvalidInputError(
                "bytes_per_second must be finite and above 0, got "
                f"{bytes_per_second}: it is what is believed at first."
            )
        _check_seconds("round_trip", round_trip)
        self._first_rate = bytes_per_second
        self._first_round_trip = round_trip
        self._bytes = 0.0
        self._seconds = 0.0
        self._unit = 0.0
        self._delays: deque[tuple[float, float]] = deque(maxlen=5)

    @property
    def measured(self) -> bool:
        """Whether the rate has been measured."""
        return self._seconds > 0

    @property
    def bytes_per_second(self) -> float:
        """What the link carries now."""
        if self.measured:
            return self._bytes / self._seconds
        # What came first may have come faster than this, but no slower.
        least = (b / s for s, b in self._delays if s > 0)
        return max(self._first_rate, *least, 0.0)

    @property
    def round_trip(self) -> float:
        """Seconds from a request to its first byte."""
        if not self._delays:
            return self._first_round_trip
        rate = self.bytes_per_second
        return statistics.median(max(0.0, s - b / rate) for s, b in self._delays)

    def first_bytes(self, nbytes: float, seconds: float) -> None:
        """Learn from a request's first arrival.

        Parameters
        ----------
        nbytes : float
            What came, at least 0 and finite.
        seconds : float
            Since the request, at least 0 and finite.
        """
        _check_bytes(nbytes)
        _check_seconds("seconds", seconds)
        self._unit = max(nbytes, 1.0)
        self._delays.append((seconds, nbytes))

    def arrived(self, nbytes: float, seconds: float) -> None:
        """Learn from an arrival that is not a request's first.

        Parameters
        ----------
        nbytes : float
            What came, at least 0 and finite.
        seconds : float
            Since the arrival before, at least 0 and finite.
        """
        _check_bytes(nbytes)
        _check_seconds("seconds", seconds)
        fading = math.exp(-seconds / _WINDOW_SECONDS)
        self._bytes = self._bytes * fading + nbytes
        self._seconds = self._seconds * fading + seconds
        self._unit = max(nbytes, 1.0)

    def seconds_for(self, nbytes: float, silent: float = 0.0) -> float:
        """Return the seconds that bytes take once they flow.

        Parameters
        ----------
        nbytes : float
            At least 0.
        silent : float (default: 0.0)
            Seconds for which nothing has come although something was to: in that time
            less has been carried than comes at once, which bounds the rate.

        Returns
        -------
        float
            Seconds.
        """
        rate = self.bytes_per_second
        if silent > 0 and self._unit:
            rate = min(rate, self._unit / silent)
        return nbytes / rate

    def fetch_seconds(self, nbytes: float, at: float) -> float:
        """Return a round trip and the bytes' time; when it is makes no difference."""
        return self.round_trip + self.seconds_for(nbytes)


class DeviceSpeed:
    """How fast a device computes and decodes, learned from what it has done.

    Computing ``count`` tokens behind ``begin`` others is taken to last
    base + per_token·count + per_pair·(count·begin + count²/2) seconds. The three costs
    are fitted, none negative, to the last 48 measurements, the newer the more, large
    deviations counting less; where these leave them open they keep the proportions
    given here.

    Parameters
    ----------
    base, per_token, per_pair : float
        What to believe until something has been measured: seconds per block, per token
        and per pair of a token and one that it attends to. At least 0 and finite; one
        is above 0. The defaults are those of a small model on a phone.
    decoding : Mapping[Precision, float] (default: :data:`DECODING`)
        Seconds per encoded byte, likewise; what is not in it is as in the default.

    Raises
    ------
    InvalidInputError
        If a parameter or a measurement is out of range.

    Examples
    --------
    >>> device = DeviceSpeed(base=0.0, per_token=0.002, per_pair=0.0)
    >>> device.seconds(begin=0, count=100)
    0.2
    >>> device.computed(begin=0, count=100, seconds=0.4)
    >>> round(device.seconds(begin=0, count=200), 6)
    0.8
    """

    def __init__(
        self,
        base: float = 5e-3,
        per_token: float = 2e-3,
        per_pair: float = 1e-7,
        decoding: Mapping[Precision, float] | None = None,
    ) -> None:
        self._first = np.array([base, per_token, per_pair], np.float64)
        if not (np.isfinite(self._first).all() and (self._first >= 0).all()):
            raise InvalidInputError(
                "base, per_token and per_pair must be finite and at least 0, got "
                f"{base}, {per_token} and {per_pair}."
            )
        if not base + per_token > 0:
            raise InvalidInputError(
                "base and per_token must not both be 0: computing takes time."
            )
        self._decoding = {**DECODING, **(decoding or {})}
        for precision, cost in self._decoding.items():
            _check_seconds(f"decoding[{precision.name}]", cost)
        self._computed: deque[tuple[int, int, float]] = deque(maxlen=_KEPT)
        self._decoded: dict[Precision, deque[float]] = {}
        self._costs = self._first

    def computed(self, begin: int, count: int, seconds: float) -> None:
        """Learn from a block that was computed.

        Parameters
        ----------
        begin : int
            The tokens before it, at least 0.
        count : int
            Its tokens, at least 1.
        seconds : float
            What it took, above 0 and finite.
        """
        _check_run(begin, count)
        if not 0 < seconds < math.inf:
            raise InvalidInputError(
                f"seconds must be finite and above 0, got {seconds}."
            )
        self._computed.append((begin, count, seconds))
        self._costs = self._fitted()

    def decoded(self, precision: Precision, nbytes: int, seconds: float) -> None:
        """Learn from a block that was decoded.

        Parameters
        ----------
        precision : Precision
            Its precision.
        nbytes : int
            Its encoded size, at least 1.
        seconds : float
            What it took, at least 0 and finite.
        """
        if nbytes < 1:
            raise InvalidInputError(f"nbytes must be at least 1, got {nbytes}.")
        _check_seconds("seconds", seconds)
        costs = self._decoded.setdefault(precision, deque(maxlen=_KEPT))
        costs.append(seconds / nbytes)

    def seconds(self, begin: int, count: int) -> float:
        """Return how long it takes to compute tokens.

        Parameters
        ----------
        begin : int
            The tokens before them, at least 0.
        count : int
            How many, at least 1.

        Returns
        -------
        float
            Seconds, at least 0.
        """
        _check_run(begin, count)
        return float(self._costs @ np.array(_row(begin, count)))

    def decode_seconds(self, precision: Precision, nbytes: float) -> float:
        """Return how long it takes to decode bytes: at their median speed."""
        measured = self._decoded.get(precision)
        cost = statistics.median(measured) if measured else self._decoding[precision]
        return cost * nbytes

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers, strings, lists and dictionaries."""
        return {
            "costs": self._first.tolist(),
            "decoding": {p.value: c for p, c in self._decoding.items()},
            "computed": [list(m) for m in self._computed],
            "decoded": {p.value: list(c) for p, c in self._decoded.items()},
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DeviceSpeed:
        """Return what :meth:`to_dict` was made of.

        Raises
        ------
        InvalidInputError
            If it was not made so.
        """
        try:
            base, per_token, per_pair = data["costs"]
            decoding = {Precision(p): float(c) for p, c in data["decoding"].items()}
            device = cls(base, per_token, per_pair, decoding)
            for begin, count, seconds in data["computed"]:
                device.computed(begin, count, seconds)
            for precision, costs in data["decoded"].items():
                for cost in costs:
                    _check_seconds("decoded", cost)
                device._decoded[Precision(precision)] = deque(costs, maxlen=_KEPT)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, InvalidInputError):
                raise
            raise InvalidInputError(
                f"This is not a DeviceSpeed's dictionary: {error!r}."
            ) from error
        return device

    def _fitted(self) -> NDArray[np.float64]:
        """Return the costs that the measurements speak for."""
        rows = np.array([_row(begin, count) for begin, count, _ in self._computed])
        seconds = np.array([s for _, _, s in self._computed])
        weights = np.array([_FADING**age for age in range(len(seconds))][::-1])
        # In shares of each measured time, so that short blocks count as much as long.
        rows /= seconds[:, None]
        told = rows @ self._first
        usual = self._first / _weighted_median(told, weights)
        # A cost that was given as 0 stays 0 until a fit without it is far off.
        scale = np.where(usual > 0, usual, 1e-3 / np.max(rows, axis=0))
        pull = _RIDGE * np.eye(3)
        costs: NDArray[np.float64] = usual
        # The first fit takes all alike: it is the costs' proportions that may be off.
        robust = weights
        for _ in range(_ROUNDS):
            root = np.sqrt(robust)
            left = np.vstack([rows * scale * root[:, None], pull])
            right = np.concatenate([root, pull @ (usual / scale)])
            costs = nnls(left, right)[0] * scale
            off = np.abs(rows @ costs - 1)
            robust = weights * np.minimum(1.0, _HUBER / np.maximum(off, 1e-12)) ** 2
        return costs


def _row(begin: int, count: int) -> _Row:
    """Return what the three costs are multiplied by."""
    return (1.0, float(count), count * begin + count * count / 2)


def _weighted_median(
    values: NDArray[np.float64], weights: NDArray[np.float64]
) -> float:
    """Return the least value with half of the weight at or below it."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, reached[-1] / 2)])


def _check_run(begin: int, count: int) -> None:
    """Raise unless these are tokens of a prompt."""
    if begin < 0 or count < 1:
        raise InvalidInputError(
            f"begin must be at least 0 and count at least 1, got {begin} and {count}."
        )


def _check_bytes(nbytes: float) -> None:
    """Raise unless this is a number of bytes."""
    if not 0 <= nbytes < math.inf:
        raise InvalidInputError(f"nbytes must be finite and at least 0, got {nbytes}.")


def _check_seconds(name: str, seconds: float) -> None:
    """Raise unless this is a span of time."""
    if not 0 <= seconds < math.inf:
        raise InvalidInputError(f"{name} must be finite and at least 0, got {seconds}.")
