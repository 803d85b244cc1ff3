"""Who is given work when: busy, late, expired, vanished and new nodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, MetricRecord
from numpy.typing import NDArray

from flower_ext.clients import CodedClientApp
from flower_ext.coding.assignment import Assignment
from flower_ext.coding.two_stage import TwoStagePlan
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.strategies import CodedFedAvg, TwoStageCoded
from flower_ext.strategies.staged_grid import StagedGrid

if TYPE_CHECKING:
    from tests.strategies.conftest import Answer, Federation


def scalar(metrics: MetricRecord, name: str) -> float:
    return cast(float, metrics[name])


def quiet(**kwargs: Any) -> TwoStageCoded:
    return TwoStageCoded(fraction_evaluate=0.0, **kwargs)


def test_busy_straggler_is_given_nothing_until_it_answers(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    nodes = federation(
        6, behave=lambda i, msg, reply: (reply, 3600.0 if i == 3 else 0.02)
    )

    assert_exact(nodes.run(quiet(), num_rounds=4), rounds=4)
    assert [node for node, _ in nodes.grid.assignments()].count(103) == 1


def test_late_reply_frees_its_node_and_enters_the_history(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        first = message.content["config"]["server-round"] == 1
        return reply, 0.5 if index == 3 and first else 0.05

    nodes = federation(6, behave=behave)
    strategy = CodedFedAvg(fraction_evaluate=0.0)
    result = nodes.run(strategy, num_rounds=12)

    assert_exact(result, rounds=12)
    metrics = strategy.round_metrics.values()
    assert sum(scalar(m, "replies-late") for m in metrics) >= 1
    assert (
        sum(
            scalar(m, "replies-failed") + scalar(m, "replies-rejected") for m in metrics
        )
        == 0
    )
    assert [node for node, _ in nodes.grid.assignments()].count(103) > 1
    assert 103 in strategy.history._workers


def test_reply_that_is_late_during_evaluation_is_counted(
    federation: type[Federation],
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        if message.metadata.message_type == "evaluate":
            return reply, 0.4
        return reply, 0.3 if index == 3 else 0.01

    strategy = CodedFedAvg(
        code="uncoded", ignore_stragglers=1, min_coverage=0.0, min_evaluate_nodes=1
    )
    federation(4, behave=behave).run(strategy, num_rounds=2)

    assert strategy.round_metrics[1]["replies-unfinished"] == 1
    assert strategy.round_metrics[2]["replies-late"] == 1
    assert 103 in strategy.history._workers


def test_late_failure_is_no_late_reply(
    federation: type[Federation],
    error_reply: Callable[..., Message],
    logged: pytest.LogCaptureFixture,
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        if index == 3:
            return error_reply(message, 8), 0.2
        return reply, 0.01 if message.content["config"]["server-round"] == 1 else 0.4

    strategy = CodedFedAvg(
        code="uncoded", ignore_stragglers=1, min_coverage=0, fraction_evaluate=0.0
    )
    federation(4, behave=behave).run(strategy, num_rounds=2)

    assert [m["replies-unfinished"] for m in strategy.round_metrics.values()] == [1, 1]
    assert strategy.round_metrics[2]["replies-late"] == 0
    assert "Node 103 failed on round 1, which is over (code 8)" in logged.text


@pytest.mark.parametrize("stage", [1, 2])
def test_node_that_dies_in_a_stage_is_done_without(
    stage: int,
    federation: type[Federation],
    assignment_of: Callable[[Message], Assignment | None],
    assert_exact: Callable[..., None],
) -> None:
    dead: set[int] = set()

    def behave(index: int, message: Message, reply: Message) -> Answer:
        asked = assignment_of(message)
        if stage == 1 and index == 1:
            return None
        if stage == 2 and index == 1:
            return (reply, 3600.0)  # so that there is a second stage
        assert asked is not None
        if asked.stage == 2 and not dead:
            dead.add(index)
        return None if index in dead else (reply, 0.02)

    strategy = quiet()

    assert_exact(federation(6, behave=behave).run(strategy))
    assert scalar(strategy.round_metrics[1], "elapsed-seconds") < 10


@pytest.mark.parametrize(("code", "word"), [(2, "failed"), (5, "failed")])
def test_nodes_that_fail_at_once_are_replaced(
    code: int,
    word: str,
    federation: type[Federation],
    error_reply: Callable[..., Message],
    assert_exact: Callable[..., None],
    logged: pytest.LogCaptureFixture,
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        return error_reply(message, code) if index in (0, 4) else reply

    strategy = quiet()

    assert_exact(federation(6, behave=behave).run(strategy))
    assert strategy.round_metrics[1]["replies-failed"] == 2
    assert f"node 100 {word}" in logged.text


@pytest.mark.parametrize("code", [3, 4])
def test_expired_message_does_not_make_its_node_idle(
    code: int,
    federation: type[Federation],
    error_reply: Callable[..., Message],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    silent_until: dict[int, float] = {}

    nodes = federation(4)
    handle = nodes.grid.handler

    def handler(message: Message) -> tuple[Message | None, float]:
        node = message.metadata.dst_node_id
        reply, seconds = handle(message)
        is_holdings = "flower-ext.holdings" in message.content.config_records
        if node == 102 and not is_holdings and 102 not in silent_until:
            silent_until[102] = time.monotonic() + 0.6
            return error_reply(message, code, "TTL expired"), 0.05
        if node == 102 and is_holdings and 102 in silent_until:
            return reply, silent_until[102] - time.monotonic()  # busy until then
        return reply, seconds + 0.03

    nodes.grid.handler = handler
    pushed_at: list[float] = []
    push = nodes.grid.push_messages

    def note_times(messages: Iterable[Message]) -> list[str]:
        for message in messages:
            is_task = "flower-ext.assignment" in message.content.config_records
            if message.metadata.dst_node_id == 102 and is_task:
                pushed_at.append(time.monotonic())
        return push(messages)

    monkeypatch.setattr(nodes.grid, "push_messages", note_times)
    nodes.run(CodedFedAvg(fraction_evaluate=0.0), num_rounds=20)

    assert len(pushed_at) >= 2
    assert all(at >= silent_until[102] for at in pushed_at[1:])


def test_message_that_expires_unanswered_is_followed_by_a_question(
    federation: type[Federation], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StagedGrid, "ttl", lambda self, deadline: 0.3)
    monkeypatch.setattr("flower_ext.strategies.staged_grid._LIST_EVERY", 0.05)

    def behave(index: int, message: Message, reply: Message) -> Answer:
        return None if index == 2 and first(message) else (reply, 0.05)

    def first(message: Message) -> bool:
        return message.content["config"]["server-round"] == 1

    nodes = federation(4, behave=behave)
    nodes.run(quiet(), num_rounds=15)

    to_102 = [m for m in nodes.grid.pushed if m.metadata.dst_node_id == 102]
    kinds = [
        "question" if "flower-ext.holdings" in m.content else "work" for m in to_102
    ]
    assert kinds[:4] == ["question", "work", "question", "work"]


def test_node_that_joins_during_a_round_is_given_work(
    federation: type[Federation],
    coded_client: Callable[..., CodedClientApp],
    assert_exact: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flower_ext.strategies.staged_grid._LIST_EVERY", 0.05)

    def behave(index: int, message: Message, reply: Message) -> Answer:
        if 104 not in nodes.grid.nodes:
            nodes.grid.nodes.append(104)
        return None if index == 3 else (reply, 0.02)

    nodes = federation(
        4,
        coded_client(partitions=None),
        behave=behave,
        # Nodes 103 and 104 hold partition 3, and only they.
        node_config=lambda i: {"partitions": str(min(i, 3)), "num-partitions": 4},
    )
    strategy = quiet()
    result = nodes.run(strategy)

    assert_exact(result, partitions=4)
    assert nodes.grid.assignments()[-1][0] == 104


def test_nodes_that_join_and_leave_between_rounds(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    nodes = federation(4, node_config=lambda i: {"partition-id": i % 4})
    listed = {1: [100, 101, 102, 103], 2: [100, 101], 3: [101, 104, 105, 106]}

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        nodes.grid.nodes[:] = listed.get(server_round + 1, listed[3])

    result = nodes.run(
        quiet(num_partitions=4, clock="virtual"), num_rounds=3, evaluate_fn=evaluate
    )

    assert_exact(result, rounds=3, partitions=4)
    asked = nodes.grid.assignments()
    assert {n for n, a in asked if a.server_round == 2} <= {100, 101}
    assert {n for n, a in asked if a.server_round == 3} <= {101, 104, 105, 106}


def test_node_unknown_on_push_is_replaced(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    logged: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = federation(5)
    push = nodes.grid.push_messages

    def vanish_on_work(messages: Iterable[Message]) -> list[str]:
        if any("flower-ext.assignment" in m.content for m in messages):
            nodes.grid.nodes[:] = [100, 101]
        return push(messages)

    monkeypatch.setattr(nodes.grid, "push_messages", vanish_on_work)
    strategy = quiet(clock="virtual")

    assert_exact(nodes.run(strategy), partitions=5)
    assert strategy.round_metrics[1]["replies-failed"] == 3
    assert "Node 104 is not known any more" in logged.text


def test_many_nodes_that_vanish_one_after_another(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nodes = federation(300, node_config=lambda i: {"partition-id": i})
    push = nodes.grid.push_messages

    def only_one_stays(messages: Iterable[Message]) -> list[str]:
        if any("flower-ext.assignment" in m.content for m in messages):
            nodes.grid.nodes[:] = [100]
        return push(messages)

    monkeypatch.setattr(nodes.grid, "push_messages", only_one_stays)

    assert_exact(nodes.run(quiet(clock="virtual", num_partitions=3)), partitions=3)


def kept_weight() -> NDArray[np.float32]:
    """Return the weights that every federation of these tests starts from."""
    return np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def test_all_nodes_failing_skips_the_round_and_keeps_the_model(
    federation: type[Federation],
    error_reply: Callable[..., Message],
    logged: pytest.LogCaptureFixture,
) -> None:
    strategy = quiet(clock="virtual")
    nodes = federation(4, behave=lambda i, msg, reply: error_reply(msg, 2))
    result = nodes.run(strategy, num_rounds=2)

    assert strategy.round_metrics[2]["skipped"] == 1
    assert strategy.round_metrics[2]["coverage"] == 0.0
    assert strategy.round_metrics[2]["replies-used"] == 0
    assert "round 2 is skipped and the model kept" in logged.text
    assert (result.arrays["weight"].numpy() == kept_weight()).all()


@pytest.mark.parametrize(("silent", "skipped"), [((0,), 0), ((0, 1), 1)])
def test_partial_round_counts_from_the_coverage_floor(
    silent: tuple[int, ...],
    skipped: int,
    federation: type[Federation],
    coded_client: Callable[..., CodedClientApp],
) -> None:
    nodes = federation(
        6,
        coded_client(partitions=None),
        behave=lambda i, msg, reply: None if i in silent else (reply, 0.01),
    )
    strategy = CodedFedAvg(
        code="uncoded", deadline=0.5, fraction_evaluate=0.0, min_coverage=0.8
    )
    start = time.monotonic()
    result = nodes.run(strategy)

    metrics = strategy.round_metrics[1]
    assert time.monotonic() - start < 3
    assert 0.5 <= scalar(metrics, "elapsed-seconds") < 2
    assert metrics["skipped"] == skipped
    kept = (result.arrays["weight"].numpy() == kept_weight()).all()
    assert kept == bool(skipped)
    # Nobody knows how many examples the silent ones have: as many as the others.
    assert metrics["coverage"] == pytest.approx(1 - len(silent) / 6)
    assert metrics["residual"] == pytest.approx(np.sqrt(len(silent)))


def test_timeout_ends_a_round_in_which_nobody_answers(
    federation: type[Federation],
) -> None:
    strategy = quiet()
    start = time.monotonic()
    federation(3, behave=lambda i, msg, reply: None).run(strategy, timeout=0.5)

    assert time.monotonic() - start < 5
    assert strategy.round_metrics[1]["skipped"] == 1


def test_timeout_ends_a_virtual_round_in_which_nobody_answers(
    federation: type[Federation],
) -> None:
    strategy = quiet(clock="virtual")
    nodes = federation(3, behave=lambda i, msg, reply: None)
    start = time.monotonic()
    nodes.run(strategy, num_rounds=2, timeout=0.3)

    assert time.monotonic() - start < 5
    assert strategy.round_metrics[2]["skipped"] == 1


def test_silent_evaluator_does_not_hold_up_a_virtual_clock(
    federation: type[Federation],
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Answer:
        return None if message.metadata.message_type == "evaluate" else reply

    strategy = TwoStageCoded(clock="virtual")
    start = time.monotonic()
    federation(3, behave=behave).run(strategy, num_rounds=2, timeout=0.3)

    assert time.monotonic() - start < 5


@pytest.mark.parametrize("clock", ["wall", "virtual"])
def test_too_few_nodes_is_an_error_after_the_timeout(
    clock: str, federation: type[Federation]
) -> None:
    with pytest.raises(FlowerExtError, match=r"1 nodes were ready .* 2 are needed"):
        federation(1).run(TwoStageCoded(clock=clock), timeout=0.3)


def test_one_node_is_enough_where_the_user_says_so(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    strategy = TwoStageCoded(
        min_train_nodes=1, min_available_nodes=1, min_evaluate_nodes=1
    )

    assert_exact(federation(1).run(strategy), partitions=1)


def test_node_that_never_says_what_it_holds_costs_patience_once(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    nodes = federation(4)
    handle = nodes.grid.handler
    nodes.grid.handler = lambda m: (
        (None, 0.0) if m.metadata.dst_node_id == 103 else handle(m)
    )
    start = time.monotonic()
    result = nodes.run(quiet(), num_rounds=6)

    assert time.monotonic() - start < 5  # the patience is two seconds
    assert_exact(result, rounds=6, partitions=4)


def test_code_waits_for_busy_workers_it_cannot_do_without(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    # Two of three nodes are late in round 1; round 2 begins when one of them is back.
    def behave(index: int, message: Message, reply: Message) -> Answer:
        first = message.content["config"]["server-round"] == 1
        return reply, 0.5 if first and index else 0.01

    strategy = CodedFedAvg(
        code="cyclic", ignore_stragglers=2, min_coverage=0.0, fraction_evaluate=0.0
    )
    federation(3, behave=behave).run(strategy, num_rounds=2)

    assert scalar(strategy.round_metrics[2], "elapsed-seconds") > 0.3
    assert scalar(strategy.round_metrics[2], "replies-used") >= 1


def test_nodes_that_contradict_each_other_are_an_error(
    federation: type[Federation], coded_client: Callable[..., CodedClientApp]
) -> None:
    nodes = federation(
        3,
        coded_client(partitions=None),
        node_config=lambda i: {"partition-id": i, "num-partitions": 3 + i},
    )
    with pytest.raises(InvalidInputError, match=r"\[3, 4, 5\]"):
        nodes.run(TwoStageCoded())


def test_number_of_partitions_can_be_overridden(
    federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    nodes = federation(
        3, node_config=lambda i: {"partition-id": i, "num-partitions": 3}
    )

    result = nodes.run(TwoStageCoded(num_partitions=7, clock="virtual"))

    assert_exact(result, partitions=7)


def test_scarce_partitions_are_told_once(
    federation: type[Federation],
    coded_client: Callable[..., CodedClientApp],
    logged: pytest.LogCaptureFixture,
) -> None:
    nodes = federation(4, coded_client(partitions=None))
    nodes.run(TwoStageCoded(clock="virtual"), num_rounds=3)

    told = [r.getMessage() for r in logged.records if "are held by" in r.getMessage()]
    assert told == [
        "Partitions 0, 1, 2, 3 are held by 1 node(s): that tolerates 0 straggler(s), "
        "but 1 are wanted. Let more nodes hold them: CodedClientApp(partitions=...), "
        "or 'partitions' in the nodes' configs."
    ]


def test_scarce_partitions_are_an_error_where_the_code_needs_them(
    federation: type[Federation], coded_client: Callable[..., CodedClientApp]
) -> None:
    nodes = federation(4, coded_client(partitions=None))
    with pytest.raises(InvalidInputError, match="Partitions 0, 1, 2, 3 are held by 1"):
        nodes.run(CodedFedAvg(code="heterogeneity-aware"))


def test_node_that_left_and_came_back_between_rounds_counts_as_present(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[int] = []
    monkeypatch.setattr(TwoStagePlan, "leave", lambda plan, worker: left.append(worker))
    nodes = federation(2)
    listed = nodes.grid.get_node_ids
    looks: list[int] = []

    def listed_late() -> list[int]:
        looks.append(1)
        return [100] if len(looks) < 3 else listed()

    def evaluate(server_round: int, arrays: ArrayRecord) -> None:
        looks.clear()
        if server_round == 1:
            monkeypatch.setattr(nodes.grid, "get_node_ids", listed_late)

    result = nodes.run(quiet(clock="virtual"), num_rounds=2, evaluate_fn=evaluate)

    assert left == []
    assert {n for n, a in nodes.grid.assignments() if a.server_round == 2} == {100, 101}
    assert_exact(result, rounds=2, partitions=2)


def test_node_that_refuses_costs_no_patience(
    federation: type[Federation],
    error_reply: Callable[..., Message],
    assert_exact: Callable[..., None],
) -> None:
    nodes = federation(4)
    handle = nodes.grid.handler
    nodes.grid.handler = lambda m: (
        (error_reply(m, 2), 0.0) if m.metadata.dst_node_id == 103 else handle(m)
    )
    start = time.monotonic()
    result = nodes.run(quiet())

    assert time.monotonic() - start < 2  # the least that patience lasts
    assert_exact(result, partitions=4)
