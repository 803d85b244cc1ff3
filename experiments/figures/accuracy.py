"""Accuracy against time, and the time to a target accuracy, of every scheme.

The exact schemes go through the same models, up to float32's rounding (``exact.py``
measures 4e-7), so those are trained once per seed, in rounds in which nobody is late.
Each exact scheme then has a time axis of its own, from its own simulated rounds without
training. Ignoring stragglers gives another model, and is trained for real.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from two_stage_coded.client_app import train as train_partition
from two_stage_coded.task import delay_model

from figures.federation import (
    SlowInTurn,
    Spent,
    accuracy,
    initial_model,
    settle,
    simulate,
)
from figures.output import (
    SCHEMES,
    STYLE,
    Floats,
    Options,
    Workers,
    band,
    errors,
    new_figure,
    spread,
    write,
)

IGNORING = SCHEMES[-1]
POINTS = 81

# Curves of accuracy: time in seconds and share of images, from the initial model on.
Curve = tuple[list[float], list[float]]


def accuracy_mnist(options: Options, workers: Workers) -> list[Path]:
    """Draw accuracy against time on MNIST."""
    return _accuracy(options, workers, "mnist", learning_rate=0.1, batch_size=32)


def accuracy_cifar10(options: Options, workers: Workers) -> list[Path]:
    """Draw accuracy against time on CIFAR-10."""
    return _accuracy(options, workers, "cifar10", learning_rate=0.1, batch_size=16)


def _data(options: Options, dataset: str) -> dict[str, Any]:
    """Return the run-config's keys for a data set, or for digits in its place."""
    folder = options.data.get(dataset, "")
    if folder and not options.quick:
        return {"dataset": dataset, "data_dir": folder}
    why = "--quick" if folder else f"no folder for {dataset}"
    print(f"accuracy_{dataset}: {why}, the bundled digits take its place", flush=True)
    return {"dataset": "digits", "data_dir": ""}


def _accuracy(
    options: Options, workers: Workers, dataset: str, **training: Any
) -> list[Path]:
    rounds = options.sized(10, 2)
    changes = _data(options, dataset) | options.edge | training
    changes |= {"train_examples": options.sized(4800, 240), "local_epochs": 1}
    if changes["dataset"] == "digits":
        changes |= {"train_examples": options.sized(0, 240), "learning_rate": 0.2}
    tasks = [
        (changes | {"seed": seed}, rounds, part)
        for seed in range(options.seeds)
        for part in ("exact", IGNORING)
    ]
    found = workers.map(curves, tasks)
    by_scheme: dict[str, list[Curve]] = {scheme: [] for scheme in SCHEMES}
    for part in found:
        for scheme, curve in part.items():
            by_scheme[scheme].append(curve)
    figure, (axes,) = new_figure()
    rows = []
    last = max(min(c[0][-1] for c in mine) for mine in by_scheme.values())
    times = np.linspace(0.0, last, POINTS)
    for scheme, mine in by_scheme.items():
        # A line ends where the first seed has no more rounds.
        own = times[times <= min(c[0][-1] for c in mine)]
        values = np.array([np.interp(own, *curve) for curve in mine])
        band(axes, own, values, scheme, **STYLE[scheme])
        rows += [
            {
                "scheme": scheme,
                "trained": "itself" if scheme == IGNORING else "as exact FedAvg",
                "data": changes["dataset"],
                "time (s)": t,
                "accuracy mean (share)": m,
                "accuracy sd (share)": d,
            }
            for t, (m, d) in zip(own, map(spread, values.T), strict=True)
        ]
    axes.set_xlabel("time on the virtual clock (s)")
    axes.set_ylabel("test accuracy (share of images)")
    axes.set_xlim(left=0.0)
    axes.set_ylim(0.0, 1.0 if dataset == "mnist" else None)
    axes.set_title(
        f"{changes['dataset']}, {rounds} rounds, mean ± s.d. of {options.seeds} "
        "seeds;\n"
        "exact schemes share their models and differ in time",
        fontsize=9,
    )
    axes.legend(loc="lower right", handlelength=4)
    return write(options, f"accuracy_{dataset}", figure, rows)


def curves(changes: dict[str, Any], rounds: int, part: str) -> dict[str, Curve]:
    """Return curves by scheme for one seed: those of all exact ones, or the other."""
    settings, config = settle(**changes)
    first = accuracy(settings, initial_model(settings))
    if part == IGNORING:
        spent = simulate(IGNORING, settings, config, rounds, train=train_partition)
        return {IGNORING: _curve(first, [s.accuracy for s in spent], spent)}
    reached = trained_exactly(changes, rounds)
    found = {}
    for scheme in SCHEMES[:-1]:
        spent = simulate(scheme, settings, config, rounds)
        if not all(s.exact for s in spent):
            print(f"{scheme}: a round was not exact", flush=True)
        found[scheme] = _curve(first, reached, spent)
    return found


