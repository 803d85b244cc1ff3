"""Where blocks are kept: in memory and, if wanted, on disk, by addresses alone."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, NamedTuple

import torch

from flower_ext.edgeprompt.block_directory import KEY_BYTES, BlockDirectory
from flower_ext.edgeprompt.block_files import check_layers, pack, sha256_of
from flower_ext.edgeprompt.blocks import Address
from flower_ext.edgeprompt.errors import CorruptBlockError
from flower_ext.edgeprompt.precision import EncodedBlock, layer_nbytes
from flower_ext.edgeprompt.source import BlockHeader
from flower_ext.errors import InvalidInputError

__all__ = ["KVStore", "StoreBytes", "StoreCounts"]

_LOG = logging.getLogger(__name__)

_Contents = tuple[BlockHeader, tuple[torch.Tensor, ...]]


class StoreBytes(NamedTuple):
    """What a store's blocks take up, in bytes."""

    memory: int
    """Of layers, in this process; those mapped from files count, too."""
    disk: int
    """Of files, by all processes; those evicted while mapped do not count."""


@dataclass
class StoreCounts:
    """What has happened to a store in this process, each from 0.

    Parameters
    ----------
    hits, misses : int
        Calls of ``get`` that returned a block, or None.
    evictions : int
        Blocks put out of memory, and files put out of the directory, for want of room.
    refused : int
        Files that were not what had been written, and were removed.
    """

    hits: int = 0
    misses: int = 0
    evictions: int = 0
    refused: int = 0


@dataclass(eq=False)
class _Pin:
    """Names that are pinned, and the files that say so to other processes."""

    names: frozenset[str]
    files: list[BinaryIO] = field(default_factory=list)


