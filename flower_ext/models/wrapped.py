"""Models that have been compiled, or have an adapter, as the models that they are."""

from __future__ import annotations

from typing import Any

from torch import nn

from flower_ext.errors import InvalidInputError

__all__ = ["unwrapped"]


def unwrapped(model: Any) -> Any:
    """Return what ``torch.compile`` or a PEFT model has been wrapped around.

    A compiled model is used uncompiled, as a text's shapes change with every token
    (``model.compile()`` leaves the model itself, and is kept). An adapter that has its
    place in the model's layers, as LoRA has, stays there and counts.

    Parameters
    ----------
    model : Any
        A model; what is none of these wrappers is returned as it is.

    Raises
    ------
    InvalidInputError
        If an adapter puts tokens of its own before the prompt.
    """
    if not isinstance(model, nn.Module):
        return model
    found: Any = getattr(model, "_orig_mod", model)
    if not hasattr(found, "active_peft_config"):
        return found
    adapter = found.active_peft_config
    if adapter.is_prompt_learning:
        raise InvalidInputError(
            f"{type(found).__name__} puts {type(adapter).__name__} tokens before every "
            "prompt, which token ids cannot tell: use an adapter in the layers, as "
            "LoRA."
        )
    return found.get_base_model()
