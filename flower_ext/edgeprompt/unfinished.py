"""A block that is being fetched: what has come of it, and what is kept of that.

Whatever ends a process in the midst of a block, the next one asks for the rest alone.
"""

from __future__ import annotations

import torch

from flower_ext.edgeprompt.blocks import Address
from flower_ext.edgeprompt.precision import KVShape
from flower_ext.edgeprompt.source import BlockHeader
from flower_ext.edgeprompt.store import KVStore

__all__ = ["UnfinishedBlock"]

# A second after the last time, and a quarter more: what comes sooner is as soon there
# again, and no more than five times a block's bytes are written for it.
_SECONDS = 1.0
_GROWTH = 1.25


class UnfinishedBlock:
    """The first layers of a block, kept in a store now and then.

    Parameters
    ----------
    store : KVStore
        Where they are kept.
    address : Address
        The block's.
    header : BlockHeader
        The block's.
    at : float
        When the first of them came, in seconds of the source's clock.

    Attributes
    ----------
    header : BlockHeader
        As given.
    layers : list[torch.Tensor]
        Those that are there, uint8.
    heard : bool
        Whether one of them has come in this process.
    """

    def __init__(
        self, store: KVStore, address: Address, header: BlockHeader, at: float
    ) -> None:
        self.header = header
        self.layers: list[torch.Tensor] = []
        self.heard = False
        self._store = store
        self._address = address
        self._at = at
        self._kept = 0

    @classmethod
    def kept(
        cls,
        store: KVStore,
        address: Address,
        shape: KVShape,
        max_error: float,
        at: float,
    ) -> UnfinishedBlock | None:
        """Return what a store has of a block, by whichever process.

        Parameters
        ----------
        store : KVStore
            Where it may be.
        address : Address
            The block's.
        shape : KVShape
            What the block must have.
        max_error : float
            What its error must not be above.
        at : float
            What time it is, in seconds of the source's clock.

        Returns
        -------
        UnfinishedBlock | None
            None if there is nothing that can be used.
        """
        found = store.get_partial(address)
        if found is None:
            return None
        header, layers = found
        fits = header.shape == shape and header.error <= max_error
        if not fits or len(layers) >= shape.layers:
            return None
        unfinished = cls(store, address, header, at)
        unfinished.layers = layers
        unfinished._kept = len(layers)
        return unfinished

    @property
    def nbytes(self) -> int:
        """The bytes of what is there."""
        return sum(layer.numel() for layer in self.layers)

    def goes_on(self, header: BlockHeader) -> bool:
        """Return whether what comes now is the rest of what had been kept.

        It is not if the edge has computed the block anew since, to other bits.

        Parameters
        ----------
        header : BlockHeader
            Of what comes.
        """
        count = len(self.layers)
        return self.heard or (
            header.error == self.header.error
            and header.digests[:count] == self.header.digests[:count]
        )

    def add(self, header: BlockHeader, layer: torch.Tensor) -> None:
        """Take the next layer.

        Parameters
        ----------
        header : BlockHeader
            That it came behind.
        layer : torch.Tensor
            Its bytes, uint8.
        """
        self.header, self.heard = header, True
        self.layers.append(layer)

    def keep_if_due(self, at: float) -> None:
        """Keep what is there, unless little has come since it was kept last.

        Parameters
        ----------
        at : float
            When the last layer came, in seconds of the source's clock.
        """
        if at >= self._at + _SECONDS and len(self.layers) >= _GROWTH * self._kept:
            self._at = at
            self.keep()

    def keep(self) -> None:
        """Keep what is there, if more has come than is kept."""
        if len(self.layers) > self._kept:
            self._kept = len(self.layers)
            self._store.put_partial(self._address, self.header, self.layers)
