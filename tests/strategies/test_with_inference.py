"""Any strategy trains what it trains alone, with inference in its evaluation rounds."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable
from flwr.serverapp.strategy import (
    DifferentialPrivacyServerSideFixedClipping,
    FedAdam,
    FedAvg,
    Result,
    Strategy,
)

from flower_ext.clients import CodedClientApp, DSSDTask
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.speculative.evaluation import DSSD_KEY
from flower_ext.speculative.latency import LatencyHistogram
from flower_ext.speculative.totals import DSSDTotals
from flower_ext.strategies import DSSDEvaluation, TwoStageCoded, WithInference

if TYPE_CHECKING:
    from tests.strategies.conftest import FakeGrid, Federation

MakeNodes = Callable[..., "Federation"]


def evaluation(**options: Any) -> DSSDEvaluation:
    """Return an evaluation by the small pair, each node with its own copy."""
    return DSSDEvaluation(
        edge="in-process", drafter_weights="node", max_new_tokens=6, **options
    )


def measured(
    seconds: float = 1.0, tokens: int = 10, accepted: int = 3, **scores: Any
) -> DSSDTotals:
    """Return a node's totals of one text."""
    return DSSDTotals(
        num_prompts=1,
        num_tokens=tokens,
        seconds=seconds,
        rounds=4,
        drafted=8,
        examined=5,
        accepted=accepted,
        uplink_bytes=100,
        latency_histogram=LatencyHistogram.of([seconds]),
        token_latency_histogram=LatencyHistogram.of([seconds / tokens], tokens),
        **scores,
    )


def replying(of_node: Callable[[int], DSSDTotals | None]) -> ClientAppCallable:
    """Return a task that replies, or fails, by the number of its node."""

    def task(msg: Message, context: Context) -> Message:
        totals = of_node(int(context.node_config["partition-id"]))
        if totals is None:
            raise ValueError("no model here")
        metrics = MetricRecord(totals.to_metrics())
        return Message(RecordDict({"metrics": metrics}), reply_to=msg)

    return task


@pytest.fixture
def make_nodes(
    federation: type[Federation], coded_client: Callable[..., CodedClientApp]
) -> MakeNodes:
    """Return a function that makes nodes that infer, on a grid that waits for them."""

    def make(count: int = 3, task: ClientAppCallable | None = None) -> Federation:
        app = coded_client()
        app.evaluate("dssd")(task or replying(lambda index: measured()))
        nodes = federation(count, app)
        grid: Any = nodes.grid

        def send_and_receive(
            messages: list[Message], *, timeout: float | None = None
        ) -> list[Message]:
            return list(grid.pull_messages(grid.push_messages(messages)))

        grid.send_and_receive = send_and_receive
        return nodes

    return make


def asked(grid: FakeGrid) -> list[tuple[int, int]]:
    """Return round and node of the messages of inference."""
    found: list[tuple[int, int]] = []
    for message in grid.pushed:
        if message.metadata.message_type == "evaluate.dssd":
            config: Any = message.content[DSSD_KEY]
            found.append((config["server-round"], message.metadata.dst_node_id))
    return found


def told(result: Result, server_round: int = 1) -> dict[str, Any]:
    return dict(result.evaluate_metrics_clientapp[server_round])


def as_bytes(arrays: ArrayRecord) -> dict[str, bytes]:
    return {name: array.data for name, array in arrays.items()}


def fed_adam() -> FedAdam:
    return FedAdam(fraction_train=0.5, fraction_evaluate=0.7)


def private() -> Strategy:
    inner = FedAvg(fraction_train=0.5)
    return DifferentialPrivacyServerSideFixedClipping(inner, 0.0, 100.0, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAvg(fraction_train=0.5),
        fed_adam,
        private,
        lambda: TwoStageCoded(clock="virtual"),
    ],
    ids=["FedAvg", "FedAdam", "privacy", "TwoStageCoded"],
)
def test_training_is_what_it_is_without(
    make: Callable[[], Strategy],
    make_nodes: MakeNodes,
    start_record: Callable[[], ArrayRecord],
) -> None:
    # Without the integers and half floats, of which FedAvg makes other types.
    begin = ArrayRecord({"weight": start_record()["weight"]})

    def run(strategy: Strategy) -> Result:
        random.seed(3)  # Flower's sampling decides who trains
        return strategy.start(make_nodes(4).grid, begin, 3, timeout=20.0)

    alone = run(make())
    assert as_bytes(alone.arrays).keys() == {"weight"}
    assert len(alone.train_metrics_clientapp) == 3
    strategy = WithInference(make(), evaluation())
    result = run(strategy)

    assert as_bytes(result.arrays) == as_bytes(alone.arrays)
    assert list(strategy.inference_metrics) == [1, 2, 3]
    for server_round, own in alone.evaluate_metrics_clientapp.items():
        metrics = told(result, server_round)
        assert dict(own).items() <= metrics.items()
        assert metrics["dssd.num-nodes"] == 4


