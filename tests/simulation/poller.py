"""Looks for replies in simulated time: the next one is found when it is there."""

from __future__ import annotations

from collections.abc import Iterable

from flwr.app import Message

from flower_ext.strategies.poller import ReplyPoller
from tests.simulation.grid import SimulatedGrid

__all__ = ["LookingPoller", "SimulatedPoller"]

_LOOK = 1e-6  # seconds that a look takes
_MOST_LOOKS = 20_000  # in a tenth of a second


class SimulatedPoller:
    """Hands out every reply that comes, whether it is still looked for or not.

    A look that was under way when the server lost interest finds its reply all the
    same, so the server has to know what it may use.

    Parameters
    ----------
    grid : SimulatedGrid
        Where replies come from; it brings the clock.
    """

    def __init__(self, grid: SimulatedGrid) -> None:
        self._grid = grid
        self._looked_at = -1.0
        self._looks = 0

    def add(self, message_ids: Iterable[str]) -> None:
        """Do nothing: all replies are looked for."""

    def drop(self, message_id: str) -> None:
        """Do nothing: a look may be under way."""

    def close(self) -> None:
        """Do nothing: there are no threads."""

    def get(self, timeout: float) -> tuple[str, Message] | None:
        """Return the next reply that comes within `timeout` seconds, or None."""
        grid, clock = self._grid, self._grid.clock
        self._watch()
        end = clock.now() + timeout
        while True:
            grid.advance(clock.now())
            while grid.arrived:
                message_id = grid.arrived.popleft()
                for reply in grid.pull_messages([message_id]):
                    grid.hand_out(message_id, reply)
                    return message_id, reply
            if clock.now() >= end:
                grid.advance(clock.now() + _LOOK)
                return None
            grid.advance(max(min(grid.next_event, end), clock.now() + _LOOK))

    def _watch(self) -> None:
        """Fail where the server looks and looks, and hardly any time passes."""
        now = self._grid.clock.now()
        if now > self._looked_at + 0.1:
            self._looked_at, self._looks = now, 0
        self._looks += 1
        if self._looks > _MOST_LOOKS:
            raise AssertionError(f"The server looks without end at {now:.3f} s.")


class LookingPoller(ReplyPoller):
    """The project's own poller, without threads, in simulated time.

    Parameters
    ----------
    grid : SimulatedGrid
        Where replies come from; it brings the clock.
    """

    def __init__(self, grid: SimulatedGrid) -> None:
        super().__init__(grid, grid.clock, threads=False)
        self._simulated = grid

    def get(self, timeout: float) -> tuple[str, Message] | None:
        """Return the next reply that is found within `timeout` seconds, or None."""
        self._simulated.arrived.clear()
        found = super().get(timeout)
        if found is None:
            self._simulated.advance(self._simulated.clock.now() + _LOOK)
            return None
        self._simulated.hand_out(*found)
        return found
