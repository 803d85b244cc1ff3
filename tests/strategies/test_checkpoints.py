"""A run that goes on from a checkpoint ends as if it had never stopped."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    FedAvgM,
    Result,
    Strategy,
)

from flower_ext.clients import CodedClientApp, ShiftedExponential, straggler_mod
from flower_ext.errors import InvalidInputError
from flower_ext.network import Device, EdgeNetwork, Link
from flower_ext.scheduling import LyapunovScheduler, Random
from flower_ext.strategies import CodedFedAvg, TwoStageCoded, WithCheckpoints
from flower_ext.strategies.coded_strategy import CodedStrategy
from flower_ext.strategies.staged_grid import StagedGrid
from flower_ext.strategies.timeline import RoundTimeline

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation

Client = Callable[..., CodedClientApp]
Make = Callable[[], Strategy]

ROUNDS = 9


class KilledError(Exception):
    """The end of a process, as far as the next one can tell."""


def network() -> EdgeNetwork:
    phone = Device(
        seconds_per_partition=1.0,
        compute_watts=2.0,
        transmit_watts=1.0,
        capacity_joules=5000.0,
        battery_joules=400.0,
    )
    links = [Link(up=300.0 + 40 * i, down=5000.0, rtt=0.05) for i in range(6)]
    return EdgeNetwork(links=links, devices=[phone] * 6)


STRATEGIES: dict[str, Make] = {
    "two-stage": lambda: TwoStageCoded(fraction_evaluate=0.5, clock="virtual"),
    "cyclic": lambda: CodedFedAvg(
        code="cyclic", stragglers=2, fraction_evaluate=0.0, clock="virtual"
    ),
    "network": lambda: TwoStageCoded(
        fraction_evaluate=0.0, clock="virtual", network=network()
    ),
    "lyapunov": lambda: TwoStageCoded(
        fraction_evaluate=0.0,
        clock="virtual",
        network=network(),
        scheduler=LyapunovScheduler(v=5.0),
    ),
    "random": lambda: TwoStageCoded(
        fraction_evaluate=0.0,
        clock="virtual",
        network=network(),
        scheduler=Random(np.random.default_rng(3)),
    ),
}


@pytest.fixture
def slow(coded_client: Client) -> CodedClientApp:
    """Clients whose work takes one to several seconds, so that some come late."""
    return coded_client(mods=[straggler_mod(ShiftedExponential(1.0, 1.5, seed=4))])


def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    return MetricRecord({"norm": float(np.abs(arrays["weight"].numpy()).sum())})


def killed_at(last: int) -> Callable[[int, ArrayRecord], MetricRecord]:
    def until(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        if server_round == last:
            raise KilledError
        return evaluate(server_round, arrays)

    return until


def same(one: Result, other: Result) -> None:
    assert one.arrays.keys() == other.arrays.keys()
    for name, array in one.arrays.items():
        assert array.numpy().tobytes() == other.arrays[name].numpy().tobytes(), name
    assert one.train_metrics_clientapp == other.train_metrics_clientapp
    assert one.evaluate_metrics_clientapp == other.evaluate_metrics_clientapp
    assert one.evaluate_metrics_serverapp == other.evaluate_metrics_serverapp


@pytest.mark.parametrize("kind", STRATEGIES)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(
    kind: str, federation: type[Federation], slow: CodedClientApp, tmp_path: Path
) -> None:
    make = STRATEGIES[kind]
    through = make()
    whole = federation(6, app=slow).run(
        WithCheckpoints(through, tmp_path / "whole"), ROUNDS, evaluate_fn=evaluate
    )
    for last in (1, 7):
        folder = tmp_path / str(last)
        with pytest.raises(KilledError):
            federation(6, app=slow).run(
                WithCheckpoints(make(), folder), ROUNDS, evaluate_fn=killed_at(last)
            )
        again = make()
        # A simulation gives its nodes other ids in every run.
        resumed = federation(6, app=slow, first=7000 + last).run(
            WithCheckpoints(again, folder, resume_from=folder),
            ROUNDS,
            evaluate_fn=evaluate,
        )

        same(whole, resumed)
        assert isinstance(again, CodedStrategy)
        assert isinstance(through, CodedStrategy)
        assert again.round_metrics == through.round_metrics
        assert without_ids(again) == without_ids(through)


def test_as_many_time_lines_as_wanted_come_back(
    federation: type[Federation], tmp_path: Path
) -> None:
    def make() -> TwoStageCoded:
        return TwoStageCoded(fraction_evaluate=0.0, keep_timelines=2)

    federation(6).run(WithCheckpoints(make(), tmp_path), 4)
    again, all_of_them = make(), TwoStageCoded(fraction_evaluate=0.0)
    for strategy in (again, all_of_them):
        resumed = WithCheckpoints(strategy, tmp_path, resume_from=tmp_path)
        federation(6).run(resumed, 5)

    assert list(again.timelines) == [4, 5]
    assert list(all_of_them.timelines) == [1, 2, 3, 4, 5]


def without_ids(strategy: CodedStrategy) -> dict[int, RoundTimeline]:
    """Return the time lines of a run, whose nodes have other ids in another one."""
    return {
        r: replace(
            line, dispatches=tuple(replace(d, node_id=0) for d in line.dispatches)
        )
        for r, line in strategy.timelines.items()
    }


def test_liars_are_remembered(
    federation: type[Federation], coded_client: Client, tmp_path: Path
) -> None:
    def lie(index: int, message: Message, reply: Message) -> Message:
        config: Any = message.content.config_records.get("config", {})
        if index == 2 and config.get("server-round") == 1:
            (arrays,) = reply.content.array_records.values()
            for name, array in list(arrays.items()):
                arrays[name] = Array(np.asarray(array.numpy() * np.float32(9)))
        return reply

    def make() -> TwoStageCoded:
        return TwoStageCoded(verify_replies=2, clock="virtual", fraction_evaluate=0.0)

    def run(strategy: Strategy, first: int = 100, until: int = -1) -> None:
        nodes = federation(6, app=coded_client(), behave=lie, first=first)
        nodes.run(strategy, 3, evaluate_fn=killed_at(until))

    through, again = make(), make()
    run(WithCheckpoints(through, tmp_path / "whole"))
    with pytest.raises(KilledError):
        run(WithCheckpoints(make(), tmp_path / "part"), until=2)
    folder = tmp_path / "part"
    run(WithCheckpoints(again, folder, resume_from=folder), first=7000)

    assert through.liars == {102: 1}
    assert again.liars == {7002: 1}


@pytest.mark.parametrize("kind", ["two-stage", "network"])
def test_nodes_that_fail_fail_in_the_resumed_run_as_well(
    kind: str,
    federation: type[Federation],
    slow: CodedClientApp,
    error_reply: Callable[..., Message],
    tmp_path: Path,
) -> None:
    def fail(index: int, message: Message, reply: Message) -> Message:
        config: Any = message.content.config_records["config"]
        if (index + config["server-round"]) % 3:
            return reply
        if index % 2:
            return error_reply(message, 2)
        for record in reply.content.array_records.values():
            record.pop("weight")
        return reply

    make = STRATEGIES[kind]
    through, again = make(), make()
    whole = federation(6, app=slow, behave=fail).run(
        WithCheckpoints(through, tmp_path / "whole"), ROUNDS, evaluate_fn=evaluate
    )
    folder = tmp_path / "part"
    with pytest.raises(KilledError):
        federation(6, app=slow, behave=fail).run(
            WithCheckpoints(make(), folder), ROUNDS, evaluate_fn=killed_at(4)
        )
    resumed = federation(6, app=slow, behave=fail, first=7000).run(
        WithCheckpoints(again, folder, resume_from=folder),
        ROUNDS,
        evaluate_fn=evaluate,
    )

    same(whole, resumed)
    assert isinstance(again, CodedStrategy)
    assert isinstance(through, CodedStrategy)
    assert without_ids(again) == without_ids(through)
    fates = {d.fate for line in again.timelines.values() for d in line.dispatches}
    assert fates >= {"failed", "rejected"}


def test_a_lie_that_is_under_way_is_not_checked_by_the_resumed_run(
    federation: type[Federation], coded_client: Client, tmp_path: Path
) -> None:
    """Nodes 1, 3 and 5 compute the same; 3 is used, 1 lies late, and 5 comes later."""

    def behave(index: int, message: Message, reply: Message) -> Message:
        config: Any = message.content.config_records["config"]
        (metrics,) = reply.content.metric_records.values()
        times: Any = metrics["flower-ext.compute-seconds"]
        took = {1: 15.0, 5: 25.0}.get(index, 2.0) if config["server-round"] == 1 else 10
        metrics["flower-ext.compute-seconds"] = [took / len(times)] * len(times)
        if index == 1 and config["server-round"] == 1:
            (arrays,) = reply.content.array_records.values()
            for name, array in list(arrays.items()):
                arrays[name] = Array(np.asarray(array.numpy() * np.float32(9)))
        return reply

    def run(strategy: Strategy, first: int = 100, until: int = -1) -> None:
        nodes = federation(6, app=coded_client(), behave=behave, first=first)
        nodes.run(strategy, 4, evaluate_fn=killed_at(until))

    def make() -> CodedFedAvg:
        return CodedFedAvg(
            code="fractional", stragglers=2, fraction_evaluate=0.0, clock="virtual"
        )

    through, again = make(), make()
    run(through)
    folder = tmp_path
    with pytest.raises(KilledError):
        run(WithCheckpoints(make(), folder), until=1)
    run(WithCheckpoints(again, folder, resume_from=folder), first=7000)

    assert through.liars == {101: 1}
    assert not again.liars
    assert {d.worker: d.fate for d in again.timelines[1].dispatches}[1] == "late"


@pytest.mark.parametrize("fraction_train", [1.0, 0.0])
def test_how_long_evaluations_take_is_remembered(
    fraction_train: float,
    federation: type[Federation],
    coded_client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    logged: pytest.LogCaptureFixture,
) -> None:
    """Where all are silent, only the history says when an evaluation is to end."""
    monkeypatch.setattr("flower_ext.strategies.answer_times.LEAST_DEADLINE", 0.3)
    silent = False

    def behave(index: int, message: Message, reply: Message) -> Message | None:
        return None if silent and message.metadata.message_type == "evaluate" else reply

    def run(strategy: CodedStrategy, first: int = 100, **options: Any) -> None:
        nodes = federation(4, app=coded_client(), behave=behave, first=first)
        nodes.run(WithCheckpoints(strategy, tmp_path, **options), 3, evaluate_fn=ends)

    grids: list[StagedGrid] = []

    def watched(*args: Any, **kwargs: Any) -> StagedGrid:
        grids.append(stage(*args, **kwargs))
        return grids[-1]

    ends = killed_at(2)
    with pytest.raises(KilledError):
        run(TwoStageCoded(fraction_train=fraction_train))
    silent, ends = True, evaluate
    again = TwoStageCoded(fraction_train=fraction_train)
    stage = again._stage
    monkeypatch.setattr(again, "_stage", watched)
    start = time.monotonic()
    run(again, first=7000, resume_from=tmp_path)

    assert time.monotonic() - start < 10  # of 20, the run's timeout
    assert re.search(r"evaluate: (\d) of \1 nodes did not answer within", logged.text)
    told = grids[0].checkpoint()["evaluations"]
    # A node that still trains is not asked.
    assert told["seconds"].keys() <= {7000, 7001, 7002, 7003}
    assert max(len(seconds) for seconds in told["seconds"].values()) > 1


def test_replies_are_under_way_when_the_run_ends(
    federation: type[Federation], slow: CodedClientApp, tmp_path: Path
) -> None:
    """What the tests above are for happens in them."""
    for kind, name in (("two-stage", "ready"), ("network", "uploading")):
        folder = tmp_path / kind
        with pytest.raises(KilledError):
            federation(6, app=slow).run(
                WithCheckpoints(STRATEGIES[kind](), folder),
                ROUNDS,
                evaluate_fn=killed_at(1),
            )
        told = json.loads((folder / "round-000001.json").read_text())
        strategy = told["state"]["dict"]["strategies"][0]["dict"]["state"]["dict"]
        grid = strategy["grid"]["dict"]
        assert grid[name] not in ([], {"dict": {}}, {"items": []})


class Noisy(FedAvg):
    """A user's strategy that counts, and draws from the global generators."""

    def __init__(self) -> None:
        super().__init__(fraction_evaluate=0.0, fraction_train=0.5)
        self.counted = 0

    def aggregate_train(self, server_round: int, replies: Any) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.counted += 1
        drawn = random.random() + np.random.rand() + float(torch.rand(()))  # noqa: NPY002
        assert metrics is not None
        return arrays, MetricRecord({**metrics, "drawn": drawn, "count": self.counted})


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAdam(fraction_evaluate=0.0, eta=0.1),
        lambda: FedAvgM(fraction_evaluate=0.0, server_momentum=0.9),
        Noisy,
        lambda: DifferentialPrivacyServerSideFixedClipping(
            FedAdam(fraction_evaluate=0.0, eta=0.1),
            noise_multiplier=0.0,
            clipping_norm=1e3,
            num_sampled_clients=6,
        ),
    ],
)
def test_flowers_own_strategies(
    make: Make,
    federation: type[Federation],
    coded_client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arrays = ArrayRecord({"weight": Array(np.linspace(-1, 1, 12, dtype=np.float32))})

    def run(strategy: Strategy, until: int = -1) -> Result:
        nodes = federation(6, app=coded_client())
        monkeypatch.setattr(nodes.grid, "send_and_receive", send(nodes))
        return strategy.start(
            nodes.grid, arrays, num_rounds=6, evaluate_fn=killed_at(until)
        )

    def send(nodes: Federation) -> Any:
        def both(messages: Any, timeout: float) -> Any:
            return nodes.grid.pull_messages(list(nodes.grid.push_messages(messages)))

        return both

    def seeded() -> None:
        random.seed(1)
        np.random.seed(1)  # noqa: NPY002
        torch.manual_seed(1)

    seeded()
    whole = run(WithCheckpoints(make(), tmp_path / "whole"))
    seeded()
    with pytest.raises(KilledError):
        run(WithCheckpoints(make(), tmp_path / "part"), until=4)
    resumed = run(
        WithCheckpoints(make(), tmp_path / "part", resume_from=tmp_path / "part")
    )

    same(whole, resumed)


def test_a_run_killed_in_round_0_goes_on_with_the_model_it_reported(
    federation: type[Federation], tmp_path: Path
) -> None:
    def model(value: float) -> ArrayRecord:
        return ArrayRecord({"weight": Array(np.full(5, value, np.float32))})

    whole = training().start(federation(6).grid, model(0), 2)
    with pytest.raises(KilledError):
        WithCheckpoints(training(), tmp_path).start(
            federation(6).grid, model(0), 2, evaluate_fn=killed_at(0)
        )
    again = WithCheckpoints(training(), tmp_path, resume_from=tmp_path)
    resumed = again.start(federation(6).grid, model(100), 2)

    for name, array in whole.arrays.items():
        np.testing.assert_allclose(
            resumed.arrays[name].numpy(), array.numpy(), rtol=1e-5, atol=1e-6
        )


class Accounting(FedAvg):
    """A strategy with a state of its own kind."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.accountant = np.random.default_rng(0)


def test_what_a_checkpoint_cannot_hold_is_named(
    federation: type[Federation],
    coded_client: Client,
    tmp_path: Path,
    logged: pytest.LogCaptureFixture,
) -> None:
    federation(6, app=coded_client()).run(
        WithCheckpoints(Accounting(fraction_evaluate=0.0), tmp_path), num_rounds=0
    )

    (told,) = [m for m in logged.messages if "cannot hold" in m]
    assert "Accounting.accountant (Generator)" in told


def test_drafts_of_processes_that_were_killed_are_removed(
    federation: type[Federation], tmp_path: Path
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    ours = tmp_path / f".round-000007.safetensors.{os.getpid()}"
    theirs = tmp_path / f".told-000007.json.{ended.pid}"
    for draft in (ours, theirs):
        draft.write_bytes(b"half")
    federation(6).run(WithCheckpoints(training(), tmp_path), 1)

    assert ours.exists()
    assert not theirs.exists()


def test_what_has_been_reported_is_on_the_disk(
    federation: type[Federation], tmp_path: Path
) -> None:
    reported = []

    def report(server_round: int, arrays: ArrayRecord) -> None:
        reported.append(server_round)
        assert (tmp_path / f"round-{server_round:06d}.json").exists()

    federation(6).run(WithCheckpoints(training(), tmp_path), 3, evaluate_fn=report)
    again = WithCheckpoints(training(), tmp_path, resume_from=tmp_path)
    federation(6).run(again, 5, evaluate_fn=report)

    assert reported == [0, 1, 2, 3, 3, 4, 5]
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"round-{r:06d}.{kind}" for r in (4, 5) for kind in ("json", "safetensors")
    ] + [f"told-{r:06d}.json" for r in range(6)]


def training() -> TwoStageCoded:
    return TwoStageCoded(fraction_evaluate=0.0)


def test_a_damaged_checkpoint_is_not_used(
    federation: type[Federation],
    tmp_path: Path,
    logged: pytest.LogCaptureFixture,
) -> None:
    federation(6).run(WithCheckpoints(training(), tmp_path, keep=3), 3)
    for name in ("round-000003.safetensors", "round-000002.json"):
        path = tmp_path / name
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    again = WithCheckpoints(training(), tmp_path, resume_from=tmp_path)
    messages = federation(6)
    messages.run(again, 3)

    rounds = {a.server_round for _, a in messages.grid.assignments()}
    assert rounds == {2, 3}
    assert "round-000003.json is damaged" in logged.text
    assert "round-000002.json is damaged" in logged.text
    (tmp_path / "round-000001.safetensors").unlink(missing_ok=True)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InvalidInputError, match=r"no checkpoint in .*is damaged"):
        WithCheckpoints(training(), tmp_path, resume_from=tmp_path)


def test_mistakes_are_told_before_anything_is_trained(
    federation: type[Federation],
    tmp_path: Path,
    logged: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(InvalidInputError, match=r"no checkpoint in .*no such folder"):
        WithCheckpoints(training(), tmp_path, resume_from=tmp_path / "typo")
    federation(6).run(
        WithCheckpoints(training(), tmp_path, settings={"rate": 0.1, "seed": 1}), 2
    )
    with pytest.raises(InvalidInputError, match="round 2 of another run"):
        WithCheckpoints(training(), tmp_path)
    federation(6).run(WithCheckpoints(training(), tmp_path / "other"), 1)
    with pytest.raises(InvalidInputError, match="round 2 of another run"):
        WithCheckpoints(training(), tmp_path, resume_from=tmp_path / "other")
    with pytest.raises(InvalidInputError, match="one of TwoStageCoded, and cannot"):
        WithCheckpoints(CodedFedAvg(), tmp_path, resume_from=tmp_path)
    with pytest.raises(InvalidInputError, match="every"):
        WithCheckpoints(training(), tmp_path, every=0)
    with pytest.raises(InvalidInputError, match="a file"):
        WithCheckpoints(training(), next(tmp_path.glob("*.json")))

    again = WithCheckpoints(
        training(),
        tmp_path,
        resume_from=tmp_path,
        settings={"rate": 0.2, "seed": 1},
    )
    assert "goes on with rate = 0.2; it began with 0.1" in logged.text
    assert "seed" not in logged.text
    model = ArrayRecord({"weight": Array(np.zeros((3, 5), np.float32))})
    with pytest.raises(InvalidInputError, match=r"another model: its array"):
        again.start(federation(6).grid, model, 3)


def test_a_disk_that_is_full_loses_nothing(
    federation: type[Federation], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, mode: str) -> Any:
        if path.name.startswith(".round-000002.json"):
            raise OSError(28, "No space left on device")
        return opened(path, mode)

    opened = Path.open
    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InvalidInputError, match=r"No space left .* still there"):
        federation(6).run(WithCheckpoints(training(), tmp_path), 3)
    monkeypatch.undo()

    assert (tmp_path / "round-000001.json").exists()
    assert not list(tmp_path.glob(".round*"))
    WithCheckpoints(training(), tmp_path, resume_from=tmp_path)
