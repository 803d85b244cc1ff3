"""Federated evaluation asks idle nodes only, and waits for none too long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import pytest
from flwr.app import Message, MetricRecord, RecordDict

from flower_ext.strategies import CodedFedAvg, TwoStageCoded

if TYPE_CHECKING:
    from tests.strategies.conftest import Answer, FakeGrid, Federation


def is_evaluation(message: Message) -> bool:
    return message.metadata.message_type == "evaluate"


def evaluators(grid: FakeGrid, server_round: int = 1) -> list[int]:
    return [
        m.metadata.dst_node_id
        for m in grid.pushed
        if is_evaluation(m) and m.content["config"]["server-round"] == server_round
    ]


def metrics_of(reply: Message) -> MetricRecord:
    return next(iter(reply.content.metric_records.values()))


def test_only_idle_nodes_are_asked(federation: type[Federation]) -> None:
    nodes = federation(5, behave=lambda i, m, r: (r, 3600.0 if i == 2 else 0.01))
    nodes.run(TwoStageCoded())

    assert evaluators(nodes.grid) == [100, 101, 103, 104]


def test_fraction_and_least_number_of_evaluators(federation: type[Federation]) -> None:
    nodes = federation(8)
    strategy = TwoStageCoded(
        clock="virtual", fraction_evaluate=0.5, min_evaluate_nodes=1
    )
    nodes.run(strategy, num_rounds=2)

    assert len(evaluators(nodes.grid, 1)) <= 4
    assert len(evaluators(nodes.grid, 2)) <= 4


def test_hanging_evaluator_is_left_behind_at_the_deadline(
    federation: type[Federation], logged: pytest.LogCaptureFixture
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        return None if is_evaluation(message) and index == 1 else (reply, 0.01)

    start = time.monotonic()
    result = federation(4, behave=behave).run(CodedFedAvg(code="uncoded", deadline=0.5))

    assert time.monotonic() - start < 3
    assert result.evaluate_metrics_clientapp[1]["accuracy"] == 0.5
    assert "evaluate: 1 of 4 nodes did not answer within 0.5 s" in logged.text


def test_deadline_of_evaluation_comes_from_the_first_replies(
    federation: type[Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flower_ext.strategies.answer_times.LEAST_DEADLINE", 0.3)

    def behave(index: int, message: Message, reply: Message) -> Answer:
        return None if is_evaluation(message) and index > 0 else (reply, 0.01)

    start = time.monotonic()
    federation(4, behave=behave).run(CodedFedAvg(code="uncoded"))

    assert time.monotonic() - start < 5


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda m: m.update({"accuracy": float("nan")}), "'accuracy' is NaN"),
        (lambda m: m.update({"num-examples": 0}), "must be the number of examples"),
        (lambda m: m.pop("num-examples"), "must be the number of examples"),
    ],
)
def test_bad_evaluation_is_rejected_by_name(
    spoil: Callable[[MetricRecord], object],
    reason: str,
    federation: type[Federation],
    logged: pytest.LogCaptureFixture,
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        if is_evaluation(message) and index == 0:
            spoil(metrics_of(reply))
        return reply

    result = federation(3, behave=behave).run(
        CodedFedAvg(clock="virtual", code="uncoded")
    )

    assert result.evaluate_metrics_clientapp[1]["accuracy"] == 0.5
    assert "evaluate: the reply of node 100 was rejected" in logged.text
    assert reason in logged.text


def test_failed_evaluation_is_named(
    federation: type[Federation],
    error_reply: Callable[..., Message],
    logged: pytest.LogCaptureFixture,
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        if is_evaluation(message) and index == 0:
            return error_reply(message, 2, "no test data")
        return reply

    result = federation(3, behave=behave).run(
        CodedFedAvg(clock="virtual", code="uncoded")
    )

    assert result.evaluate_metrics_clientapp[1]["accuracy"] == 0.5
    assert "evaluate: node 100 failed (code 2): no test data" in logged.text


@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_metrics_that_differ_from_most_are_left_out(
    kind: str, federation: type[Federation], logged: pytest.LogCaptureFixture
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        if message.metadata.message_type == kind and index == 0:
            metrics = metrics_of(reply)
            name = "more" if kind == "evaluate" else "flower-ext.partition.0.more"
            metrics[name] = [1.0, 2.0]
        return reply

    result = federation(4, behave=behave).run(
        CodedFedAvg(clock="virtual", code="uncoded")
    )

    found = (
        result.evaluate_metrics_clientapp
        if kind == "evaluate"
        else result.train_metrics_clientapp
    )[1]
    assert "more" not in found
    assert f"{kind}: the metrics of 1 of 4 replies are left out" in logged.text


def test_late_evaluation_frees_its_node(federation: type[Federation]) -> None:
    evaluated: list[int] = []

    def behave(index: int, message: Message, reply: Message) -> Answer:
        if is_evaluation(message):
            evaluated.append(index)
        late = is_evaluation(message) and index == 1 and evaluated.count(1) == 1
        return reply, 1.0 if late else 0.05

    nodes = federation(3, behave=behave)
    strategy = CodedFedAvg(code="uncoded", deadline=0.6, min_evaluate_nodes=1)
    nodes.run(strategy, num_rounds=25)

    asked = [a.server_round for node, a in nodes.grid.assignments() if node == 101]
    assert 2 not in asked
    assert len(asked) > 1
    late = [cast(int, m["replies-late"]) for m in strategy.round_metrics.values()]
    assert sum(late) == 0


def test_evaluation_without_training(federation: type[Federation]) -> None:
    nodes = federation(3)
    result = nodes.run(TwoStageCoded(fraction_train=0.0), num_rounds=2)

    assert nodes.grid.assignments() == []
    assert len(evaluators(nodes.grid, 2)) == 3
    assert result.evaluate_metrics_clientapp[2]["accuracy"] == 0.5


def test_evaluation_can_be_aggregated_as_the_user_wants(
    federation: type[Federation],
) -> None:
    seen: list[tuple[int, str]] = []

    def aggregate(contents: list[RecordDict], key: str) -> MetricRecord:
        seen.append((len(contents), key))
        return MetricRecord({"worst": 0.1})

    result = federation(3).run(
        CodedFedAvg(code="uncoded", clock="virtual", evaluate_metrics_aggr_fn=aggregate)
    )

    assert seen == [(3, "num-examples")]
    assert dict(result.evaluate_metrics_clientapp[1]) == {"worst": 0.1}
