"""The precisions that a block's KV travels and is kept in.

INT8 and INT4 scale the keys per channel, over tokens, and the values per token, over
channels (https://arxiv.org/abs/2402.02750).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod

import torch

from flower_ext.edgeprompt.quantise import (
    GROUP,
    SCALE,
    dequantise,
    dequantise_groups,
    quantise,
    quantise_groups,
)
from flower_ext.errors import InvalidInputError

__all__ = [
    "FINEST_FIRST",
    "EncodedBlock",
    "KVShape",
    "Precision",
    "decode_layer",
    "encode",
    "layer_nbytes",
    "relative_error",
]


class Precision(Enum):
    """How a block's keys and values are written down."""

    EXACT = "exact"
    """As the model computes them."""
    FP16 = "fp16"
    """In float16; what is beyond ±65504 becomes that, which the error tells."""
    BF16 = "bf16"
    """In bfloat16."""
    INT8 = "int8"
    """Keys scaled per channel, values per token."""
    INT4 = "int4"
    """Keys scaled per channel and group of tokens, values per token and group."""


FINEST_FIRST = (
    Precision.EXACT,
    Precision.FP16,
    Precision.BF16,
    Precision.INT8,
    Precision.INT4,
)
"""From the most faithful to the least.

Of FP16 and BF16, the one that is the model's own is as good as EXACT."""


@dataclass(frozen=True)
class KVShape:
    """The shape of a block's KV.

    Parameters
    ----------
    layers, heads, tokens, key_dim, value_dim : int
        Per layer the keys have shape [heads, tokens, key_dim], the values
        [heads, tokens, value_dim]. At least 1 each.
    dtype : torch.dtype
        That the model computes in, floating-point.

    Raises
    ------
    InvalidInputError
        If a number is below 1, or the dtype is not floating-point.
    """

    layers: int
    heads: int
    tokens: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype

    def __post_init__(self) -> None:
        """Check all."""
        for name in ("layers", "heads", "tokens", "key_dim", "value_dim"):
            if getattr(self, name) < 1:
                raise InvalidInputError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )
        if not self.dtype.is_floating_point:
            raise InvalidInputError(
                f"The KV of a model is floating-point, got {self.dtype}."
            )


