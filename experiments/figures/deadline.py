"""The share of the data that is known by a deadline: analysis and simulation.

Lines are expectations from :mod:`flower_ext.coding.latency` and its neighbours; the
two-stage line takes, at each deadline, the T₁ and s₂ that bring the most by then within
the work that the codes beside it take (`best_for_deadline`). Markers are means of drawn
rounds, the bars their standard deviation over seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import latency
import numpy as np

from figures.output import STYLE, Options, Workers, errors, new_figure, spread, write
from flower_ext.coding.latency import RoundLatency, cyclic, fractional, uncoded
from flower_ext.coding.latency_choice import best_for_deadline

FLEET = latency.FLEETS[1]  # 12 workers alike, 24 partitions, fading channels
BUDGETS = (2, 3)  # s + 1: how often a code computes every partition
ONE_STAGE = ("uncoded", "cyclic", "fractional")


def data_by_deadline(options: Options, workers: Workers) -> list[Path]:
    """Draw the share known by the deadline, one panel per budget of work."""
    times, count = FLEET.times(), FLEET.partitions
    mean = uncoded(times, count).time.mean
    deadlines = np.linspace(0.25, 1.75, options.sized(13, 3)) * mean
    marked = deadlines[:: options.sized(2, 1)]
    budgets = BUDGETS[: options.sized(len(BUDGETS), 1)]
    rounds = options.sized(200, 20)
    tasks = [(float(d), b) for b in budgets for d in deadlines]
    chosen = dict(zip(tasks, workers.map(two_stage_choice, tasks), strict=True))
    drawn_tasks = [
        (b, marked.tolist(), [chosen[float(d), b][:2] for d in marked], seed, rounds)
        for b in budgets
        for seed in range(options.seeds)
    ]
    drawn = iter(workers.map(simulated, drawn_tasks))
    figure, panels = new_figure(len(budgets), sharey=True)
    rows = []
    for axes, budget in zip(panels, budgets, strict=True):
        seeds = [next(drawn) for _ in range(options.seeds)]
        for scheme in ("two-stage", *ONE_STAGE):
            if scheme == "two-stage":
                line = [chosen[float(d), budget][2] for d in deadlines]
                work = [chosen[float(d), budget][3] for d in deadlines]
            else:
                expected = analysis(scheme, budget - 1)
                line = [expected.known_by(float(d)) for d in deadlines]
                work = [expected.work] * len(deadlines)
            style = STYLE[scheme]
            axes.plot(deadlines, line, **(style | {"marker": ""}), linewidth=1.3)
            pairs = [spread(v) for v in np.array([s[scheme] for s in seeds]).T]
            errors(axes, marked, pairs, scheme, **(style | {"linestyle": ""}))
            by_deadline = dict(zip(marked.tolist(), pairs, strict=True))
            for deadline, share, done in zip(
                deadlines.tolist(), line, work, strict=True
            ):
                simulation = by_deadline.get(deadline, ("", ""))
                rows.append(
                    {
                        "budget (copies)": budget,
                        "scheme": scheme,
                        "deadline (s)": deadline,
                        "analysis (share of data)": share,
                        "simulation mean (share of data)": simulation[0],
                        "simulation sd (share of data)": simulation[1],
                        "expected work (copies)": done,
                    }
                )
        axes.set_xlabel("deadline (s)")
        axes.set_title(
            f"work of at most {budget} × the data (s = {budget - 1})", fontsize=9
        )
    panels[0].set_ylabel("expected share of the data known by then")
    panels[0].set_ylim(-0.03, 1.05)
    # The legend shows lines and markers together.
    from matplotlib.lines import Line2D  # noqa: PLC0415 - as for the figure

    names = ("two-stage", *ONE_STAGE)
    lines = [Line2D([], [], markersize=4.5, **STYLE[name]) for name in names]
    panels[0].legend(lines, names, loc="lower right", handlelength=4)
    figure.suptitle(
        f"{FLEET.name}: lines by analysis, markers mean ± s.d. of {options.seeds} × "
        f"{rounds} rounds",
        fontsize=9,
    )
    return write(options, "data_by_deadline", figure, rows)


def analysis(scheme: str, stragglers: int) -> RoundLatency:
    """Return what to expect of a round of a one-stage scheme."""
    times, count = FLEET.times(), FLEET.partitions
    if scheme == "uncoded":
        return uncoded(times, count)
    family = cyclic if scheme == "cyclic" else fractional
    return family(times, count, stragglers)


def two_stage_choice(deadline: float, budget: int) -> tuple[float, int, float, float]:
    """Return the best T₁ and s₂, the share they bring by then, and their work."""
    times, count = FLEET.times(), FLEET.partitions
    best = best_for_deadline(times, count, deadline, budget=float(budget))
    known = best.latency.known_by(deadline)
    return best.stop, best.redundancy, known, best.latency.work


def simulated(
    budget: int,
    deadlines: Sequence[float],
    choices: Sequence[tuple[float, int]],
    seed: int,
    rounds: int,
) -> dict[str, list[float]]:
    """Return the mean share known by each deadline in drawn rounds, by scheme."""
    found: dict[str, list[float]] = {"two-stage": []}
    for i, (deadline, (stop, redundancy)) in enumerate(
        zip(deadlines, choices, strict=True)
    ):
        rng = np.random.default_rng([seed, budget, i])
        drawn = latency.two_stages(FLEET, stop, redundancy, deadline, rng, rounds)
        found["two-stage"].append(float(drawn.known.mean()))
        for scheme in ONE_STAGE:
            stragglers = 0 if scheme == "uncoded" else budget - 1
            drawn = latency.one_stage(FLEET, scheme, stragglers, deadline, rng, rounds)
            found.setdefault(scheme, []).append(float(drawn.known.mean()))
    return found
