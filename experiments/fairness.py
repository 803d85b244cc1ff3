r"""How near the Lyapunov scheduler comes to the frontier of throughput and fairness.

``python experiments/fairness.py [--traces PATH[,PATH]] [--devices FOLDER]`` simulates
a week of uplink scheduling: 16 phones, each with a throughput trace (played in a loop
from a random moment on), share a carrier in slots of 10 s. A unit of data is one reply
of 1 MB, of which a phone could send one or two in a slot if it had the carrier alone;
every phone is offered one per slot. Traces and phones are made up unless files of
measured ones are given; several files of traces are one pool.

A third of the phones hangs on the mains. The others have half-charged 4000 mAh
batteries (55 kJ), which an ordinary 5 W charger fills in spells of ten minutes, 8 % of
the time, or a panel of the size of the phone (1 W at noon). Training for one reply
takes a middling phone 2 s at 3 W, sending 1.5 W.

The frontier is the most throughput Σy that rates y of served data with at least a given
Jain's index can have, for someone who knows all slots beforehand::

    maximise Σ y    over x(t) ≥ 0, Σᵢ xᵢ(t) ≤ 1,  yᵢ ≤ mean rᵢ(t)·xᵢ(t),  y ≤ A_max,
    Σ y ≥ √(J·n)·‖y‖,   eᵢ·Σ xᵢ(t) + cᵢ·T·yᵢ ≤ Eᵢ(0) + Σ harvest

It may spend a joule before it has it, and no battery overflows: an upper bound. Its
slots only matter through y and the airtimes, so it is solved over mixtures of
schedules that give each slot to whom it is worth most, to which the best schedule at
the present prices is added until no schedule can raise the value by 2e-4 of it. What is
reported is the value plus that remainder, so never less than the true frontier.

Every scheduler begins with empty queues and is measured over the whole horizon: the
queues' filling up and the energy and data left over at the end count against it.

Why V = 500: near the frontier's fair end a unit is worth little, φ′(y)·V of a tenth of
V or less, and only queues of many replies (r·Q against r·Q of others) can wait for a
good slot. What is left in the queues and in the batteries' reserves at the end, over
T, is the price; 60,480 slots are over 100·V. Energies are counted in eighths of one
slot's transmission: the idle reserve θ, in joules, goes with V and the square of that.
"""

from __future__ import annotations

import argparse
import csv
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from flower_ext.errors import InvalidInputError
from flower_ext.network.device import Device
from flower_ext.network.devices import load_flash, synthetic_devices
from flower_ext.network.harvest import (
    BernoulliHarvest,
    ConstantHarvest,
    DiurnalHarvest,
    Harvest,
)
from flower_ext.network.traces import load_traces, synthetic_traces, trace_links
from flower_ext.scheduling import (
    AlphaFair,
    LyapunovScheduler,
    MaxThroughput,
    MeanVariance,
    Observation,
    Random,
    RoundRobin,
    Scheduler,
    WorkerLimits,
    jains_index,
)

Floats = NDArray[np.float64]

SLOT_SECONDS = 10.0
REPLY_BYTES = 1e6
OFFERED = 1.0  # replies per slot and phone
V = 500.0
CAPACITY_JOULES = 55e3
CHARGE = 0.5  # of the capacity, at the start
TRAINING_SECONDS = 2.0  # for one reply, on a phone of median speed
UNITS_PER_SLOT = 8.0  # of energy, in one slot's transmission

ALPHAS = (2.0, 5.0, 10.0, 20.0, 40.0)
CEILINGS = (1.25, 1.75, 2.5, 3.5, 5.0, 10.0)  # of an equal share of the carrier
INDEX = 0.9
BAR = 0.97  # of the frontier's throughput at that index
TOLERANCE = 2e-4
GRID = (*np.round(np.arange(0.3, 0.96, 0.05), 2).tolist(), 0.975, 1.0)


