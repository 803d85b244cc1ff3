"""Spliced prompts against whole ones: lengths, batches, real documents, links.

``python experiments/edgeprompt_benchmark.py`` runs three parts, or those of ``--only``:

- ``grid``: EdgePrompt with the prefix in memory, transformers' DynamicCache and
  StaticCache, which compute every row's whole prompt, and DynamicCache with the
  prefix's ready-made KV copied to each row; over prefixes, private lengths and batches,
  on a model of random weights or ``--model``;
- ``documents`` (with ``--prompts``, the folder of Spec-Bench's questions): its
  retrieval questions, the documents public and the question private, on the target
  that ships with the package or ``--model``;
- ``links``: a device that has nothing, and an edge that has the prefix: EdgePrompt as
  it adapts, computing all, and fetching all exactly or in 8 bits before beginning; over
  constant rates and recorded traces, on a virtual clock on which computation counts as
  long as it takes.

It prints a table, and writes ``--csv`` and ``--png``. A row is the median over
``--repeats``, in which systems take turns.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import transformers
from edgeprompt.documents import as_prompt, read_retrievals
from edgeprompt.fetching import WAYS, Cold
from edgeprompt.rows import Row, draw, show, summary, write_csv
from edgeprompt.systems import (
    COPIED,
    DYNAMIC,
    EDGEPROMPT,
    STATIC,
    Systems,
    Timing,
    random_model,
    random_prompts,
)
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flower_ext.edgeprompt import PromptHierarchy
from flower_ext.edgeprompt.spliceable import longest_text
from flower_ext.errors import InvalidInputError
from flower_ext.models import DEFAULT
from flower_ext.models.loading import load_model, load_tokenizer
from flower_ext.network import Link, load_traces, trace_links

BYTES_PER_MEGABIT = 1e6 / 8
SYSTEMS = (EDGEPROMPT, DYNAMIC, STATIC, COPIED)
PARTS = ("grid", "documents", "links")
FULL = {
    "prefixes": [256, 512, 1024, 2048, 4096],
    "privates": [16, 64, 256],
    "batches": [1, 4, 8, 32],
}


def grid(args: argparse.Namespace) -> Iterator[Row]:
    """Measure every system at every prefix, private length and batch."""
    model, tokenizer = model_of(args)
    vocabulary = int(model.config.vocab_size)
    systems = Systems(model, tokenizer)
    # What is run for the first time takes longer than ever after.
    for system in SYSTEMS:
        systems.run(system, random_prompts(16, 2, 1, vocabulary), 2)
    limit = longest_text(model)
    cases = itertools.product(args.prefixes, args.privates, args.batches)
    for prefix, private, batch in cases:
        if limit is not None and prefix + private + args.tokens > limit:
            print(
                f"prefix {prefix} + private {private} + {args.tokens} generated are "
                f"more than the model's {limit}: left out"
            )
            continue
        prompts = random_prompts(prefix, private, batch, vocabulary, args.seed)
        case = f"prefix {prefix}, private {private}, batch {batch}"
        yield from compared(args, systems, "grid", case, prompts)


def compared(
    args: argparse.Namespace,
    systems: Systems,
    part: str,
    case: str,
    prompts: Sequence[PromptHierarchy],
) -> Iterator[Row]:
    """Run a batch by all systems in turn."""
    found: dict[str, list[Timing]] = {system: [] for system in SYSTEMS}
    for _ in range(args.repeats):
        for system, timings in found.items():
            timings.append(systems.run(system, prompts, args.tokens))
    for system, timings in found.items():
        yield summary(part, case, system, prompts, timings)


def documents(args: argparse.Namespace) -> Iterator[Row]:
    """Measure every system on retrieval questions, one at a time."""
    loaded = load_model(args.model or DEFAULT, dtype=torch.float32)
    model, tokenizer = loaded.model.eval(), loaded.tokenizer
    model.generation_config.eos_token_id = None
    if not args.model:
        print("The shipped target knows Shakespeare's plays alone.")
    longest = min(longest_text(model) or sys.maxsize, args.longest) - args.tokens
    questions = read_retrievals(args.prompts)
    every = max(1, len(questions) // args.prompt_count)
    chosen = questions[::every][: args.prompt_count]
    made = [as_prompt(question, tokenizer, longest) for question in chosen]
    cut = [missing for _, missing in made if missing]
    print(
        f"{len(made)} of {len(questions)} retrieval questions; the documents of "
        f"{len(cut)} are cut at the end, by {max(cut, default=0)} tokens at most, so "
        f"that prompts have at most {longest}",
        flush=True,
    )
    systems = Systems(model, tokenizer)
    for number, (prompt, _) in enumerate(made):
        if not number:
            for system in SYSTEMS:
                systems.run(system, [prompt], 2)
        case = f"question {number * every}"
        yield from compared(args, systems, "documents", case, [prompt])


def links(args: argparse.Namespace) -> Iterator[Row]:
    """Measure the time to first token of a device that has nothing, by every way."""
    model, tokenizer = model_of(args, key_heads=2)
    vocabulary = int(model.config.vocab_size)
    prefix, private = args.link_prefix, args.link_private
    (prompt,) = random_prompts(prefix, private, 1, vocabulary, args.seed)
    cold = Cold(model, tokenizer, prompt)
    rtt = args.rtt / 1e3
    places = [
        (f"{mbps:g} Mbps", mbps, [Link(up=mbps * BYTES_PER_MEGABIT, rtt=rtt)])
        for mbps in args.links
    ]
    for path in args.traces:
        try:
            traces = load_traces(path)
        except OSError as error:
            raise InvalidInputError(
                f"Traces {str(path)!r} cannot be read ({error.strerror}): give a file "
                "of JSON lines with name, t and mbps, or leave --traces out."
            ) from error
        moments = trace_links(traces, args.moments, args.seed, rtt)
        places.append((path.name.split(".")[0], float("nan"), moments))
    for case, mbps, between in places:
        found = {
            way: [
                cold.first_token(way, link)
                for link in between
                for _ in range(args.repeats)
            ]
            for way in WAYS
        }
        for way, each in found.items():
            middle = {
                name: statistics.median(getattr(one, name) for one in each)
                for name in ("computed", "fetched")
            }
            yield Row(
                "links",
                case,
                way,
                prefix,
                private,
                1,
                # The mean over moments of a trace: they are of very different length.
                statistics.mean(one.seconds for one in each)
                if len(between) > 1
                else statistics.median(one.seconds for one in each),
                mbps=mbps,
                received_bytes=statistics.mean(one.nbytes for one in each),
                **middle,
            )


def model_of(
    args: argparse.Namespace, key_heads: int = 4
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return ``--model``, or one of random weights; no token of it ends a text."""
    if args.model:
        loaded = load_model(args.model, dtype=torch.float32)
        loaded.model.generation_config.eos_token_id = None
        return loaded.model.eval(), loaded.tokenizer
    model = random_model(
        args.layers,
        args.hidden,
        key_heads=key_heads,
        feed_forward=args.hidden * 43 // 16,
        vocabulary=args.vocabulary,
        seed=args.seed,
    )
    return model, load_tokenizer(DEFAULT)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = found.add_argument
    add("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run")
    add("--model", help="folder or cached id, in place of the models that are made")
    add("--layers", type=int, default=6, help="of the model of random weights")
    add("--hidden", type=int, default=256, help="its width")
    add("--vocabulary", type=int, default=8192)
    add("--prefixes", type=int, nargs="+", default=[256, 1024])
    add("--privates", type=int, nargs="+", default=[16, 128])
    add("--batches", type=int, nargs="+", default=[1, 8])
    add("--tokens", type=int, default=24, help="generated by each row")
    add(
        "--full", action="store_true", help="prefixes to 4096, private to 256, batch 32"
    )
    add("--prompts", type=Path, metavar="FOLDER", help="of Spec-Bench's questions")
    add("--prompt-count", type=int, default=4, help="questions, spread over the file")
    add("--longest", type=int, default=4096, help="tokens of a prompt and its answer")
    add(
        "--links",
        type=float,
        nargs="+",
        default=[10.0, 50.0, 100.0, 500.0, 1000.0],
        metavar="MBPS",
    )
    add("--rtt", type=float, default=20.0, help="round trip of links in milliseconds")
    add("--link-prefix", type=int, default=1024, help="shared tokens of links")
    add("--link-private", type=int, default=64, help="private tokens of links")
    add(
        "--traces",
        type=Path,
        nargs="+",
        default=[],
        help="files of recorded links, a line of JSON each: name, t (s), mbps",
    )
    add("--moments", type=int, default=3, help="of each file of traces")
    add("--repeats", type=int, default=3)
    add("--threads", type=int, default=2, help="of torch")
    add("--seed", type=int, default=0)
    add("--csv", type=Path, help="file to write all rows to")
    add("--png", type=Path, help="file to draw to")
    add("--quick", action="store_true", help="tiny sizes: a few seconds")
    return found


