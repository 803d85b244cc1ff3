"""Computing the KV of tokens that follow others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from transformers import DynamicCache, PreTrainedModel

from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.splice import spliced, spliced_cache
from flower_ext.models.cache_argument import forward_cache

__all__ = ["LayerKV", "StoppedError", "prefill"]

LayerKV = tuple[torch.Tensor, torch.Tensor]
"""A layer's keys and values, of shape [1, heads, tokens, dim]."""


class StoppedError(Exception):
    """What was being computed is not wanted any more."""


class _WatchedCache(DynamicCache):
    """Asks before every layer whether to go on."""

    useful: Callable[[], bool] | None = None

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a layer's new keys and values."""
        if self.useful is not None and not self.useful():
            raise StoppedError
        return super().update(*args, **kwargs)


@torch.inference_mode()
def prefill(
    model: PreTrainedModel,
    tokens: Sequence[int],
    before: Sequence[PrefixKV] = (),
    useful: Callable[[], bool] | None = None,
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
    useful : Callable[[], bool] | None (default: None)
        Asked once per layer whether to go on; None: always.

    Returns
    -------
    list[LayerKV]
        The new tokens' keys and values, per layer.

    Raises
    ------
    StoppedError
        If it is not useful any more.
    """
    ids = torch.tensor([list(tokens)], device=model.device)
    inner: Any = model.base_model
    cache = _WatchedCache(config=model.config)
    cache.useful = useful
    if not before:
        inner(ids, use_cache=True, **forward_cache(inner, cache))
    else:
        cache.layers = spliced_cache(before).layers
        with spliced(model):
            inner(ids, use_cache=True, **forward_cache(inner, cache))
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]
