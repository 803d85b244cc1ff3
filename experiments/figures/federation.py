"""Rounds of the app's federation within one process, and what they spent.

The strategies, clients, links and devices are the app's own; see ``in_process.py``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from flwr.app import ArrayRecord
from flwr.clientapp.typing import ClientAppCallable
from in_process import InProcessGrid, run_config, untrained
from two_stage_coded.data import load_data
from two_stage_coded.server_app import make_strategy
from two_stage_coded.settings import Settings
from two_stage_coded.task import delay_model, make_net
from two_stage_coded.task import test as test_net

from flower_ext.clients import CodedClientApp, coded_training, straggler_mod
from flower_ext.network import DelayModel, EdgeNetwork, EnergyLedger
from flower_ext.strategies.coded_round import CodedRound
from flower_ext.strategies.coded_strategy import CodedStrategy
from flower_ext.strategies.staged_grid import StagedGrid

TESTED = 2000  # test images, at most
_NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class SlowInTurn:
    """In every round the same number of workers is slow, others each time.

    Parameters
    ----------
    base : DelayModel
        The delays of a worker that is not.
    workers, slow : int
        How many there are, and how many of them are slow.
    slowdown : float
        Factor on their compute times.
    seed : int
        Draws who is slow, anew for every round.
    """

    base: DelayModel
    workers: int
    slow: int
    slowdown: float
    seed: int

    def compute_seconds(self, worker: int, server_round: int, partition: int) -> float:
        seconds = self.base.compute_seconds(worker, server_round, partition)
        order = np.random.default_rng([self.seed, server_round]).permutation(
            self.workers
        )
        return seconds * (self.slowdown if worker in order[: self.slow] else 1.0)

    def upload_seconds(self, worker: int, server_round: int) -> float:
        return self.base.upload_seconds(worker, server_round)


@dataclass(frozen=True)
class Spent:
    """One round: what it took, and what of that was of use.

    Parameters
    ----------
    seconds : float
        How long it took.
    exact : bool
        Whether its replies gave the whole update.
    compute, airtime : float
        Seconds that all workers computed for it and that their uploads take of the
        carrier, also after it had decoded.
    useful_compute : float
        Seconds of one computation of each partition that is in the update, the
        shortest among the replies used.
    useful_airtime : float
        Seconds that the uploads of the replies used took.
    partitions : int
        How many are in the update.
    redundancy : float
        How often a partition was given out, on average.
    accuracy : float
        On the test images, after it; NaN where nothing was trained.
    """

    seconds: float
    exact: bool
    compute: float
    airtime: float
    useful_compute: float
    useful_airtime: float
    partitions: int
    redundancy: float
    accuracy: float = math.nan


class _Ledger(EnergyLedger):
    """A ledger that remembers the airtime of each reply of a round."""

    def __init__(self, network: EdgeNetwork) -> None:
        super().__init__(network)
        self.replies: dict[tuple[int, float], float] = {}

    def spend(self, worker: int, compute_seconds: float, airtime: float) -> None:
        self.replies[worker, compute_seconds] = airtime
        super().spend(worker, compute_seconds, airtime)


@dataclass
class _Watch:
    """Looks over a strategy's shoulder."""

    strategy: CodedStrategy
    rounds: list[Spent] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Put itself around what a round begins and ends with."""
        configure, aggregate = (
            self.strategy.configure_train,
            self.strategy.aggregate_train,
        )
        network = self.strategy.network
        grids: list[StagedGrid] = []

        def configure_train(
            server_round: int, arrays: Any, config: Any, grid: Any
        ) -> Any:
            if network is not None and not isinstance(grid.ledger, _Ledger):
                grid.ledger = _Ledger(network)
            if isinstance(grid.ledger, _Ledger):
                grid.ledger.replies.clear()
            grids[:] = [grid]
            return configure(server_round, arrays, config, grid)

        def aggregate_train(server_round: int, replies: Any) -> Any:
            useful = _useful(replies.coded_round, grids[0])
            result = aggregate(server_round, replies)
            metrics = self.strategy.round_metrics[server_round]
            self.rounds.append(_spent(metrics, useful))
            return result

        vars(self.strategy).update(
            configure_train=configure_train, aggregate_train=aggregate_train
        )


def _useful(done: CodedRound, grid: StagedGrid) -> tuple[float, float, int]:
    """Return useful seconds of computing and airtime, and partitions in the update."""
    outcome = done.outcome
    assert outcome is not None
    shortest: dict[int, float] = {}
    airtime = 0.0
    for key, weight in outcome.weights.items():
        if abs(weight) <= _NEGLIGIBLE:
            continue
        summary = done.replies[key][1]
        for p, took in zip(summary.partitions, summary.compute_seconds, strict=True):
            shortest[p] = min(shortest.get(p, math.inf), took)
        if isinstance(grid.ledger, _Ledger):
            place = grid.place(done.plan.dispatches[key].worker)
            airtime += grid.ledger.replies[place, sum(summary.compute_seconds)]
    return math.fsum(shortest.values()), airtime, len(shortest)


def _spent(metrics: Mapping[str, Any], useful: tuple[float, float, int]) -> Spent:
    return Spent(
        seconds=metrics["elapsed-seconds"],
        exact=metrics["residual"] < 1e-6 and not metrics["skipped"],
        compute=metrics.get("compute-seconds", math.nan),
        airtime=metrics.get("airtime-seconds", math.nan),
        useful_compute=useful[0],
        useful_airtime=useful[1],
        partitions=useful[2],
        redundancy=metrics["redundancy"],
    )


def settle(**changes: Any) -> tuple[Settings, dict[str, Any]]:
    """Return the app's settings with changes, and the run-config they come from."""
    config = run_config(**changes)
    return Settings.from_run_config(config), config


