"""What nodes do to a run: they die, freeze, come back as others, and lie."""

from __future__ import annotations

import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

from tests.faults.harness import Outcome, Stage

__all__ = ["frozen_nodes", "killed_nodes", "spoilt_replies"]

_MINUTE = 60.0


def killed_nodes(folder: Path, cancelled: threading.Event) -> Outcome:
    """Kill a ClientApp, a SuperNode in stage one, another one in stage two.

    The SuperNodes come back with new ids, and in the end are the only ones left.
    """
    with Stage(folder, cancelled, nodes=4) as stage:
        federation, control = stage.federation, stage.control
        for trap in ("round-2-stage-1", "round-3-stage-1", "round-4-stage-1"):
            control.set(trap)
        control.set("round-4-stage-2")
        control.set("after-report-4")
        run = stage.start(num_rounds=5, num_nodes=1)

        app = stage.hold("round-2-stage-1")
        stage.inject("app", lambda: os.kill(app["pid"], signal.SIGKILL))

        first = stage.hold("round-3-stage-1")
        stage.inject("stage one", lambda: federation.kill_node(first["node"]))

        straggler = stage.hold("round-4-stage-1")
        second = stage.hold("round-4-stage-2")
        stage.inject("stage two", lambda: federation.kill_node(second["node"]))
        stage.hold("after-report-4")
        control.let_go("round-4-stage-1")
        # Not before: the one that came back might be the one that is killed again.
        back = {first["node"], second["node"]}
        for node in sorted(back):
            stage.inject("back", partial(federation.restart_node, node))
        for node in set(range(4)) - back:
            federation.stop_node(node)
        control.let_go("after-report-4")
        log = stage.completed(run)
        outcome = stage.outcome(
            5, app=app, first=first, second=second, straggler=straggler, back=back
        )
        outcome.logs[run.run_id] = log
        return outcome


def frozen_nodes(folder: Path, cancelled: threading.Event) -> Outcome:
    """Freeze a node at work for a minute; hold another until its round is over.

    The second one's reply is late, and false. In the end only the first is left: where
    there are others, a round need not ask a node that has kept one waiting.
    """
    with Stage(folder, cancelled, nodes=3) as stage:
        federation, control = stage.federation, stage.control
        control.set("round-2-stage-1")
        control.set("after-report-3")
        control.set("after-report-4")
        control.set("after-report-6")
        run = stage.start(num_rounds=7, num_nodes=1)

        frozen = stage.hold("round-2-stage-1")
        stage.inject("frozen", lambda: federation.pause_node(frozen["node"]))
        since = time.monotonic()
        control.let_go("round-2-stage-1")
        stage.hold("after-report-3")
        stage.wait("a minute's end", lambda: time.monotonic() - since >= _MINUTE)
        control.tell("thawed", node=frozen["node"])
        federation.resume_node(frozen["node"])
        # Flower has given the task up by its clock, or lets it end.
        stage.wait(
            "the thawed node's answer",
            lambda: (
                control.events("end", round=2, node=frozen["node"])
                or "Task stopped" in federation.log(f"node-{frozen['node']}")
            ),
        )

        control.set("round-4-stage-1", "lie")
        control.let_go("after-report-3")
        late = stage.hold("round-4-stage-1")
        stage.hold("after-report-4")
        control.let_go("round-4-stage-1")
        stage.wait_event("end", round=4, node=late["node"], stage=1)
        control.let_go("after-report-4")
        stage.hold("after-report-6")
        for node in set(range(3)) - {frozen["node"]}:
            federation.stop_node(node)
        control.let_go("after-report-6")
        log = stage.completed(run)
        outcome = stage.outcome(7, frozen=frozen, late=late)
        outcome.logs[run.run_id] = log
        return outcome


def spoilt_replies(folder: Path, cancelled: threading.Event) -> Outcome:
    """Have nodes reply NaN, wrong shapes, an exception, and a false update."""
    with Stage(folder, cancelled, nodes=4) as stage:
        for server_round, how in ((2, "nan"), (3, "shape"), (4, "raise"), (5, "lie")):
            stage.control.set(f"spoil-round-{server_round}", how)
        stage.control.set("after-report-5")
        # A round that has enough without the liar's reply, or without knowing who of
        # two has lied, does not wait: who it was is known a round or two later.
        run = stage.start(num_rounds=8, num_nodes=4, verify_replies=1)
        stage.hold("after-report-5")
        liar = stage.wait_event("spoilt", how="lie")
        stage.wait_event("end", round=5, pid=liar["pid"])
        stage.control.let_go("after-report-5")
        log = stage.completed(run)
        outcome = stage.outcome(8)
        outcome.logs[run.run_id] = log
        return outcome
