"""Clocks: what an algorithm that waits is given, so that it need not hold one.

On the wall clock, waiting takes its time. On the virtual clock computation counts as
long as it takes, waiting passes at once, and what another machine would do meanwhile
takes this one no time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

from flower_ext.errors import InvalidInputError

__all__ = ["Clock", "Elapsed", "VirtualClock", "WallClock"]


class Elapsed:
    """How long something took.

    Attributes
    ----------
    seconds : float
        0 until it is over.
    """

    seconds: float = 0.0


class Clock(Protocol):
    """Anything that tells the time, lets it pass, and can work for another machine."""

    def now(self) -> float:
        """Return the time in seconds, from any origin."""
        ...

    def sleep_until(self, time: float) -> None:
        """Let the time pass until then, if it is not past."""
        ...

    def elsewhere(self) -> AbstractContextManager[Elapsed]:
        """Time a block that another machine would run in parallel with this one."""
        ...


class WallClock:
    """Real time. What is done for another machine takes this one its time."""

    def now(self) -> float:
        """Return the time in seconds, from any origin."""
        return time.perf_counter()

    def sleep_until(self, time: float) -> None:
        """Sleep until then, if it is not past."""
        _sleep(_finite(time) - self.now())

    @contextmanager
    def elsewhere(self) -> Iterator[Elapsed]:
        """Time a block."""
        elapsed, begin = Elapsed(), self.now()
        try:
            yield elapsed
        finally:
            elapsed.seconds = self.now() - begin


class VirtualClock:
    """Time that passes as computation does, and skips all waiting.

    Parameters
    ----------
    timer : Callable[[], float] | None (default: None)
        What computation is measured by, in seconds; None: the wall clock.

    Examples
    --------
    >>> clock = VirtualClock(timer=lambda: 0.0)
    >>> clock.sleep_until(3.0)
    >>> clock.now()
    3.0
    """

    def __init__(self, timer: Callable[[], float] | None = None) -> None:
        self._timer = timer or time.perf_counter
        self._origin = self._timer()
        self._skipped = 0.0

    def now(self) -> float:
        """Return the seconds since the clock was made, those skipped included."""
        return self._timer() - self._origin + self._skipped

    def sleep_until(self, time: float) -> None:
        """Skip to then, if it is not past."""
        self._skipped += max(0.0, _finite(time) - self.now())

    @contextmanager
    def elsewhere(self) -> Iterator[Elapsed]:
        """Time a block, and take its time back."""
        elapsed, begin = Elapsed(), self.now()
        try:
            yield elapsed
        finally:
            elapsed.seconds = self.now() - begin
            self._skipped -= elapsed.seconds


def _finite(time: float) -> float:
    """Return a time that comes.

    Raises
    ------
    InvalidInputError
        If it never does.
    """
    if not math.isfinite(time):
        raise InvalidInputError(
            "Something waited for never arrives: the link carries nothing from then on."
        )
    return time


def _sleep(seconds: float) -> None:
    """Sleep, if there is anything to sleep."""
    if seconds > 0:
        time.sleep(seconds)
