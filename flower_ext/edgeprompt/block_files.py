"""A block, or what has come of it, as a safetensors file that tells when it is changed.

The file's metadata holds the SHA-256 of its tensors (names, dtypes, shapes and bytes)
and, under a key, the HMAC-SHA256 of the block's address and all of the metadata.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from flower_ext.edgeprompt.blocks import Address
from flower_ext.edgeprompt.errors import CorruptBlockError
from flower_ext.edgeprompt.precision import KVShape, Precision, layer_nbytes
from flower_ext.edgeprompt.source import BlockHeader
from flower_ext.errors import InvalidInputError

__all__ = ["check_layers", "pack", "read", "sha256_of"]

_FORMAT = "flower-ext KV 1"
_LONGEST_HEADER = 2**24  # Bytes: more than a block of any model has.


def sha256_of(layer: torch.Tensor) -> bytes:
    """Return the SHA-256 of a layer's bytes, uint8 on the CPU."""
    data: Any = layer.contiguous().numpy()
    return hashlib.sha256(data).digest()


def check_layers(layers: Sequence[torch.Tensor], sizes: Sequence[int]) -> None:
    """Raise unless layers are a block's first ones, or all of them.

    Parameters
    ----------
    layers : Sequence[torch.Tensor]
        What shall be kept.
    sizes : Sequence[int]
        The bytes of each of the block's layers.

    Raises
    ------
    InvalidInputError
        If there are too many, or one is not bytes of that size in the CPU's memory.
    """
    if len(layers) > len(sizes):
        raise InvalidInputError(
            f"The block has {len(sizes)} layers, got {len(layers)}."
        )
    for layer, size in zip(layers, sizes, strict=False):
        found = layer.dtype, tuple(layer.shape), layer.device.type
        if found != (torch.uint8, (size,), "cpu"):
            raise InvalidInputError(
                f"The block's layers are uint8 of shape [{size}] on the CPU, got "
                f"{layer.dtype} of shape {list(layer.shape)} on {layer.device}."
            )


def pack(
    address: Address, header: BlockHeader, layers: Sequence[torch.Tensor], key: bytes
) -> bytes:
    """Return the contents of a file.

    Parameters
    ----------
    address : Address
        Of the block.
    header : BlockHeader
        Of the block.
    layers : Sequence[torch.Tensor]
        Its first layers, uint8, whose digests the header has; all of them, or those
        that have come.
    key : bytes
        Under which the file is authenticated.

    Returns
    -------
    bytes
        In safetensors' format.
    """
    shape = header.shape
    metadata = {
        "format": _FORMAT,
        "layers": str(shape.layers),
        "heads": str(shape.heads),
        "tokens": str(shape.tokens),
        "key_dim": str(shape.key_dim),
        "value_dim": str(shape.value_dim),
        "dtype": str(shape.dtype).removeprefix("torch."),
        "precision": header.precision.value,
        "error": header.error.hex(),
        "layer_sha256": " ".join(digest.hex() for digest in header.digests),
        "sha256": _content_digest(
            [
                (_name(i), len(layer), digest)
                for i, (layer, digest) in enumerate(
                    zip(layers, header.digests, strict=False)
                )
            ]
        ),
    }
    metadata["hmac"] = _code(address, metadata, key)
    # Copies, as safetensors refuses tensors that share memory, as views of a file do.
    return save({_name(i): layer.clone() for i, layer in enumerate(layers)}, metadata)


