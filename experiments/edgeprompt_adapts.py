r"""How near a device comes to hindsight when it restores a prefix's KV over any link.

``python experiments/edgeprompt_adapts.py [--traces PATH[,PATH]]`` runs the machine of
:mod:`flower_ext.edgeprompt.restoration` in virtual time, on links of constant rate and
on recorded ones from random moments on, and sets its time beside the choices of someone
who knows the link for all times: recompute all, fetch all in a precision, or compute
the first k blocks while the others are fetched, for each k and precision.

The device knows its own speed, and nothing of the link unless ``--warm`` is given: then
what one earlier prefix of 512 tokens has shown. The time is that until the first token
can be thought of: all KV there, decoded, and the device free. Prefill of the text
behind the prefix is left out: it would be the same for all, and bring the ratios nearer
to 1. Blocks come layer by layer; each is decoded when it is whole, beside computing.

``--stop`` says what can become of a computation that is no longer needed: ``never``
(a block is computed to its end), ``layer`` (it stops between two layers) or ``matrix``
(between two matrices of a layer, as the package does).

Models: the KV of Qwen2-0.5B (24 layers × 2 heads × 64), Llama-3.2-1B (16 × 8 × 64) and
one of 1.7 billion weights with 24 × 8 × 64, in 16 bits; of a layer's weights, 29 %,
28 % and 28 % are in the largest matrix. Devices, by how many tokens of Llama-3.2-1B
they prefill in a second: 20 (a small board), 60 (a phone, 16-bit weights), 250 (a
phone, 4-bit weights), 1500 (a laptop); other models in proportion to their weights, and
attention by its operations.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from flower_ext.edgeprompt.blocks import BLOCK_TOKENS
from flower_ext.edgeprompt.estimates import DeviceSpeed, LinkEstimate
from flower_ext.edgeprompt.plan import Choice, Offer, OfferedBlock, Way, plan
from flower_ext.edgeprompt.precision import KVShape, Precision, layer_nbytes
from flower_ext.edgeprompt.restoration import Restoration
from flower_ext.edgeprompt.simulated import simulate
from flower_ext.errors import InvalidInputError
from flower_ext.network.link import Link
from flower_ext.network.traces import Trace, load_traces, synthetic_traces, trace_links

MEGABIT = 1e6 / 8
RATES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)  # Mbps
ROUND_TRIPS = (0.005, 0.02, 0.08)
LENGTHS = (256, 512, 1024, 2048, 4096)
SPEEDS = {"board": 20.0, "phone-16bit": 60.0, "phone-4bit": 250.0, "laptop": 1500.0}
ERRORS = {  # As the precisions are usually found to cost.
    Precision.EXACT: 0.0,
    Precision.FP16: 5e-4,
    Precision.BF16: 4e-3,
    Precision.INT8: 1e-2,
    Precision.INT4: 1e-1,
}
MAX_ERROR = 0.02
COLUMNS = (
    *("place", "rtt", "model", "device", "tokens", "seconds", "best_seconds", "ratio"),
    *("best_way", "best_computed", "best_precision", "computed"),
)
CONSTANT_BAR, MEAN_BAR, P90_BAR = 1.10, 1.10, 1.25


@dataclass(frozen=True)
class Model:
    """A model's KV, and what it costs to compute.

    Parameters
    ----------
    name : str
        What it is called.
    layers, heads, queries : int
        Layers, and heads of keys and of queries in each; all of 64 channels.
    weights : float
        Those that a token is multiplied by, in billions.
    largest : float
        The share of a layer's weights that is in its largest matrix.
    """

    name: str
    layers: int
    heads: int
    queries: int
    weights: float
    largest: float

    def stops_within(self, tokens: int) -> float:
        """Return a prefill's largest piece, as ``edgeprompt.prefill`` counts it."""
        layer = self.weights * 1e9 / self.layers
        attention = 2 * tokens * self.queries * 64
        piece = max(self.largest * layer, attention)
        return piece / (layer + attention) / self.layers

    def device(self, speed: float) -> DeviceSpeed:
        """Return a device that prefills so many tokens of a 1.24-billion model."""
        per_token = self.weights / 1.24 / speed
        pairs = 4 * self.layers * self.queries * 64 / (2e9 * self.weights)
        return DeviceSpeed(2e-3, per_token, per_token * pairs)

    def offer(self, tokens: int) -> Offer:
        """Return a prefix of so many tokens, of which nothing is held."""
        blocks = []
        for index, begin in enumerate(range(0, tokens, BLOCK_TOKENS)):
            count = min(BLOCK_TOKENS, tokens - begin)
            shape = KVShape(self.layers, self.heads, count, 64, 64, torch.bfloat16)
            sizes = {p: self.layers * layer_nbytes(shape, p) for p in ERRORS}
            blocks.append(OfferedBlock(index, begin, count, sizes))
        return Offer(blocks, ERRORS)


