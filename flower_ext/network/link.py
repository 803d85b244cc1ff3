"""A worker's link to the server: rates both ways, round-trip time and loss."""

from __future__ import annotations

from dataclasses import dataclass

from flower_ext.errors import InvalidInputError
from flower_ext.network.delays import check_seconds
from flower_ext.network.rates import ConstantRate, Rate, check_size

__all__ = ["Link"]


@dataclass(frozen=True, init=False)
class Link:
    """A link between a worker and the server.

    Parameters
    ----------
    up : Rate | float
        What the worker can send: a rate, or constant bytes per second (finite, at
        least 0). The attribute always is a rate, as is ``down``.
    down : Rate | float | None (default: None)
        What it can receive; None: as ``up``.
    rtt : float (default: 0.0)
        Round-trip time in seconds, finite and at least 0; a transfer takes half of it
        on top of the sending. 0.02 to 0.2 for mobile networks.
    loss : float (default: 0.0)
        The share of all bytes that are lost and sent again, in [0, 1); above 0.1 a
        link is hardly usable.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> link = Link(up=100.0, down=400.0, rtt=0.2, loss=0.5)
    >>> link.transmit(100.0, at=0.0), link.receive(100.0, at=0.0)
    (2.1, 0.6)
    >>> link.sent_between(0.0, 2.0)
    100.0
    """

    up: Rate
    down: Rate
    rtt: float
    loss: float

    def __init__(
        self,
        up: Rate | float,
        down: Rate | float | None = None,
        rtt: float = 0.0,
        loss: float = 0.0,
    ) -> None:
        check_seconds("rtt", rtt)
        if not 0 <= loss < 1:
            raise InvalidInputError(f"loss must lie in [0, 1), got {loss}.")
        object.__setattr__(self, "up", _as_rate("up", up))
        down = self.up if down is None else down
        object.__setattr__(self, "down", _as_rate("down", down))
        object.__setattr__(self, "rtt", rtt)
        object.__setattr__(self, "loss", loss)

    def transmit(self, size: float, at: float) -> float:
        """Return the seconds from ``at`` until all of an upload has arrived.

        Parameters
        ----------
        size : float
            Bytes, finite and at least 0.
        at : float
            When the worker begins to send: seconds, finite and at least 0.

        Returns
        -------
        float
            Half the round-trip time and the seconds of sending, what is lost included;
            inf if it never arrives.
        """
        return self.rtt / 2 + self.seconds_to_send(size, at)

    def receive(self, size: float, at: float) -> float:
        """Return the seconds from ``at`` until the worker has a download.

        Parameters and the value are as those of :meth:`transmit`.
        """
        check_size(size)
        return self.rtt / 2 + self.down.seconds_for(size / (1 - self.loss), at)

    def seconds_to_send(self, size: float, at: float) -> float:
        """Return the seconds of :meth:`transmit` in which the worker is sending."""
        check_size(size)
        return self.up.seconds_for(size / (1 - self.loss), at)

    def sent_between(self, start: float, end: float) -> float:
        """Return the useful bytes that the uplink carries over [start, end].

        Parameters
        ----------
        start, end : float
            Seconds, finite, with 0 <= start <= end.

        Returns
        -------
        float
            Bytes without those that are lost; the round-trip time does not count.
        """
        return (1 - self.loss) * self.up.bytes_between(start, end)


def _as_rate(name: str, rate: Rate | float) -> Rate:
    """Return a rate, from a rate or a number."""
    if isinstance(rate, Rate):
        return rate
    try:
        return ConstantRate(float(rate))
    except InvalidInputError as error:
        raise InvalidInputError(f"{name}: {error}") from None
