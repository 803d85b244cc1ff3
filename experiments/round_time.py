"""Round times of coded schemes under random stragglers, in virtual time.

No training, no Flower: the two-stage plan and its history are the real ones, driven
from a heap of events; the single-stage schemes are the real codes with the real
decoder. Each fleet of workers runs the same rounds, with the same delays, under every
scheme, and an oracle that knows all delays beforehand gives the scale. The history of
the two-stage plan is fresh in every fleet and its cold start counts.

Run ``python experiments/round_time.py --seed 0 --rounds 100``.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import json
import math
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flower_ext.coding.cyclic import CyclicRepetition
from flower_ext.coding.fractional import FractionalRepetition
from flower_ext.coding.gradient_code import GradientCode
from flower_ext.coding.incremental import IncrementalDecoder
from flower_ext.coding.plan import Dispatch, RoundPlan
from flower_ext.coding.two_stage import TwoStagePlan
from flower_ext.coding.uncoded import Uncoded
from flower_ext.scheduling.history import CompletionHistory

Floats = NDArray[np.float64]

FLEETS = 10
ORACLE, TWO_STAGE, UNCODED = "oracle", "two-stage", "uncoded"


@dataclass(frozen=True)
class Setting:
    """A kind of fleet: its size, its work and its stragglers."""

    workers: int
    partitions: int
    straggler_probability: float
    slow_down: float


SETTINGS = [
    Setting(workers, partitions, probability, slow_down)
    for workers, partitions in ((12, 24), (24, 48), (12, 96))
    for probability in (0.05, 0.1, 0.2)
    for slow_down in (8.0, 20.0)
]


class Delays:
    """All delays of one round, drawn in advance so that every scheme meets the same.

    Parameters
    ----------
    setting : Setting
        The kind of fleet.
    seconds : ndarray of shape (workers,)
        Seconds per partition of each worker.
    rng : numpy.random.Generator
        Source of randomness.
    positions : int, optional
        Partitions that a worker computes before its draws repeat; by default four
        times all of them.
    """

    def __init__(
        self,
        setting: Setting,
        seconds: Floats,
        rng: np.random.Generator,
        positions: int | None = None,
    ) -> None:
        messages = 8
        shape = (setting.workers, positions or 4 * setting.partitions)
        slow = rng.random(setting.workers) < setting.straggler_probability
        pace = seconds * np.where(slow, setting.slow_down, 1.0)
        self.compute = pace[:, None] * (1.0 + rng.exponential(0.2, shape))
        noise = rng.exponential(0.3, (setting.workers, messages))
        self.upload = 0.5 * (1.0 + noise)

    def one_reply(self) -> Floats:
        """Return when each worker's only reply arrives, by its load, from 1."""
        return np.cumsum(self.compute, axis=1) + self.upload[:, :1]

    def take(
        self, worker: int, done: int, replies: int, load: int
    ) -> tuple[float, float]:
        """Return compute and upload seconds of a job after `done` partitions."""
        positions = np.arange(done, done + load) % self.compute.shape[1]
        upload = self.upload[worker, replies % self.upload.shape[1]]
        return float(self.compute[worker, positions].sum()), float(upload)


def drive(plan: RoundPlan, delays: Delays) -> float:
    """Run a round of any plan in virtual time and return when it decodes.

    Replies still under way then enter the plan's history, each with its true times.
    """
    arrivals: list[tuple[float, int, float, float]] = []  # at, key, compute, sent at
    done: dict[int, int] = {}
    replies: dict[int, int] = {}

    def push(sent: list[Dispatch], at: float) -> None:
        for dispatch in sent:
            worker, load = dispatch.worker, len(dispatch.partitions)
            before, number = done.get(worker, 0), replies.get(worker, 0)
            compute, upload = delays.take(worker, before, number, load)
            done[worker], replies[worker] = before + load, number + 1
            heapq.heappush(arrivals, (at + compute + upload, dispatch.key, compute, at))

    now = 0.0
    push(plan.start(), now)
    while not plan.decodable:
        if plan.finished(now):
            raise RuntimeError(f"The round ended at {now} s without decoding.")
        if not arrivals or plan.wake_at < arrivals[0][0]:
            now = min(plan.wake_at, plan.deadline)
            push(plan.wake(now), now)
        else:
            now, key, compute, _ = heapq.heappop(arrivals)
            push(plan.reply(key, now, compute), now)
    for at, key, compute, sent_at in arrivals:
        late = plan.dispatches[key]
        plan.history.completed(
            late.worker, plan.server_round, len(late.partitions), compute, at - sent_at
        )
    return now


def single_stage(code: GradientCode, finish: Floats) -> float:
    """Return when the replies of a code decode; `finish` has shape (workers,)."""
    decoder = IncrementalDecoder(code.matrix.shape[1])
    for worker in np.argsort(finish):
        if decoder.add(code.matrix[worker]):
            return float(finish[worker])
    raise RuntimeError("A code did not decode with every reply.")