MODELS = (
    Model("qwen2-0.5b", 24, 2, 14, 0.49, 0.29),
    Model("llama-3.2-1b", 16, 8, 32, 1.24, 0.28),
    Model("1.7b", 24, 8, 32, 1.71, 0.28),
)


@dataclass(frozen=True)
class Case:
    """One prefix to be had, by one device over one link."""

    place: str
    link: Link
    model: Model
    device: str
    tokens: int


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Parameters
    ----------
    case : Case
        Which.
    seconds : float
        As it adapted.
    best : Choice
        Hindsight's, with its time.
    fixed : dict[str, float]
        The time of each fixed choice.
    computed : int
        Blocks that were computed.
    """

    case: Case
    seconds: float
    best: Choice
    fixed: dict[str, float] = field(repr=False)
    computed: int

    @property
    def ratio(self) -> float:
        """How many times hindsight's time it took."""
        return self.seconds / self.best.seconds


def fixed_choices(choices: Sequence[Choice], blocks: int) -> dict[str, float]:
    """Return the times of the choices that one can make once for all links."""
    found = {}
    for choice in choices:
        name = "" if choice.precision is None else choice.precision.value
        if choice.way is Way.RECOMPUTE:
            found["recompute"] = choice.seconds
            if blocks == 1:  # Half of one block is none, which is to compute it.
                for precision, error in ERRORS.items():
                    if error <= MAX_ERROR:
                        found[f"half {precision.value}"] = choice.seconds
        elif choice.way is Way.FETCH:
            found[f"fetch {name}"] = choice.seconds
        elif choice.computed == (blocks + 1) // 2:
            found[f"half {name}"] = choice.seconds
    return found


def run(case: Case, warm: bool, stop: str) -> Outcome:
    """Restore the prefix, and find out what would have been best."""
    truth = case.model.device(SPEEDS[case.device])
    offer = case.model.offer(case.tokens)
    estimate = LinkEstimate()
    stops_within = {
        "never": 1.0,
        "layer": 1 / case.model.layers,
        "matrix": case.model.stops_within(case.tokens),
    }[stop]

    def restored(of: Offer, at: float) -> tuple[float, int]:
        own = case.model.device(SPEEDS[case.device])
        todo = Restoration(of, own, estimate, MAX_ERROR, stops_within, at)
        done = simulate(todo, of, case.link, truth, layers=case.model.layers, at=at)
        return done.seconds, len(done.computed)

    at = 0.0
    if warm:
        at = restored(case.model.offer(512), at)[0]
    seconds, computed = restored(offer, at)
    known = plan(case.link, truth, offer, max_error=MAX_ERROR, at=at)
    fixed = fixed_choices((known.best, *known.alternatives), len(offer.blocks))
    return Outcome(case, seconds, known.best, fixed, computed)


def constant_cases() -> Iterator[Case]:
    """Every rate with every round trip, model, device and length."""
    for rate, rtt in itertools.product(RATES, ROUND_TRIPS):
        link = Link(up=rate * MEGABIT, rtt=rtt)
        place = f"{rate} Mbps {rtt * 1e3:g} ms"
        for model, device, tokens in itertools.product(MODELS, SPEEDS, LENGTHS):
            yield Case(place, link, model, device, tokens)


def trace_cases(pools: dict[str, list[Trace]], count: int, seed: int) -> Iterator[Case]:
    """So many moments of each pool, each with every model, device and length."""
    for number, (pool, traces) in enumerate(pools.items()):
        generator = np.random.default_rng((seed, number))
        for start, rtt in zip(
            trace_links(traces, count, seed),
            generator.choice(ROUND_TRIPS, count),
            strict=True,
        ):
            link = Link(start.up, rtt=float(rtt))
            for model, device, tokens in itertools.product(MODELS, SPEEDS, LENGTHS):
                yield Case(pool, link, model, device, tokens)


def table(outcomes: Sequence[Outcome], key: str, of: Callable[[Case], str]) -> None:
    """Print the ratios, in groups."""
    print(f"{key:<28} {'cases':>6} {'mean':>6} {'p90':>6} {'worst':>7} {'seconds':>8}")
    groups: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(of(outcome.case), []).append(outcome)
    for name, group in groups.items():
        ratios = [o.ratio for o in group]
        mean = statistics.mean(o.seconds for o in group)
        print(
            f"{name:<28} {len(group):>6} {statistics.mean(ratios):>6.3f} "
            f"{np.quantile(ratios, 0.9):>6.3f} {max(ratios):>7.3f} {mean:>8.3f}"
        )
    print(flush=True)


