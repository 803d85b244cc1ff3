"""A source on a simulated link: what a device would wait, without a socket."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.errors import SourceError
from flower_ext.edgeprompt.precision import EncodedBlock
from flower_ext.edgeprompt.segment_messages import (
    UNKNOWN_PART,
    check_request,
    header_of,
    header_part,
    layer_parts,
    segment_request,
    sent_size,
)
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Arrival, Wanted
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.network.clocks import Clock
from flower_ext.network.link import Link

__all__ = ["LinkedSource", "Observer", "left_to_fetch", "still_wanted"]

Observer = Callable[[bool, bytes, float], None]
"""Is told of a message on the wire: whether it goes up, its bytes, and when."""


@dataclass(frozen=True)
class _Part:
    """A message on its way down, and the layer that it completes."""

    data: bytes
    at: float
    arrival: Arrival | None = None


class LinkedSource:
    """A service at the other end of a link, on a clock that may be virtual.

    A request takes the link's way up, in which half a round trip is counted, and each
    message its way down, one after the other. Sizes are those on the wire to the byte.
    What the service computes passes on the clock as on another machine. Where it has to
    be told the text first, that is another round trip, as it is with a real edge.

    A request that replaces another ends it when the edge hears of it, half a round trip
    later: the message being sent then is sent to its end. What has not come by the time
    of the new request is lost.

    Parameters
    ----------
    service : SegmentService
        What computes and keeps the blocks.
    link : Link
        Between device and edge.
    clock : Clock
        Whose time arrivals are told by; waiting lets it pass.
    tenant : str (default: "")
        Who asks.

    Attributes
    ----------
    bytes_sent, bytes_received : int
        On the wire so far.
    requests : int
        Messages sent.
    observer : Observer | None
        Is told of every message sent and come.

    Examples
    --------
    ::

        clock = VirtualClock()
        link = Link(up=1e6, down=4e6, rtt=0.05)
        source = LinkedSource(SegmentService(model, KVStore()), link, clock)
        source.request(prefix, [Wanted(0, Precision.INT8)])
        layers = source.arrived(math.inf)
    """

    def __init__(
        self, service: SegmentService, link: Link, clock: Clock, tenant: str = ""
    ) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self.requests = 0
        self.observer: Observer | None = None
        self._service = service
        self._link = link
        self._clock = clock
        self._tenant = tenant
        self._prefix: SharedPrefix | None = None
        self._parts: Iterator[_Part] = iter(())
        self._coming: deque[_Part] = deque()
        self._come: list[Arrival] = []
        self._error: SourceError | None = None
        self._up_free = 0.0  # From when on the link's ways are free.
        self._down_free = 0.0

    def now(self) -> float:
        """Return the clock's time in seconds."""
        return self._clock.now()

    def request(
        self, prefix: SharedPrefix, wanted: Sequence[Wanted], have_layers: int = 0
    ) -> None:
        """Begin to fetch blocks, in this order, in place of what is under way.

        Parameters
        ----------
        prefix : SharedPrefix
            The shared part of a prompt.
        wanted : Sequence[Wanted]
            Blocks of it. None: end what is under way.
        have_layers : int (default: 0)
            The layers of the first that whoever asks holds, at least 0.

        Raises
        ------
        PrivateSegmentError
            If the prefix, or what is wanted of it, is of any other type.
        InvalidInputError
            If a block is none of the prefix's, or ``have_layers`` is below 0.
        """
        check_request(prefix, wanted)
        self._advance(self._clock.now())
        self._come = [a for a in self._come if still_wanted(a, self._prefix, prefix)]
        left, have = left_to_fetch(self._come, wanted, have_layers)
        self._cut_short(self._clock.now() + self._link.rtt / 2)
        self._prefix = prefix
        self._error = None
        if left:
            heard = self._ask(prefix, left, have, self._clock.now(), told=False)
            self._parts = self._served(prefix, left, have, heard)

    def arrived(self, timeout: float) -> list[Arrival]:
        """Return what has come since the last call.

        Parameters
        ----------
        timeout : float
            The most seconds to wait for something if nothing has come, at least 0; inf
            to wait until something does.

        Returns
        -------
        list[Arrival]
            Empty if nothing has come by then, or nothing is under way.

        Raises
        ------
        InvalidInputError
            If the timeout is below 0.
        SourceError
            If the service refuses, or the link carries nothing any more.
        """
        if not timeout >= 0:
            raise InvalidInputError(f"timeout must be at least 0, got {timeout}.")
        until = self._clock.now() + timeout
        self._advance(self._clock.now())
        while not self._come:
            part = self._next()
            if part is None:
                break
            if part.at > until:
                self._clock.sleep_until(until)
                break
            if part.at == math.inf:
                self._end()
                self._error = SourceError(
                    "The link carries nothing any more: the rest will not come."
                )
                break
            self._clock.sleep_until(part.at)
            # What has been waited for is there, whatever rounding says of the clock.
            self._advance(max(self._clock.now(), part.at))
        if self._error is not None and not self._come:
            error, self._error = self._error, None
            raise error
        come, self._come = self._come, []
        return come

    def _next(self) -> _Part | None:
        """Return the next message on its way, or None if nothing is under way."""
        if not self._coming:
            try:
                part = next(self._parts, None)
            except FlowerExtError as error:
                self._end()
                self._error = SourceError(f"The service refuses: {error}")
                return None
            if part is not None:
                self._coming.append(part)
        return self._coming[0] if self._coming else None

    def _advance(self, time: float) -> None:
        """Take all messages that have come by a time."""
        while self._come_by(time):
            part = self._coming.popleft()
            self.bytes_received += sent_size(part.data)
            if self.observer is not None:
                self.observer(False, part.data, part.at)
            if part.arrival is not None:
                self._come.append(part.arrival)

    def _come_by(self, time: float) -> bool:
        """Return whether the next message has come by a time."""
        part = self._next()
        return part is not None and part.at <= time

    def _cut_short(self, time: float) -> None:
        """End what is under way, of which the edge hears at a time."""
        sent = self._down_free
        while (part := self._next()) is not None:
            # When the edge is done with this message.
            sent = part.at - self._link.rtt / 2
            # Only when that has come, the device would have told the text.
            if sent >= time or part.data == UNKNOWN_PART:
                break
            self._coming.popleft()
        self._down_free = sent if sent < math.inf else time
        self._end()

    def _end(self) -> None:
        """Forget what is under way."""
        self._parts = iter(())
        self._coming.clear()

    def _served(
        self, prefix: SharedPrefix, wanted: tuple[Wanted, ...], have: int, heard: float
    ) -> Iterator[_Part]:
        """Yield what comes down for blocks, one message after the other."""
        told = False
        for index, each in enumerate(wanted):
            with self._clock.elsewhere() as computing:
                block = self._find(prefix, each)
            if block is None and not told:
                unknown = self._sent(UNKNOWN_PART, heard + computing.seconds)
                yield unknown
                rest, layers = wanted[index:], have if index == 0 else 0
                heard = self._ask(prefix, rest, layers, unknown.at, told=True)
                told = True
            with self._clock.elsewhere() as computing:
                block = block or self._service.block(prefix, each, self._tenant)
                header = header_of(block)
                data = header_part(header, _address(prefix, each), b"")
            # The edge looks for a block when it has sent the one before.
            heard = max(heard, self._down_free) + computing.seconds
            yield self._sent(data, heard)
            for layer in range(have if index == 0 else 0, len(block.layers)):
                parts = list(layer_parts(block.layers[layer]))
                for data in parts[:-1]:
                    yield self._sent(data, heard)
                last = self._sent(parts[-1], heard)
                came = Arrival(each, header, layer, block.layers[layer], last.at)
                yield _Part(last.data, last.at, came)

    def _find(self, prefix: SharedPrefix, wanted: Wanted) -> EncodedBlock | None:
        """Return a block if it is kept."""
        if prefix.identity != self._service.identity:
            raise InvalidInputError(
                "The device's model differs from the edge's, in its weights, its "
                "configuration or its type."
            )
        address = prefix.blocks[wanted.block].addresses[wanted.precision]
        return self._service.find(address, self._tenant)

    def _ask(
        self,
        prefix: SharedPrefix,
        wanted: Sequence[Wanted],
        have: int,
        at: float,
        told: bool,
    ) -> float:
        """Send a request, and return when the edge has it."""
        message = segment_request(prefix, wanted, have, with_tokens=told)
        self.requests += 1
        self.bytes_sent += sent_size(message)
        if self.observer is not None:
            self.observer(True, message, at)
        begin = max(at, self._up_free)
        if begin == math.inf:
            return begin
        heard = begin + self._link.transmit(sent_size(message), begin)
        self._up_free = heard - self._link.rtt / 2
        return heard

    def _sent(self, message: bytes, at: float) -> _Part:
        """Send a message down, not before a time."""
        begin = max(at, self._down_free)
        if begin == math.inf:
            return _Part(message, begin)
        came = begin + self._link.receive(sent_size(message), begin)
        self._down_free = came - self._link.rtt / 2
        return _Part(message, came)