def test_rates_are_weighted_by_tokens_and_quantiles_by_texts(
    make_nodes: MakeNodes,
) -> None:
    nodes = {
        0: measured(seconds=1.0, tokens=10, accepted=1),
        1: measured(seconds=1.0, tokens=10, accepted=2),
        2: measured(seconds=8.0, tokens=40, accepted=5),
    }
    strategy = WithInference(FedAvg(), evaluation())
    metrics = told(make_nodes(3, replying(nodes.__getitem__)).run(strategy))

    assert metrics["dssd.tokens-per-second"] == 60 / 10  # The mean of rates is 8.3.
    assert metrics["dssd.acceptance-rate"] == 8 / 15
    assert metrics["dssd.uplink-bytes-per-token"] == 300 / 60
    assert metrics["dssd.num-tokens"] == 60
    assert metrics["dssd.latency-p50"] == pytest.approx(1.0, 0.06)
    assert metrics["dssd.latency-p95"] == pytest.approx(8.0, 0.06)
    assert "dssd.perplexity" not in metrics  # No node has scored its texts.
    everything: dict[str, Any] = dict(strategy.inference_metrics[1])
    assert sum(everything["dssd.latency-histogram"]) == 3
    assert everything["dssd.drafted"] == 24


def test_only_what_is_scored_counts_in_the_perplexity(make_nodes: MakeNodes) -> None:
    nodes = {
        0: measured(1.0, 10, 1, scored_tokens=10, log_likelihood=-10 * math.log(2)),
        1: measured(1.0, 30, 1, scored_tokens=20, log_likelihood=-20 * math.log(2)),
        2: measured(1.0, 40, 1),
    }
    strategy = WithInference(FedAvg(), evaluation())
    metrics = told(make_nodes(3, replying(nodes.__getitem__)).run(strategy))

    assert metrics["dssd.num-tokens"] == 80
    assert strategy.inference_metrics[1]["dssd.scored-tokens"] == 30
    assert metrics["dssd.perplexity"] == pytest.approx(2)


@pytest.mark.parametrize("make", [FedAvg, TwoStageCoded])
def test_a_node_that_fails_is_counted_and_named(
    make: Callable[[], Strategy],
    make_nodes: MakeNodes,
    logged: pytest.LogCaptureFixture,
) -> None:
    task = replying(lambda index: None if index == 1 else measured())
    metrics = told(make_nodes(3, task).run(WithInference(make(), evaluation())))

    assert metrics["dssd.num-failures"] == 1
    assert metrics["dssd.num-nodes"] == 2
    assert metrics["accuracy"] == 0.5
    assert "evaluate.dssd: node 101 failed: code 2" in logged.text
    assert "no model here" in logged.text


def test_a_reply_that_cannot_be_is_a_failure(
    make_nodes: MakeNodes, logged: pytest.LogCaptureFixture
) -> None:
    task = replying(lambda index: measured(accepted=6 if index == 0 else 3))
    metrics = told(make_nodes(3, task).run(WithInference(FedAvg(), evaluation())))

    assert metrics["dssd.num-failures"] == 1
    assert "accepted is 6, more than examined, 5" in logged.text


def test_training_goes_on_where_all_fail(
    make_nodes: MakeNodes, logged: pytest.LogCaptureFixture
) -> None:
    failing = replying(lambda index: None)
    strategy = WithInference(FedAvg(), evaluation())
    result = make_nodes(3, failing).run(strategy, num_rounds=2)

    assert told(result, 2)["accuracy"] == 0.5
    assert told(result, 2)["dssd.num-failures"] == 3
    assert "all 3 nodes failed, the first: code 2" in logged.text
    with pytest.raises(FlowerExtError, match="all 3 nodes failed"):
        make_nodes(3, failing).run(
            WithInference(FedAvg(), evaluation(if_all_fail="raise"))
        )


