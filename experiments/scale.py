"""How far one server goes: rounds per minute and memory by workers and model size.

``python experiments/scale.py`` drives ``TwoStageCoded`` rounds over workers whose
replies are made here: real float32 arrays of the model's size, one per worker and
round, delivered one after the other as Flower's grid delivers them. Everything of the
server is real: the holdings of the nodes, the plan, the history, the checks of each
reply, decoding and the new model. Making the replies is not the server's work, and its
time is left out. What does not fit into ``--memory`` is not run and shown as its need.

``replies`` is what all replies of a round weigh, ``peak`` the process's largest
resident memory in excess of what it held before the first round, ``per GB`` the
server's seconds per gigabyte of replies.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import logging
import multiprocessing
import resource
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import InMemoryGrid

from flower_ext.coding.assignment import ASSIGNMENT_KEY, HOLDINGS_KEY, Assignment
from flower_ext.coding.reply import ReplySummary
from flower_ext.strategies import TwoStageCoded

WORKERS = (10, 100, 1_000, 10_000)
PARAMETERS = (100_000, 1_000_000, 10_000_000, 100_000_000)
FIRST_NODE = 1_000_000
BASE_SECONDS = 1.0  # a partition's, on the virtual clock
GB = 1e9


class SimulatedWorkers(InMemoryGrid):
    """Workers that answer at once, by times that they report.

    To the strategy it is the grid of Flower's simulation engine, which it looks at in
    its own thread.

    Parameters
    ----------
    count : int
        Number of workers, and of partitions; each holds all of them.
    seed : int
        Of their speeds.
    """

    def __init__(self, count: int, seed: int) -> None:
        self.count = count
        self.making_seconds = 0.0
        self.reply_bytes = 0
        self._rng = np.random.default_rng(seed)
        self._seconds = BASE_SECONDS * self._rng.lognormal(0.0, 0.3, count)
        self._asked: dict[str, Message] = {}
        self._numbers = itertools.count()
        # Messages can only be made within a task; this process is it.
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """There is no record of the run."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Messages are made directly."""
        raise NotImplementedError

    def get_nodes(self) -> Any:
        """Nodes have nothing but an id."""
        raise NotImplementedError

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Any:
        """Refuse: rounds are driven by pushing and pulling."""
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        """Return the ids of all workers."""
        return list(range(FIRST_NODE, FIRST_NODE + self.count))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Take messages; they are answered when they are looked for."""
        ids = []
        for message in messages:
            message_id = f"message-{next(self._numbers)}"
            message.metadata.__dict__["_message_id"] = message_id
            self._asked[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the answers to some of the messages that have none yet."""
        begun = time.perf_counter()
        asked = (self._asked.pop(i) for i in message_ids if i in self._asked)
        answers = [self._answer(message) for message in itertools.islice(asked, 32)]
        self.making_seconds += time.perf_counter() - begun
        return answers

    def _answer(self, message: Message) -> Message:
        worker = message.metadata.dst_node_id - FIRST_NODE
        configs = message.content.config_records
        if HOLDINGS_KEY in configs:
            holdings = {
                "partitions": [],
                "all": True,
                "num-partitions": self.count,
                "worker": worker,
            }
            content = RecordDict({HOLDINGS_KEY: ConfigRecord(holdings)})
            return Message(content, reply_to=message)
        assignment = Assignment.from_config(configs[ASSIGNMENT_KEY])
        row = np.array(assignment.coefficients)
        examples = np.full(len(row), 10.0)
        arrays = {}
        for name, array in message.content["arrays"].items():
            # The update of every partition is 1/1000 everywhere.
            values = np.full(array.shape, 1e-3 * float(row @ examples), np.float32)
            arrays[name] = Array(values)
            self.reply_bytes += values.nbytes
        slow = self._rng.random(len(row)) < 0.02
        seconds = self._seconds[worker] * np.where(slow, 8.0, 1.0)
        summary = ReplySummary(
            assignment.partitions,
            tuple(examples.tolist()),
            float(row @ examples),
            tuple(seconds.tolist()),
            0.05,
            tuple({"num-examples": 10} for _ in row),
        )
        content = RecordDict(
            {
                "arrays": ArrayRecord(arrays),
                "metrics": MetricRecord(summary.to_metrics()),
            }
        )
        return Message(content, reply_to=message)


