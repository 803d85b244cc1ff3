"""Holdings are declared, parsed and answered for; nothing is assumed."""

from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    ConfigRecordValues,
    Context,
    Message,
    RecordDict,
    UserConfig,
)
from flwr.common.serde import message_from_proto, message_to_proto

from flower_ext.clients import CodedClientApp, CodedMod
from flower_ext.clients.holdings import Declaration, PartitionSpec, parse_partitions
from flower_ext.coding.assignment import HOLDINGS_KEY
from flower_ext.errors import InvalidInputError


@pytest.mark.parametrize(
    ("spec", "partitions"),
    [
        ("0-3,7", (0, 1, 2, 3, 7)),
        (" 7 , 0 - 1,1-2 ", (0, 1, 2, 7)),
        ("5", (5,)),
        (5, (5,)),
        ([3, 1, 3], (1, 3)),
        (range(2), (0, 1)),
        ([], ()),
        (" all ", "all"),
    ],
)
def test_parse(spec: PartitionSpec, partitions: tuple[int, ...] | str) -> None:
    assert parse_partitions(spec) == partitions


@pytest.mark.parametrize(
    "spec", ["", "3-0", "-1", "1,,2", "one", "0-x", -1, [0, -1], [1.5], [True], ["0"]]
)
def test_parse_names_what_it_cannot_read(spec: PartitionSpec) -> None:
    with pytest.raises(InvalidInputError, match="Partitions must be") as error:
        parse_partitions(spec)
    assert repr(spec) in str(error.value)


def ask(
    app: CodedClientApp, context: Context, **request: int
) -> dict[str, ConfigRecordValues]:
    question = ConfigRecord({**request})
    content = RecordDict({HOLDINGS_KEY: question, "arrays": ArrayRecord()})
    reply = app(Message(content, dst_node_id=1, message_type="train"), context)
    reply = message_from_proto(message_to_proto(reply))
    assert set(reply.content) == {HOLDINGS_KEY}
    return dict(reply.content.config_records[HOLDINGS_KEY])


def answer(
    partitions: list[int], number: int, worker: int, holds_all: bool = False
) -> dict[str, ConfigRecordValues]:
    return {
        "partitions": partitions,
        "all": holds_all,
        "num-partitions": number,
        "worker": worker,
    }


@pytest.mark.parametrize(
    ("declared", "node_config", "expected"),
    [
        (None, {}, answer([], 0, -1)),
        (None, {"partition-id": 2, "num-partitions": 5}, answer([2], 5, 2)),
        (None, {"partition-id": 2, "partitions": "0-1"}, answer([0, 1], 0, 2)),
        (None, {"partitions": 3}, answer([3], 0, -1)),
        ([4], {"partition-id": 2, "partitions": "0-1"}, answer([4], 0, 2)),
        ("all", {"num-partitions": 3}, answer([0, 1, 2], 3, -1, True)),
        ("all", {}, answer([], 0, -1, True)),
        (None, {"partitions": "all"}, answer([], 0, -1, True)),
        (
            lambda context: {context.node_config["partition-id"], 9},
            {"partition-id": 2},
            answer([2, 9], 0, 2),
        ),
        (lambda context: "all", {"num-partitions": 1}, answer([0], 1, -1, True)),
    ],
)
def test_request_is_answered_before_the_app(
    make_context: Callable[..., Context],
    declared: Declaration | None,
    node_config: UserConfig,
    expected: dict[str, ConfigRecordValues],
) -> None:
    app = CodedClientApp(partitions=declared)
    app.train()(lambda msg, context: pytest.fail("reached"))
    assert ask(app, make_context(node_config)) == expected


def test_number_of_partitions_of_the_request_goes_first(
    make_context: Callable[..., Context],
) -> None:
    app = CodedClientApp(partitions="all")
    app.train()(lambda msg, context: pytest.fail("reached"))
    context = make_context({"num-partitions": 3})
    assert ask(app, context, **{"num-partitions": 2}) == answer([0, 1], 2, -1, True)
    with pytest.raises(InvalidInputError, match=r"'num-partitions' .* got -2"):
        ask(app, context, **{"num-partitions": -2})


def test_partition_that_is_not_held_is_refused(
    make_context: Callable[..., Context], make_train: Callable[..., Message]
) -> None:
    app = CodedClientApp()
    app.train()(lambda msg, context: pytest.fail("reached"))
    message = make_train(ArrayRecord(), (0, 1, 3))
    with pytest.raises(InvalidInputError, match=r"partitions \[0, 3\].*holds \[1\]"):
        app(message, make_context({"partition-id": 1}))


@pytest.mark.parametrize(
    ("node_config", "text"),
    [
        ({"partition-id": -1}, "'partition-id' must be"),
        ({"partition-id": "0"}, "'partition-id' must be"),
        ({"partitions": 1.5}, "got 1.5"),
        ({"partitions": True}, "got True"),
        ({"num-partitions": "many"}, "got 'many'"),
    ],
)
def test_bad_node_config(
    make_context: Callable[..., Context], node_config: UserConfig, text: str
) -> None:
    app = CodedClientApp()
    app.train()(lambda msg, context: pytest.fail("reached"))
    with pytest.raises(InvalidInputError, match=text):
        ask(app, make_context(node_config))


def test_bad_declaration_is_refused_at_once() -> None:
    for make in (CodedClientApp, CodedMod):
        with pytest.raises(InvalidInputError, match="'0-'"):
            make(partitions="0-")


def test_numpy_integers_are_partitions() -> None:
    assert parse_partitions([*np.arange(3).tolist(), np.int64(5)]) == (0, 1, 2, 5)
