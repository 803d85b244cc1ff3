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
    if isinstance(model, nn.Module) and hasattr(model, "_orig_mod"):
        model = model._orig_mod
    if isinstance(model, nn.Module) and hasattr(model, "peft_config"):
        if not hasattr(model, "get_base_model"):
            return model
        if model.active_peft_config.is_prompt_learning:
            raise InvalidInputError(
                f"{type(model).__name__} puts {type(model.active_peft_config).__name__}"
                " tokens before every prompt, which token ids cannot tell: use an "
                "adapter in the layers, as LoRA."
            )
        return model.get_base_model()
    return model
