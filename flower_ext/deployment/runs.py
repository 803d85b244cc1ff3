"""Runs of a federation, with the status that Flower's exit codes do not tell."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from flower_ext.errors import FlowerExtError

__all__ = ["Run", "RunResult"]

Flwr = Callable[..., dict[str, object]]
"""Runs ``flwr`` with the arguments given, and returns its JSON."""

_COMPLETED = "finished:completed"
_LAST_LINES = 15


@dataclass(frozen=True)
class RunResult:
    """How a run has ended.

    Parameters
    ----------
    run_id : int
        Flower's number of the run.
    status : str
        As ``flwr list`` has it: ``"finished:completed"``, ``"finished:failed"`` or
        ``"finished:stopped"``.
    details : str
        What Flower says about it; empty if nothing.
    log : str
        The ServerApp's log.
    """

    run_id: int
    status: str
    details: str
    log: str

    @property
    def completed(self) -> bool:
        """Whether the ServerApp came to its end without an error."""
        return self.status == _COMPLETED

    def require_completed(self) -> RunResult:
        """Return this result if the run has completed.

        Raises
        ------
        FlowerExtError
            If it has failed or was stopped, with the last lines of its log.
        """
        if self.completed:
            return self
        last = "\n".join(self.log.splitlines()[-_LAST_LINES:])
        said = f" ({self.details})" if self.details else ""
        raise FlowerExtError(
            f"Run {self.run_id} is {self.status}{said}. Its log ends:\n\n{last}"
        )


class Run:
    """A run that was started and may be going on.

    Parameters
    ----------
    run_id : int
        Flower's number of the run.
    flwr : Callable
        Runs ``flwr`` with the arguments given, and returns its JSON.
    read_log : Callable[[int, bool], str]
        Returns the log of a run; with True, after it has ended, having shown it
        meanwhile.
    """

    def __init__(
        self, run_id: int, flwr: Flwr, read_log: Callable[[int, bool], str]
    ) -> None:
        self.run_id = run_id
        self._flwr = flwr
        self._read_log = read_log

    def status(self) -> tuple[str, str]:
        """Return the run's status and its details, as ``flwr list`` has them."""
        answer = self._flwr("list", "--run-id", str(self.run_id))
        runs = answer["runs"]
        assert isinstance(runs, list)
        return str(runs[0]["status"]), str(runs[0].get("status-details") or "")

    def log(self) -> str:
        """Return the ServerApp's log up to now."""
        return self._read_log(self.run_id, False)

    def stop(self) -> None:
        """Stop the run."""
        self._flwr("stop", str(self.run_id))

    def wait(self, timeout: float = 600.0) -> RunResult:
        """Wait until the run has ended.

        Parameters
        ----------
        timeout : float (default: 600.0)
            Seconds.

        Returns
        -------
        RunResult
            How it has ended.

        Raises
        ------
        FlowerExtError
            If it has not ended by then.
        """
        until = time.monotonic() + timeout
        while not (found := self.status())[0].startswith("finished"):
            if time.monotonic() > until:
                raise FlowerExtError(
                    f"Run {self.run_id} is {found[0]} after {timeout:g} s. Its log "
                    f"is:\n\n{self.log()}"
                )
        return RunResult(self.run_id, *found, self.log())

    def follow(self) -> RunResult:
        """Print the ServerApp's log as it grows, until the run has ended."""
        log = self._read_log(self.run_id, True)
        # The log can end a moment before the status changes.
        while not (found := self.status())[0].startswith("finished"):
            pass
        return RunResult(self.run_id, *found, log)
