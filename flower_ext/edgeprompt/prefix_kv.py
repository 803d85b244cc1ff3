"""The KV of a shared prefix in memory: once, however many rows attend to it."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence

import torch

from flower_ext.edgeprompt.precision import KVShape

__all__ = ["PrefixKV"]


class PrefixKV:
    """The keys and values of one run of shared tokens, layer by layer.

    Parameters
    ----------
    shape : KVShape
        Its shape; the tensors are allocated, and filled by whoever has made it.
    device : torch.device
        Where they are.
    room : int (default: 0)
        Places after the last token in which a single row may lay its own tokens, so
        that it need not copy the prefix to have all in one tensor.

    Attributes
    ----------
    shape : KVShape
    length : int
        The tokens of the prefix.
    """

    def __init__(
        self, shape: KVShape, device: torch.device | str = "cpu", *, room: int = 0
    ) -> None:
        self.shape = shape
        self.length = shape.tokens
        places = shape.tokens + room

        def layers(dim: int) -> list[torch.Tensor]:
            whole = (shape.layers, 1, shape.heads, places, dim)
            # Not of inference mode, in which others could not write to them.
            with torch.inference_mode(False):
                return list(torch.empty(whole, dtype=shape.dtype, device=device))

        self._key_room = layers(shape.key_dim)
        self._value_room = layers(shape.value_dim)
        self._waiting: Callable[[int], None] | None = None
        self._lent = False

    def wait_with(self, wait: Callable[[int], None] | None) -> None:
        """Have a function called with a layer's index before that layer is read.

        It returns once the layer is whole. None: all layers are.
        """
        self._waiting = wait

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's keys and values, once they are there."""
        if self._waiting is not None:
            self._waiting(index)
        tokens = slice(self.length)
        return (
            self._key_room[index][..., tokens, :],
            self._value_room[index][..., tokens, :],
        )

    def lend(self) -> bool:
        """Lend the room behind the prefix to one row; False if another has it."""
        if self._lent or self._key_room[0].shape[-2] == self.length:
            return False
        self._lent = True
        return True

    def room(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a layer's tensors with the room behind the prefix."""
        return self._key_room[index], self._value_room[index]

    def give_back(self) -> None:
        """Take the room back, and wipe what was laid there."""
        self._lent = False
        for room in (*self._key_room, *self._value_room):
            room[..., self.length :, :] = 0

    @property
    def keys(self) -> list[torch.Tensor]:
        """Per layer, of shape [1, heads, length, key_dim]; they may be written to."""
        return [room[..., : self.length, :] for room in self._key_room]

    @property
    def values(self) -> list[torch.Tensor]:
        """Per layer, of shape [1, heads, length, value_dim]."""
        return [room[..., : self.length, :] for room in self._value_room]

    def fill(
        self, begin: int, layers: Sequence[tuple[torch.Tensor, torch.Tensor]]
    ) -> None:
        """Write what was computed of the tokens from ``begin`` on.

        Parameters
        ----------
        begin : int
            The first token's place.
        layers : Sequence[tuple[torch.Tensor, torch.Tensor]]
            Per layer keys and values, of shape [1, heads, tokens, dim].
        """
        for index, (keys, values) in enumerate(layers):
            end = begin + keys.shape[-2]
            self._key_room[index][..., begin:end, :] = keys
            self._value_room[index][..., begin:end, :] = values

    def head(self, tokens: int) -> PrefixKV:
        """Return its first tokens, at least one, as a prefix that shares its memory.

        What comes later may be in the making still; the head is not waited for.
        """
        head = copy.copy(self)
        head.shape = dataclasses.replace(self.shape, tokens=tokens)
        head.length = tokens
        head._waiting = None
        head._lent = True
        return head

    @property
    def nbytes(self) -> int:
        """The bytes it holds, room included."""
        return sum(room.nbytes for room in (*self._key_room, *self._value_room))