@dataclass(frozen=True)
class EncodedBlock:
    """A block's KV in one precision, as it is kept and sent.

    Parameters
    ----------
    shape : KVShape
        Of what it decodes to.
    precision : Precision
        How it is written down.
    error : float
        What that costs: the largest, over layers and over keys and values, of the
        relative error ‖decoded − computed‖ / ‖computed‖ (Frobenius). 0 if exact.
    layers : tuple[torch.Tensor, ...]
        Per layer its bytes, uint8 of shape [size of a layer]; not to be written to.
    """

    shape: KVShape
    precision: Precision
    error: float
    layers: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of all layers."""
        return sum(layer.numel() for layer in self.layers)


def layer_nbytes(shape: KVShape, precision: Precision) -> int:
    """Return how many bytes a layer has when it is written down.

    Keys and values have heads × tokens × (key_dim + value_dim) numbers, of the size of
    the dtype, 2 bytes, 1 byte or half a byte. INT8 adds 2 bytes per head and channel
    of the keys, and per head and token of the values; INT4 adds 4 bytes for each group
    of 32 tokens or channels. Of an odd number of tokens INT4 fills up the last byte of
    each channel. A block of a few tokens gains little by INT8 and may lose by INT4.

    Parameters
    ----------
    shape : KVShape
        Of the block.
    precision : Precision
        How it is written down.

    Returns
    -------
    int
        Exactly the size of each of ``EncodedBlock.layers``.
    """
    return sum(
        prod(size) * dtype.itemsize for dtype, size in _sections(shape, precision)
    )


def encode(
    keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor], precision: Precision
) -> EncodedBlock:
    """Write a block's KV down.

    FP16 and BF16 bring magnitudes beyond their own range down to its end, INT8 and INT4
    those beyond 0.98 of the dtype's largest, or 1.5e38; the block's error, which is
    measured on what decoding gives, tells.

    Parameters
    ----------
    keys, values : Sequence[torch.Tensor]
        Per layer, shape [heads, tokens, key_dim] and [heads, tokens, value_dim], of one
        floating-point dtype and on any device, where the work is done.
    precision : Precision
        How to write it down.

    Returns
    -------
    EncodedBlock
        In the CPU's memory, sharing none with the input.

    Raises
    ------
    InvalidInputError
        If layers differ in shape or dtype, there is none, or a number is not finite.
    """
    shape = _shape_of(keys, values)
    layers: list[torch.Tensor] = []
    error = 0.0
    with torch.no_grad():
        for pair in zip(keys, values, strict=True):
            key, value = (x.detach() for x in pair)
            if not (key.isfinite().all() and value.isfinite().all()):
                raise InvalidInputError(
                    f"Layer {len(layers)} of the KV has numbers that are not finite: "
                    "compute it in a wider dtype."
                )
            data = torch.cat(
                [
                    part.contiguous().flatten().view(torch.uint8)
                    for part in _written(key, value, precision)
                ]
            )
            if precision != Precision.EXACT:
                decoded = torch.empty_like(key), torch.empty_like(value)
                decode_layer(data, shape, precision, *decoded)
                error = max(
                    error,
                    relative_error(decoded[0], key),
                    relative_error(decoded[1], value),
                )
            layers.append(data.cpu())
    return EncodedBlock(shape, precision, error, tuple(layers))


@torch.inference_mode()
def decode_layer(
    data: torch.Tensor,
    shape: KVShape,
    precision: Precision,
    keys: torch.Tensor,
    values: torch.Tensor,
) -> None:
    """Write a layer's keys and values to where they are needed.

    Parameters
    ----------
    data : torch.Tensor
        One of ``EncodedBlock.layers``.
    shape : KVShape
        Of the block.
    precision : Precision
        How it is written down.
    keys, values : torch.Tensor
        Shape [heads, tokens, key_dim] and [heads, tokens, value_dim], of the block's
        dtype, on any device; slices of larger tensors as they are. Overwritten.

    Raises
    ------
    InvalidInputError
        If the data has another size, or keys or values another shape or dtype.
    """
    wanted = layer_nbytes(shape, precision)
    if data.dtype != torch.uint8 or data.shape != (wanted,):
        raise InvalidInputError(
            f"A layer of {shape} in {precision.name} is uint8 of shape [{wanted}], got "
            f"{data.dtype} of shape {list(data.shape)}."
        )
    for out, dim in ((keys, shape.key_dim), (values, shape.value_dim)):
        if out.shape != (shape.heads, shape.tokens, dim) or out.dtype != shape.dtype:
            raise InvalidInputError(
                f"The layer is to be decoded to {shape.dtype} of shape "
                f"{[shape.heads, shape.tokens, dim]}, got {out.dtype} of shape "
                f"{list(out.shape)}."
            )
    parts = list(_split(data.to(keys.device), _sections(shape, precision)))
    if precision == Precision.INT8:
        key_scale, value_scale, key, value = parts
        dequantise(key, key_scale, keys)
        dequantise(value, value_scale, values)
    elif precision == Precision.INT4:
        key_scale, key_zero, value_scale, value_zero, key, value = parts
        dequantise_groups(key, key_scale, key_zero, keys, dim=1)
        dequantise_groups(value, value_scale, value_zero, values, dim=2)
    else:
        for part, out in zip(parts, (keys, values), strict=True):
            # Between two half precisions, by way of float32 is many times faster.
            direct = torch.float32 in (part.dtype, out.dtype) or part.dtype == out.dtype
            out.copy_(part if direct else part.float())


def relative_error(decoded: torch.Tensor, computed: torch.Tensor) -> float:
    """Return ‖decoded − computed‖ / ‖computed‖ (Frobenius).

    Parameters
    ----------
    decoded, computed : torch.Tensor
        Of one shape, finite.

    Returns
    -------
    float
        At least 0; if ``computed`` is zero, 0 or inf.
    """
    wide = torch.float64 if computed.dtype == torch.float64 else torch.float32
    decoded, computed = decoded.to(wide), computed.to(wide)
    largest = computed.abs().amax()
    if largest == 0:
        return float("inf") if decoded.any() else 0.0
    # Relative to the largest, so that no square overflows.
    off = torch.linalg.vector_norm((decoded - computed) / largest)
    return float(off / torch.linalg.vector_norm(computed / largest))


def _shape_of(keys: Sequence[torch.Tensor], values: Sequence[torch.Tensor]) -> KVShape:
    """Return the shape of a block's KV, which all layers must have."""
    if not keys or len(keys) != len(values):
        raise InvalidInputError(
            "A block has keys and values of the same layers, one at least, got "
            f"{len(keys)} and {len(values)}."
        )
    for kind, tensors in (("keys", keys), ("values", values)):
        for tensor in tensors:
            if tensor.dim() != 3 or tensor.shape[:2] != keys[0].shape[:2]:
                raise InvalidInputError(
                    f"The {kind} of each layer have shape [heads, tokens, dim], heads "
                    f"and tokens the same in all, got {list(tensor.shape)}."
                )
            if tensor.shape != tensors[0].shape or tensor.dtype != keys[0].dtype:
                raise InvalidInputError(
                    f"All layers' {kind} have one shape and dtype, got "
                    f"{list(tensor.shape)} of {tensor.dtype}, where the first have "
                    f"{list(tensors[0].shape)} of {keys[0].dtype}."
                )
    heads, tokens, key_dim = keys[0].shape
    return KVShape(len(keys), heads, tokens, key_dim, values[0].shape[2], keys[0].dtype)