def initial_model(settings: Settings) -> ArrayRecord:
    """Return the model that training begins with."""
    data = load_data(settings.dataset, settings.data_dir, settings.download)
    torch.manual_seed(settings.seed)
    return ArrayRecord(make_net(data.train_images).state_dict())


def _unseeded() -> Any:
    """Leave out the seeding of partitions, half of the cost of untrained rounds."""
    return patch.object(coded_training, "seed_partition", lambda *_: None)


def simulate(
    name: str,
    settings: Settings,
    config: dict[str, Any],
    rounds: int,
    delays: DelayModel | None = None,
    train: ClientAppCallable = untrained,
) -> list[Spent]:
    """Run rounds of one scheme.

    Parameters
    ----------
    name : str
        As in the app's run-config.
    settings : Settings
        The app's.
    config : dict[str, Any]
        What they were read from.
    rounds : int
        How many.
    delays : DelayModel, optional
        The workers'; by default those of the settings.
    train : ClientAppCallable
        What the workers do; by default nothing, and then accuracy is not measured.
    """
    torch.set_num_threads(1)
    logging.getLogger("flwr").setLevel(logging.ERROR)  # thousands of rounds
    strategy = make_strategy(name, settings)
    watch = _Watch(strategy)
    mod = straggler_mod(delay_model(settings) if delays is None else delays)
    app = CodedClientApp(partitions="all", mods=[mod])
    app.train()(train)
    grid = InProcessGrid(app, settings.num_nodes, config, settings.num_partitions)
    accuracies: list[float] = []

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        if train is not untrained:
            accuracies.append(accuracy(settings, arrays))

    arrays = initial_model(settings)
    if train is untrained:  # as many bytes, faster
        size = sum(array.numpy().size for array in arrays.values())
        arrays = ArrayRecord([np.zeros(size, dtype=np.float32)])
    with _unseeded() if train is untrained else nullcontext():
        strategy.start(grid, arrays, num_rounds=rounds, evaluate_fn=evaluate)
    if accuracies:
        pairs = zip(watch.rounds, accuracies[1:], strict=True)
        return [replace(spent, accuracy=reached) for spent, reached in pairs]
    return watch.rounds


def accuracy(settings: Settings, arrays: ArrayRecord) -> float:
    """Return the accuracy on at most `TESTED` test images, the same for everybody."""
    data = load_data(settings.dataset, settings.data_dir, settings.download)
    chosen = np.random.default_rng(0).permutation(len(data.test_labels))[:TESTED]
    net = make_net(data.train_images)
    net.load_state_dict(arrays.to_torch_state_dict())
    images, labels = data.test_images[chosen], data.test_labels[chosen]
    return test_net(net, torch.from_numpy(images), torch.from_numpy(labels))[1]


def mean_of(rounds: Sequence[Spent], name: str) -> float:
    """Return the mean of a field over rounds."""
    return float(np.mean([getattr(spent, name) for spent in rounds]))
