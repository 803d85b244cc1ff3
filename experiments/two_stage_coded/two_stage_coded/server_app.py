"""two_stage_coded: the ServerApp."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.strategies import (
    CodedFedAvg,
    TwoStageCoded,
    WithCheckpoints,
    WithTensorBoard,
)
from flower_ext.strategies.coded_strategy import CodedStrategy
from two_stage_coded.data import load_data, load_partitions
from two_stage_coded.edge import make_network, make_scheduler
from two_stage_coded.report import (
    RoundRecord,
    StrategyReport,
    table,
    write_report,
)
from two_stage_coded.settings import Settings
from two_stage_coded.task import delay_model, make_net
from two_stage_coded.task import test as test_net

NODES_TIMEOUT = 10.0  # seconds
NO_DEADLINE = 1e6  # seconds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train under every strategy of the run-config, and report."""
    settings = Settings.from_run_config(context.run_config)
    folder = make_results_folder(settings)
    wait_for_nodes(grid, settings.num_nodes)
    data = load_data(settings.dataset, settings.data_dir, settings.download)
    load_partitions(settings)
    if settings.scheduler != "none" and "two-stage" not in settings.names:
        say("scheduler is set, but only the strategy two-stage has one: no effect.")
    say(
        f"{settings.dataset}: {len(data.train_labels)} training images in "
        f"{settings.num_partitions} partitions ({settings.split}), "
        f"{len(data.test_labels)} test images; {settings.num_nodes} nodes; "
        f"{settings.clock} clock"
    )
    if settings.clock == "wall":
        warm_up(grid, settings)
    reports = []
    for i, name in enumerate(settings.names):
        strategy = make_strategy(name, settings)
        if i and settings.clock == "wall":
            await_stragglers(settings)
        reports.append(train(grid, name, strategy, settings))
    paths = write_report(folder, reports, asdict(settings))
    say("\n" + table(reports, settings.target_accuracy) + "\n")
    for path in paths:
        say(f"Wrote {path}")


def make_strategy(name: str, settings: Settings) -> CodedStrategy:
    """Return a strategy by its name in the run-config."""
    common = {
        "num_partitions": settings.num_partitions,
        "clock": settings.clock,
        "seed": settings.seed,
        "fraction_evaluate": 0.0,
        "min_available_nodes": settings.num_nodes,
        "network": make_network(settings),
        "verify_replies": settings.verify_replies,
    }
    if name == "two-stage":
        return TwoStageCoded(
            stragglers=settings.stragglers,
            redundancy_price=settings.redundancy_price,
            scheduler=make_scheduler(settings),
            **common,
        )
    if name == "ignore-stragglers":
        return CodedFedAvg(
            code="uncoded",
            ignore_stragglers=settings.stragglers,
            min_coverage=0.0,
            **common,
        )
    if settings.clock == "virtual":  # nobody sits it out: let rounds be complete
        common["deadline"] = NO_DEADLINE
    return CodedFedAvg(code=name, stragglers=settings.stragglers, **common)


def train(
    grid: Grid, name: str, strategy: CodedStrategy, settings: Settings
) -> StrategyReport:
    """Train from the same initial model as every strategy, and record each round."""
    data = load_data(settings.dataset, settings.data_dir, settings.download)
    torch.manual_seed(settings.seed)
    net = make_net(data.train_images)
    images = torch.from_numpy(data.test_images)
    labels = torch.from_numpy(data.test_labels)

    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        """Evaluate the global model on the test images."""
        net.load_state_dict(arrays.to_torch_state_dict())
        loss, accuracy = test_net(net, images, labels)
        metrics = MetricRecord({"accuracy": accuracy, "loss": loss})
        if server_round > 0:
            record = record_round(name, strategy, server_round, metrics)
            say(progress(record, settings.num_server_rounds))
        return metrics

    started: Strategy = strategy
    if settings.saved_in:
        started = with_checkpoints(strategy, name, settings)
    if settings.tensorboard_dir:
        started = WithTensorBoard(started, Path(settings.tensorboard_dir) / name)
    with only_warnings("flwr"):
        result = started.start(
            grid,
            ArrayRecord(net.state_dict()),
            num_rounds=settings.num_server_rounds,
            evaluate_fn=evaluate,
        )
    # Of the rounds before a resumption, too.
    evaluated = result.evaluate_metrics_serverapp
    report = StrategyReport(name, initial_accuracy=evaluated[0]["accuracy"])
    report.rounds += [
        record_round(name, strategy, server_round, metrics)
        for server_round, metrics in evaluated.items()
        if server_round > 0
    ]
    report.timelines.extend(strategy.timelines.values())
    return report


