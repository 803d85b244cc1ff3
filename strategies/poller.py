"""Replies as they come, none of them waiting for another.

Flower's own loop looks for all replies at once every three seconds, and a look blocks
while any of the replies it found is still being uploaded. Here every message is looked
for on its own, at once at first and then less and less often.
"""

from __future__ import annotations

import heapq
import queue
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from flwr.app import Message
from flwr.serverapp import Grid
from flwr.superlink.grid import InMemoryGrid

from flower_ext.network.clocks import Clock, WallClock

__all__ = ["Poller", "ReplyPoller"]

_FIRST_WAIT = 0.01  # seconds between the first two looks for a reply
_GROWTH = 1.5
_LONGEST_WAIT = 0.5  # per 32 messages out, so that polling stays cheap in large fleets
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

    On a remote grid each look is made by one of up to 32 threads for a single message,
    so that a large reply holds up no other. In Flower's simulation engine, where a look
    costs nothing and never blocks, the calling thread looks for all at once.

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
            threads = not isinstance(grid, InMemoryGrid)
        self._in_process = not threads
        self._outstanding: set[str] = set()
        self._replies: queue.SimpleQueue[tuple[str, Message] | Exception] = (
            queue.SimpleQueue()
        )
        self._due: list[tuple[float, str, float]] = []  # when, message id, next wait
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._wait = _FIRST_WAIT

    def add(self, message_ids: Iterable[str]) -> None:
        """Start looking for the replies to these messages."""
        with self._changed:
            for message_id in message_ids:
                self._outstanding.add(message_id)
                if not self._in_process:
                    heapq.heappush(
                        self._due, (time.monotonic(), message_id, _FIRST_WAIT)
                    )
            self._wait = _FIRST_WAIT
            wanted = min(len(self._outstanding), _MOST_THREADS)
            while not self._in_process and len(self._threads) < wanted:
                thread = threading.Thread(
                    target=self._look, name="flower-ext-poller", daemon=True
                )
                self._threads.append(thread)
                thread.start()
            self._changed.notify_all()

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
            self._wait = min(self._wait * _GROWTH, 0.1 * _LONGEST_WAIT)

    def _look(self) -> None:
        """Look for whichever message is due, until closed."""
        while True:
            with self._changed:
                while not self._closed and (
                    not self._due or self._due[0][0] > time.monotonic()
                ):
                    due_in = self._due[0][0] - time.monotonic() if self._due else None
                    self._changed.wait(due_in)
                if self._closed:
                    return
                _, message_id, wait = heapq.heappop(self._due)
                if message_id not in self._outstanding:
                    continue
                longest = _LONGEST_WAIT * max(1.0, len(self._outstanding) / 32)
            try:
                replies = list(self._grid.pull_messages([message_id]))
            except Exception as error:
                self._replies.put(error)
                return
            with self._changed:
                if replies:
                    self._outstanding.discard(message_id)
                else:
                    again = time.monotonic() + wait
                    following = min(wait * _GROWTH, longest)
                    heapq.heappush(self._due, (again, message_id, following))
                    self._changed.notify()
            for reply in replies:
                self._replies.put((message_id, reply))