def trained_exactly(changes: dict[str, Any], rounds: int) -> list[float]:
    """Return the accuracies after rounds of exact FedAvg; nobody is late."""
    changes = changes | {"straggler_probability": 0.0}
    changes |= {"link_trace": "", "device_profile": ""}
    settings, config = settle(**changes)
    spent = simulate("uncoded", settings, config, rounds, train=train_partition)
    assert all(s.exact for s in spent)
    return [s.accuracy for s in spent]


def _curve(first: float, reached: Sequence[float], spent: Sequence[Spent]) -> Curve:
    times = np.cumsum([0.0, *(s.seconds for s in spent)]).tolist()
    return times, [first, *reached]


# -- time to a target ------------------------------------------------------------------

TARGET = 0.9
SLOWDOWN = 8.0
SLOW = (0, 1, 2, 3, 4)


def time_to_target(options: Options, workers: Workers) -> list[Path]:
    """Draw the time to the target against the number of slow workers per round.

    In every round exactly so many of the twelve workers compute `SLOWDOWN` times
    slower, others each time. Digits; where a seed never reaches the target there is no
    point, and the table says how many did.
    """
    rounds = options.sized(12, 2)
    target = TARGET if not options.quick else 0.0
    counts = SLOW if not options.quick else (0, 3)
    common = {"dataset": "digits", "local_epochs": 2, **options.edge}
    tasks = [
        (common | {"seed": seed}, rounds, target, counts, part)
        for seed in range(options.seeds)
        for part in ("exact", IGNORING)
    ]
    found: dict[str, list[Floats]] = {scheme: [] for scheme in SCHEMES}
    for part in workers.map(seconds_to, tasks):
        for scheme, seconds in part.items():
            found[scheme].append(np.array(seconds))
    figure, (axes,) = new_figure()
    rows = []
    for i, scheme in enumerate(SCHEMES):
        seconds = np.array(found[scheme])
        shown, drawn = [], []
        for count, mine in zip(counts, seconds.T, strict=True):
            reached = mine[np.isfinite(mine)]
            known = len(reached) == options.seeds
            pair = spread(reached) if known else (0.0, 0.0)
            if known:
                shown.append(count + 0.04 * (i - 2))
                drawn.append(pair)
            rows.append(
                {
                    "scheme": scheme,
                    "slow workers (of 12)": count,
                    "target accuracy (share)": target,
                    "time mean (s)": pair[0] if known else "",
                    "time sd (s)": pair[1] if known else "",
                    "seeds that reached it": len(reached),
                }
            )
        if drawn:
            errors(axes, shown, drawn, scheme, **STYLE[scheme])
    axes.set_xticks(counts)
    axes.set_xlabel(f"workers {SLOWDOWN:g} times slower in a round (of 12)")
    axes.set_ylabel(f"time to accuracy {target:g} (s)")
    axes.set_ylim(bottom=0.0)
    axes.set_title(
        f"digits, mean ± s.d. of {options.seeds} seeds; coded for 2 stragglers",
        fontsize=9,
    )
    axes.legend(handlelength=4)
    return write(options, "time_to_target", figure, rows)


def seconds_to(
    changes: dict[str, Any],
    rounds: int,
    target: float,
    counts: Sequence[int],
    part: str,
) -> dict[str, list[float]]:
    """Return seconds to the target for each number of slow workers, by scheme."""
    settings, config = settle(**changes)
    base = delay_model(replace(settings, straggler_probability=0.0))
    reached = [] if part == IGNORING else trained_exactly(changes, rounds)
    found: dict[str, list[float]] = {}
    for scheme in (IGNORING,) if part == IGNORING else SCHEMES[:-1]:
        found[scheme] = []
        for count in counts:
            delays = SlowInTurn(
                base, settings.num_nodes, count, SLOWDOWN, settings.seed
            )
            if part == IGNORING:
                spent = simulate(
                    scheme, settings, config, rounds, delays, train_partition
                )
                values = [s.accuracy for s in spent]
            else:
                spent = simulate(scheme, settings, config, rounds, delays)
                values = reached
            times = np.cumsum([s.seconds for s in spent])
            done = [t for t, v in zip(times, values, strict=True) if v >= target]
            found[scheme].append(float(done[0]) if done else float("inf"))
    return found