def read(
    path: Path, address: Address, key: bytes
) -> tuple[BlockHeader, tuple[torch.Tensor, ...]]:
    """Map a file's tensors into memory, and check that they are what was written.

    Parameters
    ----------
    path : Path
        Of the file. It stays mapped after it is removed, but must not be written to,
        which the system might show in what was checked.
    address : Address
        Of the block that is asked for.
    key : bytes
        Under which the file was authenticated.

    Returns
    -------
    tuple[BlockHeader, tuple[torch.Tensor, ...]]
        The block's header and its first layers, uint8.

    Raises
    ------
    CorruptBlockError
        If a bit is not as it was written, or the file is another block's, or was
        written under another key.
    OSError
        If it cannot be read.
    """
    size = path.stat().st_size
    if size <= 8:
        raise CorruptBlockError(f"It has {size} bytes.")
    try:
        # Unlike mmap's, this mapping holds no file descriptor, and unlike
        # safetensors.safe_open it opens the file once: what is checked is one file,
        # whatever another process puts there meanwhile.
        mapped = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be mapped: {error}") from error
    try:
        metadata, tensors = _parse(mapped)
        digests = {n: sha256_of(t) for n, t in tensors.items()}
        told = metadata.pop("hmac").encode()
        if not hmac.compare_digest(told, _code(address, metadata, key).encode()):
            raise CorruptBlockError(
                "It was not written for this address under this key, or was changed."
            )
        content = [(n, len(t), digests[n]) for n, t in tensors.items()]
        if metadata["sha256"] != _content_digest(content):
            raise CorruptBlockError("Its tensors are not what was written.")
        return _header(metadata), tuple(tensors.values())
    except (
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise CorruptBlockError(f"It is malformed: {error!r}.") from error


def _name(layer: int) -> str:
    """Return the name of a layer's tensor, in whose order they sort."""
    return f"layer.{layer:05}"


def _content_digest(tensors: Sequence[tuple[str, int, bytes]]) -> str:
    """Return the SHA-256 of uint8 tensors: names, sizes and their bytes' SHA-256."""
    digest = hashlib.sha256()
    for name, size, sha256 in tensors:
        for part in (name.encode(), b"uint8", size.to_bytes(8, "little"), sha256):
            digest.update(_prefixed(part))
    return digest.hexdigest()


def _code(address: Address, metadata: dict[str, str], key: bytes) -> str:
    """Return the HMAC of an address and all metadata."""
    code = hmac.new(key, digestmod=hashlib.sha256)
    code.update(_prefixed(address.digest))
    for name, value in sorted(metadata.items()):
        code.update(_prefixed(name.encode()))
        code.update(_prefixed(value.encode()))
    return code.hexdigest()


def _prefixed(part: bytes) -> bytes:
    """Return bytes behind their length, so that no two sequences of parts are equal."""
    return len(part).to_bytes(8, "little") + part


def _parse(file: torch.Tensor) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return a safetensors file's metadata and, by name, its tensors, not copied."""
    size = int.from_bytes(file[:8].numpy().tobytes(), "little")
    if size > min(len(file) - 8, _LONGEST_HEADER):
        raise ValueError(f"a header of {size} bytes in {len(file)}")
    entries: dict[str, Any] = json.loads(file[8 : 8 + size].numpy().tobytes())
    metadata: dict[str, str] = dict(entries.pop("__metadata__"))
    data = file[8 + size :]
    tensors = {}
    for name, entry in sorted(entries.items()):
        begin, end = entry["data_offsets"]
        if entry["dtype"] != "U8" or entry["shape"] != [end - begin] or begin < 0:
            raise ValueError(f"tensor {name!r} is {entry}")
        tensors[name] = data[begin:end]
    return metadata, tensors


def _header(metadata: dict[str, str]) -> BlockHeader:
    """Return what authenticated metadata say of a block."""
    if metadata["format"] != _FORMAT:
        raise ValueError(f"format {metadata['format']!r} is not {_FORMAT!r}")
    shape = KVShape(
        int(metadata["layers"]),
        int(metadata["heads"]),
        int(metadata["tokens"]),
        int(metadata["key_dim"]),
        int(metadata["value_dim"]),
        getattr(torch, metadata["dtype"]),
    )
    precision = Precision(metadata["precision"])
    return BlockHeader(
        shape,
        precision,
        float.fromhex(metadata["error"]),
        (layer_nbytes(shape, precision),) * shape.layers,
        tuple(bytes.fromhex(x) for x in metadata["layer_sha256"].split()),
    )