def run_fleet(task: tuple[int, int, int, int]) -> dict[str, list[tuple[float, float]]]:
    """Return (seconds, redundancy) of every round, by scheme, for one fleet."""
    seed, index, fleet, rounds = task
    setting = SETTINGS[index]
    fleet_rng, plan_rng = (
        np.random.default_rng([seed, index, fleet, purpose]) for purpose in range(2)
    )
    workers, partitions = setting.workers, setting.partitions
    seconds = 1.0 / fleet_rng.lognormal(0.0, 0.3, workers)
    everything = frozenset(range(partitions))
    held = dict.fromkeys(range(workers), everything)
    history = CompletionHistory()
    codes = {UNCODED: (0, Uncoded(workers))} | {
        f"{name} s={s}": (s, family(workers, s))
        for name, family in (
            ("cyclic", CyclicRepetition),
            ("fractional", FractionalRepetition),
        )
        for s in (1, 2, 3)
    }
    results: dict[str, list[tuple[float, float]]] = {
        scheme: [] for scheme in (ORACLE, TWO_STAGE, *codes)
    }
    for number in range(1, rounds + 1):
        delays = Delays(setting, seconds, fleet_rng)
        arrival = delays.one_reply()
        # The least T by which the workers can have sent K partitions between them.
        oracle = np.sort(arrival[:, :partitions], axis=None)[partitions - 1]
        results[ORACLE].append((float(oracle), 1.0))
        plan = TwoStagePlan(range(partitions), held, history, number, plan_rng)
        time = drive(plan, delays)
        results[TWO_STAGE].append((time, plan.work / partitions))
        for scheme, (s, code) in codes.items():
            load = (s + 1) * partitions // workers
            time = single_stage(code, arrival[:, load - 1])
            results[scheme].append((time, s + 1.0))
    return results


def summarise(
    setting: Setting, fleets: list[dict[str, list[tuple[float, float]]]]
) -> Iterator[dict[str, object]]:
    """Yield one entry per scheme, over all fleets and rounds of a setting."""
    rounds = {scheme: np.array([f[scheme] for f in fleets]) for scheme in fleets[0]}
    oracle = rounds[ORACLE][..., 0]
    for scheme, values in rounds.items():
        times = values[..., 0]
        yield {
            "setting": asdict(setting),
            "scheme": scheme,
            "mean": float(times.mean()),
            "p95": float(np.quantile(times, 0.95)),
            "redundancy": float(values[..., 1].mean()),
            "ratio_to_oracle": float(times.mean() / oracle.mean()),
            "first_round_ratio": float(times[:, 0].mean() / oracle[:, 0].mean()),
        }


def report(entries: list[dict[str, object]]) -> bool:
    """Print ratios to the oracle and the promises; return whether one is broken."""
    broken = False
    settings = [list(g) for _, g in itertools.groupby(entries, lambda e: e["setting"])]
    schemes = [str(entry["scheme"]) for entry in settings[0]]
    print("Mean round time as a multiple of the oracle's; redundancy of two-stage.")
    print(
        f"{'M':>3} {'K':>3} {'p':>4} {'slow':>4} | "
        + " ".join(
            f"{scheme.replace('fractional', 'frac'):>10}" for scheme in schemes[1:]
        )
        + " | redundancy  p95/oracle p95  first round"
    )
    table = np.empty((len(settings), len(schemes)))
    for i, group in enumerate(settings):
        by_scheme = {str(entry["scheme"]): entry for entry in group}
        table[i] = [by_scheme[scheme]["ratio_to_oracle"] for scheme in schemes]
        ours, best = by_scheme[TWO_STAGE], by_scheme[ORACLE]
        m, k, p, slow = ours["setting"].values()
        print(
            f"{m:>3} {k:>3} {p:>4} {slow:>4.0f} | "
            + " ".join(f"{ratio:>10.3f}" for ratio in table[i, 1:])
            + f" | {ours['redundancy']:>10.3f} {ours['p95'] / best['p95']:>14.3f} "
            f"{ours['first_round_ratio']:>12.2f}"
        )
    two_stage, uncoded = table[:, 1], table[:, 2]
    redundancy = [e["redundancy"] for e in entries if e["scheme"] == TWO_STAGE]
    against_uncoded = uncoded / two_stage
    against_coded = table[:, 3:].min(axis=1) / two_stage
    print()
    for text, figure, bar, at_most in (
        ("two-stage / oracle, mean over settings", two_stage.mean(), 1.45, True),
        ("two-stage / oracle, largest", two_stage.max(), 1.65, True),
        ("two-stage redundancy, mean over settings", np.mean(redundancy), 1.3, True),
        ("uncoded / two-stage, least", against_uncoded.min(), 2.0, False),
        ("uncoded / two-stage, geometric mean", geometric(against_uncoded), 3.0, False),
        ("best single-stage code / two-stage, least", against_coded.min(), 1.0, False),
        (
            "best single-stage code / two-stage, geometric mean",
            geometric(against_coded),
            1.3,
            False,
        ),
    ):
        kept = figure <= bar if at_most else figure >= bar
        broken = broken or not kept
        print(
            f"{'kept  ' if kept else 'BROKEN'} {text}: {figure:.3f} "
            f"({'at most' if at_most else 'at least'} {bar})"
        )
    return broken


def geometric(values: Floats) -> float:
    """Return the geometric mean."""
    return math.exp(np.log(values).mean())


def main() -> None:
    """Run every setting and fleet, and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=100, help="rounds per fleet")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    tasks = [
        (args.seed, index, fleet, args.rounds)
        for index in range(len(SETTINGS))
        for fleet in range(FLEETS)
    ]
    entries: list[dict[str, object]] = []
    with ProcessPoolExecutor(args.workers) as pool:
        results = pool.map(run_fleet, tasks)
        for setting in SETTINGS:
            print(f"running {setting}", file=sys.stderr, flush=True)
            entries += summarise(setting, list(itertools.islice(results, FLEETS)))
    broken = report(entries)
    if args.json:
        args.json.write_text(json.dumps(entries, indent=1) + "\n")
    raise SystemExit(broken)


if __name__ == "__main__":
    main()
