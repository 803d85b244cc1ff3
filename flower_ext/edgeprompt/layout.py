"""Whether tails lie apart from a prefix or behind a copy of it: measured, not guessed.

For one query and a short prefix two small attentions and a merge take longer than one;
for many rows or a long prefix, copies take memory and time. Where a single row may lay
its tail into the room behind the prefix there is nothing to weigh: nothing is copied,
and one attention does.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import torch

from flower_ext.edgeprompt.device_time import device_time
from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.splice import Layout, SplicedLayer, attend_spliced
from flower_ext.network.clocks import WallClock

__all__ = ["LayoutRule"]

_MOST_COPIED_BYTES = 256 * 2**20
_TRIALS = 5


class LayoutRule:
    """Chooses the layout by timing one step of one layer both ways, once per shape.

    Parameters
    ----------
    heads : int
        Query heads of the model.

    Notes
    -----
    A step is timed with the prefixes' own first layer, a tail of one token, and the
    batch at hand; a copy is made once, so that it counts for as many steps as there
    are tokens to generate. Prefix lengths are told apart by powers of two.
    """

    def __init__(self, heads: int) -> None:
        self._heads = heads
        self._timed: dict[tuple[int, int, int], tuple[float, float, float]] = {}

    def choose(
        self, prefixes: Sequence[PrefixKV], batch: int, steps: int
    ) -> tuple[Layout, PrefixKV | None]:
        """Return the layout, and the prefix whose room was lent for it.

        Parameters
        ----------
        prefixes : Sequence[PrefixKV]
            Whole ones; at least one.
        batch : int
            Rows, beams included.
        steps : int
            Tokens that each row will generate.
        """
        if batch == 1 and len(prefixes) == 1 and prefixes[0].lend():
            return Layout.BEHIND, prefixes[0]
        shape = prefixes[0].shape
        tokens = sum(prefix.length for prefix in prefixes)
        row = shape.layers * shape.heads * tokens * (shape.key_dim + shape.value_dim)
        if batch * row * shape.dtype.itemsize > _MOST_COPIED_BYTES:
            return Layout.APART, None
        apart, copied, copying = self._times(prefixes, batch, tokens)
        slower = copying + steps * copied
        return (Layout.COPIED if slower < steps * apart else Layout.APART), None

    def _times(
        self, prefixes: Sequence[PrefixKV], batch: int, tokens: int
    ) -> tuple[float, float, float]:
        """Return a layer's seconds per step, apart and copied, and those of copying."""
        key = (batch, tokens.bit_length(), len(prefixes))
        if key not in self._timed:
            apart, _ = self._time(prefixes, batch, Layout.APART)
            copied, copying = self._time(prefixes, batch, Layout.COPIED)
            self._timed[key] = (apart, copied, copying)
        return self._timed[key]

    @torch.inference_mode()
    def _time(
        self, prefixes: Sequence[PrefixKV], batch: int, layout: Layout
    ) -> tuple[float, float]:
        """Return the seconds of a step and of the first, which makes the copy."""
        clock = WallClock()
        first_keys, first_values = prefixes[0].layer(0)
        heads, key_dim = first_keys.shape[1], first_keys.shape[-1]
        key = first_keys.new_zeros((batch, heads, 1, key_dim))
        value = first_values.new_zeros((batch, heads, 1, first_values.shape[-1]))
        query = key.new_zeros((batch, self._heads, 1, key_dim))
        steps, copies = [], []
        for _ in range(_TRIALS):
            layer = SplicedLayer(prefixes, 0, layout)
            begin = device_time(clock, query.device)
            layer.update(key, value)
            copied = device_time(clock, query.device)
            tail = layer.update(key, value)
            attend_spliced(layer, query, *tail)
            steps.append(device_time(clock, query.device) - copied)
            copies.append(copied - begin)
        return statistics.median(steps), statistics.median(copies)