@pytest.mark.parametrize("make", [FedAvg, TwoStageCoded])
def test_a_silent_node_is_waited_for_no_longer_than_said(
    make: Callable[[], Strategy], make_nodes: MakeNodes
) -> None:
    nodes = make_nodes(3)
    answer = nodes.grid.handler

    def handler(message: Message) -> tuple[Message | None, float]:
        silent = message.metadata.dst_node_id == 102
        if silent and message.metadata.message_type == "evaluate.dssd":
            return None, 0.0
        return answer(message)

    nodes.grid.handler = handler
    metrics = told(nodes.run(WithInference(make(), evaluation(timeout=0.3))))

    assert metrics["dssd.num-nodes"] == 2
    assert metrics["dssd.num-failures"] == 1


@pytest.mark.parametrize("make", [FedAvg, TwoStageCoded])
def test_a_node_that_is_gone_is_not_waited_for(
    make: Callable[[], Strategy],
    make_nodes: MakeNodes,
    caplog: pytest.LogCaptureFixture,
) -> None:
    nodes = make_nodes(3)
    answer = nodes.grid.handler

    def handler(message: Message) -> tuple[Message | None, float]:
        node = message.metadata.dst_node_id
        if node == 102 and message.metadata.message_type == "evaluate.dssd":
            nodes.grid.nodes.remove(node)
            return None, 0.0
        return answer(message)

    nodes.grid.handler = handler
    metrics = told(nodes.run(WithInference(make(), evaluation(timeout=600.0))))

    assert metrics["dssd.num-nodes"] == 2
    assert metrics["dssd.num-failures"] == 1
    assert "does not know the node any more" in caplog.text


