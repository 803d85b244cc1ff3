"""How long a device goes on trying to reach an edge, and how often."""

from __future__ import annotations

import asyncio
import random

from flower_ext.edge.connection import TryAgainError
from flower_ext.network.clocks import Clock

__all__ = ["Patience"]

_FIRST_WAIT = 0.05  # Seconds before the second try; doubled from try to try.
_LONGEST_WAIT = 5.0


class Patience:
    """The patience with one message.

    Parameters
    ----------
    seconds : float
        How long it lasts after the first try that has failed.
    clock : Clock
        What it is told by.
    """

    def __init__(self, seconds: float, clock: Clock) -> None:
        self._seconds = seconds
        self._clock = clock
        self._began: float | None = None
        self._wait = _FIRST_WAIT

    async def outlasts(self, again: TryAgainError) -> bool:
        """Wait until the next try, and return True; at once False if it is too late."""
        now = self._clock.now()
        self._began = now if self._began is None else self._began
        # Jitter, so that devices which were lost together do not return together.
        pause = max(again.seconds, self._wait * random.uniform(0.5, 1.0))
        if now + pause > self._began + self._seconds:
            return False
        await asyncio.sleep(pause)
        self._wait = min(2 * self._wait, _LONGEST_WAIT)
        return True
