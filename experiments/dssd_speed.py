"""What split speculative decoding is promised to gain, measured side by side.

Each command measures both sides of a promise in turn, in one process, and prints the
median over repeats of their ratio (``ahead``: the ratio over all texts):

- ``decode``: tokens per second over a link with a round trip of 20 ms, against the
  target alone at the edge, which decodes on its cache and pays no round trip;
- ``assisted``: everything in one process without a link, against transformers' own
  assisted generation, its defaults and other settings;
- ``ahead``: drafting while a verdict is in flight, against waiting for it, each at its
  best draft length;
- ``batch``: verifying the drafts of 16 devices in one pass, against one by one;
- ``bytes``: what a round sends, with tables in place of models.

The models are the pair that ships with the package; the target is deepened by layers
that are computed and add nothing, so that it costs what a target does and says what it
said. Links are simulated on a virtual clock, and computation counts as long as it
takes; nothing sleeps. On a machine that others use too, ``--threads 1 --cpu-time``
counts the CPU seconds of this process instead.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers
from dssd.baselines import ASSISTANCE, alone, assisted
from dssd.models import TablePair, deepened, disturbed, table_pair, without_end
from dssd.prompts import BUILT_IN, prompt_ids
from dssd.wire import CountingProxy
from promises import verdict
from transformers import PreTrainedModel

from flower_ext.edge import EdgeServer, RemoteVerifier
from flower_ext.errors import InvalidInputError
from flower_ext.models import DEFAULT, load_pair
from flower_ext.network import Link, VirtualClock, WallClock
from flower_ext.speculative import (
    PROTOCOLS,
    Adaptive,
    Draft,
    Drafter,
    DraftLength,
    Fixed,
    Generation,
    KeyedChoices,
    Opening,
    Row,
    Sampling,
    TransformersModel,
    Verdict,
    Verifier,
    speculate,
)

Entries = list[dict[str, object]]

DECODE_BAR = 1.5  # of the tokens per second of the target alone
ASSISTED_BAR = 0.95  # of those of transformers' assisted generation
AHEAD_BAR = 1.15  # of those without drafting ahead
BATCH_BAR = 4.0  # of the drafts per second of verifying one by one
UPLINK_BAR = 100  # bytes a round
DOWNLINK_BAR = 0.02  # of the downlink of dssd
TOTAL_BARS = {0.2: 0.001, 0.5: 0.005}  # of all that dsd sends, by mean distance
ACCEPTANCE_LEAST = 0.8  # of the pairs that the promises speak of
AHEAD_ACCEPTANCE_LEAST = 0.9
AHEAD_DRAFT_LEAST = 10.0  # milliseconds a draft
COST_RATIO_LEAST = 10.0
TARGET_LEAST = 60.0  # milliseconds a token
VOCABULARY = 50_272  # OPT's
MEGABITS_50 = 50e6 / 8


@dataclass(frozen=True)
class Bench:
    """What the measurements of speed share.

    Parameters
    ----------
    draft, target : PreTrainedModel
        The models.
    vocab_size : int
        The ids that both have.
    prompts : list[list[int]]
        Token ids.
    sampling : Sampling
        How tokens are drawn.
    tokens, repeats, seed : int
        Tokens a text, texts a system, and what keys them.
    timer : Callable[[], float]
        What computation is measured by.
    """

    draft: PreTrainedModel
    target: PreTrainedModel
    vocab_size: int
    prompts: list[list[int]]
    sampling: Sampling
    tokens: int
    repeats: int
    seed: int
    timer: Callable[[], float]

    def prompt(self, repeat: int) -> list[int]:
        """Return the prompt of a repeat."""
        return self.prompts[repeat % len(self.prompts)]

    def drafter(self) -> Drafter:
        """Return the drafter."""
        return Drafter(self.draft, self.vocab_size)

    def verifier(self) -> Verifier:
        """Return the verifier."""
        return Verifier(self.target, self.vocab_size)

    def seconds(self, work: Callable[[], object]) -> float:
        """Return how long something takes."""
        begin = self.timer()
        work()
        return self.timer() - begin

    def speculate(
        self,
        repeat: int,
        length: DraftLength,
        link: Link | None,
        ahead: bool = False,
    ) -> Generation:
        """Generate the text of a repeat: over a link on a virtual clock, or without."""
        return speculate(
            self.drafter(),
            self.verifier(),
            self.prompt(repeat),
            self.tokens,
            self.sampling,
            "dssd",
            length,
            link,
            torch.Generator().manual_seed(self.seed + repeat),
            drafting_ahead=ahead,
            eos_token_ids=(),
            clock=WallClock() if link is None else VirtualClock(self.timer),
        )


def bench_of(args: argparse.Namespace) -> Bench:
    """Return the models and settings that the command line asks for."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    pair = load_pair(args.draft, args.target, dtype=torch.float32)
    timer = time.process_time if args.cpu_time else time.perf_counter
    if args.layers is None:
        args.layers = layers_for(args.target_ms, pair.target, args.width, timer)
    target = deepened(pair.target, args.layers, args.width)
    return Bench(
        without_end(pair.draft),
        without_end(target),
        pair.vocab_size,
        [prompt_ids(text, pair.tokenizer, 200) for text in BUILT_IN],
        Sampling(temperature=args.temperature, top_p=args.top_p),
        args.tokens,
        args.repeats,
        args.seed,
        timer,
    )


