"""Expected round times by analysis, against simulation.

For fleets of alike and of different workers, on a constant and on a Rayleigh channel,
each scheme's expected round time, computation, transmission and data known by a
deadline come from :mod:`flower_ext.coding.latency` and its neighbours, and from drawn
rounds. The simulated two-stage round spreads its second stage with the real
``spread_missing``, and decodes with the real decoder; the simulated deadline counts the
most that disjoint replies bring, where the analysis counts what they bring in a fixed
order. The real two-stage plan, which adapts to what it sees, is driven through the same
fleets and set against the best fixed T1 and s2; no promise is made about that.

Run ``python experiments/latency.py --seed 0``.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from round_time import drive

from flower_ext.coding.incremental import IncrementalDecoder
from flower_ext.coding.latency import RoundLatency, cyclic, fractional, uncoded
from flower_ext.coding.latency_choice import best_for_deadline, best_two_stage
from flower_ext.coding.latency_times import (
    WorkerTimes,
    constant_duration,
    rayleigh_upload,
    shifted_exponential,
)
from flower_ext.coding.latency_two_stage import balanced_loads, two_stage
from flower_ext.coding.spread import spread_missing
from flower_ext.coding.two_stage import TwoStagePlan
from flower_ext.scheduling.history import CompletionHistory

Floats = NDArray[np.float64]

SIZE = 2.0e5  # bytes of a reply
RATE = 8.0e5  # bits per second of the constant channel
BANDWIDTH, SNR, LEAST_RATE = 1.0e6, 10.0, 1.0e5  # of the Rayleigh channel
WARM = 30  # rounds by which a plan's history has settled


@dataclass(frozen=True)
class Fleet:
    """Workers with shifted exponential computing and one kind of channel.

    Parameters
    ----------
    name : str
        What the table calls it.
    pace : tuple[float, ...]
        Factor on each worker's computing times.
    partitions : int
        K.
    rayleigh : bool
        Whether the channel fades.
    shift, mean : float
        Seconds per partition at pace 1.
    per_partition : bool
        Whether each partition has an exponential time of its own.
    """

    name: str
    pace: tuple[float, ...]
    partitions: int
    rayleigh: bool
    shift: float = 0.5
    mean: float = 1.0
    per_partition: bool = True

    def times(self) -> list[WorkerTimes]:
        """Return the laws of the workers, one object for those that are alike."""
        upload = (
            rayleigh_upload(SIZE, BANDWIDTH, SNR, LEAST_RATE)
            if self.rayleigh
            else constant_duration(8 * SIZE / RATE)
        )

        def compute(pace: float, load: int) -> object:
            return shifted_exponential(
                load, pace * self.shift, pace * self.mean, self.per_partition
            )

        laws = {p: WorkerTimes(partial(compute, p), upload) for p in set(self.pace)}
        return [laws[p] for p in self.pace]

    def draw(
        self, worker: int, load: int, rng: np.random.Generator, size: int
    ) -> tuple[Floats, Floats]:
        """Draw seconds of computing and of uploading, each of shape (size,)."""
        shape, scale = (
            (load, self.mean) if self.per_partition else (1, load * self.mean)
        )
        compute = load * self.shift + rng.gamma(shape, scale, size)
        rate = np.full(size, RATE)
        if self.rayleigh:
            gain = rng.exponential(size=size)
            rate = np.maximum(BANDWIDTH * np.log2(1 + SNR * gain), LEAST_RATE)
        return self.pace[worker] * compute, 8 * SIZE / rate


@dataclass(frozen=True)
class Rounds:
    """Simulated rounds: arrays of shape (rounds,), and their mean work."""

    time: Floats
    computation: Floats
    known: Floats
    work: float


def one_stage(
    fleet: Fleet,
    scheme: str,
    stragglers: int,
    deadline: float,
    rng: np.random.Generator,
    rounds: int,
) -> Rounds:
    """Draw rounds of a one-stage scheme whose columns are all equally large."""
    workers = len(fleet.pace)
    load = (stragglers + 1) * fleet.partitions // workers
    draws = [fleet.draw(w, load, rng, rounds) for w in range(workers)]
    compute = np.stack([c for c, _ in draws], axis=1)
    arrival = compute + np.stack([u for _, u in draws], axis=1)
    order = np.argsort(arrival, axis=1)
    if scheme == "cyclic":
        last = order[:, workers - stragglers - 1]
    elif scheme == "uncoded":
        last = order[:, -1]
    else:
        # Worker i of each group of s + 1; the group's first reply counts.
        groups = arrival.reshape(rounds, stragglers + 1, -1)
        slowest = groups.min(axis=1).argmax(axis=1)
        copy = groups[np.arange(rounds), :, slowest].argmin(axis=1)
        last = copy * groups.shape[2] + slowest
    each = np.arange(rounds)
    time = arrival[each, last]
    if scheme == "cyclic":
        known = (time <= deadline).astype(np.float64)
    else:
        known = (arrival.reshape(rounds, stragglers + 1, -1) <= deadline).any(axis=1)
        known = known.mean(axis=1)
    return Rounds(time, compute[each, last], known, stragglers + 1.0)


def two_stages(
    fleet: Fleet,
    stop: float,
    redundancy: int,
    deadline: float,
    rng: np.random.Generator,
    rounds: int,
) -> Rounds:
    """Draw two-stage rounds with fixed T₁ and s₂, reply by reply."""
    count = len(fleet.pace)
    loads = balanced_loads(fleet.times(), fleet.partitions)
    jobs = np.split(np.arange(fleet.partitions), np.cumsum(loads)[:-1])
    seconds = (fleet.shift + fleet.mean) * np.array(fleet.pace)
    overhead = np.zeros(count)  # the same for everybody, so it orders nobody
    first = [
        fleet.draw(w, int(n), rng, rounds) if n else (np.zeros(rounds),) * 2
        for w, n in enumerate(loads)
    ]
    result = Rounds(*np.zeros((3, rounds)), 0.0)
    work = 0
    for i in range(rounds):
        replies = [
            (float(c[i] + u[i]), float(c[i]), job)
            for (c, u), job in zip(first, jobs, strict=True)
        ]
        idle = [w for w in range(count) if replies[w][0] <= stop]
        late = [w for w in range(count) if replies[w][0] > stop]
        missing = [int(p) for w in late for p in jobs[w]]
        work += fleet.partitions
        if late and idle:
            spread = spread_missing(
                missing,
                [set(missing)] * len(idle),
                seconds[idle],
                overhead[idle],
                min(redundancy, len(idle) - 1),
            )
            assert spread is not None
            for worker, (row, _) in zip(idle, spread.rows, strict=True):
                if row:
                    compute, upload = fleet.draw(worker, len(row), rng, 1)
                    done = stop + float(compute[0])
                    replies.append((done + float(upload[0]), done, np.array(row)))
                    work += len(row)
        replies.sort(key=lambda reply: reply[0])
        decoder = IncrementalDecoder(fleet.partitions)
        for arrival, computed, row in replies:
            if len(row) and decoder.add(np.ones(len(row)), row):
                result.time[i], result.computation[i] = arrival, computed
                break
        arrived = [row for at, _, row in replies if at <= deadline]
        result.known[i] = most_disjoint(arrived, missing) / fleet.partitions
    return Rounds(
        result.time, result.computation, result.known, work / rounds / fleet.partitions
    )


def most_disjoint(rows: list[NDArray[np.int64]], missing: list[int]) -> int:
    """Return how many partitions disjoint rows can bring; each is a run of `missing`.

    Rows without missing partitions are disjoint from all others.
    """
    place = {p: i for i, p in enumerate(missing)}
    apart = sum(len(row) for row in rows if len(row) and row[0] not in place)
    ends: dict[int, list[int]] = {}
    for row in rows:
        if len(row) and row[0] in place:
            ends.setdefault(place[row[-1]] + 1, []).append(len(row))
    best = [0] * (len(missing) + 1)
    for end in range(1, len(best)):
        taken = (best[end - n] + n for n in ends.get(end, ()))
        best[end] = max(best[end - 1], *taken, 0)
    return apart + best[-1]


FLEETS = [
    Fleet("6 alike, constant", (1.0,) * 6, 12, rayleigh=False),
    Fleet("12 alike, fading", (1.0,) * 12, 24, rayleigh=True),
    Fleet("12 alike, one draw", (1.0,) * 12, 24, rayleigh=True, per_partition=False),
    Fleet("8 unlike, constant", (0.5, 0.7, 0.8, 1, 1.1, 1.4, 2, 3), 24, rayleigh=False),
    Fleet("12 unlike, fading", tuple(1.1**i for i in range(-6, 6)), 48, rayleigh=True),
]


@dataclass(frozen=True)
class Line:
    """One scheme of one fleet: what analysis and simulation say of each quantity."""

    fleet: str
    scheme: str
    tolerance: float
    values: dict[str, tuple[float, float]]

    @property
    def worst(self) -> float:
        """The largest relative difference."""
        return max(abs(a / s - 1) if s else abs(a) for a, s in self.values.values())


def line(
    fleet: Fleet, scheme: str, latency: RoundLatency, rounds: Rounds, deadline: float
) -> Line:
    """Put analysis and simulation side by side."""
    simulated = float(rounds.time.mean()), float(rounds.computation.mean())
    values = {
        "round": (latency.time.mean, simulated[0]),
        "computation": (latency.computation, simulated[1]),
        "transmission": (latency.transmission, simulated[0] - simulated[1]),
        "work": (latency.work, rounds.work),
    }
    known = float(rounds.known.mean())
    if known > 0.05:  # rarer, and the draws say little
        values["known"] = latency.known_by(deadline), known
    tolerance = 0.05 if scheme.startswith("two-stage") else 0.02
    return Line(fleet.name, scheme, tolerance, values)


def compare(fleet: Fleet, seed: int, rounds: int) -> Iterator[Line]:
    """Yield a line per scheme."""
    rng = np.random.default_rng([seed, len(fleet.pace), fleet.partitions])
    times, n, k = fleet.times(), len(fleet.pace), fleet.partitions
    deadline = uncoded(times, k).time.mean
    one: list[tuple[str, int, Callable[[], RoundLatency]]] = [
        ("uncoded", 0, partial(uncoded, times, k))
    ]
    one += [("cyclic", s, partial(cyclic, times, k, s)) for s in (1, 2, 3)]
    one += [
        ("fractional", s, partial(fractional, times, k, s))
        for s in (1, 2, 3)
        if n % (s + 1) == 0
    ]
    for scheme, s, analysis in one:
        # A deadline by which about half of the rounds of this scheme have decoded.
        latency = analysis()
        by = latency.time.mean
        drawn = one_stage(fleet, scheme, s, by, rng, rounds)
        yield line(fleet, f"{scheme} s={s}" if s else scheme, latency, drawn, by)
    fastest = best_two_stage(times, k)
    chosen = [(fastest.stop, fastest.redundancy), (0.6 * deadline, 1), (deadline, 2)]
    for stop, s in chosen:
        latency = two_stage(times, k, stop, s)
        by = latency.time.mean
        drawn = two_stages(fleet, stop, s, by, rng, max(rounds // 10, 1))
        name = f"two-stage T1={stop:.2f} s2={s}"
        yield line(fleet, name, latency, drawn, by)


def report(lines: list[Line]) -> bool:
    """Print the table and the promises; return whether one is broken."""
    quantities = ("round", "computation", "transmission", "work", "known")
    print("Expected by analysis (and, in per cent, how far from the simulated mean).")
    print(f"{'fleet':<19} {'scheme':<24} " + " ".join(f"{q:>16}" for q in quantities))
    for entry in lines:
        cells = []
        for quantity in quantities:
            a, s = entry.values.get(quantity, (math.nan, math.nan))
            cells.append(
                f"{'':>16}" if math.isnan(a) else f"{a:>8.3f} ({a / s - 1:+5.1%})"
            )
        print(f"{entry.fleet:<19} {entry.scheme:<24} " + " ".join(cells))
    print()
    broken = False
    for title, tolerance in (("one-stage", 0.02), ("two-stage", 0.05)):
        group = [entry for entry in lines if entry.tolerance == tolerance]
        worst = max(group, key=lambda entry: entry.worst)
        kept = worst.worst <= tolerance
        broken = broken or not kept
        print(
            f"{'kept  ' if kept else 'MISSED'} {title}, at most {tolerance:.0%}: "
            f"largest difference {worst.worst:.2%} ({worst.fleet}, {worst.scheme})"
        )
    return broken


def choices(fleet: Fleet) -> None:
    """Print what each scheme brings by a deadline, and two stages at its work."""
    times, n, k = fleet.times(), len(fleet.pace), fleet.partitions
    plain = uncoded(times, k)
    deadline = float(np.interp(0.3, *_curve(plain)))
    print(f"\n{fleet.name}: share known by {deadline:.2f} s, and by a two-stage round")
    print(f"of the same expected work ({'T1':>6} {'s2':>2})")
    schemes = {"uncoded": plain} | {
        f"{name} s={s}": scheme(times, k, s)
        for s in (1, 2, 3)
        for name, scheme in (("cyclic", cyclic), ("fractional", fractional))
        if name == "cyclic" or n % (s + 1) == 0
    }
    for name, latency in schemes.items():
        best = best_for_deadline(times, k, deadline, budget=latency.work)
        print(
            f"{name:<16} work {latency.work:.1f}: {latency.known_by(deadline):.3f}   "
            f"two-stage {best.latency.known_by(deadline):.3f} "
            f"({best.stop:6.2f} {best.redundancy:2d}), work {best.latency.work:.2f}"
        )


class FleetDelays:
    """Delays of a fleet for the virtual clock of ``round_time.drive``."""

    def __init__(self, fleet: Fleet, rng: np.random.Generator) -> None:
        self._fleet, self._rng = fleet, rng

    def take(
        self, worker: int, done: int, replies: int, load: int
    ) -> tuple[float, float]:
        """Draw compute and upload seconds of a job."""
        compute, upload = self._fleet.draw(worker, load, self._rng, 1)
        return float(compute[0]), float(upload[0])


def adaptive(fleet: Fleet, seed: int, rounds: int) -> tuple[float, float]:
    """Return mean seconds and work of the real plan, once its history is warm."""
    rng, plan_rng = (np.random.default_rng([seed, purpose]) for purpose in (7, 8))
    history = CompletionHistory()
    held = dict.fromkeys(range(len(fleet.pace)), frozenset(range(fleet.partitions)))
    results = []
    for number in range(1, WARM + rounds + 1):
        plan = TwoStagePlan(range(fleet.partitions), held, history, number, plan_rng)
        seconds = drive(plan, FleetDelays(fleet, rng))
        results.append((seconds, plan.work / fleet.partitions))
    seconds, work = np.mean(results[WARM:], axis=0)
    return float(seconds), float(work)


def plans(seed: int, rounds: int) -> None:
    """Print the real plan beside the best fixed T1 and s2 within the same work."""
    print("\nThe adaptive plan, and the best fixed T1 and s2 with no more work:")
    for fleet in FLEETS:
        seconds, work = adaptive(fleet, seed, rounds)
        times, k = fleet.times(), fleet.partitions
        best = best_two_stage(times, k, budget=max(work, 1.0))
        fixed = best.latency
        print(
            f"{fleet.name:<19} plan {seconds:6.2f} s, work {work:.2f}; fixed "
            f"{fixed.time.mean:6.2f} s, work {fixed.work:.2f} (T1={best.stop:.2f} "
            f"s2={best.redundancy}); plan / fixed {seconds / fixed.time.mean:.3f}"
        )


def _curve(latency: RoundLatency) -> tuple[Floats, Floats]:
    """Return probabilities and times of a round's end, for interpolation."""
    times = np.linspace(0.0, 5.0 * latency.time.mean, 4096)
    return latency.time.cdf(times), times


def main() -> None:
    """Compare every scheme of every fleet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=100_000, help="per scheme")
    parser.add_argument("--plan-rounds", type=int, default=300, help="per fleet")
    args = parser.parse_args()
    lines = [entry for f in FLEETS for entry in compare(f, args.seed, args.rounds)]
    broken = report(lines)
    choices(FLEETS[1])
    plans(args.seed, args.plan_rounds)
    raise SystemExit(broken)


if __name__ == "__main__":
    main()
