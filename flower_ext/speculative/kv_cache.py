"""Keys and values that grow in place, roll back, and lie together in ragged batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

__all__ = ["GrowingLayer", "KVCache", "RaggedBatch", "RaggedLayer", "append"]

_BLOCK = 64  # Tokens of room that a layer makes at least when it is full.
_GROWTH = 1.25  # And by which factor: few copies, little spare memory.


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer that appends in place.

    Transformers' own copies all it has for every token; this one does when it is full.
    ``keys`` and ``values`` are the used beginnings of larger tensors, so that
    ``crop`` gives their end free again.
    """

    _keys: torch.Tensor | None = None
    _values: torch.Tensor | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and return all."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        self._keys, self.keys = append(self._keys, length, key_states)
        self._values, self.values = append(self._values, length, value_states)
        return self.keys, self.values

    @property
    def nbytes(self) -> int:
        """The bytes it holds, room included."""
        if self._keys is None or self._values is None:
            return 0
        return self._keys.nbytes + self._values.nbytes


def _growing_layer() -> Any:
    return GrowingLayer()  # type: ignore[no-untyped-call]


def append(
    room: torch.Tensor | None, length: int, new: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write new tokens behind others, into a larger tensor if there is no room.

    Parameters
    ----------
    room : torch.Tensor | None
        Of shape [..., places, dim]; None: there is none yet.
    length : int
        The places that are taken.
    new : torch.Tensor
        Of shape [..., tokens, dim].

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        The room, and its taken part [..., length + tokens, dim].
    """
    end = length + new.shape[-2]
    if room is None or end > room.shape[-2]:
        size = max(int(end * _GROWTH), end + _BLOCK)
        larger = new.new_empty((*new.shape[:-2], size, new.shape[-1]))
        if room is not None:
            larger[..., :length, :] = room[..., :length, :]
        room = larger
    room[..., length:end, :] = new
    return room, room[..., :end, :]


class KVCache:
    """The keys and values of one sequence's first ``length`` tokens.

    Parameters
    ----------
    config : PreTrainedConfig
        The model's.

    Attributes
    ----------
    layers : DynamicCache
        What the model is given.
    length : int
        The tokens in it.
    shared_length : int
        How many of these, the first ones, are kept elsewhere for many sequences.
    """

    shared_length = 0

    def __init__(self, config: PreTrainedConfig) -> None:
        self.layers = DynamicCache(config=config)
        layers: Any = [_growing_layer() for _ in self.layers.layers]
        self.layers.layers = layers
        self.length = 0

    @property
    def nbytes(self) -> int:
        """The bytes it holds."""
        own: Any = self.layers.layers
        return sum(layer.nbytes for layer in own)

    def roll_back(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        if length < self.length:
            self.layers.crop(length - self.length)
            self.length = length

    def ragged_layer(self, rows: Sequence[Any], longest: int, new: int) -> DynamicLayer:
        """Return a layer of a batch that this cache is a row of.

        Parameters
        ----------
        rows : Sequence[Any]
            That layer of every row's cache.
        longest, new : int
            As :class:`RaggedBatch` has them.
        """
        return RaggedLayer(rows, longest, new)


class RaggedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Rows of several caches, padded at the left, with places for new tokens."""

    def __init__(self, rows: Sequence[GrowingLayer], longest: int, new: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._longest = longest
        self._rows = rows
        self._new = new

    def get_seq_length(self) -> int:
        """Return the padded length, before the new tokens."""
        return self._longest

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the new tokens, and return all rows."""
        self.lazy_initialization(key_states, value_states)
        old: list[Any] = [layer.keys for layer in self._rows]
        self.keys = self._together(old, key_states)
        old = [layer.values for layer in self._rows]
        self.values = self._together(old, value_states)
        return self.keys, self.values

    def _together(
        self, rows: Sequence[torch.Tensor | None], new: torch.Tensor
    ) -> torch.Tensor:
        """Return all rows in one tensor, zeros where they are padded."""
        *outer, _, width = new.shape
        together = new.new_empty((*outer, self._longest + self._new, width))
        together[..., self._longest :, :] = new
        for index, row in enumerate(rows):
            length = 0 if row is None or row.ndim < 4 else row.shape[-2]
            begin = self._longest - length
            together[index, :, :begin] = 0
            if length:
                assert row is not None
                together[index, :, begin : self._longest] = row[0]
        return together


class RaggedBatch:
    """Several sequences' caches as one, for a single forward pass.

    Parameters
    ----------
    caches : Sequence[KVCache]
        The rows; what they share, they all share.
    new : int
        Places for new tokens, the same for all rows.

    Attributes
    ----------
    layers : DynamicCache
        What the model is given: rows padded at the left to ``longest``.
    longest : int
        The tokens of the longest cache, those that are shared left out.
    """

    def __init__(self, caches: Sequence[KVCache], new: int) -> None:
        self.longest = max(cache.length - cache.shared_length for cache in caches)
        self._caches = caches
        columns: Any = zip(*(cache.layers.layers for cache in caches), strict=True)
        self.layers = DynamicCache()
        own: Any = [caches[0].ragged_layer(r, self.longest, new) for r in columns]
        self.layers.layers = own

    def share_out(self, counts: Sequence[int]) -> None:
        """Add each row's first so many new tokens to its own cache."""
        for layer, *own in zip(
            self.layers.layers,
            *(cache.layers.layers for cache in self._caches),
            strict=True,
        ):
            whole: Any = layer
            if whole.is_initialized:
                for index, (cache, count) in enumerate(zip(own, counts, strict=True)):
                    new = slice(self.longest, self.longest + count)
                    growing: Any = cache
                    growing.update(
                        whole.keys[index : index + 1, :, new],
                        whole.values[index : index + 1, :, new],
                    )
        for cache, count in zip(self._caches, counts, strict=True):
            cache.length += count