def _sections(
    shape: KVShape, precision: Precision
) -> list[tuple[torch.dtype, tuple[int, ...]]]:
    """Return what a layer's bytes are, one after the other: dtypes and shapes."""
    heads, tokens = shape.heads, shape.tokens
    whole = [(heads, tokens, shape.key_dim), (heads, tokens, shape.value_dim)]
    if precision == Precision.INT8:
        return [
            (SCALE, (heads, 1, shape.key_dim)),
            (SCALE, (heads, tokens, 1)),
            *((torch.int8, size) for size in whole),
        ]
    if precision == Precision.INT4:
        key_groups = (heads, -(-tokens // GROUP), 1, shape.key_dim)
        value_groups = (heads, tokens, -(-shape.value_dim // GROUP), 1)
        half = -(-tokens // 2)
        return [
            *((SCALE, key_groups), (SCALE, key_groups)),
            *((SCALE, value_groups), (SCALE, value_groups)),
            *((torch.uint8, (heads, half, size[2])) for size in whole),
        ]
    kept = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
    return [(kept.get(precision, shape.dtype), size) for size in whole]


def _split(
    data: torch.Tensor, sections: list[tuple[torch.dtype, tuple[int, ...]]]
) -> Iterator[torch.Tensor]:
    """Yield the sections of a layer's bytes, without copying where it is aligned."""
    begin = 0
    for dtype, size in sections:
        part = data[begin : begin + prod(size) * dtype.itemsize]
        begin += len(part)
        if part.storage_offset() % dtype.itemsize or part.data_ptr() % dtype.itemsize:
            part = part.clone()
        yield part.view(dtype).view(size)


def _written(
    key: torch.Tensor, value: torch.Tensor, precision: Precision
) -> tuple[torch.Tensor, ...]:
    """Return the sections of a layer."""
    if precision == Precision.INT8:
        keys, key_scale = quantise(key, dim=1)
        values, value_scale = quantise(value, dim=2)
        return key_scale, value_scale, keys, values
    if precision == Precision.INT4:
        key_parts = quantise_groups(key, dim=1)
        value_parts = quantise_groups(value, dim=2)
        return *key_parts[:2], *value_parts[:2], key_parts[2], value_parts[2]
    if precision == Precision.EXACT:
        return key, value
    kept = torch.float16 if precision == Precision.FP16 else torch.bfloat16
    largest = min(torch.finfo(kept).max, torch.finfo(key.dtype).max)
    if {kept, key.dtype} == {torch.bfloat16, torch.float16}:
        largest = 65280.0  # The next bfloat16 is too large for float16.
    return tuple(x.clamp(-largest, largest).to(kept) for x in (key, value))
