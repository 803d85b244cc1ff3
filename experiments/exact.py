"""The promise *Exact*: coded rounds under stragglers train FedAvg's own model.

Twelve nodes train on the digits of scikit-learn in Flower's simulation, once by
Flower's FedAvg with nobody late, once by TwoStageCoded with three nodes, others in each
round, ten times slower (a quarter, on the virtual clock). Prints, for a convolutional
network and for one with batch normalisation, how far apart the two final models are:
the largest max|a - b| / max|b| of the arrays of each kind.

Integer buffers count batches and are compared with the true count: FedAvg averages them
as floats, 9.9999 for 10, and its clients lose a step whenever they load one.

    python experiments/exact.py
"""

from __future__ import annotations

import argparse
import warnings
from collections import OrderedDict

import numpy as np
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from flower_ext.clients import (
    CodedClientApp,
    current_partition_task,
    straggler_mod,
)
from flower_ext.strategies import TwoStageCoded

NODES = 12
STRAGGLERS = 3
BAR = 1e-4
BATCHES = 10  # of up to 16 examples, in each node's 149 or 150
MODELS = ("cnn", "cnn with batch normalisation")


class ThreeOfTwelve:
    """A quarter of the workers, others in each round, take ten seconds and not one."""

    def compute_seconds(self, worker: int, server_round: int, partition: int) -> float:
        order = np.random.default_rng([2024, server_round]).permutation(NODES)
        return 10.0 if worker in order[:STRAGGLERS] else 1.0

    def upload_seconds(self, worker: int, server_round: int) -> float:
        return 0.1


def make_net(kind: str) -> nn.Module:
    """Return a small convolutional network."""
    layers: list[nn.Module] = []
    for before, after in ((1, 8), (8, 16)):
        layers.append(nn.Conv2d(before, after, 3, padding=1))
        if kind == MODELS[1]:
            layers.append(nn.BatchNorm2d(after))
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 10))


def make_client() -> CodedClientApp:
    """Return the nodes' app; they straggle in coded rounds only."""
    delay = straggler_mod(ThreeOfTwelve())

    def delay_coded(
        msg: Message, ctxt: Context, call_next: ClientAppCallable
    ) -> Message:
        task = current_partition_task()
        coded = task is not None and task.virtual
        return delay(msg, ctxt, call_next) if coded else call_next(msg, ctxt)

    app = CodedClientApp(mods=[delay_coded], partitions="all")

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        torch.set_num_threads(1)
        net = make_net(str(msg.content["config"]["model"]))
        net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
        images, labels = load_digits(return_X_y=True)
        mine = np.array_split(np.arange(len(labels)), NODES)[
            int(context.node_config["partition-id"])
        ]
        x = torch.tensor(images[mine], dtype=torch.float32).reshape(-1, 1, 8, 8) / 16
        y = torch.tensor(labels[mine])
        optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
        for batch in torch.randperm(len(y)).split(16):
            optimizer.zero_grad()
            loss = cross_entropy(net(x[batch]), y[batch])
            loss.backward()
            optimizer.step()
        metrics = MetricRecord({"num-examples": len(y), "loss": loss.item()})
        arrays = ArrayRecord(net.state_dict())
        return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)

    return app


def differences(
    coded: ArrayRecord, fedavg: ArrayRecord, rounds: int
) -> dict[str, float]:
    """Return the largest relative difference of each kind of array."""
    found: dict[str, float] = {}
    for name, array in coded.items():
        value = array.numpy()
        if value.dtype.kind == "i":
            kind, expected = "integer buffers", np.array(rounds * BATCHES)
        else:
            kind = "running statistics" if "running" in name else "weights and biases"
            expected = fedavg[name].numpy()
        difference = np.abs(value.astype(float) - expected).max()
        relative = float(difference / np.abs(expected).max())
        found[kind] = max(found.get(kind, 0.0), relative)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    lines: list[str] = []
    server = ServerApp()

    @server.main()
    def run(grid: Grid, context: Context) -> None:
        worst = 0.0
        for kind in MODELS:
            torch.manual_seed(0)
            start = OrderedDict(make_net(kind).state_dict())
            final = []
            coded = TwoStageCoded(clock="virtual", fraction_evaluate=0.0)
            for strategy in (coded, FedAvg(fraction_evaluate=0.0)):
                result = strategy.start(
                    grid,
                    ArrayRecord(start),
                    rounds,
                    train_config=ConfigRecord({"model": kind}),
                )
                final.append(result.arrays)
            measured = coded.round_metrics.values()
            lines.append(
                f"{kind}: {rounds} rounds, {STRAGGLERS} of {NODES} nodes 10 x slower, "
                f"{sum(m['coverage'] == 1.0 for m in measured)} rounds complete, "
                f"{sum(m['stage-two-seconds'] > 0 for m in measured)} with a second "
                "stage; virtual seconds per round "
                + " ".join(f"{m['elapsed-seconds']:.1f}" for m in measured)
            )
            for name, value in differences(*final, rounds).items():
                worst = max(worst, value)
                lines.append(f"  {name:20} max relative difference {value:.1e}")
        verdict = "kept" if worst <= BAR else "BROKEN"
        lines.append(f"bar {BAR:.0e}: {verdict}")

    warnings.filterwarnings("ignore", category=DeprecationWarning)
    resources = {"init_args": {"num_cpus": 2}, "client_resources": {"num_cpus": 1}}
    run_simulation(server, make_client(), NODES, "ray", resources)
    print("\n".join(lines))
    if not lines or any("BROKEN" in line for line in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
