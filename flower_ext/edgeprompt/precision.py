"""The precisions that a block's KV travels and is kept in."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import torch

__all__ = ["EncodedBlock", "KVShape", "Precision"]


class Precision(Enum):
    """How a block's keys and values are written down."""

    EXACT = "exact"
    """As the model computes them."""
    FP16 = "fp16"
    BF16 = "bf16"
    INT8 = "int8"
    """Keys scaled per channel, values per token."""
    INT4 = "int4"
    """Keys scaled per channel and group of tokens, values per token and group."""


@dataclass(frozen=True)
class KVShape:
    """The shape of a block's KV.

    Parameters
    ----------
    layers, heads, tokens, key_dim, value_dim : int
        Per layer the keys have shape [heads, tokens, key_dim], the values
        [heads, tokens, value_dim].
    dtype : torch.dtype
        That the model computes in.
    """

    layers: int
    heads: int
    tokens: int
    key_dim: int
    value_dim: int
    dtype: torch.dtype


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
        Per layer its bytes, uint8 of shape [size of a layer].
    """

    shape: KVShape
    precision: Precision
    error: float
    layers: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """The bytes of all layers."""
        return sum(layer.numel() for layer in self.layers)
