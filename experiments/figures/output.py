"""What all figures share: their options, seeds over processes, PNG and CSV."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from two_stage_coded.report import STYLES

Floats = NDArray[np.float64]
Rows = Sequence[Mapping[str, object]]

SCHEMES = ("two-stage", "cyclic", "fractional", "uncoded", "ignore-stragglers")
SCHEDULERS = ("lyapunov", "max-throughput", "round-robin", "random")
STYLE: dict[str, dict[str, Any]] = {
    name: STYLES[i % len(STYLES)]
    for names in (SCHEMES, SCHEDULERS)
    for i, name in enumerate(names)
}


@dataclass(frozen=True)
class Options:
    """What the command line says.

    Parameters
    ----------
    out : Path
        The folder for the figures.
    seeds : int
        Number of seeds, 0, 1, ...
    data : Mapping[str, str]
        Folders of image data, by data set.
    traces : str
        Absolute paths of link traces, separated by commas, or "synthetic".
    devices : str
        The absolute path of FLASH's folder, or "synthetic".
    quick : bool
        Whether everything is small.
    """

    out: Path
    seeds: int = 5
    data: Mapping[str, str] = field(default_factory=dict)
    traces: str = "synthetic"
    devices: str = "synthetic"
    quick: bool = False

    def sized(self, full: int, quick: int) -> int:
        """Return how much of something there is to be."""
        return quick if self.quick else full

    @property
    def edge(self) -> dict[str, str]:
        """The run-config's keys for links and devices."""
        return {"link_trace": self.traces, "device_profile": self.devices}


class Workers(AbstractContextManager["Workers"]):
    """Processes that share out tasks; one process is this one.

    Parameters
    ----------
    count : int
        How many, at least 1.
    """

    def __init__(self, count: int) -> None:
        self._pool = (
            ProcessPoolExecutor(count, mp_context=get_context("spawn"))
            if count > 1
            else None
        )

    def map(
        self, function: Callable[..., Any], tasks: Iterable[tuple[Any, ...]]
    ) -> Any:
        """Return the results of a function for tuples of arguments, in order."""
        tasks = list(tasks)
        if self._pool is None:
            return [function(*task) for task in tasks]
        return list(self._pool.map(function, *zip(*tasks, strict=True)))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)


def spread(values: Sequence[float] | Floats) -> tuple[float, float]:
    """Return the mean and the sample standard deviation; of one value 0."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if len(array) > 1 else 0.0


def new_figure(panels: int = 1, **shared: Any) -> tuple[Any, list[Any]]:
    """Return a figure and its panels side by side."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - a second, once per run

    size = (7.0 if panels == 1 else 0.8 + 4.4 * panels, 4.3)
    figure = Figure(figsize=size, layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, panels, **shared)).tolist()
    for panel in axes:
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
    return figure, axes


def errors(axes: Any, x: Any, rows: Any, label: str, **style: Any) -> None:
    """Draw a line through means, with bars of a standard deviation."""
    mean, deviation = np.array(rows, dtype=np.float64).T
    look = {"markersize": 4.5, "linewidth": 1.4, "capsize": 2.5, "elinewidth": 0.9}
    axes.errorbar(x, mean, deviation, label=label, **(look | style))


def band(axes: Any, x: Floats, values: Floats, label: str, **style: Any) -> None:
    """Draw the mean of curves, shape (seeds, points), in a band of their deviation.

    The band does not leave what the seeds have seen.
    """
    mean = values.mean(axis=0)
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else 0.0 * mean
    low = np.maximum(mean - deviation, values.min(axis=0))
    high = np.minimum(mean + deviation, values.max(axis=0))
    axes.fill_between(x, low, high, color=style["color"], alpha=0.15, lw=0)
    every = max(len(x) // 9, 1)
    look = {"markersize": 4.5, "linewidth": 1.4, "markevery": every}
    axes.plot(x, mean, label=label, **(look | style))


def write(options: Options, name: str, figure: Any, rows: Rows) -> list[Path]:
    """Write a figure and its numbers, and return where they lie."""
    paths = [options.out / f"{name}.{kind}" for kind in ("png", "csv")]
    figure.savefig(paths[0], dpi=150)
    with paths[1].open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return paths
