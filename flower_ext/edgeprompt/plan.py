"""What to fetch, in which precision, and what to compute: the plan and its choices.

The device computes missing blocks from the front while it fetches from the back, until
the two meet, after https://arxiv.org/abs/2410.03065 (Cake); fetching in fewer bits,
after https://arxiv.org/abs/2310.07240 (CacheGen), is a choice beside it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from flower_ext.edgeprompt.estimates import DeviceSpeed, Forecast, KnownLink
from flower_ext.edgeprompt.precision import Precision
from flower_ext.errors import InvalidInputError
from flower_ext.network.link import Link

__all__ = ["Choice", "Offer", "OfferedBlock", "Plan", "Way", "choices", "plan"]


@dataclass(frozen=True)
class OfferedBlock:
    """A missing block, and what it would take to fetch it.

    Parameters
    ----------
    block : int
        Its index among ``SharedPrefix.blocks``, at least 0.
    begin : int
        The position of its first token, at least 0.
    tokens : int
        How many it has, at least 1.
    nbytes : Mapping[Precision, int]
        Its encoded size in each precision that it can be had in, at least 1.

    Raises
    ------
    InvalidInputError
        If a value is out of range.
    """

    block: int
    begin: int
    tokens: int
    nbytes: Mapping[Precision, int]

    def __post_init__(self) -> None:
        """Check every field."""
        if self.block < 0 or self.begin < 0 or self.tokens < 1:
            raise InvalidInputError(
                "block and begin must be at least 0 and tokens at least 1, got "
                f"{self.block}, {self.begin} and {self.tokens}."
            )
        for precision, nbytes in self.nbytes.items():
            if nbytes < 1:
                raise InvalidInputError(
                    f"Block {self.block} must have a byte at least in "
                    f"{precision.name}, got {nbytes}."
                )
        object.__setattr__(self, "nbytes", MappingProxyType(dict(self.nbytes)))

    @property
    def end(self) -> int:
        """The position after its last token."""
        return self.begin + self.tokens


@dataclass(frozen=True)
class Offer:
    """What of a prefix is missing, and in which precisions it can be had.

    Parameters
    ----------
    blocks : Sequence[OfferedBlock]
        The missing ones in their order; all before and between them are held.
    errors : Mapping[Precision, float]
        What each precision costs in fidelity, as ``EncodedBlock.error`` has it: at
        least 0. Every block can be had in all of them; none: nothing can be fetched.

    Raises
    ------
    InvalidInputError
        If blocks are out of order or overlap, a size is missing or an error is
        negative.
    """

    blocks: tuple[OfferedBlock, ...]
    errors: Mapping[Precision, float]

    def __init__(
        self, blocks: Sequence[OfferedBlock], errors: Mapping[Precision, float]
    ) -> None:
        object.__setattr__(self, "blocks", tuple(blocks))
        object.__setattr__(self, "errors", MappingProxyType(dict(errors)))
        for precision, error in self.errors.items():
            if not error >= 0:
                raise InvalidInputError(
                    f"The error of {precision.name} must be at least 0, got {error}."
                )
        for block in self.blocks:
            for precision in self.errors:
                if precision not in block.nbytes:
                    raise InvalidInputError(
                        f"Block {block.block} has no size in {precision.name}: every "
                        "precision that has an error needs one."
                    )
        for before, after in itertools.pairwise(self.blocks):
            if before.block >= after.block or before.end > after.begin:
                raise InvalidInputError(
                    f"Block {after.block} at {after.begin} cannot follow block "
                    f"{before.block}, which ends at {before.end}: give the missing "
                    "blocks in their order."
                )

    def within(self, max_error: float) -> tuple[Precision, ...]:
        """Return the precisions whose error is at most the bound, finest first.

        Raises
        ------
        InvalidInputError
            If the bound is negative.
        """
        if not max_error >= 0:
            raise InvalidInputError(
                f"max_error must be at least 0, got {max_error}: 0 allows what is "
                "exact."
            )
        allowed = [p for p, error in self.errors.items() if error <= max_error]
        return tuple(sorted(allowed, key=lambda p: self.errors[p]))


class Way(Enum):
    """How missing blocks are had."""

    RECOMPUTE = "recompute"
    """The device computes all."""
    FETCH = "fetch"
    """All are fetched."""
    SPLIT = "split"
    """The first are computed while the others are fetched."""


@dataclass(frozen=True)
class Choice:
    """One way to have the missing blocks, and how long it takes.

    Parameters
    ----------
    way : Way
        How.
    computed : int
        How many of the missing blocks are computed: the first.
    precision : Precision | None
        In which the others are fetched; None if there are no others.
    seconds : float
        Predicted until the last of them is there; inf if it never will be.
    """

    way: Way
    computed: int
    precision: Precision | None
    seconds: float


@dataclass(frozen=True)
class Plan:
    """The best choice, and what else there was.

    Parameters
    ----------
    best : Choice
        That with the least predicted time.
    alternatives : tuple[Choice, ...]
        All others, best first.
    """

    best: Choice
    alternatives: tuple[Choice, ...]

    @property
    def way(self) -> Way:
        """How the blocks are had."""
        return self.best.way

    @property
    def computed(self) -> int:
        """How many of the missing blocks are computed: the first."""
        return self.best.computed

    @property
    def precision(self) -> Precision | None:
        """In which the others are fetched."""
        return self.best.precision

    @property
    def seconds(self) -> float:
        """Predicted until all blocks are there."""
        return self.best.seconds


def plan(
    link: Link | Forecast,
    device: DeviceSpeed,
    segment: Offer,
    *,
    max_error: float = 0.02,
    at: float = 0.0,
) -> Plan:
    """Choose what to fetch and in which precision, and what to compute.

    Computing, the link and decoding go on side by side, each of them block by block;
    fetched blocks come highest first and are decoded as each is whole.

    Parameters
    ----------
    link : Link | Forecast
        A link whose rate is known at all times, or what has been learned of one, as a
        :class:`~flower_ext.edgeprompt.estimates.LinkEstimate`.
    device : DeviceSpeed
        How fast the device is.
    segment : Offer
        What is missing, at least one block.
    max_error : float (default: 0.02)
        Precisions that cost more are not considered; at least 0.
    at : float (default: 0.0)
        When it begins, in seconds of the link's time; at least 0 and finite.

    Returns
    -------
    Plan
        The choice with the least predicted time: of equals, that with fewer bytes.

    Raises
    ------
    InvalidInputError
        If nothing is missing or a value is out of range.

    Examples
    --------
    >>> from flower_ext.network import Link
    >>> blocks = [OfferedBlock(i, i * 10, 10, {Precision.FP16: 100}) for i in range(3)]
    >>> device = DeviceSpeed(0.0, 0.1, 0.0, {Precision.FP16: 0.0})
    >>> best = plan(Link(up=100.0), device, Offer(blocks, {Precision.FP16: 0.0}))
    >>> best.way.value, best.computed, best.precision.value, best.seconds
    ('split', 2, 'fp16', 2.0)
    """
    if not segment.blocks:
        raise InvalidInputError("No block is missing: there is nothing to plan.")
    if not 0 <= at < math.inf:
        raise InvalidInputError(f"at must be finite and at least 0, got {at}.")
    forecast = KnownLink(link) if isinstance(link, Link) else link
    allowed = segment.within(max_error)
    found = choices(forecast, device, segment.blocks, allowed, at)
    return Plan(found[0], tuple(found[1:]))


def choices(
    link: Forecast,
    device: DeviceSpeed,
    blocks: Sequence[OfferedBlock],
    precisions: Sequence[Precision],
    at: float,
) -> list[Choice]:
    """Return every choice with its predicted time, best first.

    Parameters
    ----------
    link : Forecast
        The link.
    device : DeviceSpeed
        The device.
    blocks : Sequence[OfferedBlock]
        What is missing, in order; at least one.
    precisions : Sequence[Precision]
        What may be fetched.
    at : float
        When it begins.

    Returns
    -------
    list[Choice]
        Of equal times that with fewer bytes first.
    """
    times = (device.seconds(b.begin, b.tokens) for b in blocks)
    computing = [0.0, *itertools.accumulate(times)]
    count = len(blocks)
    found = [(Choice(Way.RECOMPUTE, count, None, computing[count]), 0)]
    for precision in precisions:
        nbytes = 0
        decoded = 0.0
        for k in range(count - 1, -1, -1):
            size = blocks[k].nbytes[precision]
            nbytes += size
            whole = link.fetch_seconds(nbytes, at)
            decoded = max(decoded, whole) + device.decode_seconds(precision, size)
            way = Way.SPLIT if k else Way.FETCH
            seconds = max(computing[k], decoded)
            found.append((Choice(way, k, precision, seconds), nbytes))
    found.sort(key=lambda pair: (pair[0].seconds, pair[1]))
    return [choice for choice, _ in found]
