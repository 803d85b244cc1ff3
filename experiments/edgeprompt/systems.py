"""EdgePrompt and what it is set against, timed the same way on the same model."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StaticCache,
)

from flower_ext.edgeprompt import (
    Completion,
    EdgePrompt,
    KVStore,
    Level,
    PromptHierarchy,
    Segment,
)
from flower_ext.edgeprompt.prefill import LayerKV, prefill
from flower_ext.errors import InvalidInputError
from flower_ext.models.cache_argument import generation_cache, returned_cache

__all__ = [
    "COPIED",
    "DYNAMIC",
    "EDGEPROMPT",
    "STATIC",
    "STATIC_COPIED",
    "Systems",
    "Timing",
    "kv_bytes",
    "random_model",
    "random_prompts",
]

EDGEPROMPT = "EdgePrompt"
DYNAMIC = "DynamicCache"
STATIC = "StaticCache"
COPIED = "DynamicCache, prefix copied"
STATIC_COPIED = "StaticCache, prefix copied"


@dataclass(frozen=True)
class Timing:
    """What a batch took.

    Parameters
    ----------
    first : float
        Seconds until the first token's logits.
    rate : float
        Tokens per second of all rows together after the first; nan if there is one.
    kv_bytes : int
        Of all keys and values at the end, the room that they have included.
    """

    first: float
    rate: float
    kv_bytes: int


def random_model(
    layers: int = 12,
    hidden: int = 512,
    *,
    heads: int = 8,
    key_heads: int = 8,
    head_dim: int = 64,
    feed_forward: int = 1376,
    vocabulary: int = 32_000,
    longest: int = 8192,
    seed: int = 0,
) -> LlamaForCausalLM:
    """Return a Llama of random weights, none of whose tokens ends a text.

    Speed depends on shapes alone; the defaults make one of 54 million weights.

    Parameters
    ----------
    layers, hidden, heads, key_heads, head_dim, feed_forward, vocabulary : int
        Its shape.
    longest : int (default: 8192)
        Tokens that a text may have.
    seed : int (default: 0)
        Of the weights.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=feed_forward,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        head_dim=head_dim,
        max_position_embeddings=longest,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    return LlamaForCausalLM(config).eval()


def random_prompts(
    prefix: int, private: int, batch: int, vocabulary: int, seed: int = 0
) -> list[PromptHierarchy]:
    """Return prompts of random tokens that share a public prefix.

    Parameters
    ----------
    prefix, private, batch : int
        Shared tokens, private tokens of each, and how many; at least 1 each.
    vocabulary : int
        Ids to draw from.
    seed : int (default: 0)
        Of the draws.
    """
    generator = torch.Generator().manual_seed(seed)

    def drawn(count: int) -> list[int]:
        return torch.randint(1, vocabulary, (count,), generator=generator).tolist()

    shared = Segment(drawn(prefix), Level.PUBLIC)
    return [
        PromptHierarchy([shared, Segment(drawn(private), Level.PRIVATE)])
        for _ in range(batch)
    ]


def kv_bytes(cache: Any) -> int:
    """Return the bytes of all keys and values in a cache of transformers."""
    return sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


class _FirstToken(LogitsProcessor):
    """Notes when the first logits were there, as EdgePrompt does."""

    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        del input_ids
        self.at = self.at or time.perf_counter()
        return scores


class Systems:
    """Runs a batch by each system; greedy, always to the last token.

    The prefix's KV is there beforehand for those that take one: EdgePrompt has it in
    memory, once, and those with copies make them when a batch comes, which counts.
    The others compute every row's whole prompt, as transformers does.

    Parameters
    ----------
    model : PreTrainedModel
        A causal model that the text ends of none of its own.
    tokenizer : PreTrainedTokenizerBase
        What EdgePrompt writes texts with.
    store : KVStore | None (default: None)
        Of EdgePrompt; None: one in memory.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        store: KVStore | None = None,
    ) -> None:
        self.model = model
        self.engine = EdgePrompt(model, tokenizer, store=store, memory_bytes=0)
        self._shared: tuple[Segment, ...] = ()
        self._prefix: list[LayerKV] = []

    def run(
        self, system: str, prompts: Sequence[PromptHierarchy], tokens: int
    ) -> Timing:
        """Generate from a batch.

        Parameters
        ----------
        system : str
            One of the names above.
        prompts : Sequence[PromptHierarchy]
            Of one length, sharing their shared segments.
        tokens : int
            Generated per row, at least 1.

        Raises
        ------
        InvalidInputError
            If lengths differ, or there is no such system.
        """
        if len({len(prompt) for prompt in prompts}) != 1:
            raise InvalidInputError(
                "Systems are compared on prompts of one length, got "
                f"{sorted({len(prompt) for prompt in prompts})}."
            )
        if system == EDGEPROMPT:
            return self._spliced(prompts, tokens)
        if system == DYNAMIC:
            return self._plain(prompts, tokens, lambda: {})
        if system == STATIC:
            options = {"cache_implementation": "static", "disable_compile": True}
            return self._plain(prompts, tokens, lambda: options)
        if system in (COPIED, STATIC_COPIED):
            self._keep(prompts[0])
            longest = len(prompts[0]) + tokens if system == STATIC_COPIED else None
            return self._plain(
                prompts,
                tokens,
                lambda: {
                    "disable_compile": True,
                    **generation_cache(self._copies(len(prompts), longest)),
                },
            )
        raise InvalidInputError(f"There is no system {system!r} to compare with.")

    def _spliced(self, prompts: Sequence[PromptHierarchy], tokens: int) -> Timing:
        self.engine.load(prompts[0])
        found: list[Completion] = self.engine.generate(prompts, tokens, do_sample=False)
        rate = sum(completion.tokens_per_second for completion in found)
        one = found[0]
        held = one.shared_kv_bytes + one.private_kv_bytes
        return Timing(one.time_to_first_token, rate, held)

    def _plain(
        self, prompts: Sequence[PromptHierarchy], tokens: int, options: Any
    ) -> Timing:
        ids = torch.tensor([prompt.tokens for prompt in prompts])
        first = _FirstToken()
        model: Any = self.model
        begin = time.perf_counter()
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            logits_processor=LogitsProcessorList([first]),
            return_dict_in_generate=True,
            **options(),
        )
        seconds = time.perf_counter() - first.at
        # The model would keep its static cache for the next call.
        if hasattr(model, "_cache"):
            del model._cache
        rate = len(prompts) * (tokens - 1) / seconds if tokens > 1 else float("nan")
        return Timing(first.at - begin, rate, kv_bytes(returned_cache(output)))

    def _keep(self, prompt: PromptHierarchy) -> None:
        """Compute the prefix's KV for those that copy it, if it is another one."""
        if prompt.shared != self._shared:
            tokens = [t for segment in prompt.shared for t in segment.tokens]
            self._prefix = prefill(self.model, tokens)
            self._shared = prompt.shared

    def _copies(self, rows: int, longest: int | None) -> Any:
        """Return a cache with the prefix's KV in every row."""
        config = self.model.config
        cache: Any = (
            DynamicCache(config=config)
            if longest is None
            else StaticCache(config=config, max_cache_len=longest)
        )
        for index, (keys, values) in enumerate(self._prefix):
            whole = [part.repeat(rows, 1, 1, 1) for part in (keys, values)]
            cache.update(*whole, index)
        return cache
