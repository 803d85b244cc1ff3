"""How fast spliced prompts are promised to be, each promise side by side in one run.

Each command measures both sides in turn, repeat by repeat, and prints the median over
repeats of the ratio, and whether the promise is kept:

- ``first``: the time to the first token of one prompt whose prefix is in memory,
  against computing the whole prompt, and against what cannot be saved: a prefill of the
  private part alone and one attention of it over the prefix in each layer; and from a
  store's directory, by an engine that has just been made;
- ``batch``: tokens per second and the memory of keys and values of many rows with one
  prefix, against transformers' StaticCache and DynamicCache, which have the prefix once
  per row. The model's time goes into attention: narrow, of little feed-forward;
- ``one``: one row of prefixes from short to long, against DynamicCache.

Models have random weights, which cost what others cost, and texts never end early. Both
sides generate greedily. ``batch`` gives the caches the prefix's KV ready-made, as only
decoding is compared; elsewhere they compute the whole prompt.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from edgeprompt.systems import (
    COPIED,
    DYNAMIC,
    EDGEPROMPT,
    STATIC_COPIED,
    Systems,
    Timing,
    random_model,
    random_prompts,
)
from promises import verdict
from transformers import DynamicCache

from flower_ext.edgeprompt import EdgePrompt, KVStore, PromptHierarchy
from flower_ext.edgeprompt.attention import attend
from flower_ext.errors import InvalidInputError
from flower_ext.models import DEFAULT
from flower_ext.models.cache_argument import forward_cache
from flower_ext.models.loading import load_tokenizer

RECOMPUTED_BAR = 0.1  # of the time to first token of the whole prompt's prefill
FLOOR_BAR = 1.3  # of the private part's prefill and one attention over the prefix
BATCH_BAR = 2.0  # of the tokens per second of StaticCache
MEMORY_BAR = 0.1  # of StaticCache's bytes
ONE_BAR = 1.1  # of the time of DynamicCache
Entries = list[dict[str, object]]


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over repeats of the ratio."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def milliseconds(name: str, seconds: Sequence[float]) -> None:
    """Print the median, and the range."""
    low, middle, high = min(seconds), statistics.median(seconds), max(seconds)
    print(
        f"  {name:<44} {middle * 1e3:9.1f} ms ({low * 1e3:.1f} to {high * 1e3:.1f})",
        flush=True,
    )


def taking_turns(
    repeats: int, sides: dict[str, Callable[[], Timing]]
) -> dict[str, list[Timing]]:
    """Run every side in turn; the first round is to warm up, and is not counted."""
    found: dict[str, list[Timing]] = {name: [] for name in sides}
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            timing = run()
            if repeat:
                found[name].append(timing)
    return found


def model_of(args: argparse.Namespace, longest: int) -> transformers.LlamaForCausalLM:
    """Return the model of ``first`` and ``one``."""
    return random_model(
        args.layers,
        args.hidden,
        key_heads=args.key_heads,
        vocabulary=args.vocabulary,
        feed_forward=args.hidden * 43 // 16,
        longest=longest,
        seed=args.seed,
    )


@torch.inference_mode()
def floor(systems: Systems, prompt: PromptHierarchy) -> Timing:
    """Time what cannot be saved: a prefill of the private part, and its attention."""
    model = systems.model
    identity = systems.engine.identity
    shared = len(prompt) - len(prompt.private_tokens)
    tail = torch.tensor([prompt.private_tokens])
    heads = int(model.config.num_attention_heads)
    shape = (1, identity.heads, shared, identity.key_dim)
    query = torch.randn(1, heads, tail.shape[1], identity.key_dim)
    kept = [(torch.randn(shape), torch.randn(shape)) for _ in range(identity.layers)]
    seconds = []
    for _ in range(2):  # The tensors have just been written: the first is to settle.
        begin = time.perf_counter()
        cache = DynamicCache(config=model.config)
        kept_for = forward_cache(model, cache)
        model(tail, use_cache=True, logits_to_keep=1, **kept_for)
        for keys, values in kept:
            attend(query, keys, values)
        seconds.append(time.perf_counter() - begin)
    return Timing(seconds[-1], float("nan"), 0)


def first(args: argparse.Namespace) -> Entries:
    """Measure the time to first token of one prompt."""
    prefix, private = args.prefix, args.private
    systems = Systems(model_of(args, prefix + private + 8), args.tokenizer)
    (prompt,) = random_prompts(prefix, private, 1, args.vocabulary, args.seed)
    weights = sum(weight.numel() for weight in systems.model.parameters())
    print(
        f"first: prefix {prefix}, private {private}, batch 1; {args.layers} layers × "
        f"{args.hidden}, {weights / 1e6:.0f} million weights"
    )
    with tempfile.TemporaryDirectory() as folder:
        EdgePrompt(
            systems.model, args.tokenizer, store=KVStore(folder), memory_bytes=0
        ).publish(prompt)

        def from_disk() -> Timing:
            store = KVStore(folder)  # It has nothing in memory.
            engine = EdgePrompt(systems.model, args.tokenizer, store=store)
            found = engine.generate(prompt, 1, do_sample=False)
            if found.report.in_store != found.report.blocks:
                raise InvalidInputError(
                    f"{folder} holds {found.report.in_store} of "
                    f"{found.report.blocks} blocks: give its disk more room."
                )
            return Timing(found.time_to_first_token, float("nan"), 0)

        found = taking_turns(
            args.repeats,
            {
                "in memory": lambda: systems.run(EDGEPROMPT, [prompt], 1),
                "floor": lambda: floor(systems, prompt),
                "on disk": from_disk,
                "recomputed": lambda: systems.run(DYNAMIC, [prompt], 1),
            },
        )
    times = {name: [timing.first for timing in row] for name, row in found.items()}
    for name, seconds in times.items():
        milliseconds(name, seconds)
    ours, whole = times["in memory"], times["recomputed"]
    disk = median_ratio(times["on disk"], whole)
    print(f"  on disk ÷ recomputed: {disk:.3f}")
    case = f"time to first token at prefix {prefix}"
    return [
        verdict(f"{case} ÷ recomputing", median_ratio(ours, whole), RECOMPUTED_BAR),
        verdict(f"{case} ÷ floor", median_ratio(ours, times["floor"]), FLOOR_BAR),
    ]


def batch(args: argparse.Namespace) -> Entries:
    """Measure decoding and memory of many rows with one prefix."""
    prefix, private, tokens = args.prefix, args.private, args.batch_tokens
    model = random_model(
        args.batch_layers,
        256,
        feed_forward=256,
        vocabulary=1024,
        longest=prefix + private + tokens,
        seed=args.seed,
    )
    systems = Systems(model, args.tokenizer)
    prompts = random_prompts(prefix, private, args.batch, 1024, args.seed)
    print(
        f"batch: {args.batch} rows, prefix {prefix}, private {private} + {tokens} "
        f"generated; {args.batch_layers} layers × 256, 8 KV heads × 64"
    )
    # A step of DynamicCache copies all it has: a few of them do.
    steps = {EDGEPROMPT: tokens, STATIC_COPIED: tokens, COPIED: min(tokens, 5)}
    for name in steps:
        systems.run(name, prompts, 2)
    found: dict[str, list[Timing]] = {name: [] for name in steps}
    for _ in range(args.batch_repeats):
        for name, count in steps.items():
            found[name].append(systems.run(name, prompts, count))
    for name, row in found.items():
        rate = statistics.median(timing.rate for timing in row)
        print(f"  {name:<30} {rate:9.1f} tokens/s {row[0].kv_bytes / 2**20:9.1f} MiB")
    rates = {name: [timing.rate for timing in row] for name, row in found.items()}
    dynamic = median_ratio(rates[EDGEPROMPT], rates[COPIED])
    print(f"  decode tokens/s ÷ DynamicCache: {dynamic:.2f}")
    memory = found[EDGEPROMPT][0].kv_bytes / found[STATIC_COPIED][0].kv_bytes
    speed = median_ratio(rates[EDGEPROMPT], rates[STATIC_COPIED])
    case = f"at {args.batch} rows ÷ StaticCache"
    return [
        verdict(f"decode tokens/s {case}", speed, BATCH_BAR, least=True),
        verdict(f"KV bytes {case}", memory, MEMORY_BAR),
    ]


def one(args: argparse.Namespace) -> Entries:
    """Measure one row at every prefix."""
    longest = max(args.prefixes) + args.private + args.tokens
    systems = Systems(model_of(args, longest), args.tokenizer)
    print(f"one: batch 1, private {args.private}, {args.tokens} generated")
    worst: dict[str, tuple[float, int]] = {}
    for prefix in args.prefixes:
        prompts = random_prompts(
            prefix, args.private, 1, args.vocabulary, args.seed + prefix
        )
        found = taking_turns(
            args.repeats,
            {
                name: lambda n=name, p=prompts: systems.run(n, p, args.tokens)
                for name in (EDGEPROMPT, DYNAMIC)
            },
        )
        firsts = {n: [timing.first for timing in row] for n, row in found.items()}
        steps = {n: [1 / timing.rate for timing in row] for n, row in found.items()}
        for name, times in (("time to first token", firsts), ("time per token", steps)):
            ratio = median_ratio(times[EDGEPROMPT], times[DYNAMIC])
            ours, theirs = (
                statistics.median(times[n]) * 1e3 for n in (EDGEPROMPT, DYNAMIC)
            )
            print(
                f"  prefix {prefix:>5} {name:<20} {ours:9.2f} ms, DynamicCache "
                f"{theirs:9.2f} ms: {ratio:.3f}",
                flush=True,
            )
            worst[name] = max(worst.get(name, (0.0, 0)), (ratio, prefix))
    return [
        verdict(f"worst {name} ÷ DynamicCache (prefix {prefix})", ratio, ONE_BAR)
        for name, (ratio, prefix) in worst.items()
    ]


COMMANDS = {"first": first, "batch": batch, "one": one}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = found.add_argument
    add("commands", nargs="*", help=f"of {', '.join(COMMANDS)}; none: all")
    add("--layers", type=int, default=12, help="of the model of first and one")
    add("--hidden", type=int, default=512, help="its width")
    add("--key-heads", type=int, default=8, help="of its 8 heads, those of keys")
    add("--vocabulary", type=int, default=32_000)
    add("--prefix", type=int, default=2048, help="shared tokens of first and batch")
    add("--private", type=int, default=64, help="private tokens of a row")
    add("--tokens", type=int, default=32, help="generated by one")
    add("--prefixes", type=int, nargs="+", default=[16, 64, 256, 1024, 4096])
    add("--batch", type=int, default=32, help="rows of batch")
    add("--batch-layers", type=int, default=4, help="of its model")
    add("--batch-tokens", type=int, default=64, help="generated by each of its rows")
    add("--repeats", type=int, default=5, help="of first and one")
    add("--batch-repeats", type=int, default=3)
    add("--threads", type=int, default=2, help="of torch")
    add("--seed", type=int, default=0)
    add("--json", type=Path, help="file to write the verdicts to")
    add(
        "--quick", action="store_true", help="tiny sizes, for which nothing is promised"
    )
    return found


def main() -> int:
    """Measure; return 0 if every promise is kept, or the run was a quick one."""
    command = parser()
    args = command.parse_args()
    for name in args.commands:
        if name not in COMMANDS:
            command.error(f"there is no {name!r}: choose from {', '.join(COMMANDS)}")
    whole = ("layers", "hidden", "prefix", "private", "batch", "batch_layers")
    for name in (*whole, "repeats", "batch_repeats", "threads"):
        if getattr(args, name) < 1:
            option = "--" + name.replace("_", "-")
            command.error(f"{option} must be at least 1, got {getattr(args, name)}")
    for name in ("tokens", "batch_tokens"):
        if getattr(args, name) < 2:
            option = "--" + name.replace("_", "-")
            command.error(f"{option} must be at least 2, got {getattr(args, name)}")
    if min(args.prefixes) < 1:
        command.error(f"--prefixes must be at least 1, got {min(args.prefixes)}")
    if args.quick:
        args.layers, args.hidden, args.vocabulary = 2, 64, 512
        args.prefix, args.private, args.tokens, args.prefixes = 96, 8, 4, [16, 96]
        args.batch, args.batch_layers, args.batch_tokens = 4, 1, 4
        args.repeats = args.batch_repeats = 1
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(args.threads)
    args.tokenizer = load_tokenizer(DEFAULT)
    if args.quick:
        print("quick: tiny sizes, for which nothing is promised")
    print(f"load average {os.getloadavg()[0]:.2f}, {args.threads} threads")
    entries = [e for name in args.commands or COMMANDS for e in COMMANDS[name](args)]
    print(f"load average {os.getloadavg()[0]:.2f}")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return 0 if args.quick or all(entry["kept"] for entry in entries) else 1


if __name__ == "__main__":
    sys.exit(main())
