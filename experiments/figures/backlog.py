"""Backlog and utility of the Lyapunov scheduler against V, on a modelled edge.

Eight workers on mains share a carrier. A worker's channel is good or bad in each slot,
independently, good with probability 0.4; it then carries 1.2 to 3.4 units a slot, by
worker, else 0.3 of that. One unit per slot is offered to each. Utility is Σ log(1 + y)
of the rates y that are *served* after a warm-up, beside the best that any schedule of
the same slots can have. That is found by Frank and Wolfe's method, fully corrective:
the value that it has reached plus its duality gap is never below the optimum.

The bound B/V on the distance of the two is the module docstring's of
:mod:`flower_ext.scheduling.lyapunov`, that on a backlog V + 2·A_max.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.optimize import minimize

from figures.output import (
    STYLE,
    Floats,
    Options,
    Workers,
    errors,
    new_figure,
    spread,
    write,
)
from flower_ext.scheduling import (
    LogUtility,
    LyapunovScheduler,
    Observation,
    WorkerLimits,
)

WORKERS = 8
GOOD = np.linspace(1.2, 3.4, WORKERS)  # units per slot
BAD = 0.3
GOOD_PROBABILITY = 0.4
VS = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0)
UTILITY = LogUtility()


def backlog_utility(options: Options, workers: Workers) -> list[Path]:
    """Draw the mean backlog and the utility against V."""
    slots, warm = options.sized(20_000, 300), options.sized(4_000, 100)
    vs = VS[:: options.sized(1, 4)]
    found = workers.map(measure, [(s, slots, warm, vs) for s in range(options.seeds)])
    best = spread([optimum for optimum, _ in found])
    figure, (left, right) = new_figure(2)
    rows = []
    backlogs, utilities = [], []
    bound = [BOUND / v for v in vs]
    for i, v in enumerate(vs):
        backlog = spread([values[i][0] for _, values in found])
        most = max(values[i][1] for _, values in found)
        utility = spread([values[i][2] for _, values in found])
        gap = spread([optimum - values[i][2] for optimum, values in found])
        backlogs.append(backlog)
        utilities.append(utility)
        rows.append(
            {
                "V (units²)": v,
                "backlog per worker mean (units)": backlog[0],
                "backlog per worker sd (units)": backlog[1],
                "longest backlog (units)": most,
                "backlog bound (units)": v + 2.0,
                "utility mean (sum of log(1+y))": utility[0],
                "utility sd (sum of log(1+y))": utility[1],
                "optimum mean (sum of log(1+y))": best[0],
                "gap mean (sum of log(1+y))": gap[0],
                "gap sd (sum of log(1+y))": gap[1],
                "gap bound B/V (sum of log(1+y))": bound[i],
            }
        )
    own, limit = STYLE["lyapunov"], {"color": "0.4", "linewidth": 1.2}
    errors(left, vs, backlogs, "mean backlog", **own)
    longest = [row["longest backlog (units)"] for row in rows]
    left.plot(vs, longest, label="longest backlog", **STYLE["max-throughput"])
    left.plot(vs, [v + 2 for v in vs], label="bound V + 2", linestyle=":", **limit)
    left.set_yscale("log")
    left.set_ylabel("backlog per worker (units)")
    errors(right, vs, utilities, "served data", **own)
    right.axhline(best[0], label="static optimum", linestyle="--", **limit)
    right.plot(
        vs,
        [best[0] - b for b in bound],
        label="optimum − B/V",
        linestyle=":",
        **limit,
    )
    lowest = min(m for m, _ in utilities)
    room = max(best[0] - lowest, 1e-3)
    right.set_ylim(lowest - 0.6 * room, best[0] + 0.2 * room)
    right.set_ylabel("utility Σ log(1 + y), y in units per slot")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_xlabel("V (units²)")
        axes.legend(handlelength=4, loc="upper left" if axes is left else "lower right")
    figure.suptitle(
        f"{WORKERS} workers, {slots} slots after {warm} to warm up, mean ± s.d. of "
        f"{options.seeds} seeds",
        fontsize=9,
    )
    return write(options, "backlog_utility", figure, rows)


def make_limits() -> WorkerLimits:
    """Return the workers: on mains, one unit offered per slot."""
    nothing, much = np.zeros(WORKERS), np.full(WORKERS, np.inf)
    return WorkerLimits(GOOD, np.ones(WORKERS), nothing, nothing, much, much)


def _gap_bound() -> float:
    """Return B, the gap's bound times V."""
    scheduler = LyapunovScheduler(1.0)
    scheduler.begin(make_limits())
    return scheduler.gap_bound()


BOUND = _gap_bound()


def measure(
    seed: int, slots: int, warm: int, vs: Sequence[float]
) -> tuple[float, list[tuple[float, float, float]]]:
    """Return the optimum of one seed, and for each V backlogs and utility.

    The backlogs are the mean and the longest, after warming up.
    """
    rng = np.random.default_rng([seed, 91])
    good = rng.random((warm + slots, WORKERS)) < GOOD_PROBABILITY
    rates = np.where(good, GOOD, BAD * GOOD)
    values = []
    for v in vs:
        scheduler = LyapunovScheduler(v, UTILITY)
        scheduler.begin(make_limits())
        served = np.zeros(WORKERS)
        total = longest = 0.0
        offered, nothing = np.ones(WORKERS), np.zeros(WORKERS)
        backlog = scheduler.backlog
        for slot, now in enumerate(rates):
            decision = scheduler.step(Observation(now, offered, nothing))
            if slot >= warm:
                served += np.minimum(decision.service, backlog)
            backlog = scheduler.backlog
            if slot >= warm:
                total += float(backlog.mean())
            longest = max(longest, float(backlog.max()))
        utility = float(UTILITY.value(served / slots).sum())
        values.append((total / slots, longest, utility))
    return optimum(rates[warm:]), values


def optimum(rates: Floats) -> float:
    """Return an upper bound, tight to 2e-4, on the utility of any schedule."""
    slots, count = rates.shape

    def schedule(weights: Floats) -> Floats:
        best = (rates * weights).argmax(axis=1)
        carried = rates[np.arange(slots), best]
        return np.bincount(best, weights=carried, minlength=count) / slots

    made = [schedule(weights) for weights in np.eye(count)]
    part = np.full(count, 1.0 / count)
    while True:
        known = np.array(made)
        part = minimize(
            lambda part, known=known: -float(np.log1p(part @ known).sum()),
            part,
            jac=lambda part, known=known: -known @ (1.0 / (1.0 + part @ known)),
            bounds=[(0.0, 1.0)] * len(made),
            constraints={"type": "eq", "fun": lambda part: part.sum() - 1.0},
            method="SLSQP",
            options={"ftol": 1e-8},
        ).x
        y = part @ known
        slope = 1.0 / (1.0 + y)
        new = schedule(slope)
        gap = float(slope @ (new - y))
        if gap <= 2e-4 or len(made) > 200:
            return float(np.log1p(y).sum()) + max(gap, 0.0)
        made.append(new)
        part = np.append(part, 0.0)
