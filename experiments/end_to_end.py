"""Time and energy to a target accuracy on measured links and phones.

First, rounds of every one-stage code for one to three stragglers are timed without
training, to find the fastest two. Then these, two-stage rounds under the Lyapunov
scheduler and uncoded FedAvg train the same model on MNIST, over the same links and
phones with the same stragglers, until it reaches the target. The strategies, the
client app, the training and the simulated network are the real ones; Flower's runtime
is left out (see ``in_process.py``). Uploads share one carrier. Energy counts all work,
also that which goes on after a round has decoded.

Run ``python experiments/end_to_end.py --data-dir MNIST --traces 3G,FCC --devices
FLASH`` with the paths of the data; without them it runs on bundled digits and on
made-up links and phones.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from flwr.app import ArrayRecord, MetricRecord
from in_process import make_grid, run_config, untrained
from two_stage_coded.data import load_data
from two_stage_coded.server_app import make_strategy
from two_stage_coded.settings import SYNTHETIC, Settings
from two_stage_coded.task import make_net
from two_stage_coded.task import test as test_net

TWO_STAGE, UNCODED = "two-stage", "uncoded"
CODES = ("cyclic", "fractional", "heterogeneity-aware")
TIMED_ROUNDS = 10
TRAINED_CODES = 2
MOST_ROUNDS = 40


@dataclass(frozen=True)
class Result:
    """One scheme, one seed."""

    scheme: str
    seed: int
    rounds: int
    seconds: float
    joules_per_round: float
    redundancy: float
    accuracy: float


class TargetReached(Exception):  # noqa: N818 - no error: it ends the training
    """The target accuracy is reached."""


Task = tuple[str, int, int, dict[str, str | int | float]]


def time_rounds(task: Task) -> float:
    """Return the mean seconds of a scheme's rounds, without training."""
    scheme, stragglers, seed, changes = task
    logging.getLogger("flwr").setLevel(logging.ERROR)
    config = run_config(seed=seed, stragglers=stragglers, strategies=scheme, **changes)
    settings = Settings.from_run_config(config)
    strategy = make_strategy(scheme, settings)
    net = make_net(load_data(settings.dataset, settings.data_dir).train_images)
    strategy.start(
        make_grid(settings, config, untrained),
        ArrayRecord(net.state_dict()),
        num_rounds=TIMED_ROUNDS,
    )
    rounds = strategy.round_metrics.values()
    return float(np.mean([r["elapsed-seconds"] for r in rounds]))


def train(task: Task) -> Result:
    """Train under one scheme until the target is reached."""
    scheme, stragglers, seed, changes = task
    logging.getLogger("flwr").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    config = run_config(seed=seed, stragglers=stragglers, strategies=scheme, **changes)
    if scheme == TWO_STAGE:
        config["scheduler"] = "lyapunov"
    settings = Settings.from_run_config(config)
    strategy = make_strategy(scheme, settings)
    data = load_data(settings.dataset, settings.data_dir)
    torch.manual_seed(seed)
    net = make_net(data.train_images)
    images = torch.from_numpy(data.test_images)
    labels = torch.from_numpy(data.test_labels)
    accuracies: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        net.load_state_dict(arrays.to_torch_state_dict())
        accuracies.append(test_net(net, images, labels)[1])
        if accuracies[-1] >= settings.target_accuracy:
            raise TargetReached
        return MetricRecord({"accuracy": accuracies[-1]})

    with suppress(TargetReached):
        strategy.start(
            make_grid(settings, config),
            ArrayRecord(net.state_dict()),
            num_rounds=MOST_ROUNDS,
            evaluate_fn=evaluate,
        )
    rounds = list(strategy.round_metrics.values())
    reached = accuracies[-1] >= settings.target_accuracy
    seconds = sum(float(r["elapsed-seconds"]) for r in rounds)
    return Result(
        scheme if scheme in (TWO_STAGE, UNCODED) else f"{scheme} s={stragglers}",
        seed,
        len(rounds),
        seconds if reached else float("inf"),
        float(np.mean([r["energy-joules"] for r in rounds])),
        float(np.mean([r["redundancy"] for r in rounds])),
        accuracies[-1],
    )


