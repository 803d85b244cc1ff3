"""Two clocks to run a federation by: the wall's, and a virtual one.

On the wall clock replies arrive when they arrive. On the virtual clock every reply says
how long it would have taken; all pushed messages are answered first, and the replies
are then handed out in the order of their simulated completion times, so that a
simulation of stragglers takes no longer than its computation and is the same for the
same seed. Where the network is simulated too, a reply then travels over its worker's
link and the carrier that all share.
"""

from __future__ import annotations

import heapq
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from flwr.app import Message

from flower_ext.coding.assignment import Assignment
from flower_ext.coding.plan import Dispatch
from flower_ext.network.carrier import SharedCarrier
from flower_ext.network.clocks import Clock
from flower_ext.network.link import Link
from flower_ext.strategies.poller import Poller

__all__ = [
    "Arrival",
    "Arrivals",
    "NetworkArrivals",
    "Sent",
    "Transfer",
    "VirtualArrivals",
    "WallArrivals",
]


_OUTDATED = 1e-9  # weight of a reply to a round that is over, beside shares of it


@dataclass(frozen=True)
class Sent:
    """A message that was pushed and not answered yet.

    Parameters
    ----------
    message_id : str
        Flower's id of the message.
    node_id : int
        Its destination.
    server_round : int
        The round that it belongs to; 0 for a holdings request.
    at : float
        When it was pushed, seconds on the run's clock.
    expires : float
        When its TTL is over, seconds on the clock that replies really come by.
    dispatch : Dispatch, optional
        The plan's dispatch, for a train message.
    assignment : Assignment, optional
        What it asks for, for a train message.
    size : int (default: 0)
        Bytes of its arrays.
    share : float (default: 1.0)
        The weight with which its reply shares a simulated carrier, positive.
    """

    message_id: str
    node_id: int
    server_round: int
    at: float
    expires: float
    dispatch: Dispatch | None = None
    assignment: Assignment | None = None
    size: int = 0
    share: float = 1.0


class Arrival(NamedTuple):
    """A reply at the time it counts from."""

    sent: Sent
    message: Message
    at: float


class Arrivals(ABC):
    """The run's time, and the replies in the order in which they arrive by it.

    Parameters
    ----------
    poller : Poller
        Where the replies really come from.
    clock : Clock
        What they really come by.
    """

    def __init__(self, poller: Poller, clock: Clock) -> None:
        self._poller = poller
        self._clock = clock
        self._sent: dict[str, Sent] = {}

    def add(self, sent: list[Sent]) -> None:
        """Expect the replies to pushed messages."""
        self._sent.update((s.message_id, s) for s in sent)
        self._poller.add(s.message_id for s in sent)

    @property
    @abstractmethod
    def now(self) -> float:
        """Seconds since the run began."""

    @abstractmethod
    def next(self, until: float) -> Arrival | None:
        """Return the next reply, or None when it is `until` by the clock."""

    def expired(self) -> list[Sent]:
        """Return messages whose TTL is over, and expect their replies no more."""
        now = self._clock.now()
        over = [s for s in self._sent.values() if s.expires < now]
        for sent in over:
            del self._sent[sent.message_id]
            self._poller.drop(sent.message_id)
        return over

    def outdate(self) -> None:
        """Tell that replies under way have lost their use, and may come last.

        It changes something only where a carrier is simulated.
        """
        return

    def _pull(self, timeout: float) -> tuple[Sent, Message] | None:
        found = self._poller.get(timeout)
        if found is None or found[0] not in self._sent:
            return None
        return self._sent.pop(found[0]), found[1]


class WallArrivals(Arrivals):
    """Replies as they come."""

    def __init__(self, poller: Poller, clock: Clock) -> None:
        super().__init__(poller, clock)
        self._start = clock.now()

    @property
    def now(self) -> float:
        """Seconds since the run began."""
        return self._clock.now() - self._start

    def next(self, until: float) -> Arrival | None:
        """Return the next reply, or None when it is `until` by the clock."""
        found = self._pull(max(until - self.now, 0.0))
        return None if found is None else Arrival(*found, self.now)


