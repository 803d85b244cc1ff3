"""Small blocks for the tests of stores, and what is in a store's directory."""

import hashlib
import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from flower_ext.edgeprompt.blocks import Address
from flower_ext.edgeprompt.hierarchy import Level
from flower_ext.edgeprompt.precision import EncodedBlock, Precision, encode
from flower_ext.edgeprompt.source import BlockHeader
from flower_ext.edgeprompt.store import KVStore

KEY = bytes(range(32))


def address(number: int, level: Level = Level.PUBLIC) -> Address:
    return Address(hashlib.sha256(b"%d" % number).digest(), level)


def block(
    number: int = 0, tokens: int = 8, precision: Precision = Precision.EXACT
) -> EncodedBlock:
    """Three layers of a block; each number has other ones, of the same size."""
    source = torch.Generator().manual_seed(number)
    keys, values = torch.randn(2, 3, 2, tokens, 4, generator=source).unbind()
    return encode(list(keys), list(values), precision)


def header_of(block: EncodedBlock) -> BlockHeader:
    digests = [hashlib.sha256(bytes(x.tolist())).digest() for x in block.layers]
    sizes = tuple(len(x) for x in block.layers)
    return BlockHeader(block.shape, block.precision, block.error, sizes, tuple(digests))


def same(found: EncodedBlock | None, expected: EncodedBlock) -> bool:
    return (
        found is not None
        and replace(found, layers=()) == replace(expected, layers=())
        and len(found.layers) == len(expected.layers)
        and all(map(torch.equal, found.layers, expected.layers))
    )


def file_of(directory: Path, number: int, partial: bool = False) -> Path:
    suffix = ".partial" if partial else ""
    return directory / f"{address(number)}{suffix}.safetensors"


def files(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir() if p.name not in ("key", "lock"))


def total(directory: Path) -> int:
    return sum(p.stat().st_size for p in directory.glob("*.safetensors"))


def age(path: Path, seconds: float) -> None:
    """Let a file have been used so long ago: the clock of files is a coarse one."""
    then = time.time() - seconds
    os.utime(path, (then, then))


def size_of_a_file(directory: Path) -> int:
    """Return the size of a file of a block, each of which is as large."""
    KVStore(directory).put(address(0), block())
    return total(directory)
