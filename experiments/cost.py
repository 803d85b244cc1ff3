"""What flower-ext costs the server, in CPU seconds and memory.

``python experiments/cost.py plan`` plans rounds of 1,000 workers and 4,000 partitions,
a tenth of the workers straggling, with the real two-stage plan, from its start over
every reply and stage two to the outcome. Delays are virtual; the time of the event loop
around the plan counts, that of drawing the delays does not.

``python experiments/cost.py decode`` decodes 40 coded replies of a 10-million-parameter
float32 model into the new global arrays, in turn with one weighted average of the same
arrays by Flower's own ``aggregate_arrayrecords``.

``python experiments/cost.py schedule`` lets the Lyapunov scheduler decide slots for
10,000 workers, half of them on batteries that harvest, on both kinds of carrier.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from round_time import Delays, Setting, drive

from flower_ext.coding import CyclicRepetition, decode
from flower_ext.coding.two_stage import TwoStagePlan
from flower_ext.scheduling import (
    CARRIERS,
    LyapunovScheduler,
    Observation,
    WorkerLimits,
)
from flower_ext.scheduling.history import CompletionHistory
from flower_ext.strategies.averaging import apply_replies
from flower_ext.strategies.fleet import Fleet

DECODE_BAR = 0.7  # of the time of Flower's own average
SCHEDULE_BAR = 0.010  # seconds for one slot
BAR = 0.5  # CPU seconds for planning one round
FLEET = Setting(
    workers=1000, partitions=4000, straggler_probability=0.1, slow_down=10.0
)
REPLICATION = 12  # consecutive partitions per worker, where replication is partial


def fleet_of(replication: str) -> Fleet:
    """Return the server's record of a fleet that has said what it holds."""
    workers, partitions = FLEET.workers, FLEET.partitions
    fleet = Fleet(partitions)
    fleet.listed(range(workers))
    for worker in range(workers):
        start = worker * partitions // workers
        held = range(partitions) if replication == "full" else range(REPLICATION)
        answer = {
            "partitions": [(start + k) % partitions for k in held],
            "all": replication == "full",
            "worker": worker,
        }
        fleet.holds(worker, answer)
    return fleet


def plan_cost(
    replication: str, seed: int, warm_up: int, rounds: int
) -> dict[str, object]:
    """Measure planning: `warm_up` rounds fill the history, `rounds` more count."""
    rng = np.random.default_rng(seed)
    fleet = fleet_of(replication)
    seconds = 1.0 / rng.lognormal(0.0, 0.3, FLEET.workers)
    history = CompletionHistory()
    cpu, redundancy = [], []
    for number in range(1, warm_up + rounds + 1):
        delays = Delays(FLEET, seconds, rng, positions=64)
        begun = time.process_time()
        fleet.replication(FLEET.partitions)
        idle = {n.node_id: fleet.holdings(n, FLEET.partitions) for n in fleet.nodes}
        plan = TwoStagePlan(range(FLEET.partitions), idle, history, number, rng)
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


