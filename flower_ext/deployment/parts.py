"""The parts of a federation: programs that run, with a log file each."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from flower_ext.deployment.processes import (
    FEDERATION_MARK,
    PART_MARK,
    end_marked,
    start,
)
from flower_ext.errors import FlowerExtError

__all__ = ["LOOK_SECONDS", "Parts", "program"]

LOOK_SECONDS = 0.1

_LAST_LINES = 20


def program(name: str) -> str:
    """Return the path of a program of this Python's environment."""
    return str(Path(sys.executable).parent / name)


class Parts:
    """Programs that are started, watched by their logs, and ended.

    Parameters
    ----------
    folder : Path
        The federation's folder, absolute; logs go there.
    environment : Mapping[str, str]
        Variables for all processes, over those of this one.
    timeout : float
        Seconds that a program may take until it is up.
    patience : float
        Seconds between SIGTERM and SIGKILL.
    """

    def __init__(
        self,
        folder: Path,
        environment: Mapping[str, str],
        timeout: float,
        patience: float,
    ) -> None:
        self.folder = folder
        self.environment = {**os.environ, **environment}
        # Flower starts its own programs by bare name.
        self.environment["PATH"] = os.pathsep.join(
            [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        )
        self._timeout = timeout
        self._patience = patience
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._log_starts: dict[str, int] = {}

    def marked_environment(self, part: str) -> dict[str, str]:
        """Return the environment by which a part's processes are found."""
        marks = {FEDERATION_MARK: str(self.folder), PART_MARK: part}
        return {**self.environment, **marks}

    def launch(self, part: str, name: str, *arguments: str) -> None:
        """Start a program as a part of the federation."""
        log = self.log_file(part)
        self._log_starts[part] = log.stat().st_size if log.exists() else 0
        self._processes[part] = start(
            [program(name), *arguments],
            environment=self.marked_environment(part),
            log=log,
        )

    def log_file(self, part: str) -> Path:
        """Return where a part's output goes."""
        return self.folder / f"{part}.log"

    def log(self, part: str) -> str:
        """Return what a part has said since it was last started."""
        with self.log_file(part).open("rb") as opened:
            opened.seek(self._log_starts.get(part, 0))
            return opened.read().decode(errors="replace")

    def wait_for_log(self, part: str, pattern: re.Pattern[str]) -> None:
        """Wait until a part says something that matches.

        Raises
        ------
        FlowerExtError
            If it ends before that, or says nothing of the kind in time.
        """
        until = time.monotonic() + self._timeout
        while not pattern.search(self.log(part)):
            self.check(part, until)
            time.sleep(LOOK_SECONDS)

    def check(self, part: str, until: float) -> None:
        """Raise if a part has ended, or should be up by now.

        Parameters
        ----------
        part : str
            Its name.
        until : float
            When it should be up, on the monotonic clock, in seconds.
        """
        ended = self.has_ended(part)
        if not ended and time.monotonic() < until:
            return
        how = "has ended" if ended else f"is not up after {self._timeout:g} s"
        last = "\n".join(self.log(part).splitlines()[-_LAST_LINES:])
        raise FlowerExtError(
            f"{part} {how}. Its log {self.log_file(part)} ends:\n\n{last}"
        )

    def has_ended(self, part: str) -> bool:
        """Return whether a part's first process has ended."""
        return self._processes[part].poll() is not None

    def end(self, part: str) -> None:
        """End a part with all that it has started, if it runs."""
        end_marked(self.folder, part, patience=self._patience)
        if part in self._processes:
            self._processes.pop(part).wait()

    def kill_all(self) -> None:
        """Kill whatever is left of all parts."""
        end_marked(self.folder, patience=0)
        for process in self._processes.values():
            process.wait()
        self._processes.clear()
