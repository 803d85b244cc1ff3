"""Nodes that contradict each other, and events that must not end a run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, MetricRecord

from flower_ext.clients import CodedClientApp
from flower_ext.coding.assignment import Assignment
from flower_ext.errors import InvalidInputError
from flower_ext.strategies import CodedFedAvg, TwoStageCoded

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation


def test_nodes_that_count_a_partition_differently_are_not_mixed(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    assignment_of: Callable[[Message], Assignment | None],
    logged: pytest.LogCaptureFixture,
) -> None:
    def miscount(index: int, message: Message, reply: Message) -> Message:
        if index != 3 or message.metadata.message_type != "train":
            return reply
        (record,) = reply.content.metric_records.values()
        assignment = assignment_of(message)
        assert assignment is not None
        counted = [10 + 3 * p + 1 for p in assignment.partitions]
        record["flower-ext.examples"] = [float(n) for n in counted]
        record["flower-ext.weighted-examples"] = float(
            np.dot(assignment.coefficients, counted)
        )
        return reply

    strategy = CodedFedAvg(
        code="cyclic", stragglers=2, clock="virtual", fraction_evaluate=0.0
    )
    result = federation(6, behave=miscount).run(strategy)

    assert strategy.round_metrics[1]["replies-rejected"] == 1
    assert "every node must hold the same data" in logged.text
    assert_exact(result)


def test_an_update_that_overflows_is_skipped(
    federation: type[Federation], logged: pytest.LogCaptureFixture
) -> None:
    def inflate(index: int, message: Message, reply: Message) -> Message:
        (arrays,) = reply.content.array_records.values()
        huge = np.full_like(arrays["half"].numpy(), 1e30)
        arrays["half"] = Array(huge)
        return reply

    strategy = TwoStageCoded(clock="virtual", fraction_evaluate=0.0)
    result = federation(4, behave=inflate).run(strategy)

    assert strategy.round_metrics[1]["skipped"] == 1
    assert "overflows the dtype float16 of 'half'" in logged.text
    assert all(np.isfinite(a.numpy()).all() for a in result.arrays.values())


def test_a_passing_fault_of_the_first_question_is_asked_about_again(
    federation: type[Federation],
    error_reply: Callable[..., Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flower_ext.strategies.roll_call._ASK_AGAIN", 0.0)
    nodes = federation(4)
    handle, failed = nodes.handle, set[int]()

    def crash_once(message: Message) -> tuple[Message | None, float]:
        node = message.metadata.dst_node_id
        if node not in failed:
            failed.add(node)
            return error_reply(message, 8), 0.0
        return handle(message)

    nodes.grid.handler = crash_once
    strategy = TwoStageCoded(clock="virtual", fraction_evaluate=0.0)
    nodes.run(strategy)

    assert failed == {100, 101, 102, 103}
    assert strategy.round_metrics[1]["coverage"] == 1.0


def test_a_newcomer_with_another_number_of_partitions_is_refused(
    federation: type[Federation], logged: pytest.LogCaptureFixture
) -> None:
    nodes = federation(
        5,
        node_config=lambda i: {"partition-id": i, "num-partitions": 9 if i == 4 else 4},
    )
    nodes.grid.nodes.remove(104)

    def join(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 1:
            nodes.grid.nodes.append(104)
        return None

    strategy = TwoStageCoded(clock="virtual", fraction_evaluate=0.0)
    nodes.run(strategy, num_rounds=3, evaluate_fn=join)

    assert [m["coverage"] for m in strategy.round_metrics.values()] == [1.0] * 3
    assert all(node != 104 for node, _ in nodes.grid.assignments())
    assert "reports 9 partitions, the federation has 4" in logged.text


def test_a_code_that_lost_a_node_skips_rounds_and_does_not_end_the_run(
    federation: type[Federation],
    coded_client: Callable[..., CodedClientApp],
    logged: pytest.LogCaptureFixture,
) -> None:
    nodes = federation(4, coded_client(partitions=None))

    def leave(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        if server_round == 1:
            nodes.grid.nodes.remove(100)
        return None

    strategy = CodedFedAvg(code="uncoded", clock="virtual", fraction_evaluate=0.0)
    nodes.run(strategy, num_rounds=2, evaluate_fn=leave)

    skipped: list[Any] = [m["skipped"] for m in strategy.round_metrics.values()]
    assert skipped == [0, 1]
    assert "which it does not hold" in logged.text


def test_a_code_that_no_node_can_follow_is_an_error_at_once(
    federation: type[Federation], coded_client: Callable[..., CodedClientApp]
) -> None:
    nodes = federation(4, coded_client(partitions=None))
    strategy = CodedFedAvg(code="cyclic", clock="virtual", fraction_evaluate=0.0)

    with pytest.raises(InvalidInputError, match="heterogeneity-aware"):
        nodes.run(strategy)


def test_a_second_start_counts_from_one_and_still_learns(
    federation: type[Federation],
) -> None:
    strategy = TwoStageCoded(clock="virtual", fraction_evaluate=0.0)
    federation(4).run(strategy, num_rounds=3)
    for number in range(1, 400):
        strategy.history.completed(100, number, 1, 1.0, 1.0)
    federation(4).run(strategy, num_rounds=1)
    for number in range(2, 40):
        strategy.history.completed(100, number, 1, 5.0, 5.0)

    assert list(strategy.round_metrics) == [1]
    assert strategy.history.typical([100], 40)[0][0] == pytest.approx(5.0)
