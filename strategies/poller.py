"""Replies as they come, none of them waiting for another.

Flower's own loop looks for all replies at once every three seconds, and a look blocks
while any of the replies it found is still being uploaded. Here one thread looks, at
once at first and then less and less often, and each reply is fetched by another.
"""

from __future__ import annotations

import math
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid

from flower_ext.network.clocks import Clock, WallClock
from flower_ext.strategies.looks import Fetch, looks_at

__all__ = ["Poller", "ReplyPoller"]

_FIRST_WAIT = 0.01  # seconds between the first two looks for a reply
_GROWTH = 1.5
_LONGEST_WAIT = 0.05  # in a simulation
_REST = 2.0  # waits last so many times longer than looks, so that polling stays cheap
_MOST_THREADS = 32


class Poller(Protocol):
    """Anything that looks for the replies to pushed messages."""

    def add(self, message_ids: Iterable[str]) -> None:
        """Start looking for the replies to these messages."""
        ...

    def drop(self, message_id: str) -> None:
        """Stop looking for the reply to a message."""
        ...

    def get(self, timeout: float) -> tuple[str, Message] | None:
        """Return the next reply and the id of the message it answers.

        Parameters
        ----------
        timeout : float
            Seconds to wait at most; at least one look is made.

        Returns
        -------
        tuple[str, Message] or None
            None when the time is over.
        """
        ...

    def close(self) -> None:
        """Stop looking."""
        ...


class ReplyPoller:
    """Looks for the replies to pushed messages.

    On a remote grid one thread looks, and up to 32 fetch what it has found, so that a
    large reply holds up no other. In Flower's simulation engine, where a look costs
    nothing and never blocks, the calling thread looks for all at once.

    Parameters
    ----------
    grid : Grid
        The run's own grid.
    clock : Clock, optional
        What the calling thread waits by; by default the wall's. The other threads
        always go by that one.
    threads : bool, optional
        Whether other threads look; by default where it is not Flower's simulation
        engine.
    """

    def __init__(
        self, grid: Grid, clock: Clock | None = None, threads: bool | None = None
    ) -> None:
        self._grid = grid
        self._clock = clock or WallClock()
        if threads is None:
            threads = not _in_simulation(grid)
        self._in_process = not threads
        self._looks = looks_at(grid)
        self._outstanding: set[str] = set()
        self._fetched: set[str] = set()  # those whose replies are being fetched
        self._replies: queue.SimpleQueue[tuple[str, Message] | Exception] = (
            queue.SimpleQueue()
        )
        self._fetches: deque[tuple[str, Fetch]] = deque()
        self._changed = threading.Condition()
        self._looking = False
        self._fetching = 0  # threads
        self._resting = 0  # of them, those without work
        self._closed = False
        self._wait = _FIRST_WAIT
        self._due = 0.0  # when the next look is

    def add(self, message_ids: Iterable[str]) -> None:
        """Start looking for the replies to these messages."""
        with self._changed:
            self._outstanding.update(message_ids)
            self._look_soon()
            if not self._in_process and not self._looking and self._outstanding:
                self._looking = True
                self._start(self._look)

    def drop(self, message_id: str) -> None:
        """Stop looking for the reply to a message."""
        with self._changed:
            self._outstanding.discard(message_id)

    def get(self, timeout: float) -> tuple[str, Message] | None:
        """Return the next reply and the id of the message it answers.

        Parameters
        ----------
        timeout : float
            Seconds to wait at most; at least one look is made.

        Returns
        -------
        tuple[str, Message] or None
            None when the time is over.
        """
        if self._in_process:
            return self._get_in_process(timeout)
        try:
            found = self._replies.get(timeout=max(timeout, 0.0))
        except queue.Empty:
            return None
        if isinstance(found, Exception):
            raise found
        return found

    def close(self) -> None:
        """Stop looking; a look under way ends by itself."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _get_in_process(self, timeout: float) -> tuple[str, Message] | None:
        end = self._clock.now() + timeout
        while True:
            if self._replies.empty() and self._outstanding:
                for reply in self._grid.pull_messages(list(self._outstanding)):
                    message_id = reply.metadata.reply_to_message_id
                    self._outstanding.discard(message_id)
                    self._replies.put((message_id, reply))
                    self._wait = _FIRST_WAIT
            if not self._replies.empty():
                found = self._replies.get()
                assert isinstance(found, tuple)
                return found
            left = end - self._clock.now()
            if left <= 0:
                return None
            self._clock.sleep_until(self._clock.now() + min(self._wait, left))
            self._wait = min(self._wait * _GROWTH, _LONGEST_WAIT)

    # -- threads -----------------------------------------------------------------------

    def _start(self, work: Callable[[], None]) -> None:
        threading.Thread(target=work, name="flower-ext-poller", daemon=True).start()

    def _look_soon(self) -> None:
        """Begin with short waits again; the condition is held."""
        self._wait, self._due = _FIRST_WAIT, time.monotonic()
        self._changed.notify_all()

    def _look(self) -> None:
        """Look for what is outstanding, until closed."""
        while True:
            with self._changed:
                while not self._closed and (left := self._until_due()) > 0:
                    self._changed.wait(None if left == math.inf else left)
                if self._closed:
                    return
                wanted = list(self._outstanding - self._fetched)
            begun = time.monotonic()
            try:
                found = self._looks.look(wanted)
            except Exception as error:
                self._replies.put(error)
                return
            now = time.monotonic()
            with self._changed:
                for message_id, fetch in found:
                    self._fetched.add(message_id)
                    self._fetches.append((message_id, fetch))
                    if self._resting < len(self._fetches) and (
                        self._fetching < _MOST_THREADS
                    ):
                        self._fetching += 1
                        self._start(self._fetch)
                self._changed.notify_all()
                longest = self._looks.longest_wait * max(1.0, len(wanted) / 32)
                longest = max(longest, _REST * (now - begun))
                self._due = now + min(self._wait, longest)
                self._wait *= _GROWTH

    def _until_due(self) -> float:
        """Return the seconds until the next look, or inf; the condition is held."""
        if not self._outstanding - self._fetched:
            return math.inf
        return self._due - time.monotonic()

    def _fetch(self) -> None:
        """Fetch what looks have found, until closed."""
        while True:
            with self._changed:
                while not self._closed and not self._fetches:
                    self._resting += 1
                    self._changed.wait()
                    self._resting -= 1
                if self._closed:
                    return
                message_id, fetch = self._fetches.popleft()
            try:
                replies = list(fetch())
            except Exception as error:
                self._replies.put(error)
                return
            with self._changed:
                self._fetched.discard(message_id)
                if replies:
                    self._outstanding.discard(message_id)
                    self._wait = _FIRST_WAIT
                else:
                    self._changed.notify_all()
            for reply in replies:
                self._replies.put((message_id, reply))


def _in_simulation(grid: Grid) -> bool:
    """Return whether a grid is that of Flower's simulation engine."""
    # Told by its name, as it is Flower's own affair where that class is.
    return any(base.__name__ == "InMemoryGrid" for base in type(grid).__mro__)
