"""Shared prefixes beside private tails, inside any stock Hugging Face model.

A cache layer keeps the tail only, and points at the prefix; a registered attention
function attends to both apart and merges. Many rows attend to a prefix as the queries
of a single one would, so that it is read once for all.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    DynamicCache,
    PreTrainedModel,
)
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from flower_ext.edgeprompt.attention import attend
from flower_ext.edgeprompt.merge import merge_attention
from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.errors import InvalidInputError
from flower_ext.speculative.kv_cache import append

__all__ = [
    "ATTENTION",
    "Layout",
    "SplicedLayer",
    "attend_spliced",
    "spliced",
    "spliced_cache",
]

ATTENTION = "flower_ext_splice"
"""The attention implementation that a model has while it is :func:`spliced`."""


# How many hold a model spliced at the moment, and the attention that it gets back.
_SPLICED: weakref.WeakKeyDictionary[PreTrainedModel, tuple[int, str]] = (
    weakref.WeakKeyDictionary()
)


class Layout(Enum):
    """Where the tail's keys and values lie."""

    APART = "apart"
    """Beside the prefix, which is there once for all rows."""
    BEHIND = "behind"
    """In the room behind the prefix, which a single row may borrow."""
    COPIED = "copied"
    """Behind a copy of the prefix, one per row."""


class SplicedLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """One layer of a cache: shared prefixes, and a tail per row.

    ``keys`` and ``values`` are the tail's, of shape [batch, heads, tail, dim], and all
    that reorders, repeats or selects rows touches these alone.

    Parameters
    ----------
    prefixes : Sequence[PrefixKV]
        Those that all rows begin with, in their order, at least one.
    index : int
        Which of their layers this is.
    layout : Layout
        Where the tail lies. BEHIND needs a single prefix whose room was lent.
    longest : int | None (default: None)
        The tokens that tails will have, if known: that many places are made at once,
        and not one more.
    """

    def __init__(
        self,
        prefixes: Sequence[PrefixKV],
        index: int,
        layout: Layout,
        longest: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._prefixes = tuple(prefixes)
        self._index = index
        self.layout = layout
        self._longest = longest
        self.shared_length = sum(prefix.length for prefix in self._prefixes)
        self._begin = 0 if layout is Layout.APART else self.shared_length
        self._length = 0
        self._key_room: torch.Tensor | None = None
        self._value_room: torch.Tensor | None = None

    def shared(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return every prefix's keys and values, once they are there."""
        return [prefix.layer(self._index) for prefix in self._prefixes]

    def whole(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prefix and the tail in one, unless they lie apart."""
        assert self._key_room is not None
        assert self._value_room is not None
        for prefix in self._prefixes:
            prefix.layer(self._index)  # Until it is there.
        end = self._begin + self._length
        return self._key_room[..., :end, :], self._value_room[..., :end, :]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append to the tail, and return the tail."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._begin_rooms(key_states, value_states)
        taken = self._begin + self._length
        if self._begin and self._places < taken + key_states.shape[-2]:
            self.shared()  # The prefix is copied along, so it must be there.
        self._key_room = append(self._key_room, taken, key_states)[0]
        self._value_room = append(self._value_room, taken, value_states)[0]
        self._length += key_states.shape[-2]
        self._view()
        assert self.keys is not None
        assert self.values is not None
        # By this the attention function knows what the tail belongs to.
        self.keys.splice = weakref.ref(self)  # type: ignore[attr-defined]
        return self.keys, self.values

    @property
    def _places(self) -> int:
        """The tokens that there is room for."""
        return 0 if self._key_room is None else self._key_room.shape[-2]

    def _begin_rooms(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Find the tensors that the tail is written to, if not new ones."""
        if self.layout is Layout.BEHIND:
            if len(keys) != 1:
                raise InvalidInputError(
                    f"One row may lie behind its prefix, got a batch of {len(keys)}: "
                    "choose another layout."
                )
            self._key_room, self._value_room = self._prefixes[0].room(self._index)
        elif self.layout is Layout.COPIED:
            shared = zip(*self.shared(), strict=True)
            rows = len(keys)
            copies = [
                torch.cat(part, dim=-2).expand(rows, -1, -1, -1) for part in shared
            ]
            self._key_room = append(self._room_for(copies[0]), 0, copies[0])[0]
            self._value_room = append(self._room_for(copies[1]), 0, copies[1])[0]
        else:
            self._key_room = self._room_for(keys)
            self._value_room = self._room_for(values)

    def _room_for(self, like: torch.Tensor) -> torch.Tensor | None:
        """Return room for the longest tail, if that is known."""
        if self._longest is None:
            return None
        places = self._begin + self._longest
        return like.new_empty((*like.shape[:2], places, like.shape[-1]))

    def _view(self) -> None:
        """Have ``keys`` and ``values`` show the tail."""
        assert self._key_room is not None
        assert self._value_room is not None
        tail = slice(self._begin, self._begin + self._length)
        self.keys = self._key_room[..., tail, :]
        self.values = self._value_room[..., tail, :]

    def _each_room(self, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Change the rows."""
        if self._key_room is not None and self._value_room is not None:
            self._key_room = change(self._key_room)
            self._value_room = change(self._value_room)
            self._view()

    def get_seq_length(self) -> int:
        """Return the tokens of the prefixes and the tail."""
        return self.shared_length + self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of the tail with new tokens, and where it begins."""
        return self._length + query_length, self.shared_length

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Put the rows into another order."""
        self._each_room(lambda room: room.index_select(0, beam_idx.to(room.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._each_room(lambda room: room.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some of the rows."""
        self._each_room(lambda room: room[indices, ...])

    def crop(self, tokens_to_remove: int) -> None:
        """Take tokens off the tail's end.

        Parameters
        ----------
        tokens_to_remove : int
            How many, as a number that is not positive.

        Raises
        ------
        InvalidInputError
            If it is positive, or the tail is shorter: prefixes are not cropped.
        """
        if not -self._length <= tokens_to_remove <= 0:
            raise InvalidInputError(
                f"tokens_to_remove must lie in [-{self._length}, 0], the private "
                f"tail, got {tokens_to_remove}: a shared prefix cannot be cropped."
            )
        self._length += tokens_to_remove
        if self.is_initialized:
            self._view()

    def reset(self) -> None:
        """Drop the tail."""
        self._length = 0
        self._key_room = self._value_room = self.keys = self.values = None
        self.is_initialized = False

    @property
    def nbytes(self) -> int:
        """The bytes of the tail, its room included, and of a copied prefix."""
        if self._key_room is None or self._value_room is None:
            return 0
        if self.layout is Layout.BEHIND:
            lent = self._prefixes[0].room(self._index)[0]
            if self._key_room.data_ptr() == lent.data_ptr():
                return 0  # The prefix counts it.
        return self._key_room.nbytes + self._value_room.nbytes


def spliced_cache(
    prefixes: Sequence[PrefixKV],
    layout: Layout = Layout.APART,
    longest: int | None = None,
) -> DynamicCache:
    """Return a cache for rows that all begin with the same prefixes.

    Parameters
    ----------
    prefixes : Sequence[PrefixKV]
        In their order, at least one, of one model.
    layout : Layout (default: Layout.APART)
        Where tails lie.
    longest : int | None (default: None)
        The tokens that tails will have, if known.

    Returns
    -------
    DynamicCache
        To be given to a :func:`spliced` model as its cache.

    Raises
    ------
    InvalidInputError
        If there is no prefix, or they are of models with different numbers of layers.
    """
    if not prefixes or len({prefix.shape.layers for prefix in prefixes}) != 1:
        raise InvalidInputError(
            "A spliced cache needs prefixes of one model, at least one, got "
            f"{[prefix.shape for prefix in prefixes]}."
        )
    cache = DynamicCache()
    layers: Any = [
        SplicedLayer(prefixes, index, layout, longest)
        for index in range(prefixes[0].shape.layers)
    ]
    cache.layers = layers
    return cache


@contextmanager
def spliced(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """Have a model attend to spliced caches; it takes all others as well.

    Parameters
    ----------
    model : PreTrainedModel
        Its attention implementation is changed meanwhile, and put back by the last
        who has it spliced.

    Raises
    ------
    InvalidInputError
        If the model's attention cannot be exchanged.
    """
    users, before = _SPLICED.get(model, (0, model.config._attn_implementation))
    if not users:
        try:
            model.set_attn_implementation(ATTENTION)
        except (ValueError, AttributeError) as error:
            raise InvalidInputError(
                f"{type(model).__name__} does not let its attention be exchanged: "
                "choose a model that calls transformers' attention interface "
                f"({error})."
            ) from error
    _SPLICED[model] = (users + 1, before)
    try:
        yield model
    finally:
        users, before = _SPLICED[model]
        if users > 1:
            _SPLICED[model] = (users - 1, before)
        else:
            del _SPLICED[model]
            model.set_attn_implementation(before)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to a prefix and a tail, in the way transformers calls such functions."""
    of = getattr(key, "splice", None)
    layer: SplicedLayer | None = None if of is None else of()
    if layer is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, **options
        )
        return output, None
    for name in ("softcap", "s_aux", "sliding_window", "position_bias"):
        if options.get(name) is not None:
            raise InvalidInputError(
                f"{type(module).__name__} attends with {name}, which is not spliced: "
                "choose a model with plain full attention."
            )
    if options.get("dropout"):
        raise InvalidInputError("A prompt is spliced in evaluation mode: model.eval().")
    output = attend_spliced(layer, query, key, value, attention_mask, scaling)
    return output.transpose(1, 2).contiguous(), None


def attend_spliced(
    layer: SplicedLayer,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    scale: float | None = None,
) -> torch.Tensor:
    """Attend to a layer's prefixes and to the tail.

    Parameters
    ----------
    layer : SplicedLayer
        What the tail belongs to.
    query : torch.Tensor
        Of shape [batch, heads, queries, dim].
    key, value : torch.Tensor
        The tail's, as :meth:`SplicedLayer.update` returns them.
    mask : torch.Tensor | None (default: None)
        True where a query sees a token of the tail, [batch, 1, queries, tail]; None:
        each sees those up to its own, the last query being the last token.
    scale : float | None (default: None)
        As :func:`~flower_ext.edgeprompt.attention.attend` has it.

    Returns
    -------
    torch.Tensor
        Of shape [batch, heads, queries, value dim].
    """
    one = query.shape[-2] == 1
    if layer.layout is not Layout.APART and one:
        if mask is not None:
            # What is before the tail is seen by every row.
            mask = torch.nn.functional.pad(mask, (layer.shared_length, 0), value=True)
        return attend(query, *layer.whole(), mask, scale=scale)[0]
    causal = mask is None and not one
    parts = [attend(query, key, value, mask, causal=causal, scale=scale)]
    parts += [_attend_to_prefix(query, *kv, scale) for kv in layer.shared()]
    return merge_attention([o for o, _ in parts], [log for _, log in parts])[0]


def _attend_to_prefix(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend from all rows, and all heads that share keys, as from one row's queries.

    A query sees the whole prefix, so that no mask is needed, and the prefix is read
    once for all of them.
    """
    batch, heads, queries, dim = query.shape
    key_heads = key.shape[1]
    packed = query.reshape(batch, key_heads, -1, dim).transpose(0, 1)
    output, log = attend(packed.reshape(1, key_heads, -1, dim), key, value, scale=scale)
    output = output.reshape(key_heads, batch, -1, value.shape[-1]).transpose(0, 1)
    log = log.reshape(key_heads, batch, -1).transpose(0, 1)
    return (
        output.reshape(batch, heads, queries, -1),
        log.reshape(batch, heads, queries),
    )


def _mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Any] = causal_mask_function,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    **options: Any,
) -> torch.Tensor | None:
    """Return the mask over the tail, or None where it is causal and without padding."""
    padded = False
    if attention_mask is not None:
        if kv_offset and not bool(attention_mask[:, :kv_offset].all()):
            raise InvalidInputError(
                "attention_mask hides tokens of a shared prefix, which all rows see: "
                "pad rows between the prefix and their tails."
            )
        own = attention_mask[:, kv_offset : kv_offset + kv_length]
        padded = not bool(own.all())
    plain = q_length in (1, kv_length)
    if allow_is_causal_skip and plain and not padded:
        return None
    mask: torch.Tensor | None = sdpa_mask(
        batch_size=batch_size,
        q_length=q_length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=mask_function,
        attention_mask=attention_mask,
        allow_is_causal_skip=False,
        **options,
    )
    return mask


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, _mask)