def still_wanted(
    arrival: Arrival, before: SharedPrefix | None, after: SharedPrefix
) -> bool:
    """Return whether what has come of one prefix says the same of another.

    Parameters
    ----------
    arrival : Arrival
        A layer that has come.
    before, after : SharedPrefix
        The prefix it was asked for by, and the one that is asked for now.

    Returns
    -------
    bool
        Whether the block of that index is the same one in both.
    """
    wanted = arrival.wanted
    if before is None or wanted.block >= len(after.blocks):
        return False
    return _address(before, wanted) == _address(after, wanted)


def left_to_fetch(
    come: Sequence[Arrival], wanted: Sequence[Wanted], have_layers: int
) -> tuple[tuple[Wanted, ...], int]:
    """Return what of a request is left beside what is there already.

    Parameters
    ----------
    come : Sequence[Arrival]
        What has come and was not handed over yet, of the same prefix.
    wanted : Sequence[Wanted]
        The request's blocks, in their order.
    have_layers : int
        The layers of the first that whoever asks holds.

    Returns
    -------
    tuple[tuple[Wanted, ...], int]
        The blocks that are to be asked for, and the layers that are there of the first.

    Raises
    ------
    InvalidInputError
        If ``have_layers`` is below 0.
    """
    if have_layers < 0:
        raise InvalidInputError(f"have_layers must be at least 0, got {have_layers}.")
    left, have = tuple(wanted), have_layers
    for arrival in come:
        if left and arrival.wanted == left[0] and arrival.layer == have:
            have += 1
            if have == len(arrival.header.sizes):
                left, have = left[1:], 0
    return left, have


def _address(prefix: SharedPrefix, wanted: Wanted) -> bytes:
    """Return the address of a block of a prefix."""
    return prefix.blocks[wanted.block].addresses[wanted.precision].digest
