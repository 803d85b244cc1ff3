"""Computing the KV of tokens that follow others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn
from transformers import DynamicCache, PreTrainedModel

from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.splice import spliced, spliced_cache
from flower_ext.models.cache_argument import forward_cache

__all__ = ["LayerKV", "StoppedError", "prefill", "stops_within"]

LayerKV = tuple[torch.Tensor, torch.Tensor]
"""A layer's keys and values, of shape [1, heads, tokens, dim]."""


# Which computation this thread watches: others may use the same model.
_WATCHING: ContextVar[object] = ContextVar("_WATCHING", default=None)


class StoppedError(Exception):
    """What was being computed is not wanted any more."""


def stops_within(model: PreTrainedModel, tokens: int) -> float:
    """Return which share of a prefill goes on at most when it is to be stopped.

    That is its largest piece between two moments at which :func:`prefill` asks, by
    operations: on a CPU, of a model with three matrices in each feed-forward layer,
    about a third of a layer, and else a layer.

    Parameters
    ----------
    model : PreTrainedModel
        A decoder-only model.
    tokens : int
        How many there are in all, those before it included: attention grows with them.

    Returns
    -------
    float
        In (0, 1].
    """
    config = model.config.get_text_config(decoder=True)
    layers = int(config.num_hidden_layers)
    if not _asks_within_layers(model):
        return 1.0 / layers
    heads = int(config.num_attention_heads)
    channels = getattr(config, "head_dim", None) or config.hidden_size // heads
    attention = 2 * tokens * heads * int(channels)  # a token's, in one layer
    pieces = [
        sum(p.numel() for p in module.parameters(recurse=False) if p.ndim > 1)
        for module in _pieces(model)
    ]
    work = sum(pieces) + attention * layers
    return max([*pieces, attention]) / work


def _asks_within_layers(model: PreTrainedModel) -> bool:
    """Return whether prefill asks before every matrix, or once per layer only.

    Where the device computes on its own, to ask is to wait for it each time. Of layers
    that keep their weights packed, the matrices are not to be seen.
    """
    layers = int(model.config.get_text_config(decoder=True).num_hidden_layers)
    return model.device.type == "cpu" and len(_pieces(model)) > layers


def _pieces(model: PreTrainedModel) -> list[nn.Module]:
    """Return the modules that multiply by matrices, before each of which is asked."""
    inner: nn.Module = model.base_model
    return [
        module
        for module in inner.modules()
        if not isinstance(module, nn.Embedding)
        and any(p.ndim > 1 for p in module.parameters(recurse=False))
    ]


class _WatchedCache(DynamicCache):
    """Asks in every layer whether to go on."""

    useful: Callable[[], bool] | None = None

    def update(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a layer's new keys and values."""
        if self.useful is not None and not self.useful():
            raise StoppedError
        return super().update(*args, **kwargs)


@contextmanager
def _watched(
    model: PreTrainedModel, useful: Callable[[], bool] | None
) -> Iterator[None]:
    """Ask before every piece that this thread computes whether to go on."""

    def ask(*_: Any) -> None:
        if _WATCHING.get() is watch and useful is not None and not useful():
            raise StoppedError

    watch = object()
    before = _WATCHING.set(watch)
    asks = useful is not None and _asks_within_layers(model)
    pieces = _pieces(model) if asks else []
    hooks = [piece.register_forward_pre_hook(ask) for piece in pieces]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        _WATCHING.reset(before)


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
        Asked in each layer whether to go on, and on a CPU before each of its matrices;
        None: always. Layers that were compiled may not be stopped.

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
    if before:
        cache.layers = spliced_cache(before).layers
    with spliced(model) if before else nullcontext(), _watched(model, useful):
        inner(ids, use_cache=True, **forward_cache(inner, cache))
    layers: list[Any] = list(cache.layers)
    return [(layer.keys, layer.values) for layer in layers]
