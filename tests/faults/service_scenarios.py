"""What a run's own services do to it: ServerApp and edge die."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

from flower_ext.deployment import Run
from tests.faults.harness import Outcome, Stage

__all__ = ["killed_edge", "killed_serverapp"]


def killed_serverapp(folder: Path, cancelled: threading.Event) -> Outcome:
    """Kill ServerApps between rounds, during one, and between saving and reporting."""
    with Stage(folder, cancelled, nodes=3) as stage:
        control = stage.control
        runs: list[Run] = []
        for trap in ("after-report-1", "round-2-stage-1", "before-report-2"):
            control.set(trap)
            runs.append(stage.start(num_rounds=3, num_nodes=1, resume=bool(runs)))
            stage.hold(trap)
            for process in stage.federation.serverapp_pids():
                os.kill(process, signal.SIGKILL)
            control.tell("injected", fault=trap)
            control.let_go(trap)
        last = stage.start(num_rounds=3, num_nodes=1, resume=True)
        log = stage.completed(last)
        outcome = stage.outcome(3, runs=[run.run_id for run in (*runs, last)])
        outcome.logs[last.run_id] = log
        outcome.facts["results"] = [stage.ended(run) for run in runs]
        return outcome


def killed_edge(folder: Path, cancelled: threading.Event) -> Outcome:
    """Kill the edge while nodes draft: it comes back in one run, and not in another."""
    with Stage(folder, cancelled, nodes=2, edge="default") as stage:
        federation, control = stage.federation, stage.control
        edge = str(federation.edge_config["edge"])
        traps = ("drafting-0", "drafting-1")
        control.set("after-report-1")
        first = stage.start(num_rounds=2, num_nodes=2, edge=edge)
        stage.hold("after-report-1")
        for trap in traps:
            control.set(trap)
        control.let_go("after-report-1")
        for trap in traps:
            stage.hold(trap)
        stage.inject("edge", federation.kill_edge)
        for trap in traps:
            control.let_go(trap)
        federation.restart_edge()
        logs = {first.run_id: stage.completed(first)}
        trained = stage.outcome(2)

        # In the second run it stays away: the drafters end their texts alone, and write
        # the next round's alone. In a third one that is not wanted.
        for trap in traps:
            control.set(trap)
        second = stage.start(
            num_rounds=2,
            num_nodes=2,
            edge=edge,
            edge_patience=2.0,
            if_edge_is_lost="draft",
            checkpoint_dir="",
        )
        stage.wait(
            "two nodes that draft",
            lambda: len(control.events("held", run_id=second.run_id)) == 2,
        )
        stage.inject("edge for good", federation.kill_edge)
        for trap in traps:
            control.let_go(trap)
        logs[second.run_id] = stage.completed(second)
        third = stage.start(
            num_rounds=1,
            num_nodes=2,
            edge=edge,
            edge_patience=2.0,
            if_edge_is_lost="raise",
            checkpoint_dir="",
        )
        result = stage.ended(third)
        trained.events += control.events("injected", fault="edge for good")
        trained.facts.update(
            alone=control.events("report", run_id=second.run_id), result=result
        )
        trained.logs.update({**logs, third.run_id: result.log})
        return trained
