"""A device's conversation with a verifier: what is in flight, and what it has cost."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

from flower_ext.network.clocks import Clock
from flower_ext.network.link import Link
from flower_ext.speculative.choices import Choices
from flower_ext.speculative.messages import (
    Ask,
    Draft,
    Opening,
    Score,
    Scored,
    Verdict,
)
from flower_ext.speculative.verifier import Verifier

__all__ = ["Edge", "EdgeSession", "LocalEdge", "Pending", "Traffic"]


@dataclass
class Traffic:
    """What a conversation has cost.

    Parameters
    ----------
    opening_bytes : int (default: 0)
        Of the session's opening, prompt included; part of ``uplink_bytes``.
    uplink_bytes : int (default: 0)
        From device to edge, as carried by gRPC.
    downlink_bytes : int (default: 0)
        From edge to device.
    verification_seconds : float (default: 0.0)
        The edge's computation, as it reports it.
    transmission_seconds : float (default: 0.0)
        Verdicts in flight, both ways together, without the edge's computation.
    reconnections : int (default: 0)
        How often the connection was lost and made again.
    """

    opening_bytes: int = 0
    uplink_bytes: int = 0
    downlink_bytes: int = 0
    verification_seconds: float = 0.0
    transmission_seconds: float = 0.0
    reconnections: int = 0


class Pending(Protocol):
    """A verdict on its way."""

    def done(self) -> bool:
        """Return whether it has arrived."""
        ...

    def result(self) -> Verdict:
        """Wait for it.

        Raises
        ------
        VerifierUnavailableError
            If it will not come.
        """
        ...


class EdgeSession(Protocol):
    """A session as the device sees it: one message in flight at a time."""

    @property
    def traffic(self) -> Traffic:
        """What the conversation has cost so far."""
        ...

    def send(self, message: Draft | Ask) -> Pending:
        """Send a draft, or ask for more about the last one."""
        ...

    def score(self, message: Score) -> Scored:
        """Have the text scored, and wait for it; its traffic is of no account.

        Raises
        ------
        VerifierUnavailableError
            If the score will not come.
        """
        ...

    def close(self) -> None:
        """End the session."""
        ...


class Edge(Protocol):
    """Anything that opens sessions with a verifier: in this process, or far away."""

    @property
    def vocab_size(self) -> int:
        """The ids it verifies."""
        ...

    @property
    def max_length(self) -> int | None:
        """The most tokens of a text with its prompt, if there is a limit."""
        ...

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end the target's texts; none: the drafter's end them."""
        ...

    @property
    def clock(self) -> Clock:
        """What its messages take is told by this clock."""
        ...

    def start(self, opening: Opening, choices: Choices) -> EdgeSession:
        """Open a session."""
        ...


class LocalEdge:
    """A verifier in this process, behind a link that is simulated.

    On a virtual clock the verifier computes beside the device, as on a machine of its
    own; on the wall clock they share this one, and the link is slept.

    Parameters
    ----------
    verifier : Verifier
        The verifier.
    link : Link | None
        What messages travel over; None: in no time.
    clock : Clock
        The device's clock.
    """

    def __init__(self, verifier: Verifier, link: Link | None, clock: Clock) -> None:
        self._verifier = verifier
        self._link = link
        self._clock = clock

    @property
    def vocab_size(self) -> int:
        """The ids it verifies."""
        return self._verifier.vocab_size

    @property
    def max_length(self) -> int | None:
        """The most tokens of a text with its prompt, if there is a limit."""
        return self._verifier.max_length

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end the target's texts."""
        return self._verifier.eos_token_ids

    @property
    def clock(self) -> Clock:
        """What its messages take is told by this clock."""
        return self._clock

    def start(self, opening: Opening, choices: Choices) -> EdgeSession:
        """Open a session; the edge computes the prompt while the device drafts."""
        return _LocalSession(self._verifier, opening, choices, self._link, self._clock)


@dataclass
class _Arrival:
    """A verdict that is known already, and when the device has it."""

    verdict: Verdict
    time: float
    clock: Clock

    def done(self) -> bool:
        """Return whether it has arrived."""
        return self.clock.now() >= self.time

    def result(self) -> Verdict:
        """Wait for it."""
        self.clock.sleep_until(self.time)
        return self.verdict


class _LocalSession:
    """A session with a verifier in this process."""

    def __init__(
        self,
        verifier: Verifier,
        opening: Opening,
        choices: Choices,
        link: Link | None,
        clock: Clock,
    ) -> None:
        self._verifier = verifier
        self._name = opening.session
        self._link = link
        self._clock = clock
        self._origin = clock.now()  # A link's time starts with the session.
        size = opening.wire_size
        self.traffic = Traffic(opening_bytes=size, uplink_bytes=size)
        arrival = self._arrival(size)
        with clock.elsewhere() as prompt:
            verifier.open(opening, choices)
        self._edge_idle = arrival + prompt.seconds

    def send(self, message: Draft | Ask) -> Pending:
        """Send a message, and compute what the edge will answer."""
        sent = self._clock.now()
        size = message.wire_size
        begin = max(self._arrival(size), self._edge_idle)
        with self._clock.elsewhere() as computing:
            if isinstance(message, Draft):
                verdict = self._verifier.verify(self._name, message)
            else:
                verdict = self._verifier.answer(self._name, message)
        verdict = replace(verdict, seconds=computing.seconds)
        self._edge_idle = begin + computing.seconds
        down = self._down(verdict.wire_size, self._edge_idle)
        self.traffic.uplink_bytes += size
        self.traffic.downlink_bytes += verdict.wire_size
        self.traffic.verification_seconds += computing.seconds
        self.traffic.transmission_seconds += begin - sent + down
        return _Arrival(verdict, self._edge_idle + down, self._clock)

    def score(self, message: Score) -> Scored:
        """Have the text scored; that takes no time, and travels over no link."""
        with self._clock.elsewhere():
            return self._verifier.score(self._name, message)

    def close(self) -> None:
        """End the session."""
        self._verifier.close(self._name)

    def _arrival(self, size: int) -> float:
        """Return when the edge has what is sent now."""
        now = self._clock.now()
        if self._link is None:
            return now
        return now + self._link.transmit(size, max(0.0, now - self._origin))

    def _down(self, size: int, at: float) -> float:
        """Return the seconds that a message to the device takes."""
        if self._link is None:
            return 0.0
        return self._link.receive(size, max(0.0, at - self._origin))
