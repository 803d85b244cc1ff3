"""A verifier's model that holds public prefixes once for all its sessions."""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from flower_ext.edgeprompt.blocks import kv_shape
from flower_ext.edgeprompt.hierarchy import PromptHierarchy
from flower_ext.edgeprompt.prefill import prefill
from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.splice import ATTENTION, Layout, spliced_cache
from flower_ext.edgeprompt.spliceable import check_spliceable
from flower_ext.errors import InvalidInputError, PrivateSegmentError
from flower_ext.speculative.kv_cache import KVCache, RaggedLayer
from flower_ext.speculative.language_model import Row, TransformersModel

__all__ = ["PrefixedModel"]

_SHORTEST = 16  # Tokens that a prompt must share for a prefix to be worth a splice.


class PrefixedModel(TransformersModel):
    """A model whose sequences share the KV of the prefixes that it holds.

    Give it to a :class:`~flower_ext.speculative.Verifier` or an
    :class:`~flower_ext.edge.EdgeServer` in the model's place. A sequence that begins
    with a held prefix neither computes nor keeps it: its cache is the tail alone, and
    sequences of one prefix are verified in one pass that reads the prefix once.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder-only model with full attention in every layer. It is put into
        evaluation mode, and its attention implementation is exchanged.
    vocab_size : int | None (default: None)
        As :class:`~flower_ext.speculative.language_model.TransformersModel` has it.

    Raises
    ------
    InvalidInputError
        If the model cannot be spliced.

    Examples
    --------
    >>> from flower_ext.models import default_pair
    >>> from flower_ext.speculative import Verifier
    >>> model = PrefixedModel(default_pair().target)
    >>> model.hold(range(100))
    >>> verifier = Verifier(model)
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int | None = None) -> None:
        super().__init__(model, vocab_size)
        check_spliceable(model)
        model.set_attn_implementation(ATTENTION)
        self._held: OrderedDict[tuple[int, ...], PrefixKV] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """The bytes of all held prefixes; no session's cache counts them."""
        return sum(kv.nbytes for kv in self._held.values())

    def hold(self, prefix: PromptHierarchy | Sequence[int]) -> None:
        """Compute a prefix, and hold it until :meth:`drop`.

        Parameters
        ----------
        prefix : PromptHierarchy | Sequence[int]
            A prompt without private segments, or tokens that all may see; at least 16
            of them.

        Raises
        ------
        PrivateSegmentError
            If there is a private segment.
        InvalidInputError
            If there are fewer tokens, or one that the model does not have.
        """
        tokens = _shared(prefix)
        if len(tokens) < _SHORTEST:
            raise InvalidInputError(
                f"A held prefix needs {_SHORTEST} tokens at least, got {len(tokens)}: "
                "shorter ones are computed as fast."
            )
        if not all(0 <= token < self.vocab_size for token in tokens):
            raise InvalidInputError(
                f"The prefix has tokens outside [0, {self.vocab_size}): use the "
                "model's own tokenizer."
            )
        if tokens in self._held:
            return
        kv = PrefixKV(kv_shape(self.model, len(tokens)), self.model.device)
        kv.fill(0, prefill(self.model, tokens))
        self.positions_processed += len(tokens)
        self._held[tokens] = kv

    def drop(self, prefix: PromptHierarchy | Sequence[int]) -> None:
        """Hold a prefix no longer; sequences that have begun with it go on."""
        self._held.pop(_shared(prefix), None)

    @torch.inference_mode()
    def extend(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Process every row's tokens, in one pass for each prefix that rows have."""
        rows = [self._begun(row) for row in rows]
        groups: dict[Any, list[int]] = {}
        for index, row in enumerate(rows):
            of = getattr(row.cache, "prefix", None)
            groups.setdefault(None if of is None else id(of), []).append(index)
        found: list[torch.Tensor | None] = [None] * len(rows)
        for members in groups.values():
            logits = super().extend([rows[index] for index in members])
            for index, own in zip(members, logits, strict=True):
                found[index] = own
        return [logits for logits in found if logits is not None]

    def new_cache(self) -> KVCache:
        """Return the cache of an empty sequence."""
        return _PrefixedCache(self.model.config)

    def _begun(self, row: Row) -> Row:
        """Begin an empty sequence with the longest prefix that is held."""
        cache = row.cache
        if cache.length or not isinstance(cache, _PrefixedCache):
            return row
        begun = row.tokens[: len(row.tokens) - row.keep]
        longest, best = _SHORTEST - 1, None
        for tokens, kv in self._held.items():
            common = _common(tokens, begun)
            if common > longest:
                longest, best = common, kv
        if best is None:
            return row
        cache.begin_with(best, longest)
        return Row(cache, row.tokens[cache.length :], row.keep)


class _PrefixedCache(KVCache):
    """A sequence's cache, which may begin with a prefix that others have as well."""

    prefix: PrefixKV | None = None

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config)
        self._config = config

    def begin_with(self, prefix: PrefixKV, length: int) -> None:
        """Begin with a prefix's first tokens."""
        # Rows of one prefix are one batch if they have the same object.
        self.prefix = prefix if length == prefix.length else prefix.head(length)
        self.layers = spliced_cache([self.prefix])
        self.length = self.shared_length = length

    @property
    def nbytes(self) -> int:
        """The bytes of the tail."""
        own: Any = self.layers.layers
        return sum(layer.nbytes for layer in own)

    def roll_back(self, length: int) -> None:
        """Keep the first ``length`` tokens."""
        if length >= self.shared_length:
            super().roll_back(length)
        elif self.prefix is not None and length:
            self.begin_with(self.prefix, length)
        else:
            self.prefix, self.shared_length = None, 0
            super().__init__(self._config)

    def ragged_layer(self, rows: Sequence[Any], longest: int, new: int) -> DynamicLayer:
        """Return a layer of a batch that this cache is a row of."""
        if self.prefix is None:
            return super().ragged_layer(rows, longest, new)
        return _RaggedSplicedLayer(rows, longest, new)


class _RaggedSplicedLayer(RaggedLayer):  # type: ignore[no-untyped-call]
    """Tails of several rows, padded at the left, behind one prefix."""

    layout = Layout.APART

    def __init__(self, rows: Sequence[Any], longest: int, new: int) -> None:
        super().__init__(rows, longest, new)
        self.shared_length = rows[0].shared_length
        self.shared = rows[0].shared

    def get_seq_length(self) -> int:
        """Return the padded length with the prefix, before the new tokens."""
        return int(self.shared_length) + super().get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the padded tails' length with new tokens, and where they begin."""
        return super().get_seq_length() + query_length, self.shared_length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take the new tokens, and return all rows' tails."""
        keys, values = super().update(key_states, value_states)
        keys.splice = weakref.ref(self)  # type: ignore[attr-defined]
        return keys, values


def _common(some: Sequence[int], others: Sequence[int]) -> int:
    """Return how many of the first tokens are the same."""
    for index, (one, other) in enumerate(zip(some, others, strict=False)):
        if one != other:
            return index
    return min(len(some), len(others))


def _shared(prefix: PromptHierarchy | Sequence[int]) -> tuple[int, ...]:
    """Return a prefix's tokens."""
    if isinstance(prefix, PromptHierarchy):
        if prefix.private_tokens:
            raise PrivateSegmentError(
                "A prefix that all sessions share has no private segments: hold "
                "PromptHierarchy(hierarchy.shared)."
            )
        return prefix.tokens
    return tuple(prefix)
