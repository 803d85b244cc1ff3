"""A reply that cannot be trusted is rejected by name, and the round does without it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from flower_ext.coding.assignment import REPLY_PREFIX
from flower_ext.errors import FlowerExtError
from flower_ext.strategies import TwoStageCoded

if TYPE_CHECKING:
    from tests.strategies.conftest import Federation

Spoil = Callable[[Message], object]

BAD = 2  # the node whose replies are spoilt


def arrays_of(reply: Message) -> ArrayRecord:
    return next(iter(reply.content.array_records.values()))


def metrics_of(reply: Message) -> MetricRecord:
    return next(iter(reply.content.metric_records.values()))


def values_of(reply: Message, key: str) -> list[float]:
    return cast(list[float], metrics_of(reply)[key])


def with_value(value: float) -> Spoil:
    def spoil(reply: Message) -> None:
        weight = arrays_of(reply)["weight"].numpy().copy()
        weight[1, 2] = value
        arrays_of(reply)["weight"] = Array(weight)

    return spoil


def garbage(reply: Message) -> None:
    good = arrays_of(reply)["weight"]
    arrays_of(reply)["weight"] = Array(good.dtype, good.shape, good.stype, b"\0garbage")


def cut_short(reply: Message) -> None:
    good = arrays_of(reply)["weight"]
    short = good.data[: len(good.data) - 4]
    arrays_of(reply)["weight"] = Array(good.dtype, good.shape, good.stype, short)


def examples(value: float) -> Spoil:
    def spoil(reply: Message) -> None:
        key = f"{REPLY_PREFIX}examples"
        metrics_of(reply)[key] = [value for _ in values_of(reply, key)]

    return spoil


SPOILT: dict[str, tuple[Spoil, str]] = {
    "NaN": (with_value(np.nan), "has NaN or infinite values"),
    "inf": (with_value(np.inf), "has NaN or infinite values"),
    "wrong shape": (
        lambda r: arrays_of(r).update({"weight": Array(np.zeros((4, 3), np.float32))}),
        r"should be float32 \(3, 4\), but is float32 \(4, 3\)",
    ),
    "wrong dtype": (
        lambda r: arrays_of(r).update({"weight": Array(np.zeros((3, 4)))}),
        "should be float32",
    ),
    "missing key": (lambda r: arrays_of(r).pop("half"), r"lack \['half'\]"),
    "extra key": (
        lambda r: arrays_of(r).update({"bias": Array(np.zeros(1))}),
        r"add \['bias'\]",
    ),
    "garbage": (garbage, "unreadable"),
    "cut short": (cut_short, "unreadable"),
    "no examples": (
        lambda r: metrics_of(r).pop(f"{REPLY_PREFIX}examples"),
        "not a coded reply",
    ),
    "zero examples": (examples(0.0), "finite and above 0"),
    "negative examples": (examples(-3.0), "finite and above 0"),
    "other examples": (examples(1e3), "does not answer this assignment"),
    "no metric record": (
        lambda r: r.content.pop("metrics"),
        "exactly one MetricRecord",
    ),
    "two array records": (
        lambda r: r.content.update({"more": ArrayRecord()}),
        "exactly one ArrayRecord",
    ),
    "endless times": (
        lambda r: metrics_of(r).update(
            {
                f"{REPLY_PREFIX}upload-seconds": 1.7e308,
                f"{REPLY_PREFIX}compute-seconds": [
                    1.7e308 for _ in values_of(r, f"{REPLY_PREFIX}compute-seconds")
                ],
            }
        ),
        "add up to infinity",
    ),
}


@pytest.mark.parametrize("name", SPOILT)
def test_bad_reply_is_rejected_by_name_and_the_round_is_exact(
    name: str,
    federation: type[Federation],
    assert_exact: Callable[..., None],
    logged: pytest.LogCaptureFixture,
) -> None:
    spoil, reason = SPOILT[name]

    def behave(index: int, message: Message, reply: Message) -> Message:
        if index == BAD and message.metadata.message_type == "train":
            spoil(reply)
        return reply

    strategy = TwoStageCoded(clock="virtual", fraction_evaluate=0.0)
    result = federation(6, behave=behave).run(strategy)

    assert_exact(result)
    assert strategy.round_metrics[1]["replies-rejected"] == 1
    assert strategy.round_metrics[1]["replies-failed"] == 0
    lines = [r.getMessage() for r in logged.records]
    [line] = [line for line in lines if "was rejected" in line]
    assert line.startswith(f"train: the reply of node {100 + BAD} was rejected")
    assert re.search(reason, line)


def test_failing_client_is_named_and_told_apart(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    error_reply: Callable[..., Message],
    logged: pytest.LogCaptureFixture,
) -> None:
    def behave(index: int, message: Message, reply: Message) -> Message:
        return error_reply(message, 2, "out of memory") if index == BAD else reply

    strategy = TwoStageCoded(clock="virtual")
    result = federation(6, behave=behave).run(strategy)

    assert_exact(result)
    assert strategy.round_metrics[1]["replies-failed"] == 1
    assert strategy.round_metrics[1]["replies-rejected"] == 0
    assert "node 102 failed on partitions [2] (code 2): out of memory" in logged.text


@pytest.mark.filterwarnings("ignore:Reading `.npy`")  # NumPy's view of such bytes
@pytest.mark.parametrize("seed", range(6))
def test_random_bytes_are_rejected_and_never_raise(
    seed: int, federation: type[Federation], assert_exact: Callable[..., None]
) -> None:
    rng = np.random.default_rng(seed)

    def behave(index: int, message: Message, reply: Message) -> Message:
        if index != BAD or message.metadata.message_type != "train":
            return reply
        for name, array in arrays_of(reply).items():
            data = bytearray(array.data)
            # The header only: a changed value is a value.
            for at in rng.integers(0, 100, 4):
                data[at] = rng.integers(0, 256)
            if bytes(data[:128]) == array.data[:128]:
                data[0] ^= 1
            arrays_of(reply)[name] = Array(
                array.dtype, array.shape, array.stype, bytes(data)
            )
        return reply

    strategy = TwoStageCoded(clock="virtual", fraction_evaluate=0.0)

    assert_exact(federation(6, behave=behave).run(strategy))


def test_stock_clients_are_refused_with_the_fix(federation: type[Federation]) -> None:
    app = ClientApp()

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        metrics = MetricRecord({"num-examples": 1})
        content = RecordDict({"arrays": ArrayRecord(), "metrics": metrics})
        return Message(content, reply_to=msg)

    with pytest.raises(FlowerExtError, match="CodedClientApp"):
        federation(3, app).run(TwoStageCoded())


def test_stock_client_among_coded_ones_gets_no_work(
    federation: type[Federation],
    assert_exact: Callable[..., None],
    error_reply: Callable[..., Message],
    logged: pytest.LogCaptureFixture,
) -> None:
    nodes = federation(6)
    handle = nodes.grid.handler

    def handler(message: Message) -> tuple[Message | None, float]:
        if message.metadata.dst_node_id == 103:
            return error_reply(message, 2, "KeyError: 'arrays'"), 0.0
        return handle(message)

    nodes.grid.handler = handler
    result = nodes.run(TwoStageCoded(clock="virtual"))

    assert_exact(result)
    assert "Node 103 did not say which partitions it holds" in logged.text
    assert 103 not in {node for node, _ in nodes.grid.assignments()}


@pytest.mark.parametrize(
    ("reason", "asked"),
    [
        ("KeyError: 'arrays'", True),
        ("<class 'flower_ext.errors.InvalidInputError'>:<'Unknown key'>", False),
    ],
)
def test_a_run_that_waits_for_a_node_with_an_error_says_so_aloud(
    reason: str,
    asked: bool,
    federation: type[Federation],
    error_reply: Callable[..., Message],
    logged: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("flower_ext.strategies.staged_grid._LOUD_EVERY", 0.2)
    nodes = federation(2)
    handle = nodes.grid.handler

    def handler(message: Message) -> tuple[Message | None, float]:
        if message.metadata.dst_node_id == 101:
            return error_reply(message, 2, reason), 0.0
        return handle(message)

    nodes.grid.handler = handler
    with pytest.raises(FlowerExtError, match="1 do, 2 are needed") as caught:
        nodes.run(TwoStageCoded(), timeout=1.0)

    warnings = [r.message for r in logged.records if r.levelname == "WARNING"]
    assert any("1 of 2 are ready, 1 replied an error" in told for told in warnings)
    assert ("CodedClientApp" in str(caught.value)) is asked
    assert any("Is it a CodedClientApp?" in told for told in warnings) is asked
    assert reason in str(caught.value)
