"""How the train function is called: fresh arguments, its own partition, any dtype."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from numpy.typing import NDArray

from flower_ext.clients import CodedClientApp
from flower_ext.coding.assignment import ASSIGNMENT_KEY
from flower_ext.coding.payload import apply_update


def test_every_dtype_survives(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    reply_with: Callable[..., Message],
) -> None:
    arrays: dict[str, NDArray[Any]] = {
        "half": np.array([1.0, 2.0], np.float16),
        "double": np.array([[1.0]], np.float64),
        "count": np.array(5, np.int64),
        "byte": np.array([250], np.uint8),
        "flag": np.array([True, False]),
        "phase": np.array([1j], np.complex64),
        "empty": np.zeros((0, 3), np.float32),
    }
    received = ArrayRecord({key: Array(array) for key, array in arrays.items()})
    app = CodedClientApp(partitions="all")

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        sent = msg.content.array_records["arrays"]
        trained = {k: a.numpy() for k, a in sent.items()}
        trained = {
            k: ~a if a.dtype == bool else a + np.ones_like(a)
            for k, a in trained.items()
        }
        record = ArrayRecord({k: Array(np.asarray(a)) for k, a in trained.items()})
        return reply_with(msg, record, **{"num-examples": 70000})

    content = app(make_train(received, (0, 1)), make_context()).content
    reply = content.array_records["arrays"]
    widened = {"half": "float32", "count": "float64", "byte": "float64"}
    for key, array in arrays.items():
        total = reply[key].numpy()
        assert str(total.dtype) == widened.get(
            key, "float64" if key == "flag" else str(array.dtype)
        )
        assert total.shape == array.shape
        expected = ~array if key == "flag" else array + np.ones_like(array)
        moved = apply_update(array, total / 140000)
        assert moved.dtype == array.dtype
        np.testing.assert_array_equal(moved, expected)


def test_partitions_do_not_leak_into_each_other(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    reply_with: Callable[..., Message],
) -> None:
    """A train function may change content, context and metadata as it likes."""
    received = ArrayRecord([np.zeros(3)])
    app = CodedClientApp(partitions="all")
    seen: list[tuple[set[str], dict[str, Any], dict[str, Any], RecordDict]] = []

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        config = msg.content.config_records["config"]
        node = dict(context.node_config)
        seen.append((set(msg.content), dict(config), node, context.state))
        config["server-round"] = 99
        msg.metadata.group_id = "changed"
        arrays = msg.content.array_records["arrays"]
        start = arrays["0"].numpy()
        arrays["0"].data = Array(start + 1).data
        context.node_config["partition-id"] = 1000
        return reply_with(msg, arrays)

    context = make_context({"partition-id": 0, "num-partitions": 9, "role": "edge"})
    message = make_train(received, (2, 3))
    reply = app(message, context)

    for partition, (names, config, node, state) in zip((2, 3), seen, strict=True):
        assert names == {"arrays", "config"}
        assert config == {"server-round": 2}
        assert node == {"partition-id": partition, "num-partitions": 4, "role": "edge"}
        assert state is context.state
    np.testing.assert_array_equal(
        reply.content.array_records["arrays"]["0"].numpy(), 2 * np.ones(3)
    )
    assert context.node_config == {
        "partition-id": 0,
        "num-partitions": 9,
        "role": "edge",
    }
    assert set(message.content) == {"arrays", "config", ASSIGNMENT_KEY}
    assert message.metadata.group_id == ""
    np.testing.assert_array_equal(received["0"].numpy(), np.zeros(3))


def test_reply_is_matched_by_name_among_several_arrays(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    reply_with: Callable[..., Message],
) -> None:
    app = CodedClientApp(partitions="all")

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        start = msg.content.array_records["arrays"]["0"].numpy()
        arrays = ArrayRecord([start + 5])
        return reply_with(msg, arrays)

    message = make_train(ArrayRecord([np.ones(2)]), (0,))
    message.content["teacher"] = ArrayRecord([np.zeros(7)])
    reply = app(message, make_context())
    np.testing.assert_array_equal(
        reply.content.array_records["arrays"]["0"].numpy(), [5.0, 5.0]
    )


def test_plain_train_message_is_left_to_the_app(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    reply_with: Callable[..., Message],
) -> None:
    app = CodedClientApp()
    draws = []

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        drawn_by_numpy = np.random.random()  # noqa: NPY002
        draws.append((random.random(), drawn_by_numpy, torch.rand(1).item()))
        reply = reply_with(msg, msg.content.array_records["arrays"])
        reply.content["extra"] = ConfigRecord({"kept": True})
        return reply

    message = make_train(ArrayRecord([np.ones(2)]))
    reply = app(message, make_context({"partition-id": 3}, {"seed": 7}))
    assert set(reply.content) == {"arrays", "metrics", "extra"}
    assert dict(reply.content.metric_records["metrics"]) == {"num-examples": 1}
    app(make_train(ArrayRecord([np.ones(2)]), (3,)), make_context({"partition-id": 3}))
    assert draws[0] == draws[1]
    app(message, make_context({"partition-id": 3}))
    assert draws[2] != draws[0]
