"""Any strategy trains what it trains alone, with inference in its evaluation rounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from flower_ext.clients import CodedClientApp, DSSDTask
from flower_ext.strategies import (
    DSSDEvaluation,
    WithInference,
)

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation

PROMPTS = ["ROMEO:", "The king"]


def in_process(**options: Any) -> DSSDEvaluation:
    """Return an evaluation by the small pair, each node with its own copy."""
    return DSSDEvaluation(
        edge="in-process", drafter_weights="node", max_new_tokens=6, **options
    )


@pytest.fixture
def make_nodes(
    federation: type[Federation], coded_client: Callable[..., CodedClientApp]
) -> Callable[..., Federation]:
    """Return a function that makes nodes that infer, on a grid that waits for them."""

    def make(count: int = 3, task: Callable[..., Message] | None = None) -> Federation:
        app: ClientApp = coded_client()
        app.evaluate("dssd")(task or DSSDTask(PROMPTS))
        nodes = federation(count, app)
        grid: Any = nodes.grid

        def send_and_receive(
            messages: list[Message], *, timeout: float | None = None
        ) -> list[Message]:
            ids = grid.push_messages(messages)
            return list(grid.pull_messages(ids))

        grid.send_and_receive = send_and_receive
        return nodes

    return make


@pytest.mark.parametrize("kind", [FedAvg])
def test_a_strategy_evaluates_by_inference(
    kind: type[FedAvg], make_nodes: Callable[..., Federation]
) -> None:
    strategy = WithInference(kind(), in_process())
    result = make_nodes().run(strategy, num_rounds=2)

    metrics: dict[str, Any] = dict(result.evaluate_metrics_clientapp[2])
    assert metrics["accuracy"] == 0.5
    assert metrics["dssd.num-nodes"] == 3
    assert metrics["dssd.num-prompts"] == 6
    assert metrics["dssd.num-tokens"] == 36
    assert 0 < metrics["dssd.acceptance-rate"] < 1
    assert 1 < metrics["dssd.perplexity"] < 1000
    everything: dict[str, Any] = dict(strategy.inference_metrics[2])
    assert sum(everything["dssd.latency-histogram"]) == 6
