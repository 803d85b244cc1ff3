"""What a run reports: a table, JSON, CSV and a figure."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import numpy as np

from flower_ext.errors import FlowerExtError
from flower_ext.report import FORMAT, write_page
from flower_ext.strategies.timeline import RoundTimeline

# Line styles and markers, so that the figure reads in grey as well.
STYLES = (
    {"color": "#0b3c8c", "linestyle": "-", "marker": "o"},
    {"color": "#c44e00", "linestyle": "--", "marker": "s"},
    {"color": "#1b7f4b", "linestyle": "-.", "marker": "^"},
    {"color": "#555555", "linestyle": ":", "marker": "D"},
    {"color": "#a0278f", "linestyle": (0, (5, 1, 1, 1, 1, 1)), "marker": "x"},
    {"color": "#000000", "linestyle": (0, (1, 1)), "marker": "v"},
)


@dataclass(frozen=True)
class RoundRecord:
    """One round of one strategy.

    Parameters
    ----------
    strategy : str
        The strategy.
    server_round : int
        The round, from 1.
    round_seconds : float
        How long the round took on the strategy's clock.
    elapsed_seconds : float
        How long all rounds so far took.
    accuracy : float
        Accuracy of the global model on the test images after the round.
    loss : float
        Its mean cross-entropy there.
    redundancy : float
        How often a partition was assigned, on average; 1 is no redundancy.
    coverage : float
        Share of the training examples that the update is made of.
    skipped : int
        1 if too little came back and the model was kept, else 0.
    verified : int, optional
        1 if the whole update is verified, else 0; None if replies are not verified.
    liars : int, optional
        Nodes that were named and left out.
    energy_joules : float, optional
        What the devices spent on the round, work after decoding included.
    airtime_seconds : float, optional
        Seconds that its uploads take of the carrier.
    battery_lowest_joules : float, optional
        What is in the emptiest battery after it.
    admitted, backlog_mean, backlog_max, fairness : float, optional
        The scheduler's: units admitted, units that wait, and Jain's index of what each
        node has delivered so far.
    taking_part : int, optional
        How many nodes the scheduler let the round begin with.
    """

    strategy: str
    server_round: int
    round_seconds: float
    elapsed_seconds: float
    accuracy: float
    loss: float
    redundancy: float
    coverage: float
    skipped: int
    verified: int | None = None
    liars: int | None = None
    energy_joules: float | None = None
    airtime_seconds: float | None = None
    battery_lowest_joules: float | None = None
    admitted: float | None = None
    backlog_mean: float | None = None
    backlog_max: float | None = None
    fairness: float | None = None
    taking_part: int | None = None


@dataclass
class StrategyReport:
    """All rounds of one strategy, as numbers and as time lines."""

    strategy: str
    initial_accuracy: float
    rounds: list[RoundRecord] = field(default_factory=list)
    timelines: list[RoundTimeline] = field(default_factory=list)

    def summary(self, target_accuracy: float) -> dict[str, str | float | None]:
        """Return the strategy's line of the table; seconds are its clock's.

        Parameters
        ----------
        target_accuracy : float
            The accuracy whose time is reported, None where it is not reached.
        """
        seconds = [r.round_seconds for r in self.rounds]
        reached = (
            r.elapsed_seconds for r in self.rounds if r.accuracy >= target_accuracy
        )
        return {
            "strategy": self.strategy,
            "accuracy": self.rounds[-1].accuracy,
            "mean_round_seconds": float(np.mean(seconds)),
            "p95_round_seconds": float(np.percentile(seconds, 95)),
            "redundancy": float(np.mean([r.redundancy for r in self.rounds])),
            "coverage": float(np.mean([r.coverage for r in self.rounds])),
            "mean_energy_joules": _mean([r.energy_joules for r in self.rounds]),
            "seconds_to_target": next(reached, None),
        }


def table(reports: Sequence[StrategyReport], target_accuracy: float) -> str:
    """Return the reports as a table of plain text.

    Parameters
    ----------
    reports : Sequence[StrategyReport]
        One report per strategy, each with at least one round.
    target_accuracy : float
        The accuracy whose time is reported.
    """
    heads = (
        "strategy",
        "accuracy",
        "round mean (s)",
        "round p95 (s)",
        "redundancy",
        "coverage",
        "energy (J/round)",
        f"time to {target_accuracy:g} (s)",
    )
    rows = []
    for report in reports:
        line = report.summary(target_accuracy)
        to_target, energy = line["seconds_to_target"], line["mean_energy_joules"]
        rows.append(
            (
                report.strategy,
                f"{line['accuracy']:.3f}",
                f"{line['mean_round_seconds']:.2f}",
                f"{line['p95_round_seconds']:.2f}",
                f"{line['redundancy']:.2f}",
                f"{line['coverage']:.3f}",
                "-" if energy is None else f"{energy:.1f}",
                "not reached" if to_target is None else f"{to_target:.1f}",
            )
        )
    if all(row[-2] == "-" for row in rows):  # no devices whose energy is counted
        heads, rows = _without_energy(heads), [_without_energy(row) for row in rows]
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [heads, tuple("-" * width for width in widths), *rows]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _without_energy(line: tuple[str, ...]) -> tuple[str, ...]:
    """Return a line of the table without the last column but one."""
    return (*line[:-2], line[-1])


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that there are."""
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else None


