"""Federations of real processes in which faults are injected at chosen moments."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from flower_ext.deployment import LocalFederation, Run, RunResult
from tests.faults.app.fault_app.control import Control
from tests.faults.app.fault_app.training import PARTITIONS, change, examples, initial

__all__ = ["APP", "Outcome", "Stage", "fedavg", "relative_error"]

APP = Path(__file__).parent / "app"

_PATIENCE = 1500.0  # seconds, on a machine that has much else to do
_LOOK_SECONDS = 0.1
_ASK_SECONDS = 3.0  # between two calls of flwr, each of which takes seconds of CPU

Event = dict[str, Any]


@dataclass
class Outcome:
    """What a scenario came to."""

    events: list[Event]
    control: Control
    num_rounds: int
    logs: dict[int, str] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def reports(self) -> list[Event]:
        """The rounds that were reported as done, in order."""
        return [e for e in self.events if e["event"] == "report"]

    def began(self, server_round: int) -> list[Event]:
        """Return what was begun for a round."""
        return [
            e
            for e in self.events
            if e["event"] == "begin" and e["round"] == server_round
        ]

    def metric(self, server_round: int, name: str) -> float:
        """Return a metric of a round, as it was last reported."""
        found = [e for e in self.reports if e["round"] == server_round]
        return float(found[-1]["metrics"][name])

    def injected(self, *faults: str) -> int:
        """Return how often these were done to the federation, or by a spoilt node."""
        return sum(
            e.get("fault" if e["event"] == "injected" else "how") in faults
            for e in self.events
            if e["event"] in ("injected", "spoilt")
        )

    def lost(self) -> int:
        """Return how many rounds are missing, or were begun again once reported."""
        missing = set(range(1, self.num_rounds + 1)) - {
            r["round"] for r in self.reports
        }
        first: dict[int, int] = {}  # by which run a round was reported first
        again = set()
        for e in self.events:
            if e["event"] == "report":
                first.setdefault(e["round"], e["run_id"])
            # A straggler of the same run may begin when its round is over.
            elif e["event"] == "begin" and e["run_id"] != first.get(
                e["round"], e["run_id"]
            ):
                again.add(e["round"])
        return len(missing | again)

    def contradictory(self) -> int:
        """Return how many rounds were reported with more than one result."""
        digests: dict[int, set[str]] = {}
        for e in self.reports:
            digests.setdefault(e["round"], set()).add(e["digest"])
        return sum(len(found) > 1 for found in digests.values())

    def largest_error(self) -> float:
        """Return how far any reported model is from FedAvg's, relatively."""
        models = fedavg(self.num_rounds)
        return max(
            relative_error(
                np.load(self.control.folder / e["model"]), models[e["round"]]
            )
            for e in self.reports
        )


class Stage:
    """A federation, and the folder by which its app is held and heard.

    Parameters
    ----------
    folder : Path
        Its own.
    cancelled : threading.Event
        Ends every wait when it is set.
    nodes : int
        SuperNodes; each holds all partitions.
    **federation : Any
        Further arguments of ``LocalFederation``.
    """

    def __init__(
        self, folder: Path, cancelled: threading.Event, nodes: int, **federation: Any
    ) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.control = Control(folder / "control")
        self.control.folder.mkdir(parents=True)
        self._cancelled = cancelled
        configs: list[dict[str, str | int | float | bool]] = [
            {
                "partition-id": i,
                "num-partitions": PARTITIONS,
                "partitions": f"0-{PARTITIONS - 1}",
                "control": str(self.control.folder),
            }
            for i in range(nodes)
        ]
        self.federation = LocalFederation(
            folder / "federation",
            nodes,
            node_configs=configs,
            timeout=_PATIENCE,
            **federation,
        )
        self._runs: list[Run] = []

    def __enter__(self) -> Self:
        """Bring the federation up."""
        self.federation.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End all processes; in the error, say how far the app had come."""
        if error is not None:
            told = [
                {k: v for k, v in e.items() if k not in ("metrics", "digest")}
                for e in self.control.events()
            ]
            error.add_note("\n".join(["The app's events:", *map(str, told)]))
        self.federation.stop()

    def start(self, *, resume: bool = False, **config: Any) -> Run:
        """Start a run with checkpoints; the arguments are its run-config."""
        given = {name.replace("_", "-"): value for name, value in config.items()}
        folder = str(self.checkpoints)
        run = self.federation.start_run(
            APP,
            {
                "control": str(self.control.folder),
                "checkpoint-dir": folder,
                "resume-from": folder if resume else "",
                **given,
            },
        )
        self._runs.append(run)
        return run

    def wait(
        self, what: str, found: Callable[[], Any], pause: float = _LOOK_SECONDS
    ) -> Any:
        """Wait until something is found, and return it.

        Raises
        ------
        TimeoutError
            If it is not in time, or the test is over.
        """
        until = time.monotonic() + _PATIENCE
        while not (result := found()):
            if self._cancelled.wait(pause):
                raise TimeoutError(f"The tests ended while {what} was waited for.")
            if time.monotonic() > until:
                log = self._runs[-1].log() if self._runs else ""
                raise TimeoutError(
                    f"No sign of {what} after {_PATIENCE:g} s. The run's log:\n{log}"
                )
        return result

    def wait_event(self, event: str, **values: Any) -> Event:
        """Wait for an event with these values, and return it."""
        found: list[Event] = self.wait(
            f"{event} {values}", lambda: self.control.events(event, **values)
        )
        return found[0]

    def inject(self, fault: str, act: Callable[[], object]) -> None:
        """Do something to the federation, and keep account of it."""
        act()
        self.control.tell("injected", fault=fault)

    def hold(self, trap: str) -> Event:
        """Wait until somebody is held in a trap that was set."""
        return self.wait_event("held", trap=trap)

    def ended(self, run: Run) -> RunResult:
        """Wait until a run has ended."""

        def found() -> tuple[str, str] | None:
            status = run.status()
            return status if status[0].startswith("finished") else None

        status, details = self.wait(f"the end of run {run.run_id}", found, _ASK_SECONDS)
        return RunResult(run.run_id, status, details, run.log())

    def completed(self, run: Run) -> str:
        """Wait until a run has completed, and return its log."""
        self.wait_event("finished", run_id=run.run_id)
        return self.ended(run).require_completed().log

    def outcome(self, num_rounds: int, **facts: Any) -> Outcome:
        """Return what has come of it so far."""
        return Outcome(self.control.events(), self.control, num_rounds, facts=facts)


def fedavg(num_rounds: int) -> list[dict[str, Any]]:
    """Return FedAvg's models from round 0 on, computed here and from all partitions."""
    models = [initial()]
    total = sum(examples(k) for k in range(PARTITIONS))
    for server_round in range(1, num_rounds + 1):
        models.append(
            {
                name: array
                + sum(
                    examples(k) * change(server_round, k, name, array)
                    for k in range(PARTITIONS)
                )
                / total
                for name, array in models[-1].items()
            }
        )
    return models


def relative_error(found: Any, exact: dict[str, Any]) -> float:
    """Return max |a - b| / max |b|, the largest over the arrays; inf if one lacks."""
    if set(found) != set(exact):
        return float("inf")
    return max(
        float(np.max(np.abs(found[name] - b)) / np.max(np.abs(b)))
        for name, b in exact.items()
    )
