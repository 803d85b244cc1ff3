"""Computing the KV of tokens that follow others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.splice import spliced, spliced_cache

__all__ = ["LayerKV", "prefill"]

LayerKV = tuple[torch.Tensor, torch.Tensor]
"""A layer's keys and values, of shape [1, heads, tokens, dim]."""


@torch.inference_mode()
def prefill(
    model: PreTrainedModel, tokens: Sequence[int], before: Sequence[PrefixKV] = ()
) -> list[LayerKV]:
    """Compute the KV of tokens, without logits.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder-only model in evaluation mode.
    tokens : Sequence[int]
        At least one.
    before : Sequence[PrefixKV] (default: ())
        What comes before them.

    Returns
    -------
    list[LayerKV]
        The new tokens' keys and values, per layer.
    """
    ids = torch.tensor([list(tokens)], device=model.device)
    inner: Any = model.base_model
    if not before:
        cache = inner(ids, use_cache=True).past_key_values
    else:
        cache = spliced_cache(before)
        with spliced(model):
            inner(ids, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]