def model(parameters: int) -> ArrayRecord:
    """Return arrays of so many parameters, in layers of at most four million."""
    sizes = [4_000_000] * (parameters // 4_000_000)
    if parameters % 4_000_000:
        sizes.append(parameters % 4_000_000)
    return ArrayRecord(
        {f"layer-{i}": Array(np.zeros(n, np.float32)) for i, n in enumerate(sizes)}
    )


def peak_bytes() -> int:
    """Return the largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(workers: int, parameters: int, rounds: int, seed: int) -> dict[str, float]:
    """Run rounds, and return what they cost; the first one, which is cold, apart."""
    logging.getLogger("flwr").setLevel(logging.WARNING)
    # Large buffers go back to the system when freed, so that the peak is what is used.
    ctypes.CDLL(None).mallopt(-3, 1 << 20)
    grid = SimulatedWorkers(workers, seed)
    strategy = TwoStageCoded(
        num_partitions=workers,
        fraction_evaluate=0.0,
        clock="virtual",
        min_available_nodes=workers,
    )
    arrays = model(parameters)
    before = peak_bytes()
    marks: list[tuple[float, float, int]] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        del server_round, arrays
        marks.append((time.perf_counter(), grid.making_seconds, grid.reply_bytes))

    strategy.start(grid, arrays, num_rounds=rounds + 1, evaluate_fn=evaluate)
    spent = [
        (end - begun) - (made - made_before)
        for (begun, made_before, _), (end, made, _) in itertools.pairwise(marks)
    ]
    weight = [b - a for (_, _, a), (_, _, b) in itertools.pairwise(marks)]
    seconds = float(np.median(spent[1:]))
    replied = float(np.median(weight[1:]))
    return {
        "workers": workers,
        "parameters": parameters,
        "rounds": rounds,
        "cold_round_seconds": spent[0],
        "round_seconds": seconds,
        "rounds_per_minute": 60.0 / seconds,
        "replies_gb": replied / GB,
        "peak_gb": (peak_bytes() - before) / GB,
        "seconds_per_gb": seconds / (replied / GB),
    }


def measure_apart(*case: int) -> dict[str, float]:
    """Measure in a process of its own, whose memory is this case's alone."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, case)


def main() -> None:
    """Measure every size that fits, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--parameters", type=int, nargs="+", default=PARAMETERS)
    parser.add_argument("--memory", type=float, default=10.0, help="GB (default: 10)")
    parser.add_argument("--rounds", type=int, default=3, help="after the cold one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    columns = "workers parameters rounds/min s/round cold(s) replies(GB) peak(GB) s/GB"
    print("".join(f"{column:>12}" for column in columns.split()), flush=True)
    found = []
    for parameters in args.parameters:
        for workers in args.workers:
            # Stage two may add as many replies again in a bad round.
            need = 1.3 * workers * parameters * 4 / GB
            if need > args.memory:
                told = f"needs about {workers * parameters * 4 / GB:,.0f} GB"
                print(f"{workers:>12}{parameters:>12.0e}  {told}", flush=True)
                continue
            case = measure_apart(workers, parameters, args.rounds, args.seed)
            found.append(case)
            print(
                f"{workers:>12}{parameters:>12.0e}{case['rounds_per_minute']:>12.1f}"
                f"{case['round_seconds']:>12.3f}{case['cold_round_seconds']:>12.3f}"
                f"{case['replies_gb']:>12.3f}{case['peak_gb']:>12.3f}"
                f"{case['seconds_per_gb']:>12.2f}",
                flush=True,
            )
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
