"""The models of an evaluation on a node, loaded once per process and path."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from functools import cache, partial
from os import PathLike
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, RecordDict
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flower_ext.clients.dssd_task import DSSDTask, Source
from flower_ext.errors import InvalidInputError
from flower_ext.models import LoadedModel, load_model
from flower_ext.models.loading import Role, load_tokenizer
from flower_ext.models.wrapped import unwrapped

__all__ = ["drafter_of", "given", "load_once", "target_of", "with_weights"]

_loading = threading.Lock()
_COMPILED = "_orig_mod."  # before a compiled model's names


def drafter_of(task: DSSDTask, context: Context) -> LoadedModel:
    """Return the node's drafter; others may share it, so it must stay as it is.

    It may be wrapped by ``torch.compile`` or PEFT still.

    Raises
    ------
    InvalidInputError
        If it cannot be loaded, or is a model without a tokenizer.
    """
    found: Any = task.drafter
    if callable(found) and not isinstance(found, nn.Module):
        found = found(context)
    if isinstance(unwrapped(found), PreTrainedModel):
        return given(found, task.tokenizer, "drafter=", "DSSDTask")
    return load_once(found, "draft", task.tokenizer, task.dtype, task.device)


def target_of(task: DSSDTask, named: str) -> LoadedModel:
    """Return the target that a message names, or else the node's own.

    Raises
    ------
    InvalidInputError
        If it cannot be loaded.
    """
    return load_once(named or task.target, "target", None, task.dtype, task.device)


def given(
    model: PreTrainedModel,
    tokenizer: Source | PreTrainedTokenizerBase | None,
    parameter: str,
    task: str,
) -> LoadedModel:
    """Return a model that was given as an object, with its tokenizer.

    Parameters
    ----------
    model : PreTrainedModel
        The model.
    tokenizer : str | path | PreTrainedTokenizerBase | None
        Its tokenizer, which must be given too.
    parameter, task : str
        What the two were given as, for the error.

    Raises
    ------
    InvalidInputError
        If there is no tokenizer, or it cannot be loaded.
    """
    if tokenizer is None:
        raise InvalidInputError(
            f"{parameter}{type(model).__name__}(...) comes without a tokenizer: give "
            f"{task}(tokenizer=...) too."
        )
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = load_tokenizer(tokenizer)
    return LoadedModel(model, tokenizer)


def with_weights(model: PreTrainedModel, content: RecordDict) -> PreTrainedModel:
    """Return a copy of a model that has the weights of a message.

    They are all of its weights, or those of its adapter alone.

    Raises
    ------
    InvalidInputError
        If there is not one ArrayRecord, or it is not the model's state_dict.
    """
    records: list[ArrayRecord] = list(content.array_records.values())
    if len(records) != 1:
        raise InvalidInputError(
            "drafter-weights='message' needs exactly one ArrayRecord in the message, "
            f"got {len(records)}."
        )
    sent = records[0].to_torch_state_dict()
    weights = {name.removeprefix(_COMPILED): w for name, w in sent.items()}
    model = getattr(model, "_orig_mod", model)
    own: dict[str, torch.Tensor] = model.state_dict()
    load: Callable[..., object] = nn.Module.load_state_dict
    if weights.keys() != own.keys() and hasattr(model, "active_peft_config"):
        own, load = _adapter(model, weights)
    wrong = sorted(weights.keys() ^ own.keys()) or [
        name for name in own if own[name].shape != weights[name].shape
    ]
    if wrong:
        raise InvalidInputError(
            "The message's arrays are no state_dict of the drafter, "
            f"{type(model).__name__}: they differ in {', '.join(wrong[:4])}"
            f"{' and more' if len(wrong) > 4 else ''}. If the app trains another model "
            "than the drafter, choose drafter_weights='node'."
        )
    changed = copy.deepcopy(model)
    load(changed, weights)
    return changed


def _adapter(
    model: Any, weights: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], Callable[..., object]]:
    """Return the weights of a model's adapter, and what loads such ones."""
    # Only whoever uses PEFT has it.
    from peft import (  # noqa: PLC0415
        get_peft_model_state_dict,
        set_peft_model_state_dict,
    )

    name = model.active_adapter
    own: dict[str, torch.Tensor] = {}
    # Embeddings count if they were sent; left to itself, PEFT would ask the hub.
    for embeddings in (True, False):
        own = get_peft_model_state_dict(
            model, adapter_name=name, save_embedding_layers=embeddings
        )
        if own.keys() == weights.keys():
            break
    return own, partial(set_peft_model_state_dict, adapter_name=name)


def load_once(
    source: Source,
    role: Role,
    tokenizer: Source | PreTrainedTokenizerBase | None,
    dtype: str,
    device: str,
) -> LoadedModel:
    """Load a model, or return it if this process has it already.

    Parameters
    ----------
    source : str | path
        A folder, an id in the local Hugging Face cache, or ``"default"``.
    role : str
        ``"draft"`` or ``"target"``: which one ``"default"`` is.
    tokenizer : str | path | PreTrainedTokenizerBase | None
        Its tokenizer; None: beside it.
    dtype : str
        Precision that it is loaded in: the name of a torch dtype.
    device : str
        Where it runs.

    Raises
    ------
    InvalidInputError
        If it cannot be loaded.
    """
    with _loading, torch.random.fork_rng(devices=[]):
        if tokenizer is None or isinstance(tokenizer, str | PathLike):
            place = None if tokenizer is None else str(tokenizer)
            return _loaded(str(source), role, place, dtype, device)
        return load_model(
            source,
            role=role,
            tokenizer=tokenizer,
            dtype=getattr(torch, dtype),
            device=device,
        )


@cache
def _loaded(
    source: str, role: Role, tokenizer: str | None, dtype: str, device: str
) -> LoadedModel:
    """Load a model from disk."""
    return load_model(
        source,
        role=role,
        tokenizer=tokenizer,
        dtype=getattr(torch, dtype),
        device=device,
    )
