"""Train the small pair of models that ships with flower-ext.

``python experiments/train_default_pair.py --text PATH --out flower_ext/models/default``
learns a byte-level tokenizer and a target from a text file, then distils a drafter from
the target: on the text, and on sequences that the target samples, because those are
what a drafter is asked to continue. The shipped pair was trained on *tiny Shakespeare*,
which is in the public domain. ``--quick`` gives a worse pair in a few minutes. With one
seed, one machine repeats its figures.

The drafter first minimises the Kullback-Leibler divergence, which has gradients
everywhere, and more and more the total variation TV(P, Q), because an exact verifier
accepts with probability 1 − TV (Leviathan et al., 2023, corollary 3.6).
"""

from __future__ import annotations

import argparse
import json
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from flower_ext.models.cache_argument import forward_cache

BOUNDARY = "<|endoftext|>"
VOCABULARY = 1024
HELD_OUT = 0.05  # of the text, its end
STEP_TOKENS = 2048
MAX_POSITIONS = 1024
# How often a batch has sequences of a length: short ones train fastest, and the rest
# keep positions up to the last one in use.
LENGTHS = {128: 0.75, 256: 0.2, MAX_POSITIONS: 0.05}
POOL_TOKENS = 32 * STEP_TOKENS  # sequences that the target samples at once

TARGET = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
}
DRAFT = {
    "hidden_size": 96,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}


@dataclass(frozen=True)
class Effort:
    """How long to train.

    Parameters
    ----------
    target_epochs : float
        Passes over the text for the target.
    pools : int
        Pools of ``POOL_TOKENS`` tokens that the drafter is distilled on.
    passes : int
        Passes over each pool.
    """

    target_epochs: float
    pools: int
    passes: int


FULL = Effort(target_epochs=4.5, pools=16, passes=3)
QUICK = Effort(target_epochs=1.5, pools=4, passes=2)


class Windows:
    """Stretches of a text, half of which open at the start of a speech."""

    def __init__(self, text: str, tokenizer: Tokenizer, generator: torch.Generator):
        encoding = tokenizer.encode(text)
        self.ids = torch.tensor(encoding.ids)
        speeches = {0, *(match.end() for match in re.finditer(r"\n\n", text))}
        starts = [i for i, (at, _) in enumerate(encoding.offsets) if at in speeches]
        self.starts = torch.tensor(starts)
        self.boundary = torch.tensor([tokenizer.token_to_id(BOUNDARY)])
        self.generator = generator

    def draw(self, count: int, length: int) -> torch.Tensor:
        """Return ``count`` windows, shape (count, length)."""
        latest = len(self.ids) - length
        speeches = self.starts[self.starts <= latest]
        rows = []
        for i in range(count):
            if i % 2:
                start = int(torch.randint(latest, (1,), generator=self.generator))
                rows.append(self.ids[start : start + length])
            else:
                pick = torch.randint(len(speeches), (1,), generator=self.generator)
                start = int(speeches[pick])
                rows.append(
                    torch.cat([self.boundary, self.ids[start : start + length - 1]])
                )
        return torch.stack(rows)