@dataclass(frozen=True)
class Fleet:
    """Everything that happens to the phones; arrays of shape (slots, workers).

    Parameters
    ----------
    rates : ndarray
        Units that each phone could send in each slot with the whole carrier.
    harvest : ndarray
        Energy that comes in.
    limits : WorkerLimits
        The phones, energies in the same unit.
    """

    rates: Floats
    harvest: Floats
    limits: WorkerLimits


@dataclass(frozen=True)
class Run:
    """What a scheduler did with a fleet; arrays of shape (workers,), units."""

    served: Floats
    admitted: Floats
    backlog: Floats
    airtime: Floats


@dataclass(frozen=True)
class Point:
    """A scheduler's place in the plane of fairness and throughput."""

    seed: int
    family: str
    parameter: float
    jain: float
    throughput: float
    frontier: float

    @property
    def ratio(self) -> float:
        """Throughput as a share of the frontier's at the same index."""
        return self.throughput / self.frontier


@dataclass
class Frontier:
    """The clairvoyant's throughput at each Jain's index, for one fleet.

    Parameters
    ----------
    fleet : Fleet
        What it knows beforehand.
    """

    fleet: Fleet
    _schedules: list[Floats] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        """Begin with a phone alone, whoever is best, and nobody."""
        count = len(self.fleet.limits)
        for weights in (*np.eye(count), np.ones(count)):
            self._schedules.append(self._schedule(weights, np.zeros(count))[0])
        self._schedules.append(np.zeros(2 * count))

    def throughput(self, index: float) -> float:
        """Return the greatest Σy with at least that Jain's index.

        At most `TOLERANCE` of it above the truth, and never below.

        Raises
        ------
        InvalidInputError
            If the index is not in (0, 1].
        """
        if not 0 < index <= 1:
            raise InvalidInputError(f"Jain's index must lie in (0, 1], got {index}.")
        limits = self.fleet.limits
        count = len(limits)
        budget = limits.battery / len(self.fleet.rates) + self.fleet.harvest.mean(0)
        poor = np.flatnonzero(np.isfinite(budget))
        transmit = limits.transmit_energy
        while True:
            made = np.array(self._schedules).T
            part = cp.Variable(made.shape[1], nonneg=True)
            y = cp.Variable(count, nonneg=True)
            spent = cp.multiply(transmit, made[count:] @ part)
            spent += cp.multiply(limits.compute_energy, y)
            within = [y <= made[:count] @ part, y <= limits.max_admission]
            within += [spent[poor] <= budget[poor]] if len(poor) else []
            within += [cp.sum(part) == 1]
            # At 1 the cone is a ray, which solvers like better written so.
            even = index > 1 - 1e-7
            fair = cp.sum(y) >= math.sqrt(index * count) * cp.norm(y)
            within.append(y == cp.sum(y) / count if even else fair)
            problem = cp.Problem(cp.Maximize(cp.sum(y)), within)
            problem.solve(solver=cp.CLARABEL)
            weights = np.maximum(within[0].dual_value, 0.0)
            prices = np.zeros(count)
            if len(poor):
                prices[poor] = np.maximum(within[2].dual_value, 0.0)
            column, value = self._schedule(weights, prices * transmit)
            known = weights @ made[:count] - (prices * transmit) @ made[count:]
            more = max(value - float(known.max()), 0.0)
            if more <= TOLERANCE * problem.value:
                return float(problem.value) + more
            self._schedules.append(column)

    def _schedule(self, weights: Floats, prices: Floats) -> tuple[Floats, float]:
        """Return the best schedule's rates and airtimes, and its value per slot."""
        rates = self.fleet.rates
        slots, count = rates.shape
        worth = weights * rates - prices
        best = worth.argmax(1)
        gain = worth[np.arange(slots), best]
        used = np.flatnonzero(gain > 0)
        who = best[used]
        served = np.bincount(who, weights=rates[used, who], minlength=count)
        airtime = np.bincount(who, minlength=count)
        return np.concatenate([served, airtime]) / slots, float(
            gain[used].sum()
        ) / slots


