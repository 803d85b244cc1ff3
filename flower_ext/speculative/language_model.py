"""Causal language models whose cache can be rolled back, one row or many at a time."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from flower_ext.errors import InvalidInputError
from flower_ext.models.cache_argument import forward_cache
from flower_ext.models.wrapped import unwrapped
from flower_ext.speculative.kv_cache import KVCache, RaggedBatch

__all__ = ["LanguageModel", "Row", "TransformersModel", "as_language_model"]


@dataclass(frozen=True)
class Row:
    """What one sequence wants of a forward pass.

    Parameters
    ----------
    cache : Any
        From :meth:`LanguageModel.new_cache`; the tokens are added to it.
    tokens : Sequence[int]
        The tokens that follow those in the cache, at least one.
    keep : int
        The logits wanted: of the last that many tokens, from 1 to all of them.
    """

    cache: Any
    tokens: Sequence[int]
    keep: int


class LanguageModel(Protocol):
    """What :class:`Drafter` and :class:`Verifier` ask of a model.

    A cache has ``length`` (tokens), ``nbytes`` and ``roll_back(length)``.
    """

    vocab_size: int
    positions_processed: int

    def new_cache(self) -> Any:
        """Return the cache of an empty sequence."""
        ...

    def extend(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Process every row's tokens in one pass, and add them to its cache.

        Returns
        -------
        list[torch.Tensor]
            Per row the logits after its last tokens, of shape [keep, vocab_size].
        """
        ...


