"""CodedClientApp as a drop-in for ClientApp, and the errors that it explains."""

import logging
import random
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    MetricRecordValues,
    RecordDict,
    UserConfigValue,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod
from flwr.clientapp.typing import ClientAppCallable, Mod
from numpy.typing import NDArray

from flower_ext.clients import (
    CodedClientApp,
    CodedMod,
    PartitionTask,
    coded_mod,
    current_partition_task,
)
from flower_ext.clients.state_watch import StateWatch
from flower_ext.errors import InvalidInputError


@pytest.fixture
def received() -> ArrayRecord:
    return ArrayRecord({"w": Array(np.ones((2, 3), np.float32))})


@pytest.fixture
def flwr_log(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """Let pytest see Flower's logger, which does not propagate."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    return caplog


def app_that_returns(
    arrays: ArrayRecord, metrics: dict[str, MetricRecordValues], **records: ArrayRecord
) -> CodedClientApp:
    app = CodedClientApp(partitions="all")

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)})
        content.update(records)
        return Message(content, reply_to=msg)

    return app


def test_evaluate_and_query_pass_untouched(
    make_context: Callable[..., Context],
) -> None:
    app = CodedClientApp()
    seen: list[object] = []

    @app.lifespan()
    def lifespan(context: Context) -> Iterator[None]:
        seen.append("enter")
        yield
        seen.append("leave")

    @app.evaluate("special")
    @app.query()
    def answer(msg: Message, context: Context) -> Message:
        seen.extend([msg, context])
        return Message(msg.content, reply_to=msg)

    random.seed(5)
    state = random.getstate()
    for message_type in ("evaluate.special", "query"):
        seen.clear()
        content = RecordDict({"flower-ext.holdings": ConfigRecord()})
        message = Message(content, dst_node_id=1, message_type=message_type)
        context = make_context()
        assert app(message, context).content is content
        assert seen == ["enter", message, context, "leave"]
    assert random.getstate() == state


def test_mods_run_once_per_partition_under_the_coded_mod(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    reply_with: Callable[..., Message],
    received: ArrayRecord,
) -> None:
    seen: list[tuple[PartitionTask | None, UserConfigValue]] = []

    def watch(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
        seen.append((current_partition_task(), context.node_config["partition-id"]))
        return call_next(msg, context)

    app = CodedClientApp(mods=[watch], partitions="0-3")

    @app.train("warm", mods=[watch])
    def train(msg: Message, context: Context) -> Message:
        return reply_with(msg, msg.content.array_records["arrays"])

    message = make_train(received, (2, 0), virtual=True)
    message.metadata.message_type = "train.warm"
    app(message, make_context({"partition-id": 1}))
    assert [partition for _, partition in seen] == [2, 2, 0, 0]
    task = seen[0][0]
    assert task is not None
    assert (task.server_round, task.partition, task.worker) == (2, 2, 1)
    assert (task.seed, task.virtual) == (7, True)
    assert current_partition_task() is None


@pytest.mark.parametrize("mod", [coded_mod, CodedMod(partitions="all")])
def test_coded_mod_makes_an_app_coded(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    reply_with: Callable[..., Message],
    received: ArrayRecord,
    mod: Mod,
) -> None:
    app = ClientApp(mods=[mod])

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        return reply_with(msg, msg.content.array_records["arrays"])

    context = make_context({"partition-id": 1})
    reply = app(make_train(received, (1,)), context)
    assert reply.content.metric_records["metrics"]["flower-ext.examples"] == [1.0]


def test_coded_mod_within_itself_is_refused(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
) -> None:
    app = ClientApp(mods=[coded_mod, CodedMod()])
    app.train()(lambda msg, context: pytest.fail("reached"))
    with pytest.raises(InvalidInputError, match="list it once"):
        app(make_train(received), make_context({"partition-id": 1}))


def test_unsuitable_apps_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"@app\.train\(\)"):
        CodedClientApp(lambda context: None)  # type: ignore[arg-type]
    for mod in (coded_mod, CodedMod()):
        with pytest.raises(InvalidInputError, match="has the coded mod already"):
            CodedClientApp(mods=[mod])
        with pytest.raises(InvalidInputError, match="has the coded mod already"):
            CodedClientApp().train(mods=[mod])
    with pytest.raises(InvalidInputError, match="take the noise off"):
        CodedClientApp(mods=[LocalDpMod(1.0, 1.0, 1.0, 0.1)])


def test_error_reply_is_passed_through(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
) -> None:
    app = CodedClientApp(partitions="all")
    calls = []

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        calls.append(context.node_config["partition-id"])
        return Message(Error(400, "no data"), reply_to=msg)

    reply = app(make_train(received, (1, 2)), make_context())
    assert reply.error == Error(400, "no data")
    assert reply.metadata.reply_to_message_id == "the-message"
    assert calls == [1]


def test_exception_leaves_the_context_as_it_was(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
) -> None:
    app = CodedClientApp(partitions="all")

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        raise RuntimeError("out of memory")

    context = make_context({"partition-id": 1})
    with pytest.raises(RuntimeError, match="out of memory"):
        app(make_train(received, (2,)), context)
    assert context.node_config == {"partition-id": 1}
    assert current_partition_task() is None


@pytest.mark.parametrize(
    ("metrics", "text"),
    [
        ({}, "'num-examples' of partition 3 is missing"),
        ({"num-examples": 0}, "'num-examples' of partition 3 is 0"),
        ({"num-examples": -2.5}, "partition 3 is -2.5"),
        ({"num-examples": float("nan")}, "partition 3 is nan"),
        ({"num-examples": [1, 2]}, r"partition 3 is \[1, 2\]"),
    ],
)
def test_bad_number_of_examples(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
    metrics: dict[str, MetricRecordValues],
    text: str,
) -> None:
    app = app_that_returns(received, metrics)
    with pytest.raises(InvalidInputError, match=text):
        app(make_train(received, (3,)), make_context())


def test_weighted_by_key_names_the_metric(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
) -> None:
    app = app_that_returns(received, {"num-examples": 1, "tokens": 40})
    message = make_train(received, (3,), (0.5,), weighted_by_key="tokens")
    reply = app(message, make_context())
    metrics = reply.content.metric_records["metrics"]
    assert metrics["flower-ext.weighted-examples"] == 20.0


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"v": np.ones((2, 3))}, r"missing \['w'\], unexpected \['v'\]"),
        ({"w": np.ones(6)}, r"'w' of partition 3: .*shape \(6,\)"),
        ({"w": np.full((2, 3), np.inf)}, r"partition 3 left NaN .* array 'w'"),
        ({"w": np.full((2, 3), np.nan)}, r"partition 3 left NaN .* array 'w'"),
        ({"w": np.full((2, 3), 1j)}, "'w' of partition 3: .*complex128"),
        ({"w": np.full((2, 3), 2e38)}, "'w' overflows float32"),
    ],
)
def test_bad_arrays(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
    arrays: dict[str, NDArray[Any]],
    text: str,
) -> None:
    record = ArrayRecord({key: Array(array) for key, array in arrays.items()})
    app = app_that_returns(record, {"num-examples": 8})
    with pytest.raises(InvalidInputError, match=text):
        app(make_train(received, (3,)), make_context())


def test_bad_records(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
) -> None:
    extra = {"more": ArrayRecord([np.ones(1)])}
    app = app_that_returns(received, {"num-examples": 1}, **extra)
    with pytest.raises(InvalidInputError, match=r"exactly one.*'arrays', 'more'"):
        app(make_train(received, (3,)), make_context())

    app = app_that_returns(received, {"num-examples": 1})
    message = make_train(received, (3,))
    message.content["teacher"] = message.content.pop("arrays")
    message.content["student"] = received
    with pytest.raises(InvalidInputError, match=r"'student', 'teacher'.*'arrays'"):
        app(message, make_context())


def test_record_names_must_stay(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
) -> None:
    app = CodedClientApp(partitions="all")

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        name = f"model-{context.node_config['partition-id']}"
        metrics = MetricRecord({"num-examples": 1})
        return Message(RecordDict({name: received, "m": metrics}), reply_to=msg)

    with pytest.raises(InvalidInputError, match=r"partition 1.*'model-1'"):
        app(make_train(received, (0, 1)), make_context())


def test_change_of_state_is_kept_and_warned_of_once(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    reply_with: Callable[..., Message],
    received: ArrayRecord,
    flwr_log: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(StateWatch, "_warned", False)
    app = CodedClientApp(partitions="all")

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        fresh = ConfigRecord({"calls": [0]})
        count = context.state.config_records.get("count", fresh)
        if context.run_config["stateful"]:
            cast(list[int], count["calls"])[0] += 1
            context.state = RecordDict({"count": count})
        return reply_with(msg, msg.content.array_records["arrays"])

    context = make_context(run_config={"stateful": False})
    context.state["model"] = ArrayRecord([np.ones(2)])
    app(make_train(received, (0, 1)), context)
    assert "context.state" not in flwr_log.text
    context.run_config["stateful"] = True
    app(make_train(received, (0, 1)), context)
    app(make_train(received, (2,)), context)
    assert context.state.config_records["count"]["calls"] == [3]
    assert flwr_log.text.count("changed `context.state`") == 1


@pytest.mark.parametrize("seed", [-1, 1.5, "7", True])
def test_bad_run_seed(
    make_context: Callable[..., Context],
    make_train: Callable[..., Message],
    received: ArrayRecord,
    seed: UserConfigValue,
) -> None:
    app = app_that_returns(received, {"num-examples": 1})
    with pytest.raises(InvalidInputError, match="run-config 'seed'"):
        app(make_train(received), make_context(run_config={"seed": seed}))
