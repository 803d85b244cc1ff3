"""Ways to look for the replies to many messages.

Flower's ``pull_messages`` asks which of the messages have replies, then fetches the
replies one after the other, and waits for those that are still being uploaded. Asked
for many messages, a large reply holds up the others; asked message by message, it costs
ten milliseconds for each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

__all__ = ["Fetch", "LookEach", "Looks", "looks_at"]

Fetch = Callable[[], Iterable[Message]]


class Looks(Protocol):
    """A way to look for replies."""

    longest_wait: float
    """Seconds between two looks at most, for up to 32 messages."""

    def look(self, message_ids: list[str]) -> list[tuple[str, Fetch]]:
        """Return what to fetch, by message; a fetch that finds nothing is repeated."""
        ...


class LookEach:
    """Looks of which each is a pull of one message: for any grid.

    Parameters
    ----------
    grid : Grid
        The run's own grid.
    """

    longest_wait = 0.5

    def __init__(self, grid: Grid) -> None:
        self._grid = grid

    def look(self, message_ids: list[str]) -> list[tuple[str, Fetch]]:
        """Return a pull for every message."""
        return [(i, self._fetch(i)) for i in message_ids]

    def _fetch(self, message_id: str) -> Fetch:
        return lambda: self._grid.pull_messages([message_id])


def looks_at(grid: Grid) -> Looks:
    """Return the cheapest way to look for replies on a grid."""
    # What the other way takes is Flower's own affair, and may move.
    try:
        from flower_ext.strategies.look_once import LookOnce  # noqa: PLC0415
    except ImportError:
        return LookEach(grid)
    return LookOnce(grid) if LookOnce.fits(grid) else LookEach(grid)
