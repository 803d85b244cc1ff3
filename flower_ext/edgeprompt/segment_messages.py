"""What device and edge say about segments, as the bytes of protobuf messages.

Written out here, by hand, because :func:`segment_request` is the only place where
anything about a prompt becomes bytes that leave a device: it can be read in a minute,
and takes a :class:`~flower_ext.edgeprompt.blocks.SharedPrefix` and nothing else. The
simulated link carries these very bytes, and the edge service too; they are those of
``flower_ext/edge/edge.proto``.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.errors import PrivateSegmentError
from flower_ext.edgeprompt.hierarchy import Level
from flower_ext.edgeprompt.precision import EncodedBlock
from flower_ext.edgeprompt.source import BlockHeader, Wanted
from flower_ext.errors import InvalidInputError

__all__ = [
    "MAX_BLOCKS",
    "PART_BYTES",
    "UNKNOWN_PART",
    "bytes_of",
    "check_request",
    "data_part",
    "dtype_name",
    "header_code",
    "header_of",
    "header_part",
    "layer_parts",
    "segment_request",
    "sent_size",
]

PART_BYTES = 256 * 1024
"""The most bytes of a layer in one message: what is cancelled ends after it."""

MAX_BLOCKS = 4096
"""The most blocks of one request."""

_GRPC_PREFIX = 5
_VARINT, _FIXED64, _BYTES = 0, 1, 2  # Protobuf's wire types.


def check_request(prefix: SharedPrefix, wanted: Sequence[Wanted]) -> None:
    """Raise unless this may leave the device.

    Parameters
    ----------
    prefix : SharedPrefix
        Of it, nothing private can be part.
    wanted : Sequence[Wanted]
        Blocks of it, at most :data:`MAX_BLOCKS`.

    Raises
    ------
    PrivateSegmentError
        If it is of any other type, or a block is private.
    InvalidInputError
        If a block is none of the prefix's, or there are too many.
    """
    # Of that type itself: one derived from it may say anything of its blocks.
    if type(prefix) is not SharedPrefix:
        raise PrivateSegmentError(
            f"Blocks are asked for by a SharedPrefix, got a {type(prefix).__name__}, "
            "which may hold private tokens: pass SharedPrefix(prompt.shared, ...)."
        )
    if len(wanted) > MAX_BLOCKS:
        raise InvalidInputError(
            f"At most {MAX_BLOCKS} blocks are asked for at once, got {len(wanted)}."
        )
    for each in wanted:
        if type(each) is not Wanted:
            raise PrivateSegmentError(
                f"wanted must hold Wanted and nothing else, got {type(each).__name__}."
            )
        if not 0 <= each.block < len(prefix.blocks):
            raise InvalidInputError(
                f"Block {each.block} is wanted of a prefix that has "
                f"{len(prefix.blocks)}."
            )
    if any(block.level >= Level.PRIVATE for block in prefix.blocks):
        raise PrivateSegmentError("A private block cannot be asked for.")


def segment_request(
    prefix: SharedPrefix,
    wanted: Sequence[Wanted],
    have_layers: int = 0,
    with_tokens: bool = False,
) -> bytes:
    """Return the message that asks for blocks.

    Parameters
    ----------
    prefix : SharedPrefix
        The shared part of a prompt.
    wanted : Sequence[Wanted]
        Blocks of it, in the order in which they shall come, at least one.
    have_layers : int (default: 0)
        The layers of the first that the device has, at least 0.
    with_tokens : bool (default: False)
        Whether to tell the text, up to the last block wanted: the edge needs it to
        compute what it does not have. A group's text may be seen by the edge that
        serves the group.

    Returns
    -------
    bytes
        A ``SegmentRequest``: 32 bytes per block wanted, 52 or so besides, and with the
        text one to three bytes per token.

    Raises
    ------
    PrivateSegmentError, InvalidInputError
        As :func:`check_request`.
    """
    check_request(prefix, wanted)
    addresses = [prefix.blocks[w.block].addresses[w.precision].digest for w in wanted]
    fields = [
        _bytes(1, b"".join(addresses)),
        _number(2, have_layers),
        _bytes(3, prefix.identity.digest),
        _bytes(4, dtype_name(prefix.identity.dtype).encode()),
    ]
    if with_tokens:
        last = max((w.block for w in wanted), default=-1)
        for block in prefix.blocks[: last + 1]:
            packed = b"".join(map(_varint, block.tokens))
            body = _number(1, block.level) + _bytes(2, packed)
            fields.append(_tag(5, _BYTES) + _varint(len(body)) + body)
    return b"".join(fields)


def header_of(block: EncodedBlock) -> BlockHeader:
    """Return what is told of a block before its layers.

    All its bytes are digested: about a second per gigabyte or two.
    """
    return BlockHeader(
        block.shape,
        block.precision,
        block.error,
        tuple(layer.numel() for layer in block.layers),
        tuple(hashlib.sha256(bytes_of(layer)).digest() for layer in block.layers),
    )


def header_code(header: BlockHeader, address: bytes, key: bytes) -> bytes:
    """Return the HMAC-SHA256 of a header and the address that it answers, 32 bytes.

    Parameters
    ----------
    header : BlockHeader
        What is told of the block.
    address : bytes
        The block's, 32 bytes; it ties the header to what was asked for.
    key : bytes
        The tenant's for a group block, empty for a public one. Under the empty key the
        code tells damage, not forgery.
    """
    code = hmac.new(key, address, hashlib.sha256)
    code.update(_header_fields(header))
    return code.digest()


def header_part(header: BlockHeader, address: bytes, key: bytes) -> bytes:
    """Return a ``SegmentPart`` with a header; parameters as :func:`header_code`."""
    body = _header_fields(header) + _bytes(11, header_code(header, address, key))
    return _tag(1, _BYTES) + _varint(len(body)) + body


def data_part(data: bytes) -> bytes:
    """Return a ``SegmentPart`` with bytes of a layer, at least one."""
    return _bytes(2, data)


UNKNOWN_PART = b"\x1a\x00"
"""The ``SegmentPart`` of an edge that does not have the next block."""


def layer_parts(layer: torch.Tensor) -> Iterator[bytes]:
    """Yield a layer's ``SegmentPart`` messages, each of :data:`PART_BYTES` at most."""
    view = bytes_of(layer)
    for begin in range(0, len(view), PART_BYTES):
        yield data_part(bytes(view[begin : begin + PART_BYTES]))


