"""A source that writes down what goes out of a device, and what comes in.

Two runs that differ in their private text alone must leave the same transcript: that is
what *non-interference* claims, and how it is tested.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.segment_messages import bytes_of, sent_size
from flower_ext.edgeprompt.source import Arrival, SegmentSource, Wanted

__all__ = ["Asked", "Came", "Message", "Record", "RecordingSource"]


@dataclass(frozen=True)
class Asked:
    """Blocks were asked for.

    Parameters
    ----------
    addresses : tuple[bytes, ...]
        Theirs, 32 bytes each, in the order asked for; none: what was under way ended.
    at : float
        When, in seconds of the source's clock.
    """

    addresses: tuple[bytes, ...]
    at: float


@dataclass(frozen=True)
class Message:
    """A message passed the wire.

    Parameters
    ----------
    up : bool
        Whether it left the device.
    size : int
        Its bytes, with gRPC's prefix.
    digest : bytes
        SHA-256 of the message.
    data : bytes
        The message itself if it left the device; what comes in is too much to keep.
    at : float
        When it was sent or had come, in seconds of the source's clock.
    """

    up: bool
    size: int
    digest: bytes
    data: bytes
    at: float


@dataclass(frozen=True)
class Came:
    """A layer was handed over.

    Parameters
    ----------
    address : bytes
        Its block's, 32 bytes.
    layer : int
        Which.
    size : int
        Its bytes.
    digest : bytes
        SHA-256 of them.
    at : float
        When it came, in seconds of the source's clock.
    """

    address: bytes
    layer: int
    size: int
    digest: bytes
    at: float


Record = Asked | Message | Came
"""What a transcript consists of."""


class RecordingSource:
    """A source around another one.

    Parameters
    ----------
    source : SegmentSource
        What fetches. If it has an attribute ``observer``, as
        :class:`~flower_ext.edgeprompt.linked_source.LinkedSource` and
        :class:`~flower_ext.edge.RemoteSegments` have, every message on the wire is
        written down too.

    Attributes
    ----------
    transcript : list[Record]
        What happened, in its order: :class:`Asked`, :class:`Message`, :class:`Came`.
    """

    def __init__(self, source: SegmentSource) -> None:
        self.transcript: list[Record] = []
        self._source = source
        self._prefix: SharedPrefix | None = None
        if hasattr(source, "observer"):
            observed: Any = source
            observed.observer = self._passed

    def now(self) -> float:
        """Return the time in seconds, on the source's clock."""
        return self._source.now()

    def request(
        self, prefix: SharedPrefix, wanted: Sequence[Wanted], have_layers: int = 0
    ) -> None:
        """Have blocks fetched, and write down which; raises as the source does."""
        at = self._source.now()
        place = len(self.transcript)
        self._source.request(prefix, wanted, have_layers)
        addresses = tuple(_address(prefix, each) for each in wanted)
        self.transcript.insert(place, Asked(addresses, at))
        self._prefix = prefix

    def arrived(self, timeout: float) -> list[Arrival]:
        """Return what has come, and write it down; raises as the source does."""
        arrivals = self._source.arrived(timeout)
        for arrival in arrivals:
            assert self._prefix is not None
            self.transcript.append(
                Came(
                    _address(self._prefix, arrival.wanted),
                    arrival.layer,
                    arrival.data.numel(),
                    hashlib.sha256(bytes_of(arrival.data)).digest(),
                    arrival.at,
                )
            )
        return arrivals

    def _passed(self, up: bool, message: bytes, at: float) -> None:
        """Write a message on the wire down."""
        digest = hashlib.sha256(message).digest()
        data = message if up else b""
        self.transcript.append(Message(up, sent_size(message), digest, data, at))


def _address(prefix: SharedPrefix, wanted: Wanted) -> bytes:
    """Return the address of a block of a prefix."""
    return prefix.blocks[wanted.block].addresses[wanted.precision].digest
