"""Runs of a federation, with the status that Flower's exit codes do not tell."""

from __future__ import annotations

import time
from dataclasses import dataclass

from flower_ext.deployment.flwr_command import FlwrCommand
from flower_ext.errors import FlowerExtError

__all__ = ["Run", "RunResult"]

_COMPLETED = "finished:completed"
_LAST_LINES = 15

_PAUSE = 1.0  # seconds between two looks at a run's status


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
        What Flower says about it; ``"N/A"`` if nothing.
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
        raise FlowerExtError(
            f"Run {self.run_id} is {self.status} ({self.details}). Its log ends:\n\n"
            f"{last}"
        )


class Run:
    """A run that was started and may be going on.

    Parameters
    ----------
    run_id : int
        Flower's number of the run.
    flwr : FlwrCommand
        Asks the run's SuperLink.
    """

    def __init__(self, run_id: int, flwr: FlwrCommand) -> None:
        self.run_id = run_id
        self._flwr = flwr

    def status(self) -> tuple[str, str]:
        """Return the run's status and its details, as ``flwr list`` has them."""
        answer = self._flwr.call("list", options=["--run-id", str(self.run_id)])
        run = answer["runs"][0]
        return str(run["status"]), str(run["status-details"])

    def log(self) -> str:
        """Return the ServerApp's log up to now."""
        return self._flwr.log(self.run_id)

    def stop(self) -> None:
        """Stop the run."""
        self._flwr.call("stop", str(self.run_id))

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
            If it has not ended by then; it goes on.
        """
        found = self._ended(time.monotonic() + timeout, timeout)
        return RunResult(self.run_id, *found, self.log())

    def follow(self, timeout: float = 600.0) -> RunResult:
        """Print the ServerApp's log as it grows, until the run has ended.

        Parameters
        ----------
        timeout : float (default: 600.0)
            Seconds; ``math.inf``: as long as it takes.

        Returns
        -------
        RunResult
            How it has ended.

        Raises
        ------
        FlowerExtError
            If it has not ended by then; it goes on.
        """
        until = time.monotonic() + timeout
        log = self._flwr.follow_log(self.run_id, timeout)
        # The log can end a moment before the status changes.
        return RunResult(self.run_id, *self._ended(until, timeout), log)

    def _ended(self, until: float, timeout: float) -> tuple[str, str]:
        """Wait for the run's end, and return its status and details."""
        while not (found := self.status())[0].startswith("finished"):
            if time.monotonic() > until:
                raise FlowerExtError(
                    f"Run {self.run_id} is {found[0]} after {timeout:g} s, and goes "
                    "on: end it with stop(), or give it a longer timeout. Its log is:"
                    f"\n\n{self.log()}"
                )
            time.sleep(_PAUSE)  # Each question is a process of its own.
        return found