def against_fixed(outcomes: Sequence[Outcome]) -> bool:
    """Print each fixed choice's ratios; return whether adapting beats them all."""
    print(f"{'choice':<28} {'mean ratio':>10} {'p90':>9} {'mean seconds':>12}")
    names = sorted(set.intersection(*(set(o.fixed) for o in outcomes)))
    rows = {
        n: [(o.fixed[n] / o.best.seconds, o.fixed[n]) for o in outcomes] for n in names
    }
    rows["adapting"] = [(o.ratio, o.seconds) for o in outcomes]
    means = {}
    for name, row in rows.items():
        ratios, seconds = zip(*row, strict=True)
        means[name] = (statistics.mean(ratios), statistics.mean(seconds))
        print(
            f"{name:<28} {means[name][0]:>10.3f} {np.quantile(ratios, 0.9):>9.3f} "
            f"{means[name][1]:>12.3f}"
        )
    ratio, seconds = means["adapting"]
    return all(ratio < means[n][0] and seconds < means[n][1] for n in names)


def verdict(what: str, figure: float, bar: float) -> bool:
    """Print whether a bar is held."""
    held = figure <= bar
    word = "kept" if held else "MISSED"
    print(f"{what}: {figure:.4f}, promised at most {bar:g}: {word}")
    return held


def report_constant(outcomes: Sequence[Outcome]) -> bool:
    """Print what came of links of constant rate."""
    print(f"\n== constant links: {len(outcomes)} cases")
    table(outcomes, "link", lambda c: c.place)
    table(outcomes, "device, tokens", lambda c: f"{c.device} {c.tokens}")
    against_fixed(outcomes)
    above = sorted(
        (o for o in outcomes if o.ratio > CONSTANT_BAR), key=lambda o: -o.ratio
    )
    for o in above[:12]:
        print(
            f"  above: {o.case.place}, {o.case.model.name}, {o.case.device}, "
            f"{o.case.tokens} tokens: {o.seconds * 1e3:.1f} ms of "
            f"{o.best.seconds * 1e3:.1f} ms ({o.best.way.value}), {o.ratio:.3f}"
        )
    print(f"  above the bar: {len(above)} of {len(outcomes)}")
    return verdict("worst ratio", max(o.ratio for o in outcomes), CONSTANT_BAR)


def report_traces(outcomes: Sequence[Outcome]) -> bool:
    """Print what came of recorded links."""
    print(f"\n== recorded links: {len(outcomes)} cases")
    table(outcomes, "pool", lambda c: c.place)
    table(outcomes, "pool, device", lambda c: f"{c.place[:14]} {c.device}")
    table(outcomes, "tokens", lambda c: str(c.tokens))
    better = against_fixed(outcomes)
    ratios = [o.ratio for o in outcomes]
    held = verdict("mean ratio", statistics.mean(ratios), MEAN_BAR)
    held &= verdict("90th percentile", float(np.quantile(ratios, 0.9)), P90_BAR)
    print(f"better than every fixed choice: {'kept' if better else 'MISSED'}")
    return held and better


def write_csv(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Write every case."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for o in outcomes:
            c, b = o.case, o.best
            name = "" if b.precision is None else b.precision.value
            of = (c.place, c.link.rtt, c.model.name, c.device, c.tokens)
            best = (b.seconds, o.ratio, b.way.value, b.computed, name)
            rows.writerow((*of, o.seconds, *best, o.computed))


def main(argv: Sequence[str] | None = None) -> int:
    """Run, and report; return 0 if every bar is kept."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--traces", help="files of traces, separated by commas")
    parser.add_argument("--links", type=int, default=25, help="moments per file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--warm", action="store_true", help="the link was used before")
    parser.add_argument(
        "--stop", choices=("never", "layer", "matrix"), default="matrix"
    )
    parser.add_argument("--csv", type=Path, help="write every case to this file")
    args = parser.parse_args(argv)
    begun = time.perf_counter()
    try:
        names = args.traces.split(",") if args.traces else []
        pools = {Path(n).name.split(".")[0]: load_traces(n) for n in names}
        pools = pools or {"synthetic": synthetic_traces(100, args.seed)}
        recorded = list(trace_cases(pools, args.links, args.seed))
    except (InvalidInputError, OSError) as error:
        parser.error(str(error))
    print(
        f"link {'used before' if args.warm else 'unknown'}, a block's computation "
        + {
            "never": "cannot be stopped",
            "layer": "stops between layers",
            "matrix": "stops between matrices",
        }[args.stop]
    )
    constant = [run(case, args.warm, args.stop) for case in constant_cases()]
    held = report_constant(constant)
    moving = [run(case, args.warm, args.stop) for case in recorded]
    held &= report_traces(moving)
    if args.csv:
        write_csv(args.csv, [*constant, *moving])
    print(f"after {time.perf_counter() - begun:.0f} s")
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
