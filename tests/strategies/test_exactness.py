"""Coded rounds give FedAvg's own update, whoever straggles."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from flwr.app import MetricRecordValues

from flower_ext.clients import BernoulliSlowdown, CodedClientApp, straggler_mod
from flower_ext.strategies import CodedFedAvg, TwoStageCoded
from flower_ext.strategies.coded_strategy import CodedStrategy

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation

SLOW = BernoulliSlowdown(probability=0.3, slowdown=10.0)
STRATEGIES: dict[str, Callable[[], CodedStrategy]] = {
    "two-stage": lambda: TwoStageCoded(clock="virtual"),
    "sampling redundancy": lambda: TwoStageCoded(
        clock="virtual", redundancy_price=0.0, max_stage_two_redundancy=3
    ),
    **{
        code: partial(CodedFedAvg, code=code, clock="virtual")
        for code in ("cyclic", "fractional", "heterogeneity-aware", "uncoded")
    },
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_update_is_fedavgs_own_on_the_virtual_clock(
    name: str,
    federation: type[Federation],
    coded_client: Callable[..., CodedClientApp],
    assert_exact: Callable[..., None],
) -> None:
    nodes = federation(6, coded_client(mods=[straggler_mod(SLOW)]))

    strategy = STRATEGIES[name]()
    result = nodes.run(strategy, num_rounds=5)

    assert_exact(result, rounds=5)
    assert all(m["coverage"] == 1.0 for m in strategy.round_metrics.values())


def test_update_is_fedavgs_own_when_a_node_never_answers(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    nodes = federation(6, behave=lambda i, msg, reply: None if i == 2 else reply)

    assert_exact(nodes.run(TwoStageCoded(fraction_evaluate=0.0)))


def test_integer_buffers_come_out_as_integers(federation: type[Federation]) -> None:
    result = federation(4).run(CodedFedAvg(clock="virtual"), num_rounds=3)

    assert result.arrays["count"].numpy() == 7 + 3 * 3
    assert result.arrays["count"].numpy().dtype == np.int64


@pytest.mark.parametrize("make", [TwoStageCoded, CodedFedAvg])
def test_virtual_runs_do_not_depend_on_node_ids(
    make: type[CodedStrategy],
    federation: type[Federation],
    coded_client: Callable[..., CodedClientApp],
) -> None:
    def run(
        first: int,
    ) -> tuple[dict[str, bytes], dict[int, dict[str, MetricRecordValues]]]:
        app = coded_client(mods=[straggler_mod(SLOW)])
        strategy = make(clock="virtual", seed=5)
        result = federation(8, app, first=first).run(strategy, num_rounds=6)
        arrays = {k: a.data for k, a in result.arrays.items()}
        return arrays, {r: dict(m) for r, m in strategy.round_metrics.items()}

    assert run(first=100) == run(first=7_000_000)


def test_two_stage_rounds_take_less_than_waiting(
    federation: type[Federation], coded_client: Callable[..., CodedClientApp]
) -> None:
    def median_round(strategy: CodedStrategy) -> float:
        app = coded_client(mods=[straggler_mod(SLOW)])
        federation(12, app).run(strategy, num_rounds=12)
        elapsed = [m["elapsed-seconds"] for m in strategy.round_metrics.values()]
        return float(np.median(elapsed))

    waiting = median_round(CodedFedAvg(code="uncoded", clock="virtual"))
    two_stage = median_round(TwoStageCoded(clock="virtual"))

    assert two_stage < 0.6 * waiting


def test_round_metrics_say_how_a_round_went(federation: type[Federation]) -> None:
    strategy = CodedFedAvg(code="cyclic", clock="virtual", fraction_evaluate=0.0)
    result = federation(4).run(strategy)

    metrics = dict(strategy.round_metrics[1])
    bytes_of_model = cast(int, metrics["bytes-down"]) // 4
    assert metrics == {
        # Two partitions at one virtual second each.
        "elapsed-seconds": 2.0,
        "stage-one-seconds": 2.0,
        "stage-two-seconds": 0.0,
        "replies-used": 3,
        "replies-late": 0,
        "replies-contradicting": 0,
        "replies-rejected": 0,
        "replies-failed": 0,
        "replies-unfinished": 1,
        "redundancy": 2.0,
        "coverage": 1.0,
        "residual": 0.0,
        "skipped": 0,
        "bytes-up": metrics["bytes-up"],
        "bytes-down": 4 * bytes_of_model,
    }
    reported = result.train_metrics_clientapp[1]
    assert {k: reported[f"flower-ext.{k}"] for k in metrics} == metrics
