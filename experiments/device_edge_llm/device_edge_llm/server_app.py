"""device_edge_llm: the ServerApp."""

from __future__ import annotations

import logging
import math
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg, Strategy

from device_edge_llm.answers import Answers, answer_table, write_answers
from device_edge_llm.data import check_data
from device_edge_llm.edge import make_answering, make_evaluation
from device_edge_llm.report import Inference, Report, RoundRecord, table, write_report
from device_edge_llm.samples import make_samples
from device_edge_llm.settings import BOTH, EDGEPROMPT, Settings
from device_edge_llm.task import delay_model, make_drafter
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.report import write_page
from flower_ext.strategies import (
    TwoStageCoded,
    WithCheckpoints,
    WithInference,
    WithTensorBoard,
)

NODES_TIMEOUT = 10.0  # seconds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Train the drafter, measure it before, meanwhile and after, and report.

    With ``inference="edgeprompt"`` there is no drafter: nodes answer prompts alone.
    """
    settings = Settings.from_run_config(context.run_config)
    check_data(settings)
    delay_model(settings)
    folder = make_results_folder(settings)
    wait_for_nodes(grid, settings.num_nodes)
    answers: list[Answers] = []
    if settings.inference == EDGEPROMPT:
        with only_warnings("flwr"):
            answer(grid, settings, answers)
        tell_answers(folder, answers, settings)
        tell_page(folder)
        return
    say(
        f"{settings.data} text in {settings.num_partitions} partitions by speaker; "
        f"{settings.num_nodes} nodes; a drafter that is {settings.start}, trained by "
        f"{settings.loss}; {settings.protocol}, {settings.draft_length or 'adaptive'} "
        f"tokens per draft, edge {settings.edge}"
    )
    arrays = ArrayRecord(make_drafter(settings).state_dict())
    with only_warnings("flwr"):
        report = Report(before=measure(grid, arrays, settings))
        say(progress(0, settings.num_server_rounds, report.before))
        arrays = train(grid, arrays, settings, report, answers)
        report.after = measure(grid, arrays, settings)
    report.samples = make_samples(arrays, settings)
    paths = write_report(folder, report, asdict(settings))
    say("\n" + table(report, settings.target_acceptance) + "\n")
    for path in paths:
        say(f"Wrote {path}")
    if settings.inference == BOTH:
        tell_answers(folder, answers, settings)
    tell_page(folder)


def answer(grid: Grid, settings: Settings, answers: list[Answers]) -> None:
    """Have all nodes answer their prompts behind the public text, and train nothing."""
    say(
        f"{settings.num_nodes} nodes answer private prompts behind "
        f"{settings.public_tokens} public tokens, edge {settings.edge}"
    )
    evaluation = make_answering(settings)
    idle = FedAvg(fraction_train=0.0, fraction_evaluate=0.0)
    strategy = WithInference(idle, evaluation)
    arrays = ArrayRecord({"none": Array(np.zeros(1, np.float32))})
    started: Strategy = strategy
    if settings.tensorboard_dir:
        started = WithTensorBoard(strategy, settings.tensorboard_dir)
    started.start(grid, arrays, num_rounds=settings.num_server_rounds)
    for server_round, metrics in strategy.inference_metrics.items():
        answers.append(Answers.from_metrics(server_round, metrics, evaluation.prefix))


def tell_answers(folder: Path, answers: list[Answers], settings: Settings) -> None:
    """Print and write what EdgePrompt has measured."""
    say("\n" + answer_table(answers) + "\n")
    say(f"Wrote {write_answers(folder, answers, asdict(settings))}")


def tell_page(folder: Path) -> None:
    """Make a page of what has been written, where what that needs is installed."""
    try:
        say(f"Wrote {write_page(folder)}")
    except FlowerExtError as error:  # minutes of training are not lost for that
        say(f"There is no report.html: {error}")


def measure(grid: Grid, arrays: ArrayRecord, settings: Settings) -> Inference:
    """Measure a drafter on all nodes, by a round without training.

    The round has the same number each time, and so the same prompts and random choices.
    """
    evaluation = make_evaluation(settings)
    idle = FedAvg(fraction_train=0.0, fraction_evaluate=0.0)
    strategy = WithInference(idle, evaluation)
    strategy.start(grid, arrays, num_rounds=1)
    return Inference.from_metrics(strategy.inference_metrics[1], evaluation.prefix)


def train(
    grid: Grid,
    arrays: ArrayRecord,
    settings: Settings,
    report: Report,
    answers: list[Answers],
) -> ArrayRecord:
    """Train in coded rounds, record each, and return the last drafter's weights.

    With ``inference="both"``, nodes also answer prompts by EdgePrompt in every round.
    """
    coded = TwoStageCoded(
        num_partitions=settings.num_partitions,
        stragglers=settings.stragglers,
        verify_replies=settings.verify_replies,
        clock="virtual",
        seed=settings.seed,
        fraction_evaluate=0.0,
        min_available_nodes=settings.num_nodes,
    )
    evaluation = make_evaluation(settings)
    answering = [make_answering(settings)] if settings.inference == BOTH else []
    strategy = WithInference(coded, evaluation, *answering)

    def tell(server_round: int, arrays: ArrayRecord) -> None:
        """Say how a round went once it is over."""
        del arrays
        if server_round == 0:
            return
        inference = Inference.from_metrics(
            strategy.inference_metrics[server_round], evaluation.prefix
        )
        measured = coded.round_metrics[server_round]
        say(
            progress(server_round, settings.num_server_rounds, inference)
            + f"  round {measured['elapsed-seconds']:.2f} s"
            + ("  skipped" if measured["skipped"] else "")
        )

    started: Strategy = strategy
    if settings.saved_in:
        told = asdict(settings)
        for key in ("num_server_rounds", "resume_from", "checkpoint_dir"):
            del told[key]
        started = WithCheckpoints(
            strategy,
            settings.saved_in,
            resume_from=settings.resume_from or None,
            settings=told,
        )
    if settings.tensorboard_dir:
        started = WithTensorBoard(started, settings.tensorboard_dir)
    result = started.start(
        grid, arrays, num_rounds=settings.num_server_rounds, evaluate_fn=tell
    )
    elapsed = 0.0
    # Of the rounds before a resumption, too.
    for server_round, measured in coded.round_metrics.items():
        found = strategy.inference_metrics[server_round]
        elapsed += measured["elapsed-seconds"]
        trained = result.train_metrics_clientapp[server_round]
        report.rounds.append(
            RoundRecord(
                server_round=server_round,
                round_seconds=measured["elapsed-seconds"],
                elapsed_seconds=elapsed,
                train_loss=trained.get("train-loss", math.nan),
                redundancy=measured["redundancy"],
                coverage=measured["coverage"],
                skipped=measured["skipped"],
                inference=Inference.from_metrics(found, evaluation.prefix),
                verified=measured.get("verified"),
                liars=measured.get("liars"),
            )
        )
        answers.extend(
            Answers.from_metrics(server_round, found, each.prefix) for each in answering
        )
    report.timelines.extend(coded.timelines.values())
    return result.arrays


def progress(server_round: int, num_rounds: int, measured: Inference) -> str:
    """Return an evaluation as a line of text."""
    return (
        f"round {server_round:>2}/{num_rounds}  acceptance {measured.acceptance:.3f}"
        f"  tokens/round {measured.tokens_per_round:.2f}"
        f"  tokens/s {measured.tokens_per_second:5.1f}"
        f"  bytes/token up {measured.uplink_bytes:.1f}"
        f" down {measured.downlink_bytes:.1f}"
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
                "    flwr run experiments/device_edge_llm --stream "
                f"--federation-config 'num-supernodes={wanted} "
                "client-resources-num-cpus=1'\n\n"
                f"Or train on {found} nodes: -c 'num-nodes={found} "
                f"stragglers={min(1, max(found - 1, 0))}'"
            )
        time.sleep(0.2)


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
