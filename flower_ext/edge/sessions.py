"""Whose session is whose, and on which stream it goes on.

Touched by the event loop's thread alone.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Protocol

from flower_ext.edge.batching import Answer
from flower_ext.edge.refusals import busy, unknown_session

__all__ = ["OpenSession", "Sessions", "Stream"]


class Stream(Protocol):
    """Anything that a session goes on on."""

    def supersede(self) -> None:
        """Take note that a newer stream has the session now."""
        ...


@dataclass(eq=False)
class OpenSession:
    """A session of a client.

    Attributes
    ----------
    client : str
        Who has opened it.
    name : str
        By the device.
    key : str
        By which the verifier knows it; never used again for another opening.
    opened : asyncio.Future[Answer]
        Done as soon as its prompt is computed.
    last_used : float
        On the event loop's clock.
    stream : Stream | None
        Where it goes on; None while the device is away.
    """

    client: str
    name: str
    key: str
    opened: asyncio.Future[Answer]
    last_used: float
    stream: Stream | None


class Sessions:
    """All sessions of an edge.

    Parameters
    ----------
    most : int
        Of all clients together.
    most_per_client : int | None
        Of one client; None: no limit of its own.
    """

    def __init__(self, most: int, most_per_client: int | None) -> None:
        self._most = most
        self._most_per_client = most_per_client
        self._keys = count()
        # From the longest idle to the last used.
        self._sessions: OrderedDict[tuple[str, str], OpenSession] = OrderedDict()

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._sessions)

    @property
    def attached(self) -> int:
        """How many have a stream."""
        return sum(session.stream is not None for session in self)

    def __iter__(self) -> Iterator[OpenSession]:
        """Go through them, from the longest idle on."""
        return iter(self._sessions.values())

    def new_key(self) -> str:
        """Return a key that no session has had."""
        return str(next(self._keys))

    def add(self, session: OpenSession) -> None:
        """Add a session for which :meth:`room_for` has found room."""
        self._sessions[session.client, session.name] = session

    def room_for(self, client: str, name: str) -> list[OpenSession]:
        """Return the sessions that have to go so that one can be opened.

        Those are its namesake, and the longest idle whose device is away.

        Raises
        ------
        RefusedError
            If all devices are there.
        """
        namesake = self._sessions.get((client, name))
        going = [] if namesake is None else [namesake]
        own = sum(session.client == client for session in self) - len(going)
        idle = [s for s in self if s.stream is None and s is not namesake]
        if self._most_per_client is not None and own >= self._most_per_client:
            own_idle = [s for s in idle if s.client == client]
            if not own_idle:
                raise busy(f"a client may have {self._most_per_client} sessions")
            going.append(own_idle[0])
            idle.remove(own_idle[0])
        if len(self) - len(going) >= self._most:
            if not idle:
                raise busy(f"it has {self._most} sessions")
            going.append(idle[0])
        return going

    def resume(self, client: str, name: str, stream: Stream) -> OpenSession:
        """Return a session, which goes on on this stream now.

        Raises
        ------
        RefusedError
            If the client has none of this name.
        """
        session = self._sessions.get((client, name))
        if session is None:
            raise unknown_session()
        if session.stream is not None and session.stream is not stream:
            session.stream.supersede()
        session.stream = stream
        self.touch(session)
        return session

    def touch(self, session: OpenSession) -> None:
        """Take note that a session is in use."""
        session.last_used = asyncio.get_running_loop().time()
        if self.has(session):
            self._sessions.move_to_end((session.client, session.name))

    def has(self, session: OpenSession) -> bool:
        """Return whether it is still there."""
        return self._sessions.get((session.client, session.name)) is session

    def remove(self, session: OpenSession) -> None:
        """Forget a session; one that is not there is forgotten already."""
        if self.has(session):
            del self._sessions[session.client, session.name]

    def idle_since(self, time: float) -> list[OpenSession]:
        """Return the sessions that were last used before that."""
        return [session for session in self if session.last_used < time]
