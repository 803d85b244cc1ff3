"""What an app has left in its results folder, read and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

from flower_ext.errors import InvalidInputError

__all__ = [
    "ANSWERS_FILE",
    "CODED",
    "DRAFTING",
    "EDGEPROMPT",
    "FORMAT",
    "RESULTS_FILE",
    "Results",
    "read_results",
]

FORMAT = 1
"""The number that says how the files are laid out."""

RESULTS_FILE = "results.json"
ANSWERS_FILE = "edgeprompt.json"

CODED, DRAFTING, EDGEPROMPT = "two-stage-coded", "device-edge-llm", "edgeprompt"

_KINDS = {RESULTS_FILE: (CODED, DRAFTING), ANSWERS_FILE: (EDGEPROMPT,)}


@dataclass(frozen=True)
class Results:
    """A run's files.

    Parameters
    ----------
    folder : Path
        Where they lie.
    training : Mapping[str, Any] | None (default: None)
        ``results.json``: what training, and DSSD, have measured.
    answers : Mapping[str, Any] | None (default: None)
        ``edgeprompt.json``: what EdgePrompt has measured.
    left_out : str (default: "")
        A file in the folder that belongs to another run, if there is one.
    """

    folder: Path
    training: Mapping[str, Any] | None = None
    answers: Mapping[str, Any] | None = None
    left_out: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        """The run's settings."""
        found = self.training if self.training is not None else self.answers
        assert found is not None  # as read_results makes sure
        return dict(found["settings"])


def read_results(folder: str | PathLike[str]) -> Results:
    """Read a results folder.

    Where its two files have different settings, they come from two runs, and only the
    newer one is taken.

    Parameters
    ----------
    folder : str | path
        What an app was given as ``results-dir``.

    Returns
    -------
    Results
        What was found.

    Raises
    ------
    InvalidInputError
        If there is no folder, no results in it, or a file is no JSON, incomplete, or of
        a newer format.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise InvalidInputError(
            f"'{path}' is no folder: name the one that the app was given as "
            "results-dir, and that it printed."
        )
    found = {n: _read(path / n, kinds) for n, kinds in _KINDS.items()}
    training, answers = found[RESULTS_FILE], found[ANSWERS_FILE]
    if training is None and answers is None:
        raise InvalidInputError(
            f"There are no results in '{path}': an app writes {RESULTS_FILE} or "
            f"{ANSWERS_FILE} there once its run is over."
        )
    if (
        training is not None
        and answers is not None
        and training["settings"] != answers["settings"]
    ):
        ages = {name: (path / name).stat().st_mtime_ns for name in found}
        if ages[RESULTS_FILE] >= ages[ANSWERS_FILE]:
            return Results(path, training, None, ANSWERS_FILE)
        return Results(path, None, answers, RESULTS_FILE)
    return Results(path, training, answers)


def _read(path: Path, kinds: tuple[str, ...]) -> Mapping[str, Any] | None:
    """Return a file's content; None: there is none, as before a run is over."""
    try:
        text = path.read_text(encoding="utf-8")
        found = json.loads(text) if text.strip() else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"'{path}' is no JSON that can be read ({error}): was its run cut off? Run "
            "the app again, or remove the file."
        ) from error
    if found is None:
        return None
    if not isinstance(found, dict) or type(found.get("format")) is not int:
        raise InvalidInputError(
            f"'{path}' has no format number: it was written by an older flower-ext, or "
            "by something else. Run the app again."
        )
    if found["format"] > FORMAT:
        raise InvalidInputError(
            f"'{path}' has format {found['format']}, and this flower-ext reads up to "
            f"{FORMAT}: install the newer one that has written it."
        )
    if found.get("kind") not in kinds:
        raise InvalidInputError(
            f"'{path}' has kind {found.get('kind')!r}, and a report is made of "
            f"{' or '.join(kinds)}."
        )
    missing = {"settings", "rounds"} - found.keys()
    if missing:
        raise InvalidInputError(
            f"'{path}' lacks {' and '.join(sorted(missing))}: run the app again."
        )
    return found
