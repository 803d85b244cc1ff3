"""The models of a DSSD evaluation on a node, loaded once per process and path."""

from __future__ import annotations

import copy
import threading
from functools import cache
from os import PathLike
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, RecordDict
from transformers import PreTrainedModel

from flower_ext.clients.dssd_task import DSSDTask, Source
from flower_ext.errors import InvalidInputError
from flower_ext.models import LoadedModel, load_model
from flower_ext.models.loading import Role, load_tokenizer

__all__ = ["drafter_of", "target_of", "with_weights"]

_loading = threading.Lock()


def drafter_of(task: DSSDTask, context: Context) -> LoadedModel:
    """Return the node's drafter; others may share it, so it must stay as it is.

    Raises
    ------
    InvalidInputError
        If it cannot be loaded, or is a model without a tokenizer.
    """
    found: Any = task.drafter
    if callable(found) and not isinstance(found, PreTrainedModel):
        found = found(context)
    if not isinstance(found, PreTrainedModel):
        return _load(found, "draft", task)
    tokenizer: Any = task.tokenizer
    if tokenizer is None:
        raise InvalidInputError(
            f"drafter={type(found).__name__}(...) comes without a tokenizer: give "
            "DSSDTask(tokenizer=...) too."
        )
    if isinstance(tokenizer, str) or hasattr(tokenizer, "__fspath__"):
        tokenizer = load_tokenizer(tokenizer)
    return LoadedModel(found, tokenizer)


def target_of(task: DSSDTask, named: str) -> LoadedModel:
    """Return the target that a message names, or else the node's own.

    Raises
    ------
    InvalidInputError
        If it cannot be loaded.
    """
    return _load(named or task.target, "target", task)


def with_weights(model: PreTrainedModel, content: RecordDict) -> PreTrainedModel:
    """Return a copy of a model that has the weights of a message.

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
    weights = records[0].to_torch_state_dict()
    own = model.state_dict()
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
    changed.load_state_dict(weights)
    return changed


def _load(source: Source, role: Role, task: DSSDTask) -> LoadedModel:
    """Load a model, or return it if this process has it already."""
    tokenizer: Any = task.tokenizer if role == "draft" else None
    if isinstance(tokenizer, PathLike):
        tokenizer = str(tokenizer)
    with _loading, torch.random.fork_rng(devices=[]):
        if tokenizer is None or isinstance(tokenizer, str):
            return _loaded(str(source), role, tokenizer, task.dtype, task.device)
        return load_model(
            source,
            role=role,
            tokenizer=tokenizer,
            dtype=getattr(torch, task.dtype),
            device=task.device,
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
