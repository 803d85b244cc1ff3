"""Coded strategies take FedAvg's arguments, and say so when they are misused."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    MetricRecord,
    MetricRecordValues,
    RecordDict,
)
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAvg,
)

from flower_ext.clients import CodedClientApp
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.strategies import CodedFedAvg, TwoStageCoded
from flower_ext.strategies.coded_strategy import CodedStrategy

if TYPE_CHECKING:
    from tests.strategies.conftest import FakeGrid, Federation

BOTH = pytest.mark.parametrize("make", [TwoStageCoded, CodedFedAvg])


@BOTH
def test_fraction_train_samples_partitions(
    make: Callable[..., CodedStrategy], federation: type[Federation]
) -> None:
    nodes = federation(8)
    strategy = make(clock="virtual", fraction_train=0.5, min_train_nodes=1)
    nodes.run(strategy, num_rounds=6)

    rounds: dict[int, set[int]] = {}
    for _, assignment in nodes.grid.assignments():
        chosen = rounds.setdefault(assignment.server_round, set())
        chosen.update(assignment.partitions)
    assert [len(chosen) for chosen in rounds.values()] == [4] * 6
    assert set.union(*rounds.values()) == set(range(8))
    assert all(m["coverage"] == 1.0 for m in strategy.round_metrics.values())


@BOTH
def test_record_keys_and_weighting_key(
    make: Callable[..., CodedStrategy],
    federation: type[Federation],
    coded_client: Callable[..., CodedClientApp],
    assert_exact: Callable[..., None],
) -> None:
    app = coded_client(
        arrays_key="model", config_key="settings", examples_key="batches"
    )
    strategy = make(
        clock="virtual",
        arrayrecord_key="model",
        configrecord_key="settings",
        weighted_by_key="batches",
    )

    assert_exact(federation(6, app).run(strategy, num_rounds=2), rounds=2)


@BOTH
def test_train_metrics_are_aggregated_once_per_partition(
    make: Callable[..., CodedStrategy], federation: type[Federation]
) -> None:
    seen: list[tuple[MetricRecordValues, MetricRecordValues]] = []

    def aggregate(contents: list[RecordDict], key: str) -> MetricRecord:
        records = [next(iter(c.metric_records.values())) for c in contents]
        seen.extend((r[key], r["loss"]) for r in records)
        return MetricRecord({"loss": 1.0})

    federation(5).run(make(clock="virtual", train_metrics_aggr_fn=aggregate))

    assert seen == [(10 + 3 * p, 1.0 + p) for p in range(5)][: len(seen)]
    assert len(seen) == 5


def test_default_aggregation_weights_partitions_by_examples(
    federation: type[Federation],
) -> None:
    result = federation(4).run(TwoStageCoded(clock="virtual"))

    examples = np.array([10, 13, 16, 19])
    expected = examples @ np.arange(1, 5) / examples.sum()
    assert result.train_metrics_clientapp[1]["loss"] == pytest.approx(expected)


@BOTH
def test_mistyped_argument_is_named(make: Callable[..., CodedStrategy]) -> None:
    with pytest.raises(TypeError, match="fraction_trian"):
        make(fraction_trian=0.5)


@pytest.mark.parametrize(
    ("make", "arguments", "named"),
    [
        (TwoStageCoded, {"clock": "sundial"}, "sundial"),
        (TwoStageCoded, {"deadline": 0.0}, "deadline"),
        (TwoStageCoded, {"deadline": float("inf")}, "deadline"),
        (TwoStageCoded, {"min_coverage": 1.1}, "min_coverage"),
        (TwoStageCoded, {"seed": -1}, "seed"),
        (TwoStageCoded, {"num_partitions": 0}, "num_partitions"),
        (TwoStageCoded, {"stragglers": -1}, "stragglers"),
        (TwoStageCoded, {"redundancy_price": -0.1}, "redundancy_price"),
        (TwoStageCoded, {"stragglers": 1.5}, "'stragglers' must be an integer"),
        (TwoStageCoded, {"num_partitions": 2.5}, "'num_partitions' must be an integer"),
        (TwoStageCoded, {"max_stage_two_redundancy": 9}, "max_stage_two_redundancy"),
        (CodedFedAvg, {"code": "fountain"}, "fountain"),
        (CodedFedAvg, {"stragglers": -1}, "stragglers"),
        (CodedFedAvg, {"ignore_stragglers": -1}, "ignore_stragglers"),
    ],
)
def test_argument_out_of_range_is_named(
    make: Callable[..., CodedStrategy], arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        make(**arguments)


def test_each_message_has_a_config_of_its_own(federation: type[Federation]) -> None:
    nodes = federation(4)
    config = ConfigRecord({"lr": 0.1})
    nodes.run(CodedFedAvg(clock="virtual"), num_rounds=2, train_config=config)

    sent = [m.content["config"] for m in nodes.grid.pushed if "config" in m.content]
    assert len({id(c) for c in sent}) == len(sent)
    rounds = [cast(int, c["server-round"]) for c in sent]
    assert rounds == sorted(rounds)
    assert set(rounds) == {1, 2}
    assert all(c["lr"] == 0.1 for c in sent if "lr" in c)


@BOTH
def test_rounds_need_the_staged_grid(
    make: Callable[..., CodedStrategy], fake_grid: type[FakeGrid]
) -> None:
    strategy = make()
    grid = fake_grid(lambda message: (None, 0.0), [1, 2])

    for configure in (strategy.configure_train, strategy.configure_evaluate):
        with pytest.raises(FlowerExtError, match=r"strategy\.start"):
            configure(1, ArrayRecord(), ConfigRecord(), grid)


@BOTH
def test_foreign_replies_are_refused(make: Callable[..., CodedStrategy]) -> None:
    with pytest.raises(FlowerExtError, match="its own rounds only"):
        make().aggregate_train(1, [])


@BOTH
def test_wrapping_strategies_are_refused(
    make: Callable[..., CodedStrategy], federation: type[Federation]
) -> None:
    wrapped = DifferentialPrivacyServerSideFixedClipping(make(), 0.1, 1.0, 2)

    with pytest.raises(FlowerExtError, match="do not wrap it"):
        federation(3).run(wrapped)


def test_summary_says_how_rounds_are_coded(logged: pytest.LogCaptureFixture) -> None:
    TwoStageCoded(num_partitions=12, deadline=30.0).summary()
    CodedFedAvg(code="fractional", stragglers=2, ignore_stragglers=1, seed=3).summary()

    text = logged.text
    for line in (
        "├── Scheme: two stages",
        "├── Stage-two redundancy: up to 2, at a price of 0.2",
        "├── Partitions: 12",
        "├── Clock: wall",
        "├── Seed: run-config",
        "└── At the deadline (30 s): partial from 80 % coverage",
        "├── Scheme: one stage, fractional, 2 stragglers tolerated, 1 ignored",
        "├── Partitions: as nodes report",
        "├── Seed: 3",
        "└── At the deadline (from history): partial from 80 % coverage",
        "├──> Sampling:",
    ):
        assert line in text


def test_coded_strategies_are_fedavgs() -> None:
    assert issubclass(TwoStageCoded, FedAvg)
    assert issubclass(CodedFedAvg, FedAvg)