def run_decode(args: argparse.Namespace) -> list[dict[str, object]]:
    """Measure and print the cost of decoding against Flower's average."""
    rng = np.random.default_rng(args.seed)
    shapes = {"embedding": (5000, 1000), "dense": (2000, 2000), "head": (1000, 1000)}
    model = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    start = _record(model)
    size = sum(len(array.data) for array in start.values())
    code = CyclicRepetition(args.replies + 2, 2)
    weights = decode(code.matrix, range(args.replies))[: args.replies]
    contents = []
    for _ in range(args.replies):
        noisy = {name: array + rng.standard_normal() for name, array in model.items()}
        metrics = MetricRecord({"num-examples": 10})
        contents.append(RecordDict({"arrays": _record(noisy), "metrics": metrics}))
    parts = [(c["arrays"], float(w)) for c, w in zip(contents, weights, strict=True)]
    ours, flower = [], []
    print(f"decoding {args.replies} replies of {size / 4e6:.1f} million float32")
    for _ in range(args.repeats):
        begun = time.perf_counter()
        aggregate_arrayrecords(contents, "num-examples")
        flower.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        apply_replies(start, parts, 10.0)
        ours.append(time.perf_counter() - begun)
        print(
            f"  Flower's average {flower[-1]:.2f} s, decoding {ours[-1]:.2f} s, "
            f"ratio {ours[-1] / flower[-1]:.2f}",
            flush=True,
        )
    tracemalloc.start()
    apply_replies(start, parts, 10.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    ratio = statistics.median(o / f for o, f in zip(ours, flower, strict=True))
    print(f"median ratio {ratio:.2f} (at most {DECODE_BAR})")
    print(
        f"memory beyond the replies: {peak / size:.2f} models, of which the new global "
        f"arrays are 1.00 and working space {(peak - size) / 1e6:.1f} MB"
    )
    return [
        {
            "measurement": "decode",
            "replies": args.replies,
            "model_bytes": size,
            "median_ratio_to_flower": ratio,
            "peak_bytes": peak,
            "bar": DECODE_BAR,
        }
    ]


def run_schedule(args: argparse.Namespace) -> list[dict[str, object]]:
    """Measure and print the CPU time of one slot of the Lyapunov scheduler."""
    entries: list[dict[str, object]] = []
    print(
        f"CPU milliseconds for one slot of {args.workers} workers (at most "
        f"{SCHEDULE_BAR * 1e3:.0f} on the median)"
    )
    print(f"{'carrier':>11} {'median':>7} {'max':>7} {'sending':>7}")
    for carrier in CARRIERS:
        rng = np.random.default_rng(args.seed)
        count = args.workers
        rates, snr = (
            rng.uniform(1, 3, count) * count / 8,
            10 ** rng.uniform(0, 3, count),
        )
        transmit, compute = rng.uniform(0.5, 2, count), rng.uniform(0.1, 0.5, count)
        mains = np.arange(count) % 2 == 0
        full = np.where(mains, np.inf, 1e12)
        scheduler = LyapunovScheduler(v=10.0, carrier=carrier)
        fleet = WorkerLimits(rates, np.ones(count), transmit, compute, full, full, snr)
        scheduler.begin(fleet)
        # Batteries as far below the threshold as they are after many slots.
        battery = np.where(mains, np.inf, scheduler.theta - rng.uniform(0, 20, count))
        scheduler.begin(replace(fleet, battery=battery))
        seconds, sending = [], []
        for slot in range(args.slots + args.warm_up):
            seen = Observation(
                rates * rng.random(count),
                rng.random(count),
                0.3 * rng.random(count),
                snr * rng.uniform(0.1, 1, count),
            )
            begun = time.process_time()
            decision = scheduler.step(seen)
            if slot >= args.warm_up:
                seconds.append(time.process_time() - begun)
                sending.append(np.count_nonzero(decision.shares))
        entry = {
            "measurement": "schedule",
            "carrier": carrier,
            "workers": count,
            "median_cpu_seconds": statistics.median(seconds),
            "max_cpu_seconds": max(seconds),
            "mean_sending": float(np.mean(sending)),
            "bar": SCHEDULE_BAR,
        }
        entries.append(entry)
        print(
            f"{carrier:>11} {entry['median_cpu_seconds'] * 1e3:>7.2f} "
            f"{entry['max_cpu_seconds'] * 1e3:>7.2f} {entry['mean_sending']:>7.0f}",
            flush=True,
        )
    return entries


def _record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({n: Array(a.astype(np.float32)) for n, a in arrays.items()})


def main() -> None:
    """Run one measurement."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    plan = commands.add_parser("plan", help="planning one round of a large fleet")
    plan.add_argument("--warm-up", type=int, default=5, help="rounds before it counts")
    plan.add_argument("--rounds", type=int, default=5, help="rounds that count")
    plan.set_defaults(run=run_plan)
    decoding = commands.add_parser("decode", help="decoding, against Flower's average")
    decoding.add_argument("--replies", type=int, default=40)
    decoding.add_argument("--repeats", type=int, default=5)
    decoding.set_defaults(run=run_decode)
    schedule = commands.add_parser("schedule", help="one slot of a large fleet")
    schedule.add_argument("--workers", type=int, default=10_000)
    schedule.add_argument(
        "--warm-up", type=int, default=50, help="slots before it counts"
    )
    schedule.add_argument("--slots", type=int, default=100, help="slots that count")
    schedule.set_defaults(run=run_schedule)
    for command in (plan, decoding, schedule):
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    entries = args.run(args)
    if args.json:
        args.json.write_text(json.dumps(entries, indent=1) + "\n")


if __name__ == "__main__":
    main()