def make_fleet(
    workers: int,
    slots: int,
    seed: int,
    traces: Sequence[str | Path] = (),
    devices: str | Path | None = None,
    harvest: float = 1.0,
) -> Fleet:
    """Draw the phones and what happens to them.

    Parameters
    ----------
    workers, slots : int
        How many, at least 2 and 1.
    seed : int
        Keys all draws, at least 0.
    traces : Sequence[str | Path]
        Files of throughput traces, pooled; none: made up.
    devices : str | Path, optional
        The folder of FLASH's files; by default phones are made up.
    harvest : float (default: 1.0)
        Times the harvest of the module's description, at least 0.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    InvalidInputError
        If a number is out of range or a file is not what it should be.
    """
    if workers < 2 or slots < 1:
        raise InvalidInputError(
            f"A fleet needs at least 2 workers and 1 slot, got {workers} and {slots}."
        )
    if not 0 <= harvest < math.inf:
        raise InvalidInputError(f"harvest must be at least 0, got {harvest}.")
    pool = [trace for path in traces for trace in load_traces(path)]
    links = trace_links(pool or synthetic_traces(workers, seed), workers, seed)
    if devices is None:
        phones = synthetic_devices(workers, seed, TRAINING_SECONDS)
    else:
        phones = load_flash(devices, workers, seed, TRAINING_SECONDS)
    phones = [_powered(phone, i, seed, harvest) for i, phone in enumerate(phones)]
    edges = (SLOT_SECONDS * np.arange(slots + 1)).tolist()
    spans = list(pairwise(edges))
    rates = np.array([[k.sent_between(*span) for k in links] for span in spans])
    rates /= REPLY_BYTES
    gains = np.array([[p.harvest_joules(*span) for p in phones] for span in spans])
    joules = phones[0].transmit_joules(SLOT_SECONDS) / UNITS_PER_SLOT  # per unit
    limits = WorkerLimits(
        max_rate=np.maximum(rates.max(0), 1e-9),
        max_admission=np.full(workers, OFFERED),
        transmit_energy=_each(phones, lambda p: p.transmit_joules(SLOT_SECONDS))
        / joules,
        compute_energy=_each(
            phones, lambda p: p.compute_joules(p.seconds_per_partition)
        )
        / joules,
        capacity=_each(phones, lambda p: p.capacity_joules) / joules,
        battery=_each(phones, lambda p: p.battery_joules) / joules,
    )
    return Fleet(rates, gains / joules, limits)


def simulate(scheduler: Scheduler, fleet: Fleet) -> Run:
    """Let a scheduler decide all slots, from empty queues on."""
    scheduler.begin(fleet.limits)
    count = len(fleet.limits)
    served, admitted, airtime = np.zeros((3, count))
    offered = fleet.limits.max_admission
    backlog = scheduler.backlog
    for rates, harvest in zip(fleet.rates, fleet.harvest, strict=True):
        decision = scheduler.step(Observation(rates, offered, harvest))
        served += np.minimum(decision.service, backlog)
        admitted += decision.admitted
        airtime += decision.shares
        backlog = scheduler.backlog
    return Run(served, admitted, backlog, airtime)


def schedulers(fleet: Fleet, seed: int) -> list[tuple[str, float, Scheduler]]:
    """Return family, parameter and scheduler of every point that is measured."""
    equal = float(fleet.rates.mean()) / len(fleet.limits)
    found: list[tuple[str, float, Scheduler]] = []
    for factor in CEILINGS:
        utility = MeanVariance(factor * equal)
        found.append(("mean-variance", utility.ceiling, LyapunovScheduler(V, utility)))
    for alpha in ALPHAS:
        found.append(("alpha-fair", alpha, LyapunovScheduler(V, AlphaFair(alpha))))
    return [
        *found,
        ("max-throughput", math.nan, MaxThroughput()),
        ("round-robin", math.nan, RoundRobin()),
        ("random", math.nan, Random(np.random.default_rng(seed))),
    ]