class TransformersModel:
    """A Hugging Face causal language model with a cache that is rolled back.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder-only model with full attention in every layer. It is put into
        evaluation mode.
    vocab_size : int | None (default: None)
        Use the first that many logits alone: a model may be padded to a larger
        vocabulary than its tokenizer has. None: all.

    Raises
    ------
    InvalidInputError
        If the model's cache cannot be rolled back (recurrent, sliding-window or
        encoder-decoder models), or ``vocab_size`` is out of range.
    """

    def __init__(self, model: PreTrainedModel, vocab_size: int | None = None) -> None:
        _refuse_what_cannot_roll_back(model)
        model.train(False)
        own = int(model.config.get_text_config(decoder=True).vocab_size)
        if vocab_size is not None and not 1 <= vocab_size <= own:
            raise InvalidInputError(
                f"vocab_size must lie in [1, {own}], the model's own, got {vocab_size}."
            )
        self.model = model
        self.vocab_size = vocab_size or own
        self.positions_processed = 0
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._keeps_logits = "logits_to_keep" in accepted

    @property
    def max_length(self) -> int | None:
        """The most tokens of a sequence, if the model has a limit."""
        config = self.model.config.get_text_config(decoder=True)
        found = getattr(config, "max_position_embeddings", None)
        return int(found) if found else None

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text, by the model's own configuration."""
        config = getattr(self.model, "generation_config", None)
        found = getattr(config, "eos_token_id", None)
        if found is None:
            found = getattr(self.model.config, "eos_token_id", None)
        if found is None:
            return ()
        return tuple(found) if isinstance(found, list | tuple) else (int(found),)

    def new_cache(self) -> KVCache:
        """Return the cache of an empty sequence."""
        return KVCache(self.model.config)

    @torch.inference_mode()
    def extend(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Process every row's tokens in one pass, as :meth:`LanguageModel.extend`."""
        self.positions_processed += sum(len(row.tokens) for row in rows)
        if len(rows) == 1:
            return [self._extend_one(rows[0])]
        return self._extend_many(rows)

    def _extend_one(self, row: Row) -> torch.Tensor:
        """Process one row on its own cache, which nothing is copied for."""
        cache: KVCache = row.cache
        ids = torch.tensor([list(row.tokens)], device=self.model.device)
        logits = self._forward(ids, cache.layers, row.keep)
        cache.length += len(row.tokens)
        if cache.layers.get_seq_length() != cache.length:
            raise InvalidInputError(
                f"{type(self.model).__name__} does not keep its cache in what it is "
                "given, so it cannot be rolled back: choose another model."
            )
        return logits[0, -row.keep :]

    def _extend_many(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Process ragged rows: caches padded at the left, new tokens at the right."""
        device = self.model.device
        shared = rows[0].cache.shared_length
        longest = max(row.cache.length - shared for row in rows)
        widest = max(len(row.tokens) for row in rows)
        ids = torch.zeros((len(rows), widest), dtype=torch.long)
        mask = torch.zeros((len(rows), shared + longest + widest), dtype=torch.long)
        mask[:, :shared] = 1
        positions = torch.zeros_like(ids)
        for index, row in enumerate(rows):
            count, length = len(row.tokens), row.cache.length
            ids[index, :count] = torch.tensor(list(row.tokens))
            mask[index, longest + 2 * shared - length : shared + longest + count] = 1
            # The places after a row's last token are never looked at.
            positions[index] = torch.arange(length, length + widest)
        positions.clamp_(max=max(r.cache.length + len(r.tokens) for r in rows) - 1)
        batch = RaggedBatch([row.cache for row in rows], widest)
        keep = max(widest - len(row.tokens) + row.keep for row in rows)
        logits = self._forward(
            ids.to(device), batch.layers, keep, mask.to(device), positions.to(device)
        )
        batch.share_out([len(row.tokens) for row in rows])
        found = []
        for index, row in enumerate(rows):
            end = logits.shape[1] - (widest - len(row.tokens))
            found.append(logits[index, end - row.keep : end])
        return found

    def _forward(
        self,
        ids: torch.Tensor,
        cache: DynamicCache,
        keep: int,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return logits of at least the last ``keep`` places."""
        extra: dict[str, Any] = {}
        if mask is not None:
            extra["attention_mask"] = mask
            if self._takes_positions:
                extra["position_ids"] = positions
        if self._keeps_logits:
            extra["logits_to_keep"] = keep
        extra |= forward_cache(self.model, cache)
        output = self.model(ids, use_cache=True, **extra)
        logits: torch.Tensor = output.logits[:, -keep:, : self.vocab_size]
        return logits


def as_language_model(
    model: PreTrainedModel | LanguageModel, vocab_size: int | None
) -> LanguageModel:
    """Wrap a Hugging Face model; pass anything else that fits the protocol on.

    Of one that ``torch.compile`` or PEFT has wrapped, the model within is taken, with
    its adapter.

    Raises
    ------
    InvalidInputError
        If it is neither, cannot be rolled back, or fits the protocol with another
        ``vocab_size`` than the one wanted.
    """
    model = unwrapped(model)
    if isinstance(model, PreTrainedModel):
        return TransformersModel(model, vocab_size)
    needed = ("vocab_size", "positions_processed", "new_cache", "extend")
    if not all(hasattr(model, name) for name in needed):
        raise InvalidInputError(
            "A model must be a Hugging Face causal language model (a PreTrainedModel) "
            f"or have the methods of LanguageModel, got {type(model).__name__}."
        )
    if vocab_size not in (None, model.vocab_size):
        name = type(model).__name__
        raise InvalidInputError(
            f"vocab_size={vocab_size} cannot cut a {name}, which gives logits for "
            f"{model.vocab_size} ids: cut them where it is made, as in "
            f"TransformersModel(model, {vocab_size}) or PrefixedModel(model, "
            f"{vocab_size})."
        )
    return model


def _refuse_what_cannot_roll_back(model: PreTrainedModel) -> None:
    """Raise for architectures whose past cannot be taken back."""
    name = type(model).__name__
    if model.config.is_encoder_decoder:
        raise InvalidInputError(
            f"{name} is an encoder-decoder model: choose a decoder-only causal one."
        )
    layers: list[Any] = []
    if not getattr(model, "_is_stateful", False):
        layers = DynamicCache(config=model.config).layers
    kinds = sorted({type(layer).__name__ for layer in layers} - {DynamicLayer.__name__})
    if kinds or not layers:
        kept = f"keeps its past in {', '.join(kinds)}" if kinds else "is recurrent"
        raise InvalidInputError(
            f"{name} {kept}, which cannot be rolled back after a rejected draft: "
            "choose a model with full attention in every layer (for a sliding window, "
            "load it with config.use_sliding_window=False where it has that)."
        )