def test_a_reply_that_was_on_its_way_when_its_node_left_counts(
    make_nodes: MakeNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flower_ext.strategies.inference_round._LIST_EVERY", 0.1)
    nodes = make_nodes(3)
    answer = nodes.grid.handler

    def handler(message: Message) -> tuple[Message | None, float]:
        node = message.metadata.dst_node_id
        if message.metadata.message_type != "evaluate.dssd":
            return answer(message)
        if node == 102:
            nodes.grid.nodes.remove(node)
        return answer(message)[0], 0.3 if node == 102 else 1.0

    nodes.grid.handler = handler
    metrics = told(nodes.run(WithInference(FedAvg(), evaluation(timeout=600.0))))

    assert metrics["dssd.num-nodes"] + metrics["dssd.num-failures"] == 3
    assert metrics["dssd.num-nodes"] >= 2


@pytest.mark.parametrize("make", [FedAvg, TwoStageCoded])
def test_a_silent_node_is_waited_for_as_long_as_others_took(
    make: Callable[[], Strategy],
    make_nodes: MakeNodes,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("flower_ext.strategies.answer_times.LEAST_DEADLINE", 0.5)
    nodes = make_nodes(3)
    answer = nodes.grid.handler

    def handler(message: Message) -> tuple[Message | None, float]:
        if message.metadata.message_type != "evaluate.dssd":
            return answer(message)
        config: Any = message.content[DSSD_KEY]
        silent = message.metadata.dst_node_id == 102 and config["server-round"] == 2
        return (None, 0.0) if silent else answer(message)

    nodes.grid.handler = handler
    result = nodes.run(WithInference(make(), evaluation()), num_rounds=2)

    assert told(result, 1)["dssd.num-nodes"] == 3
    assert told(result, 2)["dssd.num-nodes"] == 2
    assert "node 102 failed: no answer within" in caplog.text


@pytest.mark.parametrize("make", [FedAvg, TwoStageCoded])
def test_no_other_evaluation_is_needed(
    make: Callable[..., Strategy], make_nodes: MakeNodes
) -> None:
    nodes = make_nodes(3)
    result = nodes.run(WithInference(make(fraction_evaluate=0.0), evaluation()))

    assert told(result)["dssd.num-nodes"] == 3
    assert "accuracy" not in told(result)


def test_nodes_and_rounds_are_those_asked_for(make_nodes: MakeNodes) -> None:
    nodes = make_nodes(8)
    strategy = WithInference(FedAvg(), evaluation(fraction=0.25, every=2))
    nodes.run(strategy, num_rounds=4)
    again = make_nodes(8)
    again.run(WithInference(FedAvg(), evaluation(fraction=0.25, every=2)), num_rounds=4)

    assert [server_round for server_round, _ in asked(nodes.grid)] == [2, 2, 4, 4]
    assert asked(nodes.grid) == asked(again.grid)
    assert list(strategy.inference_metrics) == [2, 4]


def test_two_evaluations_stand_side_by_side(make_nodes: MakeNodes) -> None:
    metrics = told(
        make_nodes().run(
            WithInference(FedAvg(), evaluation(), evaluation(prefix="again."))
        )
    )

    assert metrics["dssd.num-nodes"] == metrics["again.num-nodes"] == 3
    with pytest.raises(InvalidInputError, match="prefixes must differ"):
        WithInference(FedAvg(), evaluation(), evaluation())


def test_the_strategy_is_left_as_it_was(make_nodes: MakeNodes) -> None:
    inner = FedAvg()
    before = dict(vars(inner))
    strategy = WithInference(inner, evaluation())
    nodes = make_nodes()
    nodes.run(strategy)

    assert vars(inner) == before
    asked_before = len(asked(nodes.grid))
    nodes.run(inner)
    assert len(asked(nodes.grid)) == asked_before == 3


def test_it_is_the_outermost_wrapper(make_nodes: MakeNodes) -> None:
    inside_out = DifferentialPrivacyServerSideFixedClipping(
        WithInference(FedAvg(), evaluation()), 0.0, 100.0, 2
    )

    with pytest.raises(FlowerExtError, match="put other wrappers inside"):
        make_nodes().run(inside_out)


def test_arrays_travel_only_where_they_are_drafted_with() -> None:
    arrays = ArrayRecord()
    of_message = DSSDEvaluation(edge="in-process", drafter_weights="message")

    assert evaluation().content(1, 100, arrays).array_records == {}
    assert list(of_message.content(1, 100, arrays).array_records.values()) == [arrays]


def test_summary_is_a_tree(logged: pytest.LogCaptureFixture) -> None:
    WithInference(FedAvg(), evaluation(every=3)).summary()

    assert "├──> Inference (evaluate.dssd):" in logged.text
    assert "│\t├── Rounds: one in 3" in logged.text
    assert "│\t└── Seed: 0" in logged.text
    assert "└──> Keys in records:" in logged.text


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"fraction": 1.5}, "fraction must lie in"),
        ({"every": 0}, "every"),
        ({"timeout": 0.0}, "timeout must be a positive"),
        ({"if_all_fail": "ignore"}, "if_all_fail must be"),
        ({"draft_length": 0}, "draft_length must lie in"),
        ({"protocol": "dsss"}, "no protocol 'dsss'"),
        ({"prompts": "ROMEO:"}, "the str 'ROMEO:': put it into a list"),
    ],
)
def test_what_is_wrong_is_named(options: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidInputError, match=problem):
        evaluation(**options)


def test_a_single_stop_string_is_one() -> None:
    assert evaluation(stop_strings="###").request.stop_strings == ("###",)
    assert evaluation(stop_strings=["a", "b"]).request.stop_strings == ("a", "b")


def test_what_cannot_be_wrapped_is_named() -> None:
    strategy: Any = "FedAvg"
    with pytest.raises(InvalidInputError, match="must be a Flower Strategy"):
        WithInference(strategy, evaluation())
    with pytest.raises(InvalidInputError, match="at least one evaluation"):
        WithInference(FedAvg())


def test_nodes_generate_with_the_small_pair(make_nodes: MakeNodes) -> None:
    task = DSSDTask(["ROMEO:", "The king"])
    strategy = WithInference(FedAvg(), evaluation())
    metrics = told(make_nodes(3, task).run(strategy, num_rounds=2), 2)

    assert metrics["accuracy"] == 0.5
    assert metrics["dssd.num-prompts"] == 6
    assert metrics["dssd.num-tokens"] == 36
    assert 0 < metrics["dssd.acceptance-rate"] < 1
    assert 1 < metrics["dssd.perplexity"] < 1000