class KVStore:
    """Blocks by their addresses, the least recently used evicted first.

    What it returns is what was put, or nothing: a file that was changed by a bit, cut
    short, renamed, or written under another key is refused, reported as a warning, and
    removed, so that the block is fetched or computed again. It need not hold: whoever
    can write to the directory while a block is mapped can change what is mapped.

    A directory may be shared by any number of stores, in any number of processes of one
    user. A failure to write there (a full disk, a directory that has become read-only)
    loses nothing that was kept: the block stays in memory, and the first failure after
    a success is reported as a warning.

    A store may be used by several threads; its counts are then approximate.

    Parameters
    ----------
    directory : str | PathLike | None (default: None)
        Where files are kept, made if it is not there; for blocks alone. None: blocks
        are kept in memory only, and end with the store.
    memory_bytes : int (default: 512 MiB)
        The most that blocks in memory may have, at least 0.
    disk_bytes : int (default: 4 GiB)
        The most that the files of the directory may have, at least 0; the stores that
        share a directory are best given the same.
    key : bytes | None (default: None)
        Under which files are authenticated, 32 bytes. None: that of the directory's
        file ``key``, made at random by the first store and readable by its owner only.

    Raises
    ------
    InvalidInputError
        If a number is negative, or the key has another length.
    StoreError
        If the directory or its key cannot be made or read, or the key's file has
        another length or may be read by others.

    Attributes
    ----------
    counts : StoreCounts
        What has happened so far.
    """

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        memory_bytes: int = 512 * 2**20,
        disk_bytes: int = 4 * 2**30,
        key: bytes | None = None,
    ) -> None:
        for name, value in (("memory_bytes", memory_bytes), ("disk_bytes", disk_bytes)):
            if value < 0:
                raise InvalidInputError(f"{name} must be at least 0, got {value}.")
        if key is not None and len(key) != KEY_BYTES:
            raise InvalidInputError(
                f"A store's key has {KEY_BYTES} bytes, got {len(key)}: make one with "
                f"secrets.token_bytes({KEY_BYTES})."
            )
        self.counts = StoreCounts()
        self._directory = (
            None
            if directory is None
            else BlockDirectory(Path(directory), disk_bytes, key)
        )
        self._budget = memory_bytes
        self._memory: OrderedDict[str, _Contents] = OrderedDict()
        self._pins: set[_Pin] = set()
        self._warned = False

    def __contains__(self, address: Address) -> bool:
        """Return whether a block is here; what its file holds is not yet checked."""
        name = str(address)
        return name in self._memory or (
            self._directory is not None and name in self._directory
        )

    @property
    def nbytes(self) -> StoreBytes:
        """What blocks take up, in memory and on disk."""
        memory = sum(_nbytes(contents) for contents in list(self._memory.values()))
        return StoreBytes(memory, self._directory.nbytes if self._directory else 0)

    def get(self, address: Address) -> EncodedBlock | None:
        """Return a block, which counts as used now.

        Parameters
        ----------
        address : Address
            The block's.

        Returns
        -------
        EncodedBlock | None
            None if it is not here, or what is here is not what was put. Its layers are
            not to be written to.
        """
        name = str(address)
        found = self._remembered(name)
        if found is not None:
            if self._directory is not None:
                self._directory.touch(name)
        else:
            found = self._read(name, address)
            if found is not None:
                self._remember(name, found)
        if found is None:
            self.counts.misses += 1
            return None
        self.counts.hits += 1
        header, layers = found
        return EncodedBlock(header.shape, header.precision, header.error, layers)

    def put(self, address: Address, block: EncodedBlock) -> None:
        """Keep a block in memory and on disk, as far as there is room in each.

        What had been kept of it by :meth:`put_partial` is dropped. A block that is on
        disk already is not written again.

        Parameters
        ----------
        address : Address
            The block's.
        block : EncodedBlock
            Its layers are not to be written to afterwards.

        Raises
        ------
        InvalidInputError
            If its layers are not as many or as large as its shape says.
        """
        sizes = (layer_nbytes(block.shape, block.precision),) * block.shape.layers
        check_layers(block.layers, sizes)
        if len(block.layers) != len(sizes):
            raise InvalidInputError(
                f"The block has {len(sizes)} layers, got {len(block.layers)}: keep "
                "what has come of it by put_partial."
            )
        name = str(address)
        header = BlockHeader(block.shape, block.precision, block.error, sizes, ())
        self._remember(name, (header, block.layers))
        if self._directory is not None and not self._directory.touch(name):
            digests = tuple(sha256_of(layer) for layer in block.layers)
            header = BlockHeader(
                block.shape, block.precision, block.error, sizes, digests
            )
            self._write(name, address, (header, block.layers))
        self._forget(_partial(name))

    def get_partial(
        self, address: Address
    ) -> tuple[BlockHeader, list[torch.Tensor]] | None:
        """Return what has been kept of a block that has not come as a whole.

        Parameters
        ----------
        address : Address
            The block's.

        Returns
        -------
        tuple[BlockHeader, list[torch.Tensor]] | None
            Its header and its first layers; None if there is nothing. The layers are
            not to be written to.
        """
        name = _partial(str(address))
        found = self._remembered(name) or self._read(name, address)
        return None if found is None else (found[0], list(found[1]))

    def put_partial(
        self, address: Address, header: BlockHeader, layers: Sequence[torch.Tensor]
    ) -> None:
        """Keep what has come of a block, for another attempt or another process.

        All of it is written each time: call it when a transfer ends early, not for each
        layer. It stands in place of what was kept before, and is evicted like a block.

        Parameters
        ----------
        address : Address
            The block's.
        header : BlockHeader
            What was told of the block.
        layers : Sequence[torch.Tensor]
            The first of them, uint8; if none, nothing is kept.

        Raises
        ------
        InvalidInputError
            If the header's numbers do not fit its shape, or the layers do not fit it.
        CorruptBlockError
            If a layer is not what its digest in the header says.
        """
        sizes = (layer_nbytes(header.shape, header.precision),) * header.shape.layers
        if header.sizes != sizes or len(header.digests) != len(sizes):
            raise InvalidInputError(
                f"A block of {header.shape} in {header.precision.name} has layers of "
                f"{sizes} bytes and as many digests, got {header.sizes} and "
                f"{len(header.digests)}."
            )
        check_layers(layers, sizes)
        for i, layer in enumerate(layers):
            if sha256_of(layer) != header.digests[i]:
                raise CorruptBlockError(
                    f"Layer {i} of block {address} is not what its digest says: fetch "
                    "it again."
                )
        if not layers or address in self:
            return
        name = _partial(str(address))
        contents = (header, tuple(layers))
        if self._write(name, address, contents):
            self._memory.pop(name, None)
        else:
            self._remember(name, contents)

    @contextlib.contextmanager
    def pinned(self, addresses: Iterable[Address]) -> Iterator[None]:
        """Keep blocks from being evicted, as a ``with`` statement lasts.

        Those that are put or read meanwhile are kept, too. Other processes leave their
        files alone until the statement ends, or this process does; on systems without
        ``flock`` (Windows), files are kept from this store only. A block for which
        pinned ones leave no room is not kept.

        Parameters
        ----------
        addresses : Iterable[Address]
            Of blocks that are here or will be.
        """
        pin = _Pin(frozenset(str(address) for address in addresses))
        self._pins.add(pin)
        try:
            for name in pin.names:
                self._hold(pin, name)
            yield
        finally:
            self._pins.discard(pin)
            for file in pin.files:
                file.close()

    def discard(self, address: Address) -> None:
        """Remove a block and what had come of it, pinned or not, if it is here.

        Parameters
        ----------
        address : Address
            The block's.
        """
        self._forget(str(address))
        self.discard_partial(address)

    def discard_partial(self, address: Address) -> None:
        """Remove what had come of a block, if anything is here.

        Parameters
        ----------
        address : Address
            The block's.
        """
        self._forget(_partial(str(address)))

    # -- memory -----------------------------------------------------------------------

    def _remembered(self, name: str) -> _Contents | None:
        """Return what is in memory, which counts as used now."""
        found = self._memory.get(name)
        # Otherwise another thread may have just evicted it.
        with contextlib.suppress(KeyError):
            self._memory.move_to_end(name)
        return found

    def _remember(self, name: str, contents: _Contents) -> None:
        """Keep something in memory, if there is room that is not pinned."""
        self._memory.pop(name, None)
        kept = {n: _nbytes(c) for n, c in list(self._memory.items())}
        pinned = self._pinned()
        excess = sum(kept.values()) + _nbytes(contents) - self._budget
        if excess > sum(size for n, size in kept.items() if n not in pinned):
            return
        for other, size in kept.items():
            if excess <= 0:
                break
            if other not in pinned:
                self._memory.pop(other, None)
                self.counts.evictions += 1
                excess -= size
        self._memory[name] = contents

    def _forget(self, name: str) -> None:
        """Remove something from memory and disk."""
        self._memory.pop(name, None)
        if self._directory is not None:
            self._directory.remove(name)

    def _pinned(self) -> set[str]:
        """Return the names that are pinned in this process."""
        return {name for pin in list(self._pins) for name in pin.names}

    # -- disk -------------------------------------------------------------------------

    def _hold(self, pin: _Pin, name: str) -> None:
        """Tell other processes that a file is pinned, if there is one."""
        file = None if self._directory is None else self._directory.pin(name)
        if file is not None:
            pin.files.append(file)

    def _read(self, name: str, address: Address) -> _Contents | None:
        """Return what is on disk, if it is what was written."""
        if self._directory is None:
            return None
        try:
            found = self._directory.read(name, address)
            partial = name != str(address)
            if found is None or partial or len(found[1]) == found[0].shape.layers:
                return found
            self._directory.remove(name)
            raise CorruptBlockError("It is a part of the block, named as a whole.")
        except CorruptBlockError as error:
            self.counts.refused += 1
            _LOG.warning("Block %s was refused and removed: %s", address, error)
        except OSError as error:
            _LOG.warning("Block %s could not be read: %s", address, error)
        return None

    def _write(self, name: str, address: Address, contents: _Contents) -> bool:
        """Keep something on disk, if possible; return whether."""
        directory = self._directory
        if directory is None:
            return False
        try:
            data = pack(address, *contents, directory.key)
            evicted = directory.write(name, data, self._pinned())
        except (OSError, NotImplementedError) as error:
            if not self._warned:
                _LOG.warning("Blocks are kept in memory, not on disk: %s", error)
            self._warned = True
            return False
        self._warned = False
        if evicted is None:
            return False
        self.counts.evictions += evicted
        for pin in list(self._pins):
            if name in pin.names:
                self._hold(pin, name)
        return True


def _partial(name: str) -> str:
    """Return the name of what has come of a block."""
    return f"{name}.partial"


def _nbytes(contents: _Contents) -> int:
    """Return the bytes of layers."""
    return sum(layer.numel() for layer in contents[1])