def learn_tokenizer(text: str) -> Tokenizer:
    """Return a byte-level BPE tokenizer, which can spell any text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOUNDARY],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text], trainer)
    return tokenizer


def new_model(shape: dict[str, int], boundary: int) -> LlamaForCausalLM:
    """Return an untrained model."""
    return LlamaForCausalLM(
        LlamaConfig(
            **shape,
            vocab_size=VOCABULARY,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            bos_token_id=boundary,
            eos_token_id=boundary,
        )
    )


def optimiser(model: LlamaForCausalLM, steps: int, rate: float, decay: float):
    """Return AdamW and its schedule: a short warm-up, then a cosine to nothing."""
    adam = torch.optim.AdamW(
        model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=decay
    )
    warm_up = max(1, min(100, steps // 10))

    def factor(step: int) -> float:
        if step < warm_up:
            return (step + 1) / warm_up
        return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / (steps - warm_up))

    return adam, torch.optim.lr_scheduler.LambdaLR(adam, factor)


def advance(model, loss, adam, schedule) -> None:
    """Take one step down the loss."""
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    adam.step()
    schedule.step()
    adam.zero_grad(set_to_none=True)


def next_token_loss(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Return the mean loss in nats per token."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits
    return functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())


def train_target(model, windows: Windows, epochs: float) -> None:
    """Train the target on the text."""
    steps = round(epochs * len(windows.ids) / STEP_TOKENS)
    adam, schedule = optimiser(model, steps, rate=3e-3, decay=0.1)
    lengths = torch.multinomial(
        torch.tensor(list(LENGTHS.values())),
        steps,
        replacement=True,
        generator=windows.generator,
    )
    begun, smooth = time.monotonic(), math.nan
    for step in range(steps):
        length = list(LENGTHS)[lengths[step]]
        loss = next_token_loss(model, windows.draw(STEP_TOKENS // length, length))
        advance(model, loss, adam, schedule)
        smooth = loss.item() if step == 0 else 0.95 * smooth + 0.05 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            seconds = time.monotonic() - begun
            print(f"target {step + 1}/{steps} loss {smooth:.3f} ({seconds:.0f} s)")


@torch.no_grad()
def sample(
    model: LlamaForCausalLM,
    prompts: torch.Tensor,
    length: int,
    temperature: float,
    generator: torch.Generator,
) -> torch.Tensor:
    """Continue prompts to ``length`` tokens; temperature 0 takes the likeliest."""
    ids, cache, fresh = prompts, DynamicCache(config=model.config), prompts
    while ids.shape[1] < length:
        kept = forward_cache(model, cache)
        out = model(input_ids=fresh, use_cache=True, **kept)
        logits = out.logits[:, -1]
        if temperature:
            chances = torch.softmax(logits / temperature, dim=-1)
            fresh = torch.multinomial(chances, 1, generator=generator)
        else:
            fresh = logits.argmax(dim=-1, keepdim=True)
        ids = torch.cat([ids, fresh], dim=1)
    return ids


def pool(target, windows: Windows, number: int) -> torch.Tensor:
    """Return sequences to distil on: of four pools, three are sampled, one is text."""
    length = MAX_POSITIONS if number % 8 == 5 else 256
    count = POOL_TOKENS // length
    if number % 4 == 3:
        return windows.draw(count, length)
    # From a boundary alone, and from a few words of the text.
    prompts = windows.draw(count, 1 if number % 2 else 16)
    temperature = 0.7 if number % 4 == 2 else 1.0
    return sample(target, prompts, length, temperature, windows.generator)


def divergences(
    target_logits: torch.Tensor, draft_logits: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean KL(P‖Q) in nats and the mean TV(P, Q) over positions."""
    log_p = torch.log_softmax(target_logits, dim=-1)
    log_q = torch.log_softmax(draft_logits, dim=-1)
    p = log_p.exp()
    divergence = (p * (log_p - log_q)).sum(-1).mean()
    return divergence, 0.5 * (p - log_q.exp()).abs().sum(-1).mean()


def distil(draft, target, windows: Windows, effort: Effort) -> None:
    """Train the drafter to give the target's distributions."""
    batches = POOL_TOKENS // STEP_TOKENS
    steps = effort.pools * effort.passes * batches
    adam, schedule = optimiser(draft, steps, rate=4e-3, decay=0.01)
    begun, step = time.monotonic(), 0
    for number in range(effort.pools):
        rows = pool(target, windows, number).chunk(batches)
        with torch.no_grad():
            known = [target(input_ids=ids, use_cache=False).logits for ids in rows]
        total = 0.0
        for _ in range(effort.passes):
            for ids, logits in zip(rows, known, strict=True):
                mine = draft(input_ids=ids, use_cache=False).logits
                divergence, variation = divergences(logits, mine)
                share = step / steps
                loss = (1 - share) * divergence + 2 * share * variation
                advance(draft, loss, adam, schedule)
                total += variation.item()
                step += 1
        mean = total / (effort.passes * batches)
        seconds = time.monotonic() - begun
        print(f"drafter {step}/{steps} 1 - TV {1 - mean:.3f} ({seconds:.0f} s)")


