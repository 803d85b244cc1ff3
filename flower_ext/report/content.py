"""What a page is made of: tables, figures and texts, before they are HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "DASHES",
    "MARKERS",
    "Cell",
    "Figure",
    "Rounds",
    "Sample",
    "Section",
    "Table",
    "bars",
    "line",
]

Cell = str | int | float | None

# So that lines can be told apart without their colour.
DASHES = ("solid", "dash", "dashdot", "dot", "longdash", "longdashdot")
MARKERS = ("circle", "square", "triangle-up", "diamond", "x", "triangle-down")


@dataclass(frozen=True)
class Table:
    """Named columns and rows of numbers or text; None is unknown."""

    heads: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Figure:
    """A plot, the words below it, and its numbers.

    Parameters
    ----------
    name : str
        Its id on the page: letters and hyphens.
    title, caption : str
        What it shows, and how it is read, in plain words.
    traces : list[dict[str, Any]]
        Plotly's. A colour may be ``"var(--name)"``, one of the page's CSS variables,
        which differ between its light and its dark look.
    layout : dict[str, Any]
        Plotly's; the page adds fonts, colours and margins.
    table : Table
        The same numbers.
    """

    name: str
    title: str
    caption: str
    traces: Sequence[Mapping[str, Any]]
    layout: Mapping[str, Any]
    table: Table


@dataclass(frozen=True)
class Rounds:
    """Coded rounds to choose from, by strategy.

    Parameters
    ----------
    rounds : Mapping[str, Sequence[Mapping[str, Any]]]
        As :func:`flower_ext.report.timelines.rounds_of` makes them.
    left_out : int
        How many rounds are not shown.
    """

    rounds: Mapping[str, Sequence[Mapping[str, Any]]]
    left_out: int = 0


@dataclass(frozen=True)
class Sample:
    """A generated text, token by token.

    Parameters
    ----------
    title, prompt : str
        Who drafted it, and how it begins.
    tokens : Sequence[tuple[str, str]]
        Each one's text and where it comes from, as
        :data:`flower_ext.speculative.TokenOrigin` has it.
    note : str
        Its numbers, in words.
    """

    title: str
    prompt: str
    tokens: Sequence[tuple[str, str]]
    note: str


@dataclass(frozen=True)
class Section:
    """A heading and what follows it; `note` comes first."""

    title: str
    note: str = ""
    figures: Sequence[Figure] = field(default_factory=list)
    rounds: Rounds | None = None
    samples: Sequence[Sample] = field(default_factory=list)


def line(
    name: str, x: Sequence[Any], y: Sequence[Any], index: int = 0, **more: Any
) -> dict[str, Any]:
    """Return a line of plotly's; `index` chooses colour, dashes and marker."""
    colour = f"var(--series-{index % len(DASHES)})"
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": list(x),
        "y": [_known(value) for value in y],
        "line": {"color": colour, "dash": DASHES[index % len(DASHES)], "width": 2},
        "marker": {
            "color": colour,
            "symbol": MARKERS[index % len(MARKERS)],
            "size": 7,
        },
        **more,
    }


def bars(
    name: str, x: Sequence[Any], y: Sequence[Any], index: int = 0, **more: Any
) -> dict[str, Any]:
    """Return bars of plotly's; `index` chooses colour and pattern."""
    patterns = ("", "/", "x", ".", "\\", "-", "|", "+")
    return {
        "type": "bar",
        "name": name,
        "x": list(x),
        "y": [_known(value) for value in y],
        "marker": {
            "color": f"var(--series-{index % len(DASHES)})",
            "pattern": {
                "shape": patterns[index % len(patterns)],
                "fillmode": "overlay",
                "fgcolor": "var(--back)",
                "fgopacity": 0.6,
                "solidity": 0.25,
            },
        },
        **more,
    }


def _known(value: Any) -> Any:
    """Return a number that JSON has."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
