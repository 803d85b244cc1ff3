"""A coded reply is the combination of what plain FedAvg would train."""

import random

import numpy as np
import pytest
import torch
from flower_ext.clients import CodedClientApp
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from sklearn.datasets import load_digits

from flower_ext.coding.assignment import ASSIGNMENT_KEY, Assignment
from flower_ext.coding.payload import apply_update
from flower_ext.coding.reply import ReplySummary

NUM_PARTITIONS = 4
COEFFICIENTS = {0: 1.0, 1: -0.5, 2: 2.25, 3: 0.125}


def make_model() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Linear(64, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(16, 10),
    )


@pytest.fixture(scope="module")
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


@pytest.fixture
def received() -> ArrayRecord:
    torch.manual_seed(0)
    return ArrayRecord(make_model().state_dict())


@pytest.fixture
def make_app(digits):
    """Return a function that makes an app which uses all three generators."""

    def make(**arguments) -> CodedClientApp:
        app = CodedClientApp(**arguments)
        images, labels = digits

        @app.train()
        def train(msg, context):
            partition = int(context.node_config["partition-id"])
            own = np.arange(partition, 400 - 40 * partition, NUM_PARTITIONS)
            np.random.shuffle(own)  # noqa: NPY002
            scale = 1.0 + 0.1 * random.random()
            model = make_model()
            model.load_state_dict(msg.content["arrays"].to_torch_state_dict())
            losses = []
            for batch in np.array_split(own, 5):
                model.zero_grad()
                output = model(scale * images[batch])
                loss = torch.nn.functional.cross_entropy(output, labels[batch])
                loss.backward()
                with torch.no_grad():
                    for parameter in model.parameters():
                        parameter.sub_(0.1 * parameter.grad)
                losses.append(loss.item())
            metrics = {"num-examples": len(own), "losses": losses, "loss": losses[-1]}
            content = RecordDict(
                {
                    "arrays": ArrayRecord(model.state_dict()),
                    "metrics": MetricRecord(metrics),
                }
            )
            return Message(content, reply_to=msg)

        return app

    return make


@pytest.fixture
def plain_replies(make_app, make_context, make_train, received):
    """Train what plain FedAvg gets from the node of each partition."""
    replies = {}
    for partition in range(NUM_PARTITIONS):
        node = {"partition-id": partition, "num-partitions": NUM_PARTITIONS}
        context = make_context(node, {"seed": 7})
        replies[partition] = make_app()(make_train(received), context).content
    return replies


def combine_by_hand(received, plain_replies, partitions):
    """Return the sum of b n (trained - received), in float64."""
    sums = {}
    for key, array in received.items():
        start = array.numpy().astype(np.float64)
        sums[key] = np.zeros_like(start)
        for p in partitions:
            weight = COEFFICIENTS[p] * plain_replies[p]["metrics"]["num-examples"]
            sums[key] += weight * (plain_replies[p]["arrays"][key].numpy() - start)
    return sums


@pytest.mark.parametrize("partitions", [(0, 1, 2, 3), (3, 1), (2,)])
def test_coded_reply_is_the_combination_of_plain_updates(
    make_app, make_context, make_train, received, plain_replies, partitions
):
    message = make_train(received, partitions, [COEFFICIENTS[p] for p in partitions])
    reply = make_app(partitions="all")(message, make_context())

    expected = combine_by_hand(received, plain_replies, partitions)
    assert set(reply.content) == {"arrays", "metrics"}
    for key, total in expected.items():
        array = reply.content["arrays"][key].numpy()
        kind = received[key].numpy().dtype.kind
        assert array.dtype == (np.float64 if kind == "i" else np.float32)
        assert array.shape == received[key].numpy().shape
        np.testing.assert_array_equal(array, total.astype(array.dtype))
    assert reply.metadata.reply_to_message_id == "the-message"


def test_reply_reports_every_partition(
    make_app, make_context, make_train, received, plain_replies
):
    message = make_train(received, (3, 1), (0.125, -0.5))
    reply = make_app(partitions=[1, 3])(message, make_context())

    assignment = Assignment.from_config(message.content[ASSIGNMENT_KEY])
    summary = ReplySummary.from_metrics(reply.content["metrics"], assignment)
    assert summary.examples == (70.0, 90.0)
    assert summary.weighted_examples == 0.125 * 70 - 0.5 * 90
    assert all(seconds > 0 for seconds in summary.compute_seconds)
    assert summary.upload_seconds == 0.0
    for partition, metrics in zip((3, 1), summary.metrics, strict=True):
        assert metrics == dict(plain_replies[partition]["metrics"])
        assert type(metrics["num-examples"]) is int


