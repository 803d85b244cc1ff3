"""What flower-ext costs the server, in CPU seconds.

``python experiments/cost.py plan`` plans rounds of 1,000 workers and 4,000 partitions,
a tenth of the workers straggling, with the real two-stage plan, from its start over
every reply and stage two to the outcome. Delays are virtual; the time of the event loop
around the plan counts, that of drawing the delays does not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Collection
from pathlib import Path

import numpy as np
from round_time import Delays, Setting, drive

from flower_ext.coding.two_stage import TwoStagePlan
from flower_ext.scheduling.history import CompletionHistory

BAR = 0.5  # CPU seconds for planning one round
FLEET = Setting(
    workers=1000, partitions=4000, straggler_probability=0.1, slow_down=10.0
)
REPLICATION = 12  # consecutive partitions per worker, where replication is partial


def holdings(replication: str) -> dict[int, Collection[int]]:
    """Return what each worker holds."""
    workers, partitions = FLEET.workers, FLEET.partitions
    if replication == "full":
        return dict.fromkeys(range(workers), frozenset(range(partitions)))
    first = np.arange(workers) * partitions // workers
    return {
        worker: frozenset(((start + np.arange(REPLICATION)) % partitions).tolist())
        for worker, start in enumerate(first)
    }


def plan_cost(
    replication: str, seed: int, warm_up: int, rounds: int
) -> dict[str, object]:
    """Measure planning: `warm_up` rounds fill the history, `rounds` more count."""
    rng = np.random.default_rng(seed)
    held = holdings(replication)
    seconds = 1.0 / rng.lognormal(0.0, 0.3, FLEET.workers)
    history = CompletionHistory()
    cpu, redundancy = [], []
    for number in range(1, warm_up + rounds + 1):
        delays = Delays(FLEET, seconds, rng, positions=64)
        begun = time.process_time()
        plan = TwoStagePlan(range(FLEET.partitions), held, history, number, rng)
        drive(plan, delays)
        outcome = plan.outcome()
        cpu.append(time.process_time() - begun)
        redundancy.append(plan.work / FLEET.partitions)
        assert outcome.exact
    counted = cpu[warm_up:]
    return {
        "measurement": "plan",
        "replication": replication,
        "workers": FLEET.workers,
        "partitions": FLEET.partitions,
        "cold_cpu_seconds": cpu[0],
        "mean_cpu_seconds": float(np.mean(counted)),
        "max_cpu_seconds": max(counted),
        "redundancy": float(np.mean(redundancy[warm_up:])),
        "bar": BAR,
    }


def run_plan(args: argparse.Namespace) -> list[dict[str, object]]:
    """Measure and print the cost of planning."""
    entries = []
    print(
        f"CPU seconds for planning one round, {FLEET.workers} workers and "
        f"{FLEET.partitions} partitions (at most {BAR} after {args.warm_up} rounds)"
    )
    print(f"{'replication':>11} {'cold':>7} {'mean':>7} {'max':>7} {'redundancy':>10}")
    for replication in ("full", "partial"):
        entry = plan_cost(replication, args.seed, args.warm_up, args.rounds)
        entries.append(entry)
        print(
            f"{replication:>11} {entry['cold_cpu_seconds']:>7.3f} "
            f"{entry['mean_cpu_seconds']:>7.3f} {entry['max_cpu_seconds']:>7.3f} "
            f"{entry['redundancy']:>10.3f}",
            flush=True,
        )
    return entries


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="planning one round of a large fleet")
    plan.add_argument("--warm-up", type=int, default=5, help="rounds before it counts")
    plan.add_argument("--rounds", type=int, default=5, help="rounds that count")
    plan.set_defaults(run=run_plan)
    for command in (plan,):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    entries = args.run(args)
    if args.json:
        args.json.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