def layers_for(
    wanted_ms: float, model: PreTrainedModel, width: int, timer: Callable[[], float]
) -> int:
    """Return how many layers that add nothing take a model to its time a token."""
    some = 8
    models = [model, deepened(model, some, width)]
    own, deep = milliseconds_per_token(models, timer, summary=min)
    return max(0, math.ceil((wanted_ms - own) / max((deep - own) / some, 1e-3)))


def milliseconds_per_token(
    models: Sequence[PreTrainedModel],
    timer: Callable[[], float],
    summary: Callable[[Sequence[float]], float] = statistics.median,
) -> list[float]:
    """Return what one further token of each model takes, measured in turn."""
    prefix, repeats = 128, 15
    wrapped = [TransformersModel(model) for model in models]
    caches = [model.new_cache() for model in wrapped]
    seconds: list[list[float]] = [[] for _ in models]
    for model, cache in zip(wrapped, caches, strict=True):
        model.extend([Row(cache, [1] * prefix, keep=1)])
    for _ in range(repeats):
        for model, cache, taken in zip(wrapped, caches, seconds, strict=True):
            begin = timer()
            model.extend([Row(cache, [1], keep=1)])
            taken.append(timer() - begin)
            cache.roll_back(prefix)
    return [1e3 * summary(taken) for taken in seconds]


def describe(bench: Bench) -> dict[str, float]:
    """Measure and print what the pair costs."""
    draft, target = milliseconds_per_token([bench.draft, bench.target], bench.timer)
    parameters = sum(weight.numel() for weight in bench.target.parameters())
    threads, sampling = torch.get_num_threads(), bench.sampling
    clock = "CPU" if bench.timer is time.process_time else "wall"
    print(
        f"target {target:.1f} ms a token ({parameters / 1e6:.0f} M parameters), "
        f"drafter {draft:.1f} ms: cost ratio {target / draft:.1f}; {threads} threads, "
        f"{clock} time, temperature {sampling.temperature:g}, top-p {sampling.top_p:g}",
        flush=True,
    )
    return {"target_ms": target, "draft_ms": draft, "cost_ratio": target / draft}


