"""Which models can be spliced, found out before anything is computed with one."""

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from flower_ext.edgeprompt.blocks import kv_shape
from flower_ext.edgeprompt.prefill import prefill
from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.splice import spliced, spliced_cache
from flower_ext.errors import InvalidInputError
from flower_ext.models.cache_argument import forward_cache

__all__ = ["check_spliceable", "longest_text"]

_SHARED, _TAIL = 5, 3  # Tokens of the trial.
_TOLERANCE = 1e-3  # Relative; float32 is below 1e-5, a wrong splice far above.
_HALF_TOLERANCE = 0.1


def check_spliceable(model: PreTrainedModel) -> None:
    """Make sure that a model's KV cache can be cut and spliced.

    Its layers are looked at, and a text of a few tokens is computed as a whole and
    spliced.

    Parameters
    ----------
    model : PreTrainedModel
        In evaluation mode.

    Raises
    ------
    InvalidInputError
        If it is no decoder-only model with full attention in every layer, or comes to
        other logits when spliced.
    """
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
            f"{name} {kept}, which cannot be spliced: choose a model with full "
            "attention in every layer (for a sliding window, load it with "
            "config.use_sliding_window=False where it has that)."
        )
    rope = getattr(model.config.get_text_config(decoder=True), "rope_parameters", None)
    kinds = sorted(_rope_types(rope or {}) & {"longrope", "dynamic"})
    if kinds:
        raise InvalidInputError(
            f"{name} has rotary embeddings of type {kinds[0]}, which depend on the "
            "text's length, so that KV cannot be shared: choose another model."
        )
    if model.training:
        raise InvalidInputError(f"{name} is in training mode: call model.eval().")
    difference = _difference(model)
    wide = model.dtype in (torch.float32, torch.float64)
    if not difference <= (_TOLERANCE if wide else _HALF_TOLERANCE):
        raise InvalidInputError(
            f"{name} comes to other logits when its prompt is spliced (relative "
            f"difference {difference:.2g}): its attention does something else than "
            "softmax over all keys. Choose another model."
        )


def _rope_types(parameters: dict[str, Any]) -> set[str]:
    """Return the kinds of rotary embedding, of all kinds of layers."""
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    found = {str(parameters.get("rope_type", "default"))}
    return found.union(*(_rope_types(value) for value in nested))


def longest_text(model: PreTrainedModel) -> int | None:
    """Return the most tokens of a text, if the model has a limit."""
    config = model.config.get_text_config(decoder=True)
    found = getattr(config, "max_position_embeddings", None)
    return int(found) if found else None


@torch.inference_mode()
def _difference(model: PreTrainedModel) -> float:
    """Return how far logits of a spliced text are from those of the whole one."""
    vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
    tokens = [(7 * i + 1) % vocabulary for i in range(_SHARED + _TAIL)]
    ids = torch.tensor([tokens], device=model.device)
    whole = model(ids).logits[0, _SHARED:].float()
    kv = PrefixKV(kv_shape(model, _SHARED), model.device)
    kv.fill(0, prefill(model, tokens[:_SHARED]))
    positions = torch.arange(_SHARED, _SHARED + _TAIL, device=model.device)[None]
    with spliced(model):
        apart = model(
            ids[:, _SHARED:],
            position_ids=positions,
            use_cache=True,
            **forward_cache(model, spliced_cache([kv])),
        ).logits[0]
    return float((apart.float() - whole).abs().max() / whole.abs().max())
