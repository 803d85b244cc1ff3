"""The rows of a batch: which go together, and how they are padded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flower_ext.edgeprompt.hierarchy import PromptHierarchy

__all__ = ["for_rows", "padded", "together"]

# What looks at the text before the token to draw, and does nothing at these values:
# padding between the shared and the private text would be taken for text.
_IDLE: dict[str, Any] = {
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "bad_words_ids": None,
    "sequence_bias": None,
    "watermarking_config": None,
    "stop_strings": None,
    "logits_processor": None,
    "stopping_criteria": None,
    "prefix_allowed_tokens_fn": None,
}


def together(
    prompts: Sequence[PromptHierarchy], options: dict[str, Any], config: Any
) -> list[list[int]]:
    """Return which prompts are generated from at once.

    All, unless something would take padding for text: then those of one length.

    Parameters
    ----------
    prompts : Sequence[PromptHierarchy]
        The batch.
    options : dict[str, Any]
        Of ``generate()``.
    config : GenerationConfig
        The model's own, where the options have none.
    """
    configs = (options.get("generation_config"), config)
    for name, idle in _IDLE.items():
        told = [getattr(one, name, None) for one in configs]
        given = [options[name]] if name in options else told
        if any(value and value != idle for value in given):
            break
    else:
        return [[*range(len(prompts))]]
    of_length: dict[int, list[int]] = {}
    for index, prompt in enumerate(prompts):
        of_length.setdefault(len(prompt), []).append(index)
    return list(of_length.values())


def padded(
    prompts: Sequence[PromptHierarchy], shared: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask: the prefix, padding, and the tails at the right."""
    rows = [prompt.tokens for prompt in prompts]
    longest = max(map(len, rows))
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    mask = torch.ones_like(ids)
    for index, row in enumerate(rows):
        missing = longest - len(row)
        mask[index, shared : shared + missing] = 0
        ids[index, :shared] = torch.tensor(row[:shared], dtype=torch.long)
        ids[index, shared + missing :] = torch.tensor(row[shared:], dtype=torch.long)
    return ids.to(device), mask.to(device)


def for_rows(rows: Sequence[int], options: dict[str, Any]) -> dict[str, Any]:
    """Return the options of some rows, which are still called by their own numbers."""
    allowed = options.get("prefix_allowed_tokens_fn")
    if allowed is None:
        return dict(options)

    def of_row(row: int, ids: torch.Tensor) -> Any:
        return allowed(rows[row], ids)

    return {**options, "prefix_allowed_tokens_fn": of_row}
