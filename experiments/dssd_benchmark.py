"""Split speculative decoding over links: protocols, draft lengths, round trips, rates.

``python experiments/dssd_benchmark.py`` generates the same texts with every protocol
(``dsd``, ``dssd``, ``dssd-candidates``), draft length (2, 4, 8 and adaptive; drafting
ahead or not) and link (round trips of 0, 20 and 50 ms, 10, 50 and 100 Mbps, and
recorded traces with ``--traces``), beside the target alone at the edge and
transformers' assisted generation with both models in one place, which pay no link. It
prints a table, the best draft length of each protocol on each link, and writes all rows
as CSV and a figure as PNG to ``--out``.

Models compute for real; links are simulated on a virtual clock, on which edge and
device compute side by side. The models that ship with the package know nothing but
Shakespeare's plays, whatever the prompts are, and a target as small as theirs is hardly
worth a round trip: ``--deepen`` adds layers to it that are computed and change nothing.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import transformers
from dssd.baselines import ASSISTANCE, alone, assisted
from dssd.models import deepened, without_end
from dssd.prompts import BUILT_IN, prompt_ids, read_prompts

from flower_ext.errors import InvalidInputError
from flower_ext.models import DEFAULT, ModelPair, load_pair
from flower_ext.network import Link, VirtualClock, load_traces, trace_links
from flower_ext.speculative import (
    PROTOCOLS,
    Adaptive,
    Drafter,
    Fixed,
    Generation,
    Sampling,
    TransformersModel,
    Verifier,
    speculate,
)

BYTES_PER_MEGABIT = 1e6 / 8
ADAPTIVE = "adaptive"
ALONE, ASSISTED = "target alone", "transformers assisted"


@dataclass(frozen=True)
class Place:
    """A link, or several of one kind.

    Parameters
    ----------
    name : str
        What it is called in the table.
    rtt_ms, mbps : float
        Round-trip time, and rate both ways; nan for traces.
    links : tuple[Link, ...]
        Prompts take turns over them.
    """

    name: str
    rtt_ms: float
    mbps: float
    links: tuple[Link, ...]


@dataclass(frozen=True)
class Row:
    """One line of the table: a system on a link, medians and totals over prompts.

    Times are those of all texts together; ``speed_up`` is the median over prompts of
    tokens per second over those of the target alone.
    """

    system: str
    link: str
    rtt_ms: float
    mbps: float
    draft_length: str
    drafting_ahead: bool
    tokens_per_second: float
    speed_up: float
    acceptance_rate: float
    tokens_per_round: float
    uplink_bytes_per_round: float
    downlink_bytes_per_round: float
    drafting_seconds: float
    verification_seconds: float
    transmission_seconds: float
    drafted_ahead: int
    discarded: int


def places(args: argparse.Namespace) -> list[Place]:
    """Return the links that the command line asks for."""
    found = [
        Place(
            f"{rtt:g} ms, {mbps:g} Mbps",
            rtt,
            mbps,
            (Link(up=mbps * BYTES_PER_MEGABIT, rtt=rtt / 1e3),),
        )
        for rtt in args.rtt
        for mbps in args.mbps
    ]
    for path in args.traces:
        try:
            traces = load_traces(path)
        except OSError as error:
            raise InvalidInputError(
                f"Traces {str(path)!r} cannot be read ({error.strerror}): give a file "
                "of JSON lines with name, t and mbps, or leave --traces out."
            ) from error
        name = path.name.split(".")[0]
        for rtt in args.rtt:
            links = trace_links(traces, args.prompt_count, args.seed, rtt / 1e3)
            place = Place(f"{rtt:g} ms, {name}", rtt, float("nan"), tuple(links))
            found.append(place)
    return found


def bench_pair(args: argparse.Namespace) -> ModelPair:
    """Return the models, none of whose tokens ends a text."""
    pair = load_pair(args.draft, args.target, dtype=torch.float32)
    target = pair.target
    if args.deepen:
        target = deepened(target, args.deepen, args.width)
    return ModelPair(
        without_end(pair.draft), without_end(target), pair.tokenizer, pair.vocab_size
    )


def bench_prompts(args: argparse.Namespace, pair: ModelPair) -> list[list[int]]:
    """Return the prompts' ids, their ends where they are too long for a model."""
    texts = BUILT_IN if args.prompts is None else read_prompts(args.prompts)
    limits = [
        limit
        for model in (pair.draft, pair.target)
        if (limit := TransformersModel(model).max_length) is not None
    ]
    longest = min([*limits, args.prompt_tokens + args.tokens]) - args.tokens
    if longest < 1:
        raise InvalidInputError(
            f"--tokens {args.tokens} leaves no room for a prompt: the models take "
            f"{min(limits)} tokens together."
        )
    every = max(1, len(texts) // args.prompt_count)
    chosen = list(texts)[::every][: args.prompt_count]
    return [prompt_ids(text, pair.tokenizer, longest) for text in chosen]


def baselines(
    args: argparse.Namespace,
    pair: ModelPair,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
) -> tuple[list[Row], list[float]]:
    """Measure both baselines in turn; return their rows and the rates alone."""
    model = TransformersModel(pair.target, pair.vocab_size)
    rates: dict[tuple[str, str], list[float]] = {(ALONE, ""): []}
    for number, prompt in enumerate(prompts):
        begin = args.timer()
        alone(model, prompt, args.tokens, sampling, args.seed + number)
        rates[ALONE, ""].append(args.tokens / (args.timer() - begin))
        for settings in ASSISTANCE:
            begin = args.timer()
            assisted(
                pair.target,
                pair.draft,
                prompt,
                args.tokens,
                sampling,
                args.seed + number,
                settings,
            )
            taken = args.timer() - begin
            rates.setdefault((ASSISTED, str(settings)), []).append(args.tokens / taken)
    base = rates[ALONE, ""]
    nan = float("nan")
    unknown: dict[str, Any] = {field.name: nan for field in fields(Row)}
    unknown |= {"drafting_ahead": False, "drafted_ahead": 0, "discarded": 0}
    rows = [
        Row(
            **unknown
            | {
                "system": system,
                "link": "none",
                "draft_length": settings,
                "tokens_per_second": statistics.median(found),
                "speed_up": _speed_up(found, base),
            }
        )
        for (system, settings), found in rates.items()
    ]
    return rows, base


def measure(
    args: argparse.Namespace,
    pair: ModelPair,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    place: Place,
    base: Sequence[float],
) -> list[Row]:
    """Measure every protocol and draft length on one kind of link, taking turns."""
    drafter = Drafter(pair.draft, pair.vocab_size)
    verifier = Verifier(pair.target, pair.vocab_size)
    systems = [
        (protocol, length, ahead)
        for protocol in args.protocols
        for length in args.lengths
        for ahead in (False, True)
    ]
    lengths = {
        system: Adaptive() if system[1] == ADAPTIVE else Fixed(int(system[1]))
        for system in systems
    }
    texts: dict[tuple[str, str, bool], list[Generation]] = {s: [] for s in systems}
    for number, prompt in enumerate(prompts):
        for system in systems:
            protocol, _, ahead = system
            text = speculate(
                drafter,
                verifier,
                prompt,
                args.tokens,
                sampling,
                protocol,
                lengths[system],
                place.links[number % len(place.links)],
                torch.Generator().manual_seed(args.seed + number),
                drafting_ahead=ahead,
                eos_token_ids=(),
                clock=VirtualClock(args.timer),
            )
            texts[system].append(text)
    return [summary(place, *system, found, base) for system, found in texts.items()]


def summary(
    place: Place,
    protocol: str,
    length: str,
    ahead: bool,
    texts: Sequence[Generation],
    base: Sequence[float],
) -> Row:
    """Return the row of one system's texts."""
    rounds = sum(text.rounds for text in texts)
    examined = sum(text.examined for text in texts)
    opening = sum(text.opening_bytes for text in texts)
    rates = [text.tokens_per_second for text in texts]
    return Row(
        system=protocol,
        link=place.name,
        rtt_ms=place.rtt_ms,
        mbps=place.mbps,
        draft_length=length,
        drafting_ahead=ahead,
        tokens_per_second=statistics.median(rates),
        speed_up=_speed_up(rates, base),
        acceptance_rate=sum(t.accepted for t in texts) / max(examined, 1),
        tokens_per_round=sum(len(text.tokens) for text in texts) / rounds,
        uplink_bytes_per_round=(sum(t.uplink_bytes for t in texts) - opening) / rounds,
        downlink_bytes_per_round=sum(t.downlink_bytes for t in texts) / rounds,
        drafting_seconds=sum(text.drafting_seconds for text in texts),
        verification_seconds=sum(text.verification_seconds for text in texts),
        transmission_seconds=sum(text.transmission_seconds for text in texts),
        drafted_ahead=sum(text.drafted_ahead for text in texts),
        discarded=sum(text.discarded for text in texts),
    )


def _speed_up(rates: Sequence[float], base: Sequence[float]) -> float:
    """Return the median over prompts of the ratio."""
    return statistics.median(a / b for a, b in zip(rates, base, strict=True))


def best_rows(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    """Return the fastest row of each system on each link."""
    best: dict[tuple[str, str], Row] = {}
    for row in rows:
        key = row.system, row.link
        if key not in best or row.tokens_per_second > best[key].tokens_per_second:
            best[key] = row
    return best


def show(rows: Sequence[Row]) -> None:
    """Print rows as a table."""
    print(
        f"{'system':<22} {'link':<24} {'draft':<26} {'ahead':<5} {'tokens/s':>8} "
        f"{'× alone':>7} {'accept.':>7} {'up B':>9} {'down B':>9}"
    )
    for row in rows:
        print(
            f"{row.system:<22} {row.link:<24} {row.draft_length:<26} "
            f"{'yes' if row.drafting_ahead else '':<5} {row.tokens_per_second:>8.2f} "
            f"{row.speed_up:>7.2f} {row.acceptance_rate:>7.3f} "
            f"{row.uplink_bytes_per_round:>9.1f} {row.downlink_bytes_per_round:>9.1f}"
        )


def draw(path: Path, rows: Mapping[tuple[str, str], Row]) -> None:
    """Draw each system's best on every link; a panel per round-trip time."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second, once per run

    linked = [row for row in rows.values() if row.link != "none"]
    trips = list(dict.fromkeys(row.rtt_ms for row in linked))
    figure = Figure(figsize=(0.8 + 4.0 * len(trips), 4.3), layout="constrained")
    panels = figure.subplots(1, len(trips), sharey=True, squeeze=False)[0]
    for panel, rtt in zip(panels, trips, strict=True):
        names = list(dict.fromkeys(row.link for row in linked if row.rtt_ms == rtt))
        for system in dict.fromkeys(row.system for row in linked):
            rates = [rows[system, name].tokens_per_second for name in names]
            panel.plot(range(len(names)), rates, marker="o", label=system)
        for style, system in (("--", ALONE), (":", ASSISTED)):
            if (system, "none") in rows:
                rate = rows[system, "none"].tokens_per_second
                panel.axhline(rate, color="0.4", linestyle=style, label=system)
        labels = [name.split(", ", 1)[1] for name in names]
        panel.set_xticks(range(len(names)), labels, rotation=20, ha="right")
        panel.set_title(f"round trip {rtt:g} ms")
        panel.grid(color="0.9")
        panel.set_ylim(bottom=0)
    panels[0].set_ylabel("tokens per second, best draft length")
    panels[-1].legend(fontsize="small")
    figure.savefig(path, dpi=150)


def write(out: Path, rows: Sequence[Row]) -> list[Path]:
    """Write all rows and the figure, and return where they lie."""
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / f"dssd_benchmark.{kind}" for kind in ("csv", "png")]
    with paths[0].open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, [field.name for field in fields(Row)])
        table.writeheader()
        table.writerows(map(asdict, rows))
    draw(paths[1], best_rows(rows))
    return paths


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    found = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    add = found.add_argument
    add("--draft", default=DEFAULT, help="folder or cached id of the small model")
    add("--target", default=DEFAULT, help="of the large one, of the same tokenizer")
    add(
        "--deepen",
        type=int,
        default=0,
        metavar="LAYERS",
        help="layers that add nothing, on top of the target (a Llama); 24 make the "
        "shipped one cost some 80 ms of CPU a token",
    )
    add("--width", type=int, default=8192, help="of their feed-forward networks")
    add("--prompts", type=Path, help="JSON lines with turns, as Spec-Bench's")
    add("--prompt-count", type=int, default=2, help="prompts, spread over the file")
    add("--prompt-tokens", type=int, default=256, help="of each, the last that many")
    add("--tokens", type=int, default=64, help="generated after each prompt")
    add("--temperature", type=float, default=1.0)
    add("--top-k", type=int, default=0)
    add("--top-p", type=float, default=1.0)
    add("--rtt", type=float, nargs="+", default=[0.0, 20.0, 50.0], help="milliseconds")
    add("--mbps", type=float, nargs="+", default=[10.0, 50.0, 100.0])
    add(
        "--traces",
        type=Path,
        nargs="+",
        default=[],
        help="files of recorded links, a line of JSON each: name, t (s), mbps",
    )
    add("--protocols", nargs="+", choices=list(PROTOCOLS), default=list(PROTOCOLS))
    add(
        "--lengths",
        nargs="+",
        default=["2", "4", "8", ADAPTIVE],
        help="draft lengths; 'adaptive' is one",
    )
    add("--threads", type=int, default=2, help="of torch")
    add(
        "--cpu-time",
        action="store_true",
        help="count CPU, not wall, seconds: for one thread on a busy machine",
    )
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("results/dssd"), help="folder to write to")
    add("--quick", action="store_true", help="a small run: one prompt, few of the rest")
    return found


def main() -> None:
    """Run the benchmark."""
    command = parser()
    args = command.parse_args()
    for length in args.lengths:
        if length != ADAPTIVE and not (length.isdecimal() and int(length) > 0):
            command.error(
                f"--lengths takes numbers from 1 and {ADAPTIVE!r}: {length!r}"
            )
    for name in ("prompt_count", "prompt_tokens", "tokens", "threads"):
        if getattr(args, name) < 1:
            option = "--" + name.replace("_", "-")
            command.error(f"{option} must be at least 1, got {getattr(args, name)}")
    if args.quick:
        args.rtt, args.mbps, args.lengths = args.rtt[:2], args.mbps[:1], ["4", ADAPTIVE]
        args.prompt_count, args.tokens = 1, min(args.tokens, 24)
    try:
        run(args)
    except InvalidInputError as error:
        sys.exit(f"error: {error}")


def run(args: argparse.Namespace) -> None:
    """Measure, print and write."""
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    args.timer = time.process_time if args.cpu_time else time.perf_counter
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    sampling = Sampling(args.temperature, args.top_k, args.top_p)
    found = places(args)
    pair = bench_pair(args)
    prompts = bench_prompts(args, pair)
    if DEFAULT in (args.draft, args.target):
        print(
            "The shipped models know Shakespeare's plays alone, whatever the prompts."
        )
    print(
        f"{len(prompts)} prompts of {min(map(len, prompts))} to "
        f"{max(map(len, prompts))} tokens, {args.tokens} generated",
        flush=True,
    )
    # What is run for the first time takes longer than ever after.
    alone(TransformersModel(pair.target), prompts[0], 2, sampling, 0)
    assisted(pair.target, pair.draft, prompts[0], 8, sampling, 0, ASSISTANCE[0])
    rows, base = baselines(args, pair, prompts, sampling)
    show(rows)
    for place in found:
        measured = measure(args, pair, prompts, sampling, place, base)
        show(measured)
        rows += measured
        sys.stdout.flush()
    print("\nthe best of each on each link")
    show(list(best_rows(rows).values()))
    for path in write(args.out, rows):
        print(path)


if __name__ == "__main__":
    main()