def write_report(
    folder: Path,
    reports: Sequence[StrategyReport],
    settings: Mapping[str, object],
) -> list[Path]:
    """Write ``results.json``, two CSV files, ``accuracy.png`` and ``report.html``.

    The page is left out, and a line printed, where what it needs is not installed.

    Parameters
    ----------
    folder : Path
        An existing folder; files of an earlier run are overwritten.
    reports : Sequence[StrategyReport]
        One report per strategy, each with at least one round.
    settings : Mapping[str, object]
        The run's settings, with ``target_accuracy`` and ``clock``.

    Returns
    -------
    list[Path]
        The files written.
    """
    target = float(str(settings["target_accuracy"]))
    summaries = [report.summary(target) for report in reports]
    rounds = [asdict(r) for report in reports for r in report.rounds]
    content = {
        "format": FORMAT,
        "kind": "two-stage-coded",
        "settings": dict(settings),
        "summary": summaries,
        "initial_accuracy": {r.strategy: r.initial_accuracy for r in reports},
        "rounds": rounds,
        "timelines": {r.strategy: [t.to_json() for t in r.timelines] for r in reports},
    }
    paths = [
        folder / name
        for name in ("results.json", "summary.csv", "rounds.csv", "accuracy.png")
    ]
    paths[0].write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    _write_csv(paths[1], list(summaries[0]), summaries)
    _write_csv(paths[2], [f.name for f in fields(RoundRecord)], rounds)
    _write_figure(paths[3], reports, target, str(settings["clock"]))
    try:
        paths.append(write_page(folder))
    except FlowerExtError as error:  # hours of training are not lost for that
        print(f"There is no report.html: {error}", flush=True)
    return paths


def _write_csv(
    path: Path, names: list[str], rows: Iterable[Mapping[str, object]]
) -> None:
    """Write rows of named values."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def _write_figure(
    path: Path, reports: Sequence[StrategyReport], target: float, clock: str
) -> None:
    """Draw accuracy against time."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second, once per run

    figure = Figure(figsize=(7.0, 4.3), layout="constrained")
    axes = figure.add_subplot()
    for i, report in enumerate(reports):
        times = [0.0, *(r.elapsed_seconds for r in report.rounds)]
        accuracies = [report.initial_accuracy, *(r.accuracy for r in report.rounds)]
        axes.plot(
            times,
            accuracies,
            label=report.strategy,
            markersize=4,
            linewidth=1.4,
            markevery=max(len(times) // 10, 1),
            **STYLES[i % len(STYLES)],
        )
    axes.axhline(target, color="0.6", linewidth=0.8, zorder=0)
    axes.annotate(
        f"target {target:g}",
        (1.0, target),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 3),
        textcoords="offset points",
        ha="right",
        color="0.4",
        fontsize=8,
    )
    axes.set_xlabel(f"time on the {clock} clock (s)")
    axes.set_ylabel("test accuracy (share of images)")
    axes.set_xlim(left=0.0)
    axes.set_ylim(0.0, 1.0)
    axes.grid(color="0.9")
    axes.legend(loc="lower right", handlelength=4)
    figure.savefig(path, dpi=150)