def medians(rates: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Return the median rate by name."""
    return {name: statistics.median(values) for name, values in rates.items()}


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median over repeats of the ratio."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def show_rates(rates: Mapping[str, float], acceptance: Mapping[str, float]) -> None:
    """Print tokens per second by system, and the acceptance where it is known."""
    for name, rate in rates.items():
        known = f"  acceptance {acceptance[name]:.3f}" if name in acceptance else ""
        print(f"  {name:<36} {rate:7.2f} tokens/s{known}", flush=True)


def lengths_of(args: argparse.Namespace) -> dict[str, DraftLength]:
    """Return the draft lengths to try, by name."""
    lengths: dict[str, DraftLength] = {f"draft {n}": Fixed(n) for n in args.lengths}
    return lengths | {"draft adaptive": Adaptive(maximum=max(args.lengths))}


def acceptance_of(texts: Sequence[Generation]) -> float:
    """Return accepted of examined over texts."""
    return sum(text.accepted for text in texts) / sum(text.examined for text in texts)


def conditions(entry: Mapping[str, float], acceptance: float) -> Entries:
    """Say whether the models are such as the promises of speed speak of."""
    return [
        verdict(
            "target, milliseconds a token", entry["target_ms"], TARGET_LEAST, least=True
        ),
        verdict(
            "its cost over the drafter's",
            entry["cost_ratio"],
            COST_RATIO_LEAST,
            least=True,
        ),
        verdict("acceptance", acceptance, ACCEPTANCE_LEAST, least=True),
    ]


def run_decode(args: argparse.Namespace) -> Entries:
    """Measure decoding over a link against the target alone."""
    bench, lengths = bench_of(args), lengths_of(args)
    entry = describe(bench)
    model = TransformersModel(bench.target, bench.vocab_size)
    link = Link(up=MEGABITS_50, rtt=args.rtt)
    rates: dict[str, list[float]] = {name: [] for name in ("target alone", *lengths)}
    texts: dict[str, list[Generation]] = {name: [] for name in lengths}
    for repeat in range(bench.repeats):
        seconds = bench.seconds(
            lambda r=repeat: alone(
                model, bench.prompt(r), bench.tokens, bench.sampling, bench.seed + r
            )
        )
        rates["target alone"].append(bench.tokens / seconds)
        for name, length in lengths.items():
            text = bench.speculate(repeat, length, link)
            texts[name].append(text)
            rates[name].append(text.tokens_per_second)
    acceptance = {name: acceptance_of(found) for name, found in texts.items()}
    middle = medians(rates)
    show_rates(middle, acceptance)
    best = max(lengths, key=middle.__getitem__)
    gain = ratio(rates[best], rates["target alone"])
    told = f"{best} at an RTT of {args.rtt * 1e3:g} ms, over the target alone"
    return [
        entry
        | {
            "measurement": "decode",
            "rtt": args.rtt,
            "tokens_per_second": middle,
            "acceptance": acceptance,
            "best": best,
            "gain": gain,
        },
        *conditions(entry, acceptance[best]),
        verdict(told, gain, DECODE_BAR, least=True),
    ]


def run_assisted(args: argparse.Namespace) -> Entries:
    """Measure decoding in one process against transformers' assisted generation."""
    bench, lengths = bench_of(args), lengths_of(args)
    entry = describe(bench)
    settings = {f"transformers {one}": one for one in ASSISTANCE}
    # What is run for the first time takes longer than ever after.
    for warm in (ASSISTANCE[0], ASSISTANCE[1]):
        assisted(bench.target, bench.draft, bench.prompt(0), 8, bench.sampling, 0, warm)
    rates: dict[str, list[float]] = {name: [] for name in (*lengths, *settings)}
    texts: dict[str, list[Generation]] = {name: [] for name in lengths}
    for repeat in range(bench.repeats):
        for name, length in lengths.items():
            begin = bench.timer()
            texts[name].append(bench.speculate(repeat, length, None))
            rates[name].append(bench.tokens / (bench.timer() - begin))
        for name, setting in settings.items():
            begin = bench.timer()
            found = assisted(
                bench.target,
                bench.draft,
                bench.prompt(repeat),
                bench.tokens,
                bench.sampling,
                bench.seed + repeat,
                setting,
            )
            rates[name].append(len(found) / (bench.timer() - begin))
            assert len(found) == bench.tokens
    acceptance = {name: acceptance_of(found) for name, found in texts.items()}
    middle = medians(rates)
    show_rates(middle, acceptance)
    best = max(lengths, key=middle.__getitem__)
    default = next(iter(settings))
    their_best = max(settings, key=middle.__getitem__)
    against = {name: ratio(rates[best], rates[name]) for name in (default, their_best)}
    return [
        entry
        | {
            "measurement": "assisted",
            "tokens_per_second": middle,
            "acceptance": acceptance,
            "best": best,
            "ratios": against,
        },
        *conditions(entry, acceptance[best]),
        *(
            verdict(
                f"{best} without a link, over {name}", value, ASSISTED_BAR, least=True
            )
            for name, value in against.items()
        ),
    ]


def run_ahead(args: argparse.Namespace) -> Entries:
    """Measure drafting ahead against waiting for the verdict."""
    base = bench_of(args)
    pair = load_pair(args.draft, args.target, dtype=torch.float32)
    draft = deepened(disturbed(pair.target, args.noise, args.seed), args.draft_layers)
    bench = Bench(**(vars(base) | {"draft": without_end(draft)}))
    entry = describe(bench)
    link = Link(up=MEGABITS_50, rtt=args.rtt)
    systems = {
        f"{'ahead' if ahead else 'waiting'}, {name}": (length, ahead)
        for ahead in (False, True)
        for name, length in lengths_of(args).items()
    }
    rates: dict[str, list[float]] = {name: [] for name in systems}
    texts: dict[str, list[Generation]] = {name: [] for name in systems}
    for repeat in range(bench.repeats):
        for name, (length, ahead) in systems.items():
            text = bench.speculate(repeat, length, link, ahead)
            texts[name].append(text)
            rates[name].append(text.tokens_per_second)
    acceptance = {name: acceptance_of(found) for name, found in texts.items()}
    # Whole texts are compared: with other draft lengths the same seed tells another.
    pooled = {name: statistics.harmonic_mean(found) for name, found in rates.items()}
    show_rates(pooled, acceptance)
    best = {
        ahead: max(
            (name for name, one in systems.items() if one[1] is ahead),
            key=pooled.__getitem__,
        )
        for ahead in (False, True)
    }
    gain = pooled[best[True]] / pooled[best[False]]
    thrown = sum(t.discarded for t in texts[best[True]])
    guessed = sum(t.drafted_ahead for t in texts[best[True]])
    print(f"{best[True]}: {thrown} of {guessed} guesses thrown away")
    # What a draft takes is told by those who wait: the others' overlaps with waiting.
    plain = texts[best[False]]
    draft = 1e3 * sum(t.drafting_seconds for t in plain) / sum(t.rounds for t in plain)
    return [
        entry
        | {
            "measurement": "ahead",
            "rtt": args.rtt,
            "tokens_per_second": pooled,
            "acceptance": acceptance,
            "best": [best[False], best[True]],
            "gain": gain,
        },
        verdict(
            f"acceptance, {best[True]}",
            acceptance[best[True]],
            AHEAD_ACCEPTANCE_LEAST,
            least=True,
        ),
        verdict(
            f"a draft, {best[False]}, milliseconds",
            draft,
            AHEAD_DRAFT_LEAST,
            least=True,
        ),
        verdict(
            f"{best[True]} at an RTT of {args.rtt * 1e3:g} ms, over {best[False]}",
            gain,
            AHEAD_BAR,
            least=True,
        ),
    ]


def run_batch(args: argparse.Namespace) -> Entries:
    """Measure verifying many devices' drafts in one pass against one by one."""
    bench = bench_of(args)
    entry = describe(bench)
    verifier, requests = bench.verifier(), []
    rng = np.random.default_rng(bench.seed)
    text = [token for prompt in bench.prompts for token in prompt]
    for device in range(args.devices):
        begin, length = int(rng.integers(len(text))), int(rng.integers(100, 201))
        prompt = (text * 2)[begin : begin + length]
        choices = KeyedChoices(bench.seed + device)
        drafting = bench.drafter().start(prompt, bench.sampling, choices)
        tokens = tuple(drafting.extend() for _ in range(args.draft_length))
        probabilities, _ = PROTOCOLS["dssd"]().describe(tokens, drafting.drafted_from)
        opening = Opening(
            session=str(device),
            seed=bench.seed + device,
            prompt=tuple(prompt),
            temperature=bench.sampling.temperature,
            top_p=bench.sampling.top_p,
        )
        verifier.open(opening)
        requests.append((str(device), Draft(1, 0, (), tokens, probabilities)))
    single: list[float] = []
    batched: list[float] = []
    # A round that is sent again takes the same work, and has the same verdict.
    for _ in range(bench.repeats):
        begin_at = bench.timer()
        alone_found = [verifier.verify(*request) for request in requests]
        middle_at = bench.timer()
        found = verifier.verify_batch(requests)
        batched.append(bench.timer() - middle_at)
        single.append(middle_at - begin_at)
        assert all(
            isinstance(one, Verdict) and one.accepted == other.accepted
            for one, other in zip(found, alone_found, strict=True)
        )
    gain = ratio(single, batched)
    print(
        f"{args.devices} drafts of {args.draft_length}: one by one "
        f"{statistics.median(single) * 1e3:.0f} ms, in one pass "
        f"{statistics.median(batched) * 1e3:.0f} ms"
    )
    return [
        entry | {"measurement": "batch", "gain": gain},
        verdict("throughput of one pass, over one by one", gain, BATCH_BAR, least=True),
    ]


def run_bytes(args: argparse.Namespace) -> Entries:
    """Measure what a round of each protocol sends."""
    entries: Entries = []
    print(
        f"bytes a round, vocabulary {args.vocabulary}, temperature 1, draft length "
        f"{args.draft_length}, {args.texts} texts of {args.tokens} tokens"
    )
    print(
        f"{'mean TV':>8} {'protocol':>16} {'uplink':>10} {'downlink':>10} "
        f"{'acceptance':>16} {'questions':>9}"
    )
    for distance, total_bar in TOTAL_BARS.items():
        pair = table_pair(args.vocabulary, distance, seed=args.seed)
        sent: dict[str, tuple[float, float]] = {}
        for protocol in PROTOCOLS:
            texts = [
                speculate(
                    Drafter(pair.draft),
                    Verifier(pair.target),
                    [0],
                    args.tokens,
                    Sampling(),
                    protocol,
                    args.draft_length,
                    generator=torch.Generator().manual_seed(args.seed + number),
                )
                for number in range(args.texts)
            ]
            rounds = sum(text.rounds for text in texts)
            up = sum(t.uplink_bytes - t.opening_bytes for t in texts) / rounds
            down = sum(text.downlink_bytes for text in texts) / rounds
            sent[protocol] = up, down
            rate = acceptance_of(texts)
            examined = sum(text.examined for text in texts)
            error = (rate * (1 - rate) / examined) ** 0.5
            questions = sum(text.questions for text in texts) / rounds
            entries.append(
                {
                    "measurement": "bytes",
                    "mean_distance": distance,
                    "protocol": protocol,
                    "uplink": up,
                    "downlink": down,
                    "acceptance": rate,
                    "questions_per_round": questions,
                }
            )
            print(
                f"{distance:>8} {protocol:>16} {up:>10.1f} {down:>10.1f} "
                f"{rate:>8.3f} ± {error:.3f} {questions:>9.3f}",
                flush=True,
            )
        downlink = sent["dssd-candidates"][1] / sent["dssd"][1]
        total = sum(sent["dssd-candidates"]) / sum(sent["dsd"])
        at = f"at a total variation of {distance}"
        candidates = f"dssd-candidates {at}"
        entries += [
            verdict(f"uplink of dssd {at}, bytes a round", sent["dssd"][0], UPLINK_BAR),
            verdict(f"{candidates}, of the downlink of dssd", downlink, DOWNLINK_BAR),
            verdict(f"{candidates}, of all of dsd", total, total_bar),
        ]
        if args.wire:
            entries += on_the_wire(args, pair, distance)
    return entries


def on_the_wire(
    args: argparse.Namespace, pair: TablePair, distance: float
) -> list[dict[str, object]]:
    """Count the bytes of a text through a real edge, framing included, per round."""
    entries: Entries = []
    known = {"tokenizer_fingerprint": "table", "vocab_size": args.vocabulary}
    served = EdgeServer(pair.target, **known, plaintext=True)
    with served as server, CountingProxy(server.address) as proxy:
        for protocol in PROTOCOLS:
            before = proxy.up, proxy.down
            with RemoteVerifier(proxy.address, **known, plaintext=True) as edge:
                text = speculate(
                    Drafter(pair.draft),
                    edge,
                    [0],
                    args.tokens,
                    Sampling(),
                    protocol,
                    args.draft_length,
                    generator=torch.Generator().manual_seed(args.seed),
                )
            up, down = proxy.up - before[0], proxy.down - before[1]
            entry = {
                "measurement": "wire",
                "mean_distance": distance,
                "protocol": protocol,
                "uplink": up / text.rounds,
                "downlink": down / text.rounds,
                "counted_uplink": text.uplink_bytes / text.rounds,
                "counted_downlink": text.downlink_bytes / text.rounds,
            }
            entries.append(entry)
            print(
                f"  on the wire, {protocol}: {entry['uplink']:.1f} up (messages "
                f"{entry['counted_uplink']:.1f}), {entry['downlink']:.1f} down "
                f"({entry['counted_downlink']:.1f}), all of a connection of "
                f"{text.rounds} rounds",
                flush=True,
            )
    return entries


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    outer = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    commands = outer.add_subparsers(dest="command", required=True)
    for name, run, text in (
        ("decode", run_decode, "over a link, against the target alone"),
        ("assisted", run_assisted, "in one place, against transformers"),
        ("ahead", run_ahead, "drafting ahead, against waiting"),
        ("batch", run_batch, "16 drafts in one pass, against one by one"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)
        command.add_argument("--draft", default=DEFAULT, help="a model, or 'default'")
        command.add_argument("--target", default=DEFAULT, help="a Llama, or 'default'")
        command.add_argument(
            "--target-ms",
            type=float,
            default=66.0,
            help="what the target is to cost a token, in milliseconds",
        )
        command.add_argument(
            "--layers",
            type=int,
            help="layers that add nothing, on top of the target; by default as many as "
            "that takes",
        )
        command.add_argument(
            "--width",
            type=int,
            default=8192,
            help="of their feed-forward networks: most of what they cost",
        )
        command.add_argument("--temperature", type=float, default=1.0)
        command.add_argument("--top-p", type=float, default=1.0)
        command.add_argument("--tokens", type=int, default=100, help="in a text")
        command.add_argument("--repeats", type=int, default=5, help="texts a system")
        command.add_argument("--threads", type=int, default=2, help="of torch")
        command.add_argument(
            "--cpu-time", action="store_true", help="count CPU, not wall, seconds"
        )
        if name in ("decode", "ahead"):
            default = 0.02 if name == "decode" else 0.05
            command.add_argument("--rtt", type=float, default=default, help="seconds")
        if name != "batch":
            command.add_argument(
                "--lengths",
                type=int,
                nargs="+",
                default=[4, 6, 8, 12, 16],
                help="draft lengths to try, besides the adaptive one",
            )
        if name == "ahead":
            command.add_argument(
                "--noise",
                type=float,
                default=0.1,
                help="the drafter is the target with this much noise on its weights",
            )
            command.add_argument(
                "--draft-layers",
                type=int,
                default=0,
                help="layers that add nothing, on top of the drafter",
            )
            # The shipped target's own cost: the time in flight counts for most.
            command.set_defaults(layers=0, repeats=20)
        if name == "batch":
            command.add_argument("--devices", type=int, default=16)
            command.add_argument("--draft-length", type=int, default=4)
    command = commands.add_parser("bytes", help="what a round sends")
    command.set_defaults(run=run_bytes)
    command.add_argument("--vocabulary", type=int, default=VOCABULARY)
    command.add_argument("--draft-length", type=int, default=8)
    command.add_argument(
        "--wire", action="store_true", help="count on a real edge's connection, too"
    )
    command.add_argument("--texts", type=int, default=3)
    command.add_argument("--tokens", type=int, default=300, help="in a text")
    for command in commands.choices.values():
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--json", type=Path, help="write the figures here")
    return outer


def main() -> int:
    """Run one measurement; return 1 where a promise is missed."""
    args = parser().parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        entries = args.run(args)
    except InvalidInputError as error:
        sys.exit(f"error: {error}")
    if args.json:
        args.json.write_text(json.dumps(entries, indent=1) + "\n")
    return 0 if all(entry.get("kept", True) for entry in entries) else 1


if __name__ == "__main__":
    sys.exit(main())
