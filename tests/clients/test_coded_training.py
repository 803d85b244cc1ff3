"""A coded reply is the combination of what plain FedAvg would train."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from flower_ext.clients import CodedClientApp
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
def make_app(
    digits: tuple[torch.Tensor, torch.Tensor],
) -> Callable[..., CodedClientApp]:
    """Return a function that makes an app which uses all three generators."""

    def make(**arguments: Any) -> CodedClientApp:
        app = CodedClientApp(**arguments)
        images, labels = digits

        @app.train()
        def train(msg: Message, context: Context) -> Message:
            partition = int(context.node_config["partition-id"])
            own = np.arange(partition, 400 - 40 * partition, NUM_PARTITIONS)
            np.random.shuffle(own)  # noqa: NPY002
            scale = 1.0 + 0.1 * random.random()
            model = make_model()
            model.load_state_dict(
                msg.content.array_records["arrays"].to_torch_state_dict()
            )
            losses = []
            for batch in np.array_split(own, 5):
                model.zero_grad()
                output = model(scale * images[batch])
                loss = torch.nn.functional.cross_entropy(output, labels[batch])
                torch.autograd.backward(loss)
                with torch.no_grad():
                    for parameter in model.parameters():
                        assert parameter.grad is not None
                        parameter.sub_(0.1 * parameter.grad)
                losses.append(loss.item())
            metrics = MetricRecord(
                {"num-examples": len(own), "losses": losses, "loss": losses[-1]}
            )
            content = RecordDict(
                {"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}
            )
            return Message(content, reply_to=msg)

        return app

    return make


def array_of(content: RecordDict, key: str) -> NDArray[Any]:
    """Return an array of a reply."""
    return content.array_records["arrays"][key].numpy()


def examples_of(content: RecordDict) -> int:
    """Return the number of examples of a plain reply."""
    examples = content.metric_records["metrics"]["num-examples"]
    assert isinstance(examples, int)
    return examples


@pytest.fixture
def plain_replies(
    make_app: Callable[..., CodedClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
) -> dict[int, RecordDict]:
    """Train what plain FedAvg gets from the node of each partition."""
    replies = {}
    for partition in range(NUM_PARTITIONS):
        node = {"partition-id": partition, "num-partitions": NUM_PARTITIONS}
        context = make_context(node, {"seed": 7})
        replies[partition] = make_app()(make_train(received), context).content
    return replies


def combine_by_hand(
    received: ArrayRecord,
    plain_replies: dict[int, RecordDict],
    partitions: tuple[int, ...],
) -> dict[str, NDArray[np.float64]]:
    """Return the sum of b n (trained - received), in float64."""
    sums = {}
    for key, array in received.items():
        start = array.numpy().astype(np.float64)
        sums[key] = np.zeros_like(start)
        for p in partitions:
            weight = COEFFICIENTS[p] * examples_of(plain_replies[p])
            sums[key] += weight * (array_of(plain_replies[p], key) - start)
    return sums


@pytest.mark.parametrize("partitions", [(0, 1, 2, 3), (3, 1), (2,)])
def test_coded_reply_is_the_combination_of_plain_updates(
    make_app: Callable[..., CodedClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
    plain_replies: dict[int, RecordDict],
    partitions: tuple[int, ...],
) -> None:
    message = make_train(received, partitions, [COEFFICIENTS[p] for p in partitions])
    reply = make_app(partitions="all")(message, make_context())

    expected = combine_by_hand(received, plain_replies, partitions)
    assert set(reply.content) == {"arrays", "metrics"}
    for key, total in expected.items():
        array = array_of(reply.content, key)
        kind = received[key].numpy().dtype.kind
        assert array.dtype == (np.float64 if kind == "i" else np.float32)
        assert array.shape == received[key].numpy().shape
        np.testing.assert_array_equal(array, total.astype(array.dtype))
    assert reply.metadata.reply_to_message_id == "the-message"


def test_reply_reports_every_partition(
    make_app: Callable[..., CodedClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
    plain_replies: dict[int, RecordDict],
) -> None:
    message = make_train(received, (3, 1), (0.125, -0.5))
    reply = make_app(partitions=[1, 3])(message, make_context())

    assignment = Assignment.from_config(message.content.config_records[ASSIGNMENT_KEY])
    summary = ReplySummary.from_metrics(
        reply.content.metric_records["metrics"], assignment
    )
    assert summary.examples == (70.0, 90.0)
    assert summary.weighted_examples == 0.125 * 70 - 0.5 * 90
    assert all(seconds > 0 for seconds in summary.compute_seconds)
    assert summary.upload_seconds == 0.0
    for partition, metrics in zip((3, 1), summary.metrics, strict=True):
        assert metrics == dict(plain_replies[partition].metric_records["metrics"])
        assert type(metrics["num-examples"]) is int


def test_update_depends_on_seed_round_and_partition_only(
    make_app: Callable[..., CodedClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
) -> None:
    def change(
        node: UserConfig,
        partitions: tuple[int, ...],
        seed: int = 7,
        server_round: int = 2,
    ) -> NDArray[Any]:
        message = make_train(received, partitions, seed=seed, server_round=server_round)
        reply = make_app(partitions="all")(message, make_context(node))
        return array_of(reply.content, "0.weight")

    on_one = change({"partition-id": 0}, (2,))
    np.testing.assert_array_equal(on_one, change({"partition-id": 3}, (2,)))
    one_two = change({}, (1, 2))
    np.testing.assert_allclose(one_two, change({}, (2, 1)), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one_two - change({}, (1,)), on_one, atol=1e-4)
    assert np.abs(on_one - change({}, (2,), seed=8)).max() > 1e-3
    assert np.abs(on_one - change({}, (2,), server_round=3)).max() > 1e-3


def test_decoded_round_is_fedavg(
    make_app: Callable[..., CodedClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
    plain_replies: dict[int, RecordDict],
) -> None:
    """Two coded replies that share partition 1 add up to FedAvg's own update."""
    app = make_app(partitions="all")
    first = app(make_train(received, (0, 1), (1.0, 0.5)), make_context()).content
    second = app(
        make_train(received, (1, 2, 3), (0.5, 1.0, 1.0)), make_context()
    ).content

    counts = [examples_of(plain_replies[p]) for p in range(4)]
    for key in received:
        total = array_of(first, key) + array_of(second, key)
        array = apply_update(received[key].numpy(), total / sum(counts))
        trained = [array_of(plain_replies[p], key) for p in range(4)]
        expected = np.average(np.stack(trained), axis=0, weights=counts)
        assert array.dtype == received[key].numpy().dtype
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)
    assert "num_batches_tracked" in "".join(received)


def test_coded_reply_survives_serialisation(
    make_app: Callable[..., CodedClientApp],
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
) -> None:
    message = make_train(received, (0, 2), (1.0, -1.0))
    wire = message_to_proto(message).SerializeToString()
    message = message_from_proto(ProtoMessage.FromString(wire))
    reply = make_app(partitions="all")(message, make_context())
    wire = message_to_proto(reply).SerializeToString()
    arrived = message_from_proto(ProtoMessage.FromString(wire))

    assignment = Assignment.from_config(message.content.config_records[ASSIGNMENT_KEY])
    sent = ReplySummary.from_metrics(
        reply.content.metric_records["metrics"], assignment
    )
    metrics = arrived.content.metric_records["metrics"]
    assert ReplySummary.from_metrics(metrics, assignment) == sent
    for key, array in reply.content.array_records["arrays"].items():
        np.testing.assert_array_equal(array_of(arrived.content, key), array.numpy())