def test_update_depends_on_seed_round_and_partition_only(
    make_app, make_context, make_train, received
):
    def change(node, partitions, seed=7, server_round=2):
        message = make_train(received, partitions, seed=seed, server_round=server_round)
        reply = make_app(partitions="all")(message, make_context(node))
        return reply.content["arrays"]["0.weight"].numpy()

    on_one = change({"partition-id": 0}, (2,))
    np.testing.assert_array_equal(on_one, change({"partition-id": 3}, (2,)))
    one_two = change({}, (1, 2))
    np.testing.assert_allclose(one_two, change({}, (2, 1)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one_two - change({}, (1,)), on_one, atol=1e-4)
    assert np.abs(on_one - change({}, (2,), seed=8)).max() > 1e-3
    assert np.abs(on_one - change({}, (2,), server_round=3)).max() > 1e-3


def test_decoded_round_is_fedavg(
    make_app, make_context, make_train, received, plain_replies
):
    """Two coded replies that share partition 1 add up to FedAvg's own update."""
    app = make_app(partitions="all")
    first = app(make_train(received, (0, 1), (1.0, 0.5)), make_context()).content
    second = app(
        make_train(received, (1, 2, 3), (0.5, 1.0, 1.0)), make_context()
    ).content

    counts = [plain_replies[p]["metrics"]["num-examples"] for p in range(4)]
    for key in received:
        total = first["arrays"][key].numpy() + second["arrays"][key].numpy()
        array = apply_update(received[key].numpy(), total / sum(counts))
        trained = [plain_replies[p]["arrays"][key].numpy() for p in range(4)]
        expected = np.average(np.stack(trained), axis=0, weights=counts)
        assert array.dtype == received[key].numpy().dtype
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
    assert "num_batches_tracked" in "".join(received)


def test_coded_reply_survives_serialisation(
    make_app, make_context, make_train, received
):
    message = make_train(received, (0, 2), (1.0, -1.0))
    wire = message_to_proto(message).SerializeToString()
    message = message_from_proto(ProtoMessage.FromString(wire))
    reply = make_app(partitions="all")(message, make_context())
    wire = message_to_proto(reply).SerializeToString()
    arrived = message_from_proto(ProtoMessage.FromString(wire))

    assignment = Assignment.from_config(message.content[ASSIGNMENT_KEY])
    sent = ReplySummary.from_metrics(reply.content["metrics"], assignment)
    assert ReplySummary.from_metrics(arrived.content["metrics"], assignment) == sent
    for key, array in reply.content["arrays"].items():
        np.testing.assert_array_equal(
            arrived.content["arrays"][key].numpy(), array.numpy()
        )


def test_every_dtype_survives(make_context, make_train, reply_with):
    arrays = {
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
    def train(msg, context):
        trained = {k: a.numpy() for k, a in msg.content["arrays"].items()}
        trained = {
            k: ~a if a.dtype == bool else a + np.ones_like(a)
            for k, a in trained.items()
        }
        record = ArrayRecord({k: Array(np.asarray(a)) for k, a in trained.items()})
        return reply_with(msg, record, **{"num-examples": 70000})

    reply = app(make_train(received, (0, 1)), make_context()).content["arrays"]
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


def test_partitions_do_not_leak_into_each_other(make_context, make_train, reply_with):
    """A train function may change content, context and metadata as it likes."""
    received = ArrayRecord([np.zeros(3)])
    app = CodedClientApp(partitions="all")
    seen = []

    @app.train()
    def train(msg, context):
        config = msg.content["config"]
        node = dict(context.node_config)
        seen.append((set(msg.content), dict(config), node, context.state))
        config["server-round"] = 99
        msg.metadata.group_id = "changed"
        arrays = msg.content["arrays"]
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
    np.testing.assert_array_equal(reply.content["arrays"]["0"].numpy(), 2 * np.ones(3))
    assert context.node_config == {
        "partition-id": 0,
        "num-partitions": 9,
        "role": "edge",
    }
    assert set(message.content) == {"arrays", "config", ASSIGNMENT_KEY}
    assert message.metadata.group_id == ""
    np.testing.assert_array_equal(received["0"].numpy(), np.zeros(3))


def test_reply_is_matched_by_name_among_several_arrays(
    make_context, make_train, reply_with
):
    app = CodedClientApp(partitions="all")

    @app.train()
    def train(msg, context):
        arrays = ArrayRecord([msg.content["arrays"]["0"].numpy() + 5])
        return reply_with(msg, arrays)

    message = make_train(ArrayRecord([np.ones(2)]), (0,))
    message.content["teacher"] = ArrayRecord([np.zeros(7)])
    reply = app(message, make_context())
    np.testing.assert_array_equal(reply.content["arrays"]["0"].numpy(), [5.0, 5.0])


def test_plain_train_message_is_left_to_the_app(make_context, make_train, reply_with):
    app = CodedClientApp()
    draws = []

    @app.train()
    def train(msg, context):
        drawn_by_numpy = np.random.random()  # noqa: NPY002
        draws.append((random.random(), drawn_by_numpy, torch.rand(1).item()))
        reply = reply_with(msg, msg.content["arrays"])
        reply.content["extra"] = ConfigRecord({"kept": True})
        return reply

    message = make_train(ArrayRecord([np.ones(2)]))
    reply = app(message, make_context({"partition-id": 3}, {"seed": 7}))
    assert set(reply.content) == {"arrays", "metrics", "extra"}
    assert dict(reply.content["metrics"]) == {"num-examples": 1}
    app(make_train(ArrayRecord([np.ones(2)]), (3,)), make_context({"partition-id": 3}))
    assert draws[0] == draws[1]
    app(message, make_context({"partition-id": 3}))
    assert draws[2] != draws[0]
