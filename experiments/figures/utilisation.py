"""How much of what a federation spends goes into its updates.

Of each round, with all work that goes on after it has decoded:

- *computing*: seconds of one computation of each partition in the update (the shortest
  among the replies used) over the seconds that all workers compute;
- *airtime*: seconds of the carrier that the replies used took over those of all;
- *presence*: the seconds that the partitions in the update take the workers when nobody
  straggles, on average, over workers × length of the round. Waiting counts against it,
  and so does straggling; the other two only count work that is thrown away, and to them
  the long hours of a straggler that is waited for are useful.

Each is a ratio of sums over all rounds of a seed.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from two_stage_coded.task import delay_model

from figures.federation import mean_of, settle, simulate
from figures.output import (
    SCHEMES,
    STYLE,
    Options,
    Workers,
    errors,
    new_figure,
    spread,
    write,
)

PROBABILITIES = (0.0, 0.05, 0.1, 0.2, 0.4)
KINDS = {
    "compute utilisation": "useful ÷ all seconds of computing",
    "airtime utilisation": "useful ÷ all seconds of airtime",
    "presence": "usual computing ÷ (workers × round)",
}


def utilisation(options: Options, workers: Workers) -> list[Path]:
    """Draw the three ratios against the probability of straggling."""
    probabilities = (0.0, 0.3) if options.quick else PROBABILITIES
    rounds = options.sized(15, 3)
    points = [(scheme, p) for scheme in SCHEMES for p in probabilities]
    tasks = [
        (
            scheme,
            options.edge | {"seed": seed, "straggler_probability": p},
            rounds,
        )
        for scheme, p in points
        for seed in range(options.seeds)
    ]
    found = iter(workers.map(shares, tasks))
    values = {point: [next(found) for _ in range(options.seeds)] for point in points}
    rows = []
    for (scheme, p), seeds in values.items():
        row: dict[str, object] = {"scheme": scheme, "straggler probability (share)": p}
        for kind in (*KINDS, "redundancy"):
            unit = "copies" if kind == "redundancy" else "share"
            row[f"{kind} mean ({unit})"], row[f"{kind} sd ({unit})"] = spread(
                [seed[kind] for seed in seeds]
            )
        rows.append(row)
    figure, panels = new_figure(len(KINDS))
    for axes, (kind, label) in zip(panels, KINDS.items(), strict=True):
        for i, scheme in enumerate(SCHEMES):
            drawn = [
                spread([s[kind] for s in values[scheme, p]]) for p in probabilities
            ]
            places = [p + 0.002 * (i - 2) for p in probabilities]
            errors(axes, places, drawn, scheme, **STYLE[scheme])
        axes.set_xlabel("straggler probability per worker and round")
        axes.set_ylabel(label)
        axes.set_ylim(0.0, 1.05)
    panels[-1].legend(handlelength=4, fontsize=8)
    figure.suptitle(
        f"12 workers, 8 times slower when straggling; {rounds} rounds, mean ± s.d. of "
        f"{options.seeds} seeds",
        fontsize=9,
    )
    return write(options, "utilisation", figure, rows)


def shares(scheme: str, changes: dict[str, Any], rounds: int) -> dict[str, float]:
    """Return each kind of utilisation over the rounds of one seed."""
    settings, config = settle(**changes)
    spent = simulate(scheme, settings, config, rounds)
    useful = mean_of(spent, "useful_compute")
    delays = delay_model(replace(settings, straggler_probability=0.0))
    nodes = range(settings.num_nodes)
    usual = sum(delays.compute_seconds(n, 1, 0) for n in nodes) / len(nodes) ** 2
    return {
        "compute utilisation": useful / mean_of(spent, "compute"),
        "airtime utilisation": mean_of(spent, "useful_airtime")
        / mean_of(spent, "airtime"),
        "presence": mean_of(spent, "partitions") * usual / mean_of(spent, "seconds"),
        "redundancy": mean_of(spent, "redundancy"),
    }