def with_checkpoints(
    strategy: CodedStrategy, name: str, settings: Settings
) -> WithCheckpoints:
    """Return a strategy with checkpoints in a folder of its own.

    A strategy that the run to go on from had not come to begins anew.
    """
    source = Path(settings.resume_from) / name if settings.resume_from else None
    if source is not None and not any(source.glob("round-*.json")):
        source = None
    told = asdict(settings)
    for key in ("num_server_rounds", "resume_from", "checkpoint_dir", "results_dir"):
        del told[key]
    return WithCheckpoints(
        strategy,
        Path(settings.saved_in) / name,
        resume_from=source,
        settings=told,
    )


def record_round(
    name: str, strategy: CodedStrategy, server_round: int, metrics: MetricRecord
) -> RoundRecord:
    """Return what the strategy measured in a round, as a row of its report."""
    rounds = range(1, server_round + 1)
    measured = strategy.round_metrics[server_round]
    return RoundRecord(
        strategy=name,
        server_round=server_round,
        round_seconds=measured["elapsed-seconds"],
        elapsed_seconds=sum(
            strategy.round_metrics[r]["elapsed-seconds"] for r in rounds
        ),
        accuracy=metrics["accuracy"],
        loss=metrics["loss"],
        redundancy=measured["redundancy"],
        coverage=measured["coverage"],
        skipped=measured["skipped"],
        verified=measured.get("verified"),
        liars=measured.get("liars"),
        energy_joules=measured.get("energy-joules"),
        airtime_seconds=measured.get("airtime-seconds"),
        battery_lowest_joules=measured.get("battery-lowest-joules"),
        admitted=measured.get("admitted"),
        backlog_mean=measured.get("backlog-mean"),
        backlog_max=measured.get("backlog-max"),
        fairness=measured.get("fairness"),
        taking_part=measured.get("taking-part"),
    )


def progress(record: RoundRecord, num_rounds: int) -> str:
    """Return a round as a line of text."""
    return (
        f"{record.strategy:<19} round {record.server_round:>3}/{num_rounds}"
        f"  accuracy {record.accuracy:.3f}  round {record.round_seconds:7.2f} s"
        f"  total {record.elapsed_seconds:8.1f} s  coverage {record.coverage:.2f}"
        + ("  skipped" if record.skipped else "")
    )


def make_results_folder(settings: Settings) -> Path:
    """Make the folder for the results before anything is trained."""
    try:
        folder = Path(settings.results_dir).expanduser().absolute()
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # it can be written
            pass
    except OSError as error:
        raise InvalidInputError(
            f"Run-config key 'results-dir' is {settings.results_dir!r}, and that "
            f"cannot be written: {error}. A relative path starts where the SuperLink "
            "was started; set an absolute one: -c 'results-dir=\"/path/to/results\"'."
        ) from error
    say(f"Results go to {folder}")
    return folder


def wait_for_nodes(grid: Grid, wanted: int) -> None:
    """Wait until exactly the wanted number of nodes is connected."""
    until = time.monotonic() + NODES_TIMEOUT
    while (found := len(list(grid.get_node_ids()))) != wanted:
        if time.monotonic() > until:
            raise FlowerExtError(
                f"The federation has {found} nodes, and num-nodes is {wanted}. Have "
                f"{wanted} SuperNodes running. Where nodes are simulated, "
                "Flower makes 2 unless told otherwise; run:\n\n"
                "    flwr run experiments/two_stage_coded --stream "
                f"--federation-config 'num-supernodes={wanted} "
                "client-resources-num-cpus=1'\n\n"
                f"Or compare the strategies on {found} nodes: -c 'num-nodes={found} "
                f"stragglers={min(1, max(found - 1, 0))}'"
            )
        time.sleep(0.2)


def warm_up(grid: Grid, settings: Settings) -> None:
    """Train one round that does not count.

    Nodes take seconds to start and to load their data, which would be held against the
    first strategy.
    """
    one_round = replace(
        settings,
        num_server_rounds=1,
        verify_replies=0,
        tensorboard_dir="",
        checkpoint_dir="",
        resume_from="",
    )
    train(grid, "(warm-up)", make_strategy("uncoded", one_round), one_round)


def await_stragglers(settings: Settings) -> None:
    """Wait on the wall clock until the last strategy's stragglers have finished.

    A round does not end a straggler's work, and nodes that are still busy would hold up
    the next strategy.
    """
    delays = delay_model(settings)
    load = (settings.stragglers + 1) * -(-settings.num_partitions // settings.num_nodes)
    slowest = max(
        delays.compute_seconds(worker, settings.num_server_rounds, 0)
        for worker in range(settings.num_nodes)
    )
    time.sleep(load * slowest + settings.upload_seconds)


@contextmanager
def only_warnings(logger_name: str) -> Iterator[None]:
    """Keep a logger's information out of the progress of many short rounds."""
    logger = logging.getLogger(logger_name)
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        logger.setLevel(level)


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)