def measure(fleet: Fleet, frontier: Frontier, seed: int) -> list[Point]:
    """Simulate and print every point of one seed."""
    points = []
    print(f"{'seed':>4} {'scheduler':<15} {'parameter':>9} {'Jain':>6} ", end="")
    print(f"{'units/slot':>10} {'frontier':>8} {'ratio':>6}")
    for family, parameter, scheduler in schedulers(fleet, seed):
        rates = simulate(scheduler, fleet).served / len(fleet.rates)
        jain = min(jains_index(rates), 1.0)
        best = frontier.throughput(jain)
        point = Point(seed, family, parameter, jain, float(rates.sum()), best)
        points.append(point)
        shown = "" if math.isnan(parameter) else f"{parameter:.3f}"
        print(
            f"{seed:>4} {family:<15} {shown:>9} {jain:>6.3f} "
            f"{point.throughput:>10.3f} {best:>8.3f} {point.ratio:>6.3f}",
            flush=True,
        )
    return points


def around(points: Sequence[Point], family: str, index: float) -> list[Point]:
    """Return a family's two points next to an index, one on each side of it.

    Empty if its points do not lie on both sides.
    """
    mine = [p for p in points if p.family == family]
    below = [p for p in mine if p.jain < index]
    above = [p for p in mine if p.jain >= index]
    if not below or not above:
        return []
    return [max(below, key=lambda p: p.jain), min(above, key=lambda p: p.jain)]


def draw(
    path: Path,
    points: Sequence[Point],
    frontiers: dict[int, list[tuple[float, float]]],
) -> None:
    """Draw the frontier and every scheduler, a panel per seed."""
    import matplotlib  # noqa: PLC0415 - slow, and only needed here

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt  # noqa: PLC0415

    # Line styles and markers, so that the figure reads in grey as well.
    styles = {
        "mean-variance": {"color": "#0b3c8c", "linestyle": "--", "marker": "o"},
        "alpha-fair": {"color": "#c44e00", "linestyle": ":", "marker": "s"},
        "max-throughput": {"color": "#1b7f4b", "linestyle": "", "marker": "^"},
        "round-robin": {"color": "#555555", "linestyle": "", "marker": "D"},
        "random": {"color": "#a0278f", "linestyle": "", "marker": "x"},
    }
    labels = {"mean-variance": "Lyapunov, ", "alpha-fair": "Lyapunov, "}
    size = (1.2 + 3.6 * len(frontiers), 4.2)
    figure, row = plt.subplots(1, len(frontiers), figsize=size, sharey=True)
    for panel, (seed, line) in zip(np.atleast_1d(row), frontiers.items(), strict=True):
        panel.plot(*zip(*line, strict=True), "k-", label="frontier")
        for family, style in styles.items():
            mine = [p for p in points if (p.family, p.seed) == (family, seed)]
            mine.sort(key=lambda p: p.jain)
            panel.plot(
                [p.jain for p in mine],
                [p.throughput for p in mine],
                label=labels.get(family, "") + family,
                markersize=5,
                **style,
            )
        panel.set_title(f"seed {seed}")
        panel.set_xlabel("Jain's index of served data")
        panel.grid(alpha=0.3)
    np.atleast_1d(row)[0].set_ylim(bottom=0)  # of all panels
    np.atleast_1d(row)[0].set_ylabel("throughput (replies per slot)")
    np.atleast_1d(row)[0].legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def write_csv(
    path: Path,
    points: Sequence[Point],
    frontiers: dict[int, list[tuple[float, float]]],
) -> None:
    """Write all points, and the frontier's as a family of its own."""
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("seed", "family", "parameter", "jain", "throughput", "ratio"))
        for seed, line in frontiers.items():
            table.writerows((seed, "frontier", j, j, best, 1.0) for j, best in line)
        for p in points:
            parameter = "" if math.isnan(p.parameter) else p.parameter
            table.writerow((p.seed, p.family, parameter, p.jain, p.throughput, p.ratio))