def sent_size(message: bytes) -> int:
    """Return the bytes of a message as gRPC carries it."""
    return _GRPC_PREFIX + len(message)


def dtype_name(dtype: torch.dtype) -> str:
    """Return a type's name on the wire, as ``"float32"``."""
    return str(dtype).removeprefix("torch.")


def _header_fields(header: BlockHeader) -> bytes:
    """Return all fields of a header but its code."""
    shape = header.shape
    return b"".join(
        (
            _number(1, shape.layers),
            _number(2, shape.heads),
            _number(3, shape.tokens),
            _number(4, shape.key_dim),
            _number(5, shape.value_dim),
            _bytes(6, dtype_name(shape.dtype).encode()),
            _bytes(7, header.precision.value.encode()),
            _double(8, header.error),
            _bytes(9, b"".join(map(_varint, header.sizes))),
            _bytes(10, b"".join(header.digests)),
        )
    )


def bytes_of(layer: torch.Tensor) -> memoryview:
    """Return a layer's bytes, not copied: uint8 in the CPU's memory, shape [size]."""
    array: Any = layer.contiguous().numpy()
    return memoryview(array)


def _varint(value: int) -> bytes:
    """Return an unsigned protobuf integer."""
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def _tag(field: int, wire_type: int) -> bytes:
    """Return what stands before a field."""
    return _varint(field << 3 | wire_type)


def _number(field: int, value: int) -> bytes:
    """Return an integer field; protobuf leaves zeros out."""
    return _tag(field, _VARINT) + _varint(value) if value else b""


def _double(field: int, value: float) -> bytes:
    """Return a double field; protobuf leaves zeros out."""
    return _tag(field, _FIXED64) + struct.pack("<d", value) if value else b""


def _bytes(field: int, value: bytes) -> bytes:
    """Return a length-delimited field; protobuf leaves empty ones out."""
    return _tag(field, _BYTES) + _varint(len(value)) + value if value else b""