@torch.no_grad()
def held_out_loss(model, ids: torch.Tensor, length: int) -> float:
    """Return nats per token over the whole of a text, window after window."""
    whole = len(ids) // length
    rows = ids[: whole * length].view(whole, length)
    losses = [next_token_loss(model, batch) for batch in rows.split(8)]
    weights = [len(batch) for batch in rows.split(8)]
    return sum(w * loss.item() for w, loss in zip(weights, losses, strict=True)) / sum(
        weights
    )


@torch.no_grad()
def acceptance(draft, target, prompts, temperature, generator) -> float:
    """Return the mean acceptance over 240 tokens that the target samples."""
    begin = prompts.shape[1]
    ids = sample(target, prompts, begin + 240, temperature, generator)
    p = target(input_ids=ids[:, :-1], use_cache=False).logits[:, begin - 1 :]
    q = draft(input_ids=ids[:, :-1], use_cache=False).logits[:, begin - 1 :]
    if not temperature:
        return (p.argmax(-1) == q.argmax(-1)).float().mean().item()
    return 1 - divergences(p / temperature, q / temperature)[1].item()


def store(model: LlamaForCausalLM, folder: Path) -> LlamaForCausalLM:
    """Write a model in half precision, and return what a reader will see of it."""
    model.half().save_pretrained(folder)
    # The file says float32, so that whoever loads it computes in that.
    config = folder / "config.json"
    stated = json.loads(config.read_text()) | {"dtype": "float32"}
    config.write_text(json.dumps(stated, indent=2, sort_keys=True) + "\n")
    return LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def main() -> None:
    """Train both models, write them and print their figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="train for two minutes")
    args = parser.parse_args()
    effort = QUICK if args.quick else FULL
    torch.set_num_threads(args.threads)
    torch.use_deterministic_algorithms(True)
    torch.manual_seed(args.seed)
    generator = torch.Generator().manual_seed(args.seed)

    text = args.text.read_text(encoding="utf-8")
    cut = round(len(text) * (1 - HELD_OUT))
    tokenizer = learn_tokenizer(text[:cut])
    boundary = tokenizer.token_to_id(BOUNDARY)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOUNDARY,
        eos_token=BOUNDARY,
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_POSITIONS,
    ).save_pretrained(args.out / "tokenizer")
    windows = Windows(text[:cut], tokenizer, generator)
    unseen = Windows(text[cut:], tokenizer, generator)
    print(f"text: {len(windows.ids)} tokens, {len(unseen.ids)} held out")

    target = new_model(TARGET, boundary)
    train_target(target, windows, effort.target_epochs)
    target = store(target, args.out / "target")
    draft = new_model(DRAFT, boundary)
    distil(draft, target, windows, effort)
    draft = store(draft, args.out / "draft")

    for name, model in (("target", target), ("drafter", draft)):
        for length in (256, MAX_POSITIONS):
            loss = held_out_loss(model, unseen.ids, length)
            print(
                f"{name}: {model.num_parameters()} parameters, held-out loss "
                f"{loss:.3f} nats, perplexity {math.exp(loss):.2f} at {length} tokens"
            )
    prompts = unseen.draw(64, 16)
    for temperature in (1.0, 0.7, 0.0):
        rate = acceptance(draft, target, prompts, temperature, generator)
        print(f"acceptance at temperature {temperature}: {rate:.3f}")
    for path in sorted(args.out.rglob("*.*")):
        print(f"{path.relative_to(args.out)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
