"""The page itself: everything that is to be seen of a run, in one HTML file."""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from os import PathLike
from pathlib import Path
from typing import Any

from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.report.answering import answering_sections, answering_summary
from flower_ext.report.content import Cell, Section, Table
from flower_ext.report.drafting import drafting_sections, drafting_summary
from flower_ext.report.results import CODED, Results, read_results
from flower_ext.report.training import coded_sections, coded_summary

__all__ = ["PAGE_FILE", "write_page"]

PAGE_FILE = "report.html"

_TITLES = {
    "two-stage-coded": "Coded training",
    "device-edge-llm": "A drafter, trained in a federation",
    "edgeprompt": "Prompts with a shared part",
}


@dataclass(frozen=True)
class _Summary:
    """A table at the top of the page."""

    name: str
    caption: str
    table: Table


def write_page(
    folder: str | PathLike[str], output: str | PathLike[str] | None = None
) -> Path:
    """Make a page of what lies in a results folder.

    Parameters
    ----------
    folder : str | path
        What an app was given as ``results-dir``.
    output : str | path | None (default: None)
        The file to write; None: ``report.html`` in the folder.

    Returns
    -------
    Path
        The file written.

    Raises
    ------
    InvalidInputError
        If there are no results, they cannot be read, or the page cannot be written.
    FlowerExtError
        If plotly or Jinja2 is missing.
    """
    results = read_results(folder)
    text = _rendered(results)
    path = results.folder / PAGE_FILE if output is None else Path(output).expanduser()
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InvalidInputError(
            f"The page cannot be written to '{path}': {error}. Name another file."
        ) from error
    return path


def _rendered(results: Results) -> str:
    """Return the page."""
    jinja2, plotly = _library("jinja2"), _library("plotly.offline")
    try:
        summaries, sections = _content(results)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InvalidInputError(
            f"The results in '{results.folder}' are not what an app writes "
            f"({type(error).__name__}: {error}): run the app again."
        ) from error
    parts = files("flower_ext.report")
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shown"] = _shown
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False}
    found = results.training if results.training is not None else results.answers
    assert found is not None
    page: str = environment.from_string(
        (parts / "page.html").read_text(encoding="utf-8")
    ).render(
        title=_TITLES[found["kind"]],
        folder=results.folder.absolute().name,
        left_out=results.left_out,
        settings=results.settings,
        summaries=summaries,
        sections=sections,
        plots={
            figure.name: {"traces": figure.traces, "layout": figure.layout}
            for section in sections
            for figure in section.figures
        },
        style=(parts / "page.css").read_text(encoding="utf-8"),
        script=(parts / "page.js").read_text(encoding="utf-8"),
        plotly=plotly.get_plotlyjs(),
    )
    return page


def _content(results: Results) -> tuple[list[_Summary], list[Section]]:
    """Return the tables and sections of a run."""
    summaries: list[_Summary] = []
    sections: list[Section] = []
    training, answers = results.training, results.answers
    if training is not None and training["kind"] == CODED:
        text = (
            "One line per strategy. Redundancy is how often a partition was assigned, "
            "and coverage the share of the examples that an update is made of, both on "
            f"average; the target is an accuracy of {_target(training, 'accuracy')}."
        )
        summaries.append(_Summary("summary", text, coded_summary(training)))
        sections += coded_sections(training)
    elif training is not None:
        reached = training["summary"]["rounds_to_target"]
        text = (
            "The drafter before training and after it, on all nodes, with the same "
            "prompts and the same random choices. An acceptance of "
            f"{_target(training, 'acceptance')} was "
            + ("not reached." if reached is None else f"reached in round {reached}.")
        )
        summaries.append(_Summary("summary", text, drafting_summary(training)))
        sections += drafting_sections(training)
    if answers is not None:
        text = "EdgePrompt's answers, one line per round."
        summaries.append(_Summary("answers", text, answering_summary(answers)))
        sections += answering_sections(answers)
    return summaries, sections


def _target(found: Mapping[str, Any], name: str) -> str:
    return f"{found['settings'][f'target_{name}']:g}"


def _shown(value: Cell) -> str:
    """Return a cell as a reader wants it: four digits of a number, a dash for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    if isinstance(value, float):
        if value and not 1e-3 <= abs(value) < 1e6:
            return f"{value:.2e}"
        return f"{value:#,.4g}".rstrip(".") if abs(value) < 1e4 else f"{value:,.0f}"
    return str(value)


def _library(name: str) -> Any:
    """Import what only reports need."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise FlowerExtError(
            f"A report needs {name.partition('.')[0]}, which is not installed: "
            'pip install "flower-ext[report]".'
        ) from error
