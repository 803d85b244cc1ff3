"""A restoration over a link, in virtual time: how long it takes and what it fetches.

Computing, the link and decoding go on side by side. A new request has the link idle for
a round trip; blocks come layer by layer, and are decoded, one at a time, as each is
whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flower_ext.edgeprompt.estimates import DeviceSpeed
from flower_ext.edgeprompt.plan import Offer
from flower_ext.edgeprompt.restoration import Restoration
from flower_ext.edgeprompt.source import Wanted
from flower_ext.errors import InvalidInputError
from flower_ext.network.link import Link

__all__ = ["Simulated", "simulate"]


@dataclass(frozen=True)
class Simulated:
    """What became of a restoration.

    Parameters
    ----------
    seconds : float
        Until all blocks are there, what was fetched is decoded, and the device is free
        for the text behind them.
    computed, fetched : tuple[int, ...]
        Blocks by each side, in their order of coming.
    nbytes : int
        What came over the link, used or not.
    requests : int
        How many were made.
    """

    seconds: float
    computed: tuple[int, ...]
    fetched: tuple[int, ...]
    nbytes: int
    requests: int


def simulate(
    restoration: Restoration,
    offer: Offer,
    link: Link,
    device: DeviceSpeed,
    *,
    layers: int = 1,
    at: float = 0.0,
    outages: Sequence[tuple[float, float]] = (),
) -> Simulated:
    """Drive a restoration until it is finished.

    Parameters
    ----------
    restoration : Restoration
        Not yet begun; it is told of everything that happens.
    offer : Offer
        As it was given.
    link : Link
        What the link truly does.
    device : DeviceSpeed
        How fast the device truly is; it learns nothing.
    layers : int (default: 1)
        In how many parts a block comes, at least 1.
    at : float (default: 0.0)
        When it begins, in seconds of the link's time.
    outages : Sequence[tuple[float, float]] (default: ())
        When the link is down: from, until. What is under way is lost, and so, after a
        round trip, is what is asked for meanwhile.

    Returns
    -------
    Simulated
        What became of it.

    Raises
    ------
    InvalidInputError
        If ``layers`` is below 1, or nothing will ever happen any more.
    """
    if layers < 1:
        raise InvalidInputError(f"layers must be at least 1, got {layers}.")
    return _Run(restoration, offer, link, device, layers, at, outages).run()


class _Run:
    """A simulation under way."""

    def __init__(
        self,
        restoration: Restoration,
        offer: Offer,
        link: Link,
        device: DeviceSpeed,
        layers: int,
        at: float,
        outages: Sequence[tuple[float, float]],
    ) -> None:
        self._todo = restoration
        self._blocks = {block.block: block for block in offer.blocks}
        self._link = link
        self._device = device
        self._layers = layers
        self._begin = self._now = self._decoded = at
        self._outages = tuple(outages)
        self._asked: tuple[Wanted, ...] = ()
        self._parts: list[tuple[Wanted, int, bool]] = []  # the next one last
        self._sent_at = 0.0
        self._sent = 0
        self._next_at = math.inf
        self._fails_at = math.inf
        self._come: dict[Wanted, int] = {}
        self._block: int | None = None
        self._block_at = 0.0
        self._block_seconds = 0.0
        self._free_at = math.inf
        self._stopping = False
        self._nbytes = 0
        self._requests = 0

    def run(self) -> Simulated:
        """Return what became of it."""
        todo = self._todo
        todo.passed(self._now)
        while not todo.finished:
            self._request()
            self._begin_block()
            upcoming = min(self._next_at, self._fails_at, self._free_at)
            soon = min(upcoming, self._now + todo.patience)
            if soon == math.inf:
                raise InvalidInputError(
                    f"Blocks {todo.missing} never come: nothing can be fetched over "
                    "this link, and the device waits."
                )
            self._now = soon
            if soon == self._next_at:
                self._arrive()
            elif soon == self._fails_at:
                self._asked, self._parts = (), []
                self._next_at = self._fails_at = math.inf
                todo.lost(soon)
            elif soon == self._free_at:
                self._end_block()
            else:
                todo.passed(soon)
            self._stop_if_useless()
        done = max(self._now, self._decoded)
        if self._block is not None:
            done = max(done, self._free_at)
        return Simulated(
            done - self._begin,
            todo.computed_blocks,
            todo.fetched_blocks,
            self._nbytes,
            self._requests,
        )

    # -- the link ---------------------------------------------------------------------

    def _request(self) -> None:
        """Ask anew if another request is wanted."""
        wanted = self._todo.fetching
        if wanted == self._asked:
            return
        self._asked = wanted
        self._next_at = self._fails_at = math.inf
        self._parts = []
        if not wanted:
            return
        self._requests += 1
        self._come = {w: n for w, n in self._come.items() if w == wanted[0]}
        for w in wanted:
            size = self._blocks[w.block].nbytes[w.precision]
            begun = self._come.get(w, 0)
            ends = [size * (k + 1) // self._layers for k in range(self._layers)]
            for end in ends:
                if end > begun:
                    self._parts.append((w, end - begun, end == size))
                    begun = end
        self._parts.reverse()
        self._sent_at = self._now + self._link.rtt / 2
        self._sent = 0
        if any(begin <= self._now < end for begin, end in self._outages):
            self._fails_at = self._now + max(self._link.rtt, 1e-3)
            return
        self._fails_at = min(
            (begin for begin, _ in self._outages if begin > self._now),
            default=math.inf,
        )
        self._expect()

    def _expect(self) -> None:
        """Find out when the next part comes."""
        self._next_at = math.inf
        if self._parts:
            self._sent += self._parts[-1][1]
            taken = self._link.receive(self._sent, self._sent_at)
            self._next_at = max(self._now, self._sent_at + taken)

    def _arrive(self) -> None:
        """Take the next part."""
        wanted, size, whole = self._parts.pop()
        self._nbytes += size
        self._come[wanted] = self._come.get(wanted, 0) + size
        used = self._todo.arrived(wanted, size, self._now, whole)
        if whole and used:
            nbytes = self._blocks[wanted.block].nbytes[wanted.precision]
            decoding = self._device.decode_seconds(wanted.precision, nbytes)
            self._decoded = max(self._decoded, self._now) + decoding
        self._expect()

    # -- the device -------------------------------------------------------------------

    def _begin_block(self) -> None:
        """Compute what is to be computed, if the device is free."""
        if self._block is not None:
            return
        self._block = self._todo.computing
        if self._block is None:
            return
        block = self._blocks[self._block]
        self._block_at = self._now
        self._block_seconds = self._device.seconds(block.begin, block.tokens)
        self._free_at = self._now + self._block_seconds

    def _end_block(self) -> None:
        """Tell of the block that the device has computed, unless it was stopped."""
        block, stopped = self._block, self._stopping
        seconds = self._now - self._block_at
        self._block, self._free_at, self._stopping = None, math.inf, False
        if block is not None and not stopped:
            self._todo.computed(block, seconds, self._now)

    def _stop_if_useless(self) -> None:
        """Let the device stop as soon as it can if its block is not worth it."""
        if self._block is None or self._stopping:
            return
        if self._todo.useful(self._block, self._block_at):
            return
        step = self._todo.stops_within * self._block_seconds
        stop = self._block_at + step * math.ceil((self._now - self._block_at) / step)
        if stop < self._free_at:
            self._stopping = True
            self._free_at = stop
