"""Where blocks come from: the only way out of a device, and what comes back by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.precision import KVShape, Precision

__all__ = ["Arrival", "BlockHeader", "SegmentSource", "Wanted"]


@dataclass(frozen=True)
class Wanted:
    """One block of a prefix, in one precision.

    Parameters
    ----------
    block : int
        Its index among ``SharedPrefix.blocks``.
    precision : Precision
        How it shall be written down.
    """

    block: int
    precision: Precision


@dataclass(frozen=True)
class BlockHeader:
    """What is told of a block before its layers.

    Parameters
    ----------
    shape : KVShape
        Of what it decodes to.
    precision : Precision
        How it is written down.
    error : float
        As :class:`~flower_ext.edgeprompt.precision.EncodedBlock` has it.
    sizes : tuple[int, ...]
        The bytes of each layer.
    digests : tuple[bytes, ...]
        Of each layer, SHA-256.
    """

    shape: KVShape
    precision: Precision
    error: float
    sizes: tuple[int, ...]
    digests: tuple[bytes, ...]


@dataclass(frozen=True)
class Arrival:
    """A layer of a block that has come, checked against its digest.

    Parameters
    ----------
    wanted : Wanted
        Whose.
    header : BlockHeader
        The block's.
    layer : int
        Which; a block's layers come in their order.
    data : torch.Tensor
        Its bytes, uint8.
    at : float
        When it came, in seconds of the source's clock.
    """

    wanted: Wanted
    header: BlockHeader
    layer: int
    data: torch.Tensor
    at: float


class SegmentSource(Protocol):
    """What a device fetches blocks from.

    It takes shared prefixes, which nothing private can be part of, and nothing else.
    """

    def now(self) -> float:
        """Return the time in seconds, on the clock that arrivals are told by."""
        ...

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
            The layers of the first that whoever asks holds, at least 0. They are not
            sent again, nor are those behind them that have come and were not handed
            over yet.
        """
        ...

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
        SourceError
            If the rest will not come. Whoever is asked may be asked again.
        """
        ...
