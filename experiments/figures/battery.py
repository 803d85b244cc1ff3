"""What is in the phones' batteries, slot by slot, under the four schedulers.

The phones, links and harvest of ``fairness.py``, but only those that do not hang on the
mains, with batteries of `CAPACITY` joules, half full at first: every other one has a
charger now and then, the rest a panel of the size of the phone. Nothing is clamped at
zero. The baselines do not let a phone take part that lacks the energy of a whole slot;
the Lyapunov scheduler has no such rule, and needs none.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from figures.output import (
    SCHEDULERS,
    STYLES,
    Floats,
    Options,
    Workers,
    band,
    new_figure,
    spread,
    write,
)
from flower_ext.scheduling import (
    LyapunovScheduler,
    MaxThroughput,
    Observation,
    Random,
    RoundRobin,
    Scheduler,
    WorkerLimits,
)

PHONES = 18  # of which a third hangs on the mains and is left out
CAPACITY = 600.0  # joules
V = 30.0
TRANSMIT_WATTS = 1.5  # of all phones
EVERY = 120  # slots between two points of the curves
LEVELS = {
    "upper quartile": 0.75,
    "median": 0.5,
    "lower quartile": 0.25,
    "lowest": 0.0,
}


def battery(options: Options, workers: Workers) -> list[Path]:
    """Draw the lowest battery and the quartiles over time, a panel per scheduler."""
    slots, phones = options.sized(2 * 8640, 240), options.sized(PHONES, 6)
    found = workers.map(
        levels,
        [
            (phones, slots, seed, options.traces, options.devices)
            for seed in range(options.seeds)
        ],
    )
    runs = {name: [seed[name] for seed in found] for name in SCHEDULERS}
    figure, panels = new_figure(len(SCHEDULERS), sharey=True)
    figure.set_size_inches(13.0, 4.0)
    rows = []
    for axes, (name, mine) in zip(panels, runs.items(), strict=True):
        hours = mine[0].hours
        lowest = min(run.lowest for run in mine)
        served, _ = spread([run.served for run in mine])
        for (label, share), style in zip(LEVELS.items(), STYLES, strict=False):
            values = np.array([np.quantile(run.joules, share, axis=1) for run in mine])
            band(axes, hours, values, label, **style)
            rows += [
                {
                    "scheduler": name,
                    "level": label,
                    "time (h)": hour,
                    "battery mean (J)": m,
                    "battery sd (J)": d,
                    "lowest in any slot (J)": lowest,
                    "served mean (replies per slot)": served,
                }
                for hour, (m, d) in zip(
                    hours.tolist(), map(spread, values.T), strict=True
                )
            ]
        axes.axhline(0.0, color="0.3", linewidth=0.8)
        axes.set_title(
            f"{name}\nlowest in any slot {lowest:.1f} J; {served:.2f} replies a slot",
            fontsize=9,
        )
        axes.set_xlabel("time (h)")
    panels[0].set_ylabel("energy in a battery (J)")
    panels[-1].legend(fontsize=8, handlelength=4, loc="center right")
    return write(options, "battery", figure, rows)


@dataclass(frozen=True)
class Run:
    """The batteries under one scheduler.

    Parameters
    ----------
    hours : ndarray of shape (times,)
        When.
    joules : ndarray of shape (times, phones)
        How much.
    lowest : float
        The least that any battery held after any slot, joules.
    served : float
        Replies that all phones sent per slot.
    """

    hours: Floats
    joules: Floats
    lowest: float
    served: float


def make_scheduler(name: str, seed: int) -> Scheduler:
    """Return a scheduler by its name."""
    if name == "lyapunov":
        return LyapunovScheduler(V)
    if name == "random":
        return Random(np.random.default_rng(seed))
    return MaxThroughput() if name == "max-throughput" else RoundRobin()


def levels(
    phones: int, slots: int, seed: int, traces: str, devices: str
) -> dict[str, Run]:
    """Simulate every scheduler with the phones of one seed."""
    import fairness as experiment  # noqa: PLC0415 - its solver is not always there

    fleet = experiment.make_fleet(
        phones,
        slots,
        seed,
        [] if traces == "synthetic" else traces.split(","),
        None if devices == "synthetic" else devices,
    )
    unit = TRANSMIT_WATTS * experiment.SLOT_SECONDS / experiment.UNITS_PER_SLOT
    every = EVERY * experiment.SLOT_SECONDS / 3600
    poor = np.flatnonzero(np.isfinite(fleet.limits.capacity))
    limits = WorkerLimits(
        max_rate=fleet.limits.max_rate[poor],
        max_admission=fleet.limits.max_admission[poor],
        transmit_energy=fleet.limits.transmit_energy[poor],
        compute_energy=fleet.limits.compute_energy[poor],
        capacity=np.full(len(poor), CAPACITY / unit),
        battery=np.full(len(poor), 0.5 * CAPACITY / unit),
    )
    rates, harvest = fleet.rates[:, poor], fleet.harvest[:, poor]
    found = {}
    for name in SCHEDULERS:
        scheduler = make_scheduler(name, seed)
        scheduler.begin(limits)
        shown, lowest, served = [scheduler.battery], np.inf, 0.0
        backlog = scheduler.backlog
        for slot in range(slots):
            seen = Observation(rates[slot], limits.max_admission, harvest[slot])
            decision = scheduler.step(seen)
            served += float(np.minimum(decision.service, backlog).sum())
            backlog, charge = scheduler.backlog, scheduler.battery
            lowest = min(lowest, float(charge.min()))
            if (slot + 1) % EVERY == 0:
                shown.append(charge)
        hours = every * np.arange(len(shown))
        joules = unit * np.array(shown)
        found[name] = Run(hours, joules, unit * lowest, served / slots)
    return found