class VirtualArrivals(Arrivals):
    """Replies by their simulated completion times.

    Parameters
    ----------
    poller, clock
        As in :class:`Arrivals`.
    duration : Callable[[Sent, Message], float]
        The simulated time that a reply reports, seconds.
    timeout : float
        Wall seconds that an answer may take; a message without one by then is never
        answered.
    """

    def __init__(
        self,
        poller: Poller,
        clock: Clock,
        duration: Callable[[Sent, Message], float],
        timeout: float,
    ) -> None:
        super().__init__(poller, clock)
        self._duration = duration
        self._timeout = timeout
        self._now = 0.0
        # Unique, so that replies at the same time keep the order of their messages.
        self._numbers = itertools.count()
        self._order: dict[str, int] = {}
        self._ready: list[tuple[float, int, Arrival]] = []
        self._given_up: set[str] = set()

    def add(self, sent: list[Sent]) -> None:
        """Expect the replies to pushed messages."""
        for s in sent:
            self._order[s.message_id] = next(self._numbers)
        super().add(sent)

    def expired(self) -> list[Sent]:
        """Return messages whose TTL is over, and expect their replies no more."""
        over = super().expired()
        for s in over:
            del self._order[s.message_id]
            self._given_up.discard(s.message_id)
        return over

    @property
    def now(self) -> float:
        """Virtual seconds since the run began."""
        return self._now

    def next(self, until: float) -> Arrival | None:
        """Return the next reply, or None when it is `until` by the virtual clock."""
        self._settle()
        if self._ready and self._ready[0][0] <= until:
            at, _, arrival = heapq.heappop(self._ready)
            self._now = max(self._now, at)
            return arrival._replace(at=self._now)
        if until != float("inf"):
            self._now = max(self._now, until)
        return None

    def state(self) -> list[tuple[float, Arrival]]:
        """Return the replies that have been computed, and when each will arrive."""
        return [(at, arrival) for at, _, arrival in sorted(self._ready)]

    def restore(self, now: float, ready: list[tuple[float, Arrival]]) -> None:
        """Set the clock, and expect replies of a :meth:`state`."""
        self._now = now
        for at, arrival in ready:
            heapq.heappush(self._ready, (at, next(self._numbers), arrival))

    def _settle(self) -> None:
        """Wait, on the wall clock, until every pushed message is answered."""
        end = self._clock.now() + self._timeout
        while self._sent.keys() - self._given_up:
            found = self._pull(max(end - self._clock.now(), 0.0))
            if found is None:
                if self._clock.now() >= end:
                    self._given_up = set(self._sent)
                continue
            sent, message = found
            self._given_up.discard(sent.message_id)
            number = self._order.pop(sent.message_id)
            self._schedule(number, sent, message)

    def _schedule(self, number: int, sent: Sent, message: Message) -> None:
        """Let a reply arrive when it says that it would have."""
        at = sent.at + self._duration(sent, message)
        heapq.heappush(self._ready, (at, number, Arrival(sent, message, at)))


class Transfer(NamedTuple):
    """What a reply needs of the network."""

    link: Link
    size: int
    never: bool = False  # whether its link is dead


class NetworkArrivals(VirtualArrivals):
    """Replies by their simulated completion times and a simulated network.

    Parameters
    ----------
    poller, clock, duration, timeout
        As in :class:`VirtualArrivals`; a reported upload time comes on top.
    transfer : Callable[[Sent, Message], Transfer or None]
        What a reply needs of the network; None for one that takes no time on it.
    dedicated : bool
        Whether each worker has its link to itself.
    """

    def __init__(
        self,
        poller: Poller,
        clock: Clock,
        duration: Callable[[Sent, Message], float],
        timeout: float,
        transfer: Callable[[Sent, Message], Transfer | None],
        dedicated: bool,
    ) -> None:
        super().__init__(poller, clock, duration, timeout)
        self._transfer = transfer
        self._carrier = SharedCarrier(dedicated=dedicated)
        self._uploading: dict[int, Arrival] = {}

    def next(self, until: float) -> Arrival | None:
        """Return the next reply, or None when it is `until` by the virtual clock."""
        self._settle()
        others = self._ready[0][0] if self._ready else float("inf")
        uploaded = self._carrier.next(max(min(until, others), self._carrier.now))
        if uploaded is None:
            return super().next(until)
        number, at = uploaded
        assert isinstance(number, int)  # as added below
        self._now = max(self._now, at)
        return self._uploading.pop(number)._replace(at=self._now)

    def outdate(self) -> None:
        """Leave replies under way what the replies of the next round do not use."""
        self._carrier.reweight(dict.fromkeys(self._uploading, _OUTDATED))

    def uploads(self) -> tuple[dict[str, Any], dict[int, Arrival]]:
        """Return the carrier's state, and the reply of each of its jobs."""
        return self._carrier.state(), dict(self._uploading)

    def restore_uploads(
        self,
        carrier: Mapping[str, Any],
        uploading: Mapping[int, Arrival],
        link: Callable[[int], Link],
    ) -> None:
        """Go on with :meth:`uploads`; `link` says which link each job is sent over."""
        # Jobs are numbered anew, and none is given a number that is in use.
        first = max(uploading, default=-1) + 1
        self._numbers = itertools.count(max(first, next(self._numbers)))
        self._carrier.restore(carrier, lambda job: link(cast(int, job)))
        self._uploading = dict(uploading)

    def _schedule(self, number: int, sent: Sent, message: Message) -> None:
        """Let a reply be computed, then uploaded."""
        transfer = self._transfer(sent, message)
        if transfer is None:
            super()._schedule(number, sent, message)
            return
        if transfer.never:  # its node stays busy
            return
        start = sent.at + transfer.link.receive(sent.size, sent.at)
        start += self._duration(sent, message)
        start = max(start, self._carrier.now)
        self._uploading[number] = Arrival(sent, message, start)
        self._carrier.add(number, start, transfer.size, transfer.link, sent.share)
