"""Having a prefix's KV again: computing from the front, fetching from the back.

Both go on until they meet, so each does as much as it has time for, whatever the link
does meanwhile (https://arxiv.org/abs/2410.03065). What is left to decide is when *not*
to compute, since a block that is begun holds the device up, and in which precision to
fetch. Nothing private comes in: neither the text behind the prefix nor its length.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from flower_ext.edgeprompt.estimates import DeviceSpeed, LinkEstimate
from flower_ext.edgeprompt.plan import Offer, OfferedBlock, choices
from flower_ext.edgeprompt.precision import Precision
from flower_ext.edgeprompt.source import Wanted
from flower_ext.errors import InvalidInputError

__all__ = ["Restoration"]

# Whoever computes gains a block at least, so waiting for so much of a block's time to
# hear of the link first costs them no more than that share.
_PATIENCE = 0.08
# As much of the time that is left a block that turns out to be useless may cost.
_AT_RISK = 0.1
# How often a wait is thought over, in parts of a block's time.
_LOOKS = 20
# What another precision must save of the remaining time, beside its round trip.
_WORTH = 0.1
_FIRST_RETRY = 0.1
_LAST_RETRY = 5.0


class Restoration:
    """What a device that wants missing blocks is to do next.

    It is asked (:attr:`computing`, :attr:`fetching`, :attr:`patience`) and told what
    happened; whatever it is told may change its answers. Times are of one clock, on
    which arrivals are told too; without any, it never waits before the first block.

    Parameters
    ----------
    offer : Offer
        What is missing, and what it would take to fetch it.
    device : DeviceSpeed
        Predicts computing and decoding; learns of each block computed.
    link_estimate : LinkEstimate
        Predicts the link; learns of each arrival.
    max_error : float (default: 0.02)
        Precisions that cost more are not fetched; at least 0.
    stops_within : float (default: 1.0)
        The share of a block's computation that goes on at most when it has become
        useless: 1 if it cannot be stopped, 1 / layers if it can between layers, a
        third of that between a layer's matrices. In (0, 1].
    at : float | None (default: None)
        When it begins, in seconds of the clock; None: as it is told first.
    come : Mapping[Wanted, int] (default: None)
        Bytes that are there already of blocks that are not whole.

    Attributes
    ----------
    stops_within : float
        As given.
    computed_blocks, fetched_blocks : tuple[int, ...]
        By which side each block came, in their order of coming.

    Raises
    ------
    InvalidInputError
        If a value is out of range.

    Examples
    --------
    >>> from flower_ext.edgeprompt.plan import OfferedBlock
    >>> blocks = [OfferedBlock(i, i * 10, 10, {Precision.INT8: 100}) for i in range(3)]
    >>> todo = Restoration(
    ...     Offer(blocks, {Precision.INT8: 0.01}), DeviceSpeed(), LinkEstimate()
    ... )
    >>> todo.computing, [wanted.block for wanted in todo.fetching]
    (0, [2, 1, 0])
    >>> todo.arrived(todo.fetching[0], 100, at=0.1, whole=True)
    True
    >>> todo.computed(0, seconds=0.2, at=0.2), todo.missing
    (True, (1,))
    """

    def __init__(
        self,
        offer: Offer,
        device: DeviceSpeed,
        link_estimate: LinkEstimate,
        max_error: float = 0.02,
        stops_within: float = 1.0,
        at: float | None = None,
        come: Mapping[Wanted, int] | None = None,
    ) -> None:
        if not 0 < stops_within <= 1:
            raise InvalidInputError(
                f"stops_within must lie in (0, 1], got {stops_within}: 1 if computing "
                "a block cannot be stopped."
            )
        self._allowed = list(offer.within(max_error))
        self._errors = dict(offer.errors)
        self._device = device
        self._link = link_estimate
        self.stops_within = stops_within
        self._missing: dict[int, OfferedBlock] = {b.block: b for b in offer.blocks}
        self._precision = next(iter(self._allowed), Precision.EXACT)
        self._come = dict(come or {})  # bytes of blocks that are not whole
        self._request: tuple[Wanted, ...] = ()
        self._requested_at: float | None = None
        self._heard_at: float | None = None  # the request's last arrival
        self._failures = 0
        self._lost_at: float | None = None  # since when nothing has come
        self._retry_at: float | None = None
        self._now = at
        self._begun_at = at
        self.computed_blocks: tuple[int, ...] = ()
        self.fetched_blocks: tuple[int, ...] = ()
        self._ask()

    # -- what to do -------------------------------------------------------------------

    @property
    def missing(self) -> tuple[int, ...]:
        """The blocks that are not there yet, in order."""
        return tuple(self._missing)

    @property
    def finished(self) -> bool:
        """Whether all blocks are there: whatever is still under way is useless."""
        return not self._missing

    @property
    def computing(self) -> int | None:
        """The block to compute next, all before it being there.

        None if all are there, or as long as waiting is better: look again after
        :attr:`patience`, or when something has come.
        """
        block = self._next
        return None if block is None or self._waits_for(block) else block.block

    @property
    def fetching(self) -> tuple[Wanted, ...]:
        """The request that is to be under way, highest block first; () for none.

        It stays the same as blocks of it come, and while it does nothing new is to be
        asked for. After a loss it is () until it is time to try again.
        """
        return self._request

    @property
    def patience(self) -> float:
        """The seconds after which to call :meth:`passed` if nothing has happened.

        Above 0; inf if time alone changes nothing.
        """
        waits = math.inf
        if self._now is None or self.finished:
            return waits
        if self._retry_at is not None:
            waits = max(self._retry_at - self._now, 1e-6)
        block = self._next
        if block is not None and self._waits_for(block):
            computing = self._device.seconds(block.begin, block.tokens)
            look = computing / _LOOKS
            if not self._link.measured and self._begun_at is not None:
                look = self._begun_at + _PATIENCE * computing - self._now
            # More than nothing beside the time, or the wait would never end.
            waits = min(waits, max(look, 1e-9, 4 * math.ulp(self._now)))
        return waits

    def useful(self, block: int, begun_at: float) -> bool:
        """Return whether to go on with a block that is being computed.

        For whoever can stop within a block; to be asked when something has come. What
        is stopped is begun anew if it is wanted again.

        Parameters
        ----------
        block : int
            Which.
        begun_at : float
            When it was begun.

        Returns
        -------
        bool
            False if it has come meanwhile, or all the rest is expected to come much
            sooner than it is done.
        """
        found = self._missing.get(block)
        if found is None or self.stops_within == 1:
            return found is not None
        if not self._link.measured or not self._allowed or self._now is None:
            return True
        left = self._device.seconds(found.begin, found.tokens)
        left -= self._now - begun_at
        return self._rest(found) >= self._share * left

    # -- what happened ----------------------------------------------------------------

    def passed(self, at: float) -> None:
        """Take note of the time: nothing has happened until now.

        Parameters
        ----------
        at : float
            Seconds, finite; earlier than what was told before counts as that.
        """
        if not math.isfinite(at):
            raise InvalidInputError(f"at must be finite, got {at}.")
        self._now = at if self._now is None else max(self._now, at)
        if self._begun_at is None:
            self._begun_at = self._now
        if self._request and self._requested_at is None:
            self._requested_at = self._now
        if self._retry_at is not None and self._now >= self._retry_at:
            self._retry_at = None
            self._ask()

    def computed(self, block: int, seconds: float, at: float) -> bool:
        """Take note of a block that was computed.

        Parameters
        ----------
        block : int
            Which; all before it were there.
        seconds : float
            What it took, above 0 and finite.
        at : float
            When it was done.

        Returns
        -------
        bool
            Whether it was still missing: what was computed is to be used.

        Raises
        ------
        InvalidInputError
            If a block before it is missing, or a value is out of range.
        """
        found = self._missing.get(block)
        if found is not None and self._next is not found:
            raise InvalidInputError(
                f"Block {block} cannot have been computed, as block {self.missing[0]} "
                "before it is missing."
            )
        self.passed(at)
        if found is None:
            return False
        self._device.computed(found.begin, found.tokens, seconds)
        self._have(block)
        self.computed_blocks += (block,)
        return True

    def arrived(self, wanted: Wanted, nbytes: int, at: float, whole: bool) -> bool:
        """Take note of bytes that came.

        Parameters
        ----------
        wanted : Wanted
            Of which block, in which precision.
        nbytes : int
            How many, at least 0; those of earlier calls not included.
        at : float
            When they came.
        whole : bool
            Whether all of the block has come now.

        Returns
        -------
        bool
            Whether the block was still missing, and may be used in that precision.
        """
        if wanted in self._request:
            self._measure(nbytes, at)
        self.passed(at)
        self._failures = 0
        self._lost_at = None
        if wanted.block not in self._missing or wanted.precision not in self._allowed:
            return False
        self._come[wanted] = self._come.get(wanted, 0) + nbytes
        if whole:
            self._have(wanted.block)
            self.fetched_blocks += (wanted.block,)
            self._think_over()
        return True

    def starts_over(self, wanted: Wanted) -> None:
        """Take note that a block comes again from its beginning.

        Parameters
        ----------
        wanted : Wanted
            Which, in which precision.
        """
        self._come.pop(wanted, None)

    def refused(self, precision: Precision, error: float) -> None:
        """Take note that a block's error was too large: only finer ones are left.

        Parameters
        ----------
        precision : Precision
            Its precision, which is not used any more, nor is any that costs more.
        error : float
            As the block's header tells it, at least 0.
        """
        if not error >= 0:
            raise InvalidInputError(f"error must be at least 0, got {error}.")
        told = self._errors.get(precision, error)
        left = [p for p in self._allowed if p != precision and self._errors[p] <= told]
        if left != self._allowed:
            self._allowed = left
            self._ask()

    def lost(self, at: float) -> None:
        """Take note that the link dropped: what was asked for will not come.

        Asked for again after 0.1 s, and after twice as long each time until something
        has come, 5 s at most.
        """
        self.passed(at)
        if self._lost_at is None:
            self._lost_at = self._now
        self._forget_request()
        pause = min(_FIRST_RETRY * 2.0**self._failures, _LAST_RETRY)
        self._failures = min(self._failures + 1, 32)
        self._retry_at = at + pause

    # -- whether to compute -----------------------------------------------------------

    @property
    def _next(self) -> OfferedBlock | None:
        return next(iter(self._missing.values()), None)

    def _waits_for(self, block: OfferedBlock) -> bool:
        """Return whether to wait rather than begin to compute a block.

        A block that is begun holds the device up for its whole time, or until it can
        be stopped; if all the rest is expected sooner, it is not begun.
        """
        if not self._allowed:
            return False
        computing = self._device.seconds(block.begin, block.tokens)
        if not self._link.measured:
            # Nothing is known of the link: hear of it first, for as long as is cheap.
            if self._now is None or self._begun_at is None or self.computed_blocks:
                return False
            return self._now - self._begun_at < _PATIENCE * computing
        return self._rest(block) < self._share * computing

    @property
    def _share(self) -> float:
        """The share of a block's time that beats computing it if all comes in that."""
        return min(1.0, self.stops_within / _AT_RISK)

    def _rest(self, last: OfferedBlock) -> float:
        """Return the seconds until all that is missing is expected to have come."""
        now = self._now or 0.0
        nbytes = sum(b.nbytes[self._precision] for b in self._missing.values())
        nbytes -= sum(self._come.values())
        waits = silent = 0.0
        if self._heard_at is not None:
            silent = max(0.0, now - self._heard_at)
        else:
            waits = self._link.round_trip
            if self._requested_at is not None:
                waits -= now - self._requested_at
                waits, silent = max(waits, 0.0), max(-waits, 0.0)
        if self._lost_at is not None:
            # An outage is expected to last as long again as it has lasted.
            waits += now - self._lost_at
        if self._retry_at is not None:
            waits = max(waits, self._retry_at - now + self._link.round_trip)
        flowing = self._link.seconds_for(max(nbytes, 0), silent)
        size = last.nbytes[self._precision]
        return waits + flowing + self._device.decode_seconds(self._precision, size)

    # -- what to fetch ----------------------------------------------------------------

    def _ask(self) -> None:
        """Ask for all that is missing, highest first."""
        self._forget_request()
        if not self._allowed or not self._missing:
            self._come.clear()
            return
        self._precision = min(self._times(), key=lambda pair: pair[0])[1]
        if self._retry_at is None:
            self._request = self._wanted()
            self._requested_at = self._now

    def _forget_request(self) -> None:
        self._request = ()
        self._requested_at = self._heard_at = None

    def _wanted(self) -> tuple[Wanted, ...]:
        """Return all that is missing, the first one as it has begun to come."""
        wanted = [Wanted(block, self._precision) for block in reversed(self._missing)]
        first = self._missing[wanted[0].block].nbytes
        # What has come of any other would be sent again.
        begun = {
            w: first[w.precision] - come
            for w, come in self._come.items()
            if w.block == wanted[0].block and w.precision in self._allowed
        }
        least = min(begun, key=begun.__getitem__, default=wanted[0])
        if begun and begun[least] < first[self._precision]:
            wanted[0] = least
        self._come = {w: come for w, come in self._come.items() if w == wanted[0]}
        return tuple(wanted)

    def _times(self) -> list[tuple[float, Precision]]:
        """Return when all is there, at best, if what is fetched comes in a precision.

        In the order of time; of equals, that with fewer bytes first.
        """
        blocks = tuple(self._missing.values())
        found: dict[Precision, float] = {}
        for choice in choices(self._link, self._device, blocks, self._allowed, 0.0):
            if choice.precision is not None:
                found.setdefault(choice.precision, choice.seconds)
        return [(seconds, precision) for precision, seconds in found.items()]

    def _think_over(self) -> None:
        """Ask in another precision if that pays for the round trip."""
        if not self._request or len(self._allowed) < 2 or not self._missing:
            return
        times = self._times()
        seconds = times[0][0]
        now = next(s for s, p in times if p == self._precision)
        if now > seconds * (1 + _WORTH) + self._link.round_trip:
            self._ask()

    def _measure(self, nbytes: int, at: float) -> None:
        """Tell the link's estimate of an arrival of the present request."""
        if self._heard_at is not None:
            self._link.arrived(nbytes, max(0.0, at - self._heard_at))
        elif self._requested_at is not None:
            self._link.first_bytes(nbytes, max(0.0, at - self._requested_at))
        self._heard_at = at if self._heard_at is None else max(at, self._heard_at)

    def _have(self, block: int) -> None:
        """Take note that a block is there."""
        del self._missing[block]
        self._come = {w: n for w, n in self._come.items() if w.block != block}
        if not self._missing:
            self._forget_request()