def main() -> None:
    """Run the benchmark."""
    command = parser()
    args = command.parse_args()
    if args.full:
        for name, values in FULL.items():
            setattr(args, name, values)
    if args.quick:
        args.layers, args.hidden, args.vocabulary, args.repeats = 2, 64, 512, 1
        args.prefixes, args.privates, args.batches = [64], [8], [1, 3]
        args.tokens, args.links, args.moments = 4, args.links[:1], 1
        args.link_prefix, args.link_private, args.prompt_count = 300, 8, 1
    counts = ("layers", "hidden", "repeats", "threads", "moments", "prompt_count")
    lengths = ("prefixes", "privates", "batches", "link_prefix", "link_private")
    least = dict.fromkeys((*counts, *lengths), 1) | {"tokens": 2}
    for name, bound in least.items():
        value = getattr(args, name)
        if min(value if isinstance(value, list) else [value]) < bound:
            option = "--" + name.replace("_", "-")
            command.error(f"{option} must be at least {bound}, got {value}")
    if min(args.links) <= 0:
        command.error(f"--links are rates above 0 in Mbps, got {min(args.links):g}")
    try:
        run(args)
    except InvalidInputError as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(args.threads)
    print(f"load average {os.getloadavg()[0]:.2f}, {args.threads} threads")
    rows: list[Row] = []
    for part, measure in (("grid", grid), ("documents", documents), ("links", links)):
        if part in args.only and (part != "documents" or args.prompts):
            own = list(measure(args))
            show(own, part)
            rows += own
    for path, write in ((args.csv, write_csv), (args.png, draw)):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, rows)
            print(path)


if __name__ == "__main__":
    main()
