"""Prefixes in memory: loaded when they are wanted, the latest ones kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

from flower_ext.edgeprompt.blocks import SharedBlock, SharedPrefix
from flower_ext.edgeprompt.estimates import DeviceSpeed, LinkEstimate
from flower_ext.edgeprompt.loaded_prefix import LoadedPrefix, LoadReport
from flower_ext.edgeprompt.loading import Loading
from flower_ext.edgeprompt.precision import Precision, encode
from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.source import SegmentSource
from flower_ext.edgeprompt.store import KVStore
from flower_ext.network.clocks import Clock

__all__ = ["LoadReport", "LoadedPrefix", "PrefixLoader"]


class PrefixLoader:
    """Loads prefixes, and keeps the latest ones in memory.

    Parameters
    ----------
    model : PreTrainedModel
        What computes blocks that are nowhere else.
    clock : Clock
        What computing is timed by; with a source, that of the source.
    store : KVStore
        Where blocks are looked for and kept.
    source : SegmentSource | None
        Where blocks are fetched from; None: nowhere.
    precisions : Sequence[Precision]
        What may be fetched.
    max_error : float
        The largest error of a block that is used.
    memory_bytes : int
        What loaded prefixes may take together; the one in use may take more.

    Attributes
    ----------
    speed : DeviceSpeed
        What has been learned of this device.
    link : LinkEstimate
        What has been learned of the way to the source.
    errors : dict[Precision, float]
        What a block is expected to cost in fidelity, before its header tells it.
    loaded : OrderedDict[bytes, tuple[PrefixKV, float]]
        Levels of prefixes in memory, the latest last, and their errors.
    open : Loading | None
        The latest load, if layers may come still.
    silent : bool
        Whether it was said that the source is silent.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        clock: Clock,
        store: KVStore,
        source: SegmentSource | None,
        precisions: Sequence[Precision],
        max_error: float,
        memory_bytes: int,
    ) -> None:
        self.model = model
        self.clock = clock
        self.store = store
        self.source = source
        self.precisions = tuple(precisions)
        self.max_error = max_error
        self._memory_bytes = memory_bytes
        self.silent = False
        self.open: Loading | None = None
        self.loaded: OrderedDict[bytes, tuple[PrefixKV, float]] = OrderedDict()
        self.speed = DeviceSpeed()
        self.link = LinkEstimate()
        self.errors = {
            Precision.EXACT: 0.0,
            Precision.FP16: 5e-4,
            Precision.BF16: 4e-3,
            Precision.INT8: 1e-2,
            Precision.INT4: 1e-1,
        }

    def load(self, prefix: SharedPrefix, whole: bool = False) -> LoadedPrefix:
        """Get a prefix into memory.

        Parameters
        ----------
        prefix : SharedPrefix
            At least one block.
        whole : bool (default: False)
            Return when all is there, and no sooner.

        Returns
        -------
        LoadedPrefix
            Unless it is whole, its last layers may be on their way; reading them waits.
        """
        if self.open is not None:
            self.open.settle()  # An interrupt has left it.
        return Loading(self, prefix, whole).run()

    def compute(self, prefix: SharedPrefix, precisions: Sequence[Precision]) -> None:
        """Compute what the store lacks of a prefix, and keep it in these precisions."""
        wanted = [
            (index, precision)
            for index, block in enumerate(prefix.blocks)
            for precision in precisions
            if block.addresses[precision] not in self.store
        ]
        if not wanted:
            return
        unasked = [
            block.addresses[Precision.EXACT]
            for block in prefix.blocks
            if Precision.EXACT not in precisions
            and block.addresses[Precision.EXACT] not in self.store
        ]
        # From exact blocks only: what is published is as near as its precision allows.
        exact = PrefixLoader(
            self.model, self.clock, self.store, None, (), 0.0, self._memory_bytes
        )
        loaded = exact.load(prefix)
        for index, precision in wanted:
            block = prefix.blocks[index]
            keys, values = _slices(loaded.parts, block)
            self.store.put(block.addresses[precision], encode(keys, values, precision))
        for address in set(unasked):
            self.store.discard(address)

    # -- what is in memory ------------------------------------------------------------

    def remember(self, name: bytes, kv: PrefixKV, error: float) -> None:
        """Keep a level of a prefix in memory.

        Parameters
        ----------
        name : bytes
            What it is known by.
        kv : PrefixKV
            All of it.
        error : float
            The largest of its blocks and those before.
        """
        self.loaded[name] = (kv, error)
        self.loaded.move_to_end(name)
        held = sum(kv.nbytes for kv, _ in self.loaded.values())
        while held > self._memory_bytes and len(self.loaded) > 1:
            _, (oldest, _) = self.loaded.popitem(last=False)
            held -= oldest.nbytes


def _slices(
    parts: Sequence[PrefixKV], block: SharedBlock
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return a block's keys and values, per layer of shape [heads, tokens, dim]."""
    begin = 0
    for part in parts:
        if block.begin < begin + part.length:
            tokens = slice(block.begin - begin, block.end - begin)
            return (
                [keys[0, :, tokens] for keys in part.keys],
                [values[0, :, tokens] for values in part.values],
            )
        begin += part.length
    raise AssertionError(block)
