"""A prefix in memory, and where it came from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from flower_ext.edgeprompt.precision import Precision
from flower_ext.edgeprompt.prefix_kv import PrefixKV

__all__ = ["LoadReport", "LoadedPrefix"]


@dataclass
class LoadReport:
    """Where a prefix's blocks came from.

    Attributes
    ----------
    blocks : int
        All of them.
    in_memory : int
        Those that were decoded in memory already.
    in_store : int
        Those that the store held.
    computed : int
        Those that this device computed.
    fetched : Counter[Precision]
        Those that were fetched, by precision.
    bytes_fetched : int
        Encoded bytes that came, those of abandoned blocks included.
    largest_error : float
        Of all blocks, as ``EncodedBlock.error`` has it.
    seconds : float
        Until the private text could begin; for the rest it may have waited.
    """

    blocks: int = 0
    in_memory: int = 0
    in_store: int = 0
    computed: int = 0
    fetched: Counter[Precision] = field(default_factory=Counter)
    bytes_fetched: int = 0
    largest_error: float = 0.0
    seconds: float = 0.0


@dataclass
class LoadedPrefix:
    """A prefix in memory.

    Attributes
    ----------
    parts : tuple[PrefixKV, ...]
        One per level that it has, in their order.
    report : LoadReport
        Where it came from.
    settle : Callable[[], None]
        To be called when the private text is through, and when it has failed: waits
        until it is known whether the last layers come, and keeps them if they do.
    """

    parts: tuple[PrefixKV, ...]
    report: LoadReport
    settle: Callable[[], None]

    @property
    def nbytes(self) -> int:
        """The bytes it holds, room included."""
        return sum(part.nbytes for part in self.parts)
