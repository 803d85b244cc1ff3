"""The promise *Early*: a node that sleeps does not hold up the rounds.

Eight nodes in Flower's simulation, on the wall clock, half a second of training per
partition; then the same with one node that sleeps thirty seconds in every round's
training. Prints each round's time beside the round without the sleeper, and what the
sleeper was asked to do.

    python experiments/early.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid, ServerApp
from flwr.simulation import run_simulation
from sklearn.datasets import load_digits

from flower_ext.clients import CodedClientApp, RecordedDelays, straggler_mod
from flower_ext.coding.assignment import ASSIGNMENT_KEY, HOLDINGS_KEY, Assignment
from flower_ext.strategies import TwoStageCoded

NODES = 8
SLEEPER = 3  # the node's own partition
SLEEP = 30.0
TRAINING = 0.5
BAR = 3.0


def make_client() -> CodedClientApp:
    """Return the nodes' app: softmax regression, as slow as the round asks for."""
    awake = straggler_mod(RecordedDelays([[TRAINING]]))
    sleeping = straggler_mod(
        RecordedDelays({w: [SLEEP if w == SLEEPER else TRAINING] for w in range(NODES)})
    )

    def delay(msg: Message, ctxt: Context, call_next: ClientAppCallable) -> Message:
        mod = sleeping if msg.content["config"]["sleeper"] else awake
        return mod(msg, ctxt, call_next)

    app = CodedClientApp(mods=[delay], partitions="all")

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        images, labels = load_digits(return_X_y=True)
        mine = slice(int(context.node_config["partition-id"]), None, NODES)
        x, y = images[mine] / 16, np.eye(10)[labels[mine]]
        weight = msg.content["arrays"]["weight"].numpy()
        for _ in range(20):
            scores = np.exp(x @ weight)
            error = scores / scores.sum(axis=1, keepdims=True) - y
            weight = weight - 0.5 * x.T @ error / len(y)
        arrays = ArrayRecord({"weight": Array(weight)})
        metrics = MetricRecord({"num-examples": len(y)})
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)

    return app


class Watch:
    """Notes what the sleeper is asked and when it answers, as the grid passes it on."""

    def __init__(self, grid: Grid) -> None:
        self._push, self._pull = grid.push_messages, grid.pull_messages
        self.sleeper: int | None = None
        self.asked: list[tuple[float, int, Assignment]] = []
        self.answered: list[float] = []
        grid.push_messages = self.push  # type: ignore[method-assign]
        grid.pull_messages = self.pull  # type: ignore[method-assign]

    def push(self, messages: Iterable[Message]) -> Iterable[str]:
        messages = list(messages)
        for message in messages:
            config = message.content.config_records.get(ASSIGNMENT_KEY)
            if config is not None:
                assignment = Assignment.from_config(config)
                node_id = message.metadata.dst_node_id
                self.asked.append((time.monotonic(), node_id, assignment))
        return self._push(messages)

    def pull(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(self._pull(message_ids))
        for reply in replies:
            if reply.has_error():
                continue
            node_id = reply.metadata.src_node_id
            holdings = reply.content.config_records.get(HOLDINGS_KEY)
            if holdings is not None and holdings["worker"] == SLEEPER:
                self.sleeper = node_id
            elif holdings is None and node_id == self.sleeper:
                self.answered.append(time.monotonic())
        return replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=NODES, help="of Ray")
    arguments = parser.parse_args()
    lines: list[str] = []
    server = ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        start = ArrayRecord({"weight": Array(np.zeros((64, 10)))})
        watch = Watch(grid)

        def train(rounds: int, sleeper: bool) -> list[float]:
            watch.asked.clear()
            watch.answered.clear()
            strategy = TwoStageCoded(fraction_evaluate=0.0)
            strategy.start(
                grid, start, rounds, train_config=ConfigRecord({"sleeper": sleeper})
            )
            rounds_of = strategy.round_metrics.values()
            assert all(m["coverage"] == 1.0 for m in rounds_of)
            return [float(m["elapsed-seconds"]) for m in rounds_of]

        train(1, sleeper=False)  # Ray starts its processes
        without = train(arguments.rounds, sleeper=False)
        with_sleeper = train(arguments.rounds, sleeper=True)
        lines.append("round  without  with a sleeper  ratio")
        for i, (a, b) in enumerate(zip(without, with_sleeper, strict=True), 1):
            lines.append(f"{i:5}  {a:6.2f}s  {b:13.2f}s  {b / a:5.2f}")
        most = max(b / a for a, b in zip(without, with_sleeper, strict=True))
        verdict = "kept" if most <= BAR else "BROKEN"
        lines.append(f"largest ratio {most:.2f}, bar {BAR:.0f}: {verdict}")
        asked = [(at, a) for at, node, a in watch.asked if node == watch.sleeper]
        for _, assignment in asked:
            lines.append(
                f"the sleeper was given partitions {list(assignment.partitions)} "
                f"in round {assignment.server_round}"
            )
        early = sum(
            sum(answer <= at for answer in watch.answered) < i
            for i, (at, _) in enumerate(asked)
        )
        verdict = "kept" if not early else "BROKEN"
        lines.append(f"work given before it answered: {early}, bar 0: {verdict}")

    resources = {
        "init_args": {"num_cpus": arguments.processes},
        "client_resources": {"num_cpus": 1},
    }
    run_simulation(server, make_client(), NODES, "ray", resources)
    print("\n".join(lines))
    if not lines or any("BROKEN" in line for line in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
