"""Small random models of three families, and prompts for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from flower_ext.edgeprompt.blocks import identity_of
from flower_ext.edgeprompt.prefill import prefill
from flower_ext.edgeprompt.prefix_kv import PrefixKV

VOCABULARY = 97

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": 0,
}


def _llama() -> PreTrainedModel:
    return LlamaForCausalLM(LlamaConfig(**_SIZES))


def _qwen2() -> PreTrainedModel:
    return Qwen2ForCausalLM(Qwen2Config(**_SIZES, tie_word_embeddings=False))


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=48,
            n_layer=3,
            n_head=6,
            n_positions=1024,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=0,
        )
    )


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "gpt2": _gpt2,
}


@cache
def tiny(family: str, seed: int = 0) -> PreTrainedModel:
    """Return a model whose logits are far apart, so that ties do not decide."""
    torch.manual_seed(seed)
    model = FAMILIES[family]()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3.0)
    model.train(False)
    return model


def prefix_of(
    model: PreTrainedModel,
    tokens: Sequence[int],
    before: Sequence[PrefixKV] = (),
    room: int = 0,
) -> PrefixKV:
    """Compute tokens' KV."""
    kv = PrefixKV(identity_of(model).shape(len(tokens)), room=room)
    kv.fill(0, prefill(model, tokens, before))
    return kv
