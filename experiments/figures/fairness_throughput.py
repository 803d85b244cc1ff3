"""Throughput against fairness for the four schedulers; see ``fairness.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from figures.output import STYLE, Options, Workers, new_figure, spread, write

FAMILIES = {
    "mean-variance": "lyapunov",
    "max-throughput": "max-throughput",
    "round-robin": "round-robin",
    "random": "random",
}
PHONES = 16
INDICES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1.0)

# Family, parameter, Jain's index and replies per slot.
Points = list[tuple[str, float, float, float]]


def fairness(options: Options, workers: Workers) -> list[Path]:
    """Draw throughput and Jain's index of the data served, over half a week.

    The Lyapunov scheduler's line goes over the ceilings of its mean-variance utility;
    the frontier is a clairvoyant's.
    """
    slots, phones = options.sized(30_240, 120), options.sized(PHONES, 4)
    indices = INDICES[:: options.sized(1, 3)]
    found = workers.map(
        measure,
        [
            (phones, slots, seed, options.traces, options.devices, indices)
            for seed in range(options.seeds)
        ],
    )
    figure, (axes,) = new_figure()
    rows: list[dict[str, object]] = []
    frontier = [spread(values) for values in np.array([f for _, f in found]).T]
    axes.plot(indices, [m for m, _ in frontier], "k-", linewidth=1.0, label="frontier")
    axes.fill_between(
        indices, *np.array([(m - d, m + d) for m, d in frontier]).T, color="0.88", lw=0
    )
    for index, pair in zip(indices, frontier, strict=True):
        rows.append(_row("frontier", index, (index, 0.0), pair))
    for family, scheduler in FAMILIES.items():
        places = []
        count = sum(f == family for f, *_ in found[0][0])
        for i in range(count):
            mine = [[p for p in points if p[0] == family][i] for points, _ in found]
            jain, throughput = (spread([p[column] for p in mine]) for column in (2, 3))
            parameter = spread([p[1] for p in mine])[0] if count > 1 else ""
            rows.append(_row(scheduler, parameter, jain, throughput))
            places.append((*jain, *throughput))
        x, dx, y, dy = np.array(places).T
        style = STYLE[scheduler] | ({} if count > 1 else {"linestyle": ""})
        axes.errorbar(
            x,
            y,
            dy,
            dx,
            label="lyapunov, mean-variance" if count > 1 else scheduler,
            markersize=5,
            capsize=2.5,
            elinewidth=0.9,
            linewidth=1.4,
            **style,
        )
    axes.set_xlabel("Jain's index of the data served")
    axes.set_ylabel("throughput (replies per slot of 10 s)")
    axes.set_ylim(bottom=0.0)
    axes.set_title(
        f"{phones} phones, {slots} slots, mean ± s.d. of {options.seeds} seeds",
        fontsize=9,
    )
    axes.legend(loc="lower left", handlelength=4)
    return write(options, "fairness", figure, rows)


def _row(
    scheduler: str,
    parameter: object,
    jain: tuple[float, float],
    throughput: tuple[float, float],
) -> dict[str, object]:
    return {
        "scheduler": scheduler,
        "parameter mean (units per slot)": parameter,
        "Jain's index mean (1)": jain[0],
        "Jain's index sd (1)": jain[1],
        "throughput mean (replies per slot)": throughput[0],
        "throughput sd (replies per slot)": throughput[1],
    }


def measure(
    phones: int,
    slots: int,
    seed: int,
    traces: str,
    devices: str,
    indices: Sequence[float],
) -> tuple[Points, list[float]]:
    """Return the schedulers' points of one seed, and the frontier's throughputs."""
    import fairness as experiment  # noqa: PLC0415 - its solver is not always there

    fleet = experiment.make_fleet(
        phones,
        slots,
        seed,
        [] if traces == "synthetic" else traces.split(","),
        None if devices == "synthetic" else devices,
    )
    points: Points = []
    for family, parameter, scheduler in experiment.schedulers(fleet, seed):
        if family in FAMILIES:
            rates = experiment.simulate(scheduler, fleet).served / slots
            jain = min(experiment.jains_index(rates), 1.0)
            points.append((family, parameter, jain, float(rates.sum())))
    frontier = experiment.Frontier(fleet)
    return points, [frontier.throughput(index) for index in indices]