def report(results: Sequence[Result], target: float) -> bool:
    """Print a table and the promises; return whether one is broken."""
    schemes = list(dict.fromkeys(r.scheme for r in results))
    by = {s: [r for r in results if r.scheme == s] for s in schemes}
    seconds = {s: np.array([r.seconds for r in by[s]]) for s in schemes}
    print(f"Seconds to accuracy {target:g}, by seed")
    print(
        f"{'scheme':<24} {'by seed':<36} {'mean':>6} {'J/round':>8} {'redundancy':>10}"
    )
    for scheme in schemes:
        line = " ".join(f"{value:6.1f}" for value in seconds[scheme])
        joules = np.mean([r.joules_per_round for r in by[scheme]])
        redundancy = np.mean([r.redundancy for r in by[scheme]])
        print(
            f"{scheme:<24} {line:<36} {seconds[scheme].mean():6.1f} {joules:8.1f} "
            f"{redundancy:10.2f}"
        )
    ours = seconds[TWO_STAGE].mean()
    codes = [s for s in schemes if s not in (TWO_STAGE, UNCODED)]
    best = min(codes, key=lambda s: seconds[s].mean())
    energy = {
        s: np.mean([r.joules_per_round for r in by[s]]) for s in (TWO_STAGE, UNCODED)
    }
    redundancy = np.mean([r.redundancy for r in by[TWO_STAGE]])
    broken = False
    print()
    for text, figure, bar in (
        ("time of two-stage / uncoded", ours / seconds[UNCODED].mean(), 0.5),
        (f"time of two-stage / {best}", ours / seconds[best].mean(), 0.8),
        (
            "energy of two-stage / uncoded",
            energy[TWO_STAGE] / energy[UNCODED],
            redundancy,
        ),
    ):
        kept = figure <= bar
        broken = broken or not kept
        print(
            f"{'kept  ' if kept else 'MISSED'} {text}: {figure:.3f} (at most {bar:.3g})"
        )
    return broken


def main() -> None:
    """Train under every scheme, and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--data-dir", help="folder of MNIST; default: bundled digits")
    parser.add_argument(
        "--traces", default=SYNTHETIC, help="paths, with commas between"
    )
    parser.add_argument(
        "--devices", default=SYNTHETIC, help="folder of FLASH's devices"
    )
    parser.add_argument("--examples", type=int, default=12_000, help="training images")
    parser.add_argument("--target", type=float, default=0.95)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--csv", type=Path, help="write every result here")
    args = parser.parse_args()
    changes: dict[str, str | int | float] = {
        "link_trace": absolute(args.traces),
        "device_profile": absolute(args.devices),
        "battery_joules": 55_000.0,
        "target_accuracy": args.target,
    }
    if args.data_dir:
        changes |= {
            "dataset": "mnist",
            "data_dir": absolute(args.data_dir),
            "train_examples": args.examples,
            "local_epochs": 1,
        }
    seeds = range(args.seeds)
    codes = [(code, stragglers) for code in CODES for stragglers in (1, 2, 3)]
    results = []
    with ProcessPoolExecutor(args.processes) as pool:
        tasks = [(*code, seed, changes) for code in codes for seed in seeds]
        timed = np.array(list(pool.map(time_rounds, tasks))).reshape(len(codes), -1)
        print(f"Seconds per round of one-stage codes, {TIMED_ROUNDS} rounds untrained")
        for code, times in zip(codes, timed, strict=True):
            line = " ".join(f"{value:6.1f}" for value in times)
            print(f"{f'{code[0]} s={code[1]}':<24} {line:<36} {times.mean():6.1f}")
        print(flush=True)
        fastest = [codes[i] for i in np.argsort(timed.mean(axis=1))[:TRAINED_CODES]]
        schemes = [(TWO_STAGE, 1), (UNCODED, 0), *fastest]
        tasks = [(*scheme, seed, changes) for seed in seeds for scheme in schemes]
        for result in pool.map(train, tasks):
            results.append(result)
            print(result, file=sys.stderr, flush=True)
    if args.csv:
        with args.csv.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(asdict(results[0])))
            writer.writeheader()
            writer.writerows(asdict(result) for result in results)
    raise SystemExit(report(results, args.target))


def absolute(paths: str) -> str:
    """Return paths, separated by commas, as absolute ones."""
    if paths == SYNTHETIC:
        return paths
    return ",".join(str(Path(path.strip()).resolve()) for path in paths.split(","))


if __name__ == "__main__":
    main()