def promise(points: Sequence[Point], seeds: Sequence[int]) -> bool:
    """Print what became of the promise; return whether it was kept.

    A seed's ratio is the worse one of the two points around the index, each against
    the frontier at its own index: nothing is interpolated.
    """
    print(f"\naround Jain's index {INDEX:g}, the worse one of two neighbours:")
    kept = False
    for family in ("mean-variance", "alpha-fair"):
        ratios = []
        for seed in seeds:
            both = around([p for p in points if p.seed == seed], family, INDEX)
            if not both:
                print(f"  {family}, seed {seed}: not between its points")
                continue
            worse = min(both, key=lambda p: p.ratio)
            ratios.append(worse.ratio)
            print(
                f"  {family}, seed {seed}: Jain {worse.jain:.3f}, throughput "
                f"{worse.throughput:.3f} of {worse.frontier:.3f}, ratio "
                f"{worse.ratio:.4f}"
            )
        if len(ratios) < len(seeds):
            print(f"{family}: cannot be told for every seed, promised {BAR:g}: missed")
            continue
        mean, least = statistics.mean(ratios), min(ratios)
        held = mean >= BAR
        kept = kept or held
        print(
            f"{family}: mean {mean:.4f}, least {least:.4f}, promised {BAR:g}: "
            f"{'kept' if held else 'missed'}"
        )
    return kept


def _powered(phone: Device, number: int, seed: int, factor: float) -> Device:
    """Return the phone on the mains, with a charger now and then, or in the sun."""
    kinds: tuple[Harvest, ...] = (
        ConstantHarvest(0.0),
        BernoulliHarvest(5.0 * factor, 0.08, 600.0, 1000 * seed + number),
        DiurnalHarvest(1.0 * factor),
    )
    mains = number % len(kinds) == 0
    return Device(
        phone.seconds_per_partition,
        phone.compute_watts,
        phone.transmit_watts,
        math.inf if mains else CAPACITY_JOULES,
        kinds[number % len(kinds)],
        None if mains else CHARGE * CAPACITY_JOULES,
    )


def _each(phones: Sequence[Device], value: Callable[[Device], float]) -> Floats:
    return np.array([value(phone) for phone in phones])


def main(argv: Sequence[str] | None = None) -> None:
    """Simulate, and report."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--traces", help="files of traces, separated by commas")
    parser.add_argument("--devices", type=Path, help="folder of FLASH's files")
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--slots", type=int, default=60_480, help="a week")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--harvest", type=float, default=1.0, help="times the usual harvest"
    )
    parser.add_argument("--out", type=Path, default=Path("results/fairness"))
    args = parser.parse_args(argv)
    traces = args.traces.split(",") if args.traces else []
    points: list[Point] = []
    frontiers: dict[int, Frontier] = {}
    begun = time.perf_counter()
    for seed in dict.fromkeys(args.seeds):
        try:
            fleet = make_fleet(
                args.workers, args.slots, seed, traces, args.devices, args.harvest
            )
        except (InvalidInputError, OSError) as error:
            parser.error(str(error))
        frontiers[seed] = Frontier(fleet)
        points += measure(fleet, frontiers[seed], seed)
    lines = {s: [(j, f.throughput(j)) for j in GRID] for s, f in frontiers.items()}
    promise(points, list(frontiers))
    args.out.mkdir(parents=True, exist_ok=True)
    write_csv(args.out / "fairness.csv", points, lines)
    draw(args.out / "fairness.png", points, lines)
    print(f"wrote {args.out}, after {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main()
