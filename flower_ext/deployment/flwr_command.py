"""The command ``flwr``, as a program calls it."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from flower_ext.deployment.parts import program
from flower_ext.errors import FlowerExtError

__all__ = ["FlwrCommand"]


class FlwrCommand:
    """Calls ``flwr`` on one connection.

    Parameters
    ----------
    environment : Mapping[str, str]
        All of its environment, with the ``FLWR_HOME`` that knows the connection.
    connection : str
        Name of the connection.
    """

    def __init__(self, environment: Mapping[str, str], connection: str) -> None:
        # Without it, a log that is followed comes in blocks.
        self._environment = {**environment, "PYTHONUNBUFFERED": "1"}
        self._connection = connection

    def call(self, *arguments: str, options: Sequence[str] = ()) -> dict[str, Any]:
        """Return the JSON of ``flwr ARGUMENTS CONNECTION OPTIONS``.

        Raises
        ------
        FlowerExtError
            If Flower reports no success, with what it says.
        """
        command = ["flwr", *arguments, self._connection, *options, "--format", "json"]
        done = self._run(command)
        try:
            answer = json.loads(done.stdout)
        except json.JSONDecodeError:
            answer = {}
        if not answer.get("success"):
            said = answer.get("error-message") or f"{done.stdout}{done.stderr}"
            raise FlowerExtError(f"{' '.join(command)} failed: {said.strip()}")
        return dict(answer)

    def log(self, run_id: int) -> str:
        """Return a run's log up to now."""
        return self._run(
            ["flwr", "log", str(run_id), self._connection, "--show"]
        ).stdout

    def follow_log(self, run_id: int, timeout: float) -> str:
        """Print a run's log as it grows; return it when the run or the time has ended.

        Parameters
        ----------
        run_id : int
            Flower's number of the run.
        timeout : float
            Seconds.
        """
        lines = []
        with subprocess.Popen(
            [program("flwr"), "log", str(run_id), self._connection, "--stream"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            assert process.stdout is not None
            clock = threading.Timer(
                min(timeout, threading.TIMEOUT_MAX), process.terminate
            )
            clock.start()
            try:
                for line in process.stdout:
                    print(line, end="", flush=True)
                    lines.append(line)
            finally:
                clock.cancel()
                # It would go on after an interrupt, and be waited for.
                process.terminate()
        return "".join(lines)

    def _run(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program(command[0]), *command[1:]],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
