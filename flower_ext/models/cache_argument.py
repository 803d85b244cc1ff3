"""The name by which transformers takes a KV cache: it changed in version 5.24."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import nn
from transformers import Cache, GenerationMixin

__all__ = ["forward_cache", "generation_cache", "returned_cache"]

_NEW, _OLD = "cache", "past_key_values"


def forward_cache(model: nn.Module, cache: Cache | None) -> dict[str, Cache | None]:
    """Return a cache as the keyword argument of a model's ``forward``.

    ``cache`` from transformers 5.24 on, ``past_key_values`` before and in models whose
    code is older.

    Parameters
    ----------
    model : torch.nn.Module
        The model that is called.
    cache : Cache | None
        What it is given.

    Returns
    -------
    dict[str, Cache | None]
        With one entry.

    Examples
    --------
    >>> from flower_ext.models import default_pair
    >>> model = default_pair().draft
    >>> output = model(model.dummy_inputs["input_ids"], **forward_cache(model, None))
    """
    return {_name(type(model).forward): cache}


def generation_cache(cache: Cache | None) -> dict[str, Cache | None]:
    """Return a cache as the keyword argument of transformers' ``generate``."""
    return {_name(GenerationMixin.prepare_inputs_for_generation): cache}


def returned_cache(output: Any) -> Cache:
    """Return the cache that a model or ``generate`` has returned in its output."""
    name = _NEW if hasattr(output, _NEW) else _OLD
    cache: Cache = getattr(output, name)
    return cache


@lru_cache
def _name(function: Callable[..., Any]) -> str:
    """Return the name under which a function takes a cache."""
    return _NEW if _NEW in inspect.signature(function).parameters else _OLD
