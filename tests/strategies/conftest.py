"""A federation without a network: a fake grid, real clients, and what they train."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    MetricRecordValues,
    RecordDict,
    UserConfigValue,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import Mod
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore.task_identity import TaskIdentity
from numpy.typing import NDArray

from flower_ext.clients import CodedClientApp
from flower_ext.clients.seeding import seed_partition
from flower_ext.coding.assignment import ASSIGNMENT_KEY, Assignment

Handler = Callable[[Message], tuple[Message | None, float]]
Answer = Message | None | tuple[Message | None, float]


class FakeGrid(Grid):
    """A grid made of one function: message in, reply (or None) and seconds out.

    Nothing waits: a reply can be pulled once its seconds have passed on the wall.
    """

    def __init__(self, handler: Handler, nodes: Iterable[int]) -> None:
        self.handler = handler
        self.nodes = list(nodes)
        self.pushed: list[Message] = []
        self.pulls: list[tuple[float, str]] = []
        self._replies: dict[str, tuple[float, Message]] = {}
        self._ids = itertools.count()
        self._lock = threading.Lock()

    def set_run(self, run: Any) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Any:
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise NotImplementedError

    def send_and_receive(self, *args: Any, **kwargs: Any) -> Any:
        raise AssertionError("The staged grid does not wait as Flower does.")

    def get_nodes(self) -> Any:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message_id = f"message-{next(self._ids)}"
            message.metadata.__dict__["_message_id"] = message_id
            self.pushed.append(message)
            if message.metadata.dst_node_id not in self.nodes:
                ids.append("")
                continue
            ids.append(message_id)
            reply, seconds = self.handler(message)
            if reply is not None:
                with self._lock:
                    self._replies[message_id] = (time.monotonic() + seconds, reply)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        now, found = time.monotonic(), []
        with self._lock:
            for message_id in message_ids:
                self.pulls.append((now, message_id))
                if self._replies.get(message_id, (now + 1,))[0] <= now:
                    found.append(self._replies.pop(message_id)[1])
        return found

    def assignments(self) -> list[tuple[int, Assignment]]:
        """Return what every node was asked to train, in the order of the asking."""
        return [
            (m.metadata.dst_node_id, assignment)
            for m in self.pushed
            if (assignment := assignment_in(m)) is not None
        ]


def assignment_in(message: Message) -> Assignment | None:
    config = message.content.config_records.get(ASSIGNMENT_KEY)
    return None if config is None else Assignment.from_config(config)


def start_arrays() -> ArrayRecord:
    return ArrayRecord(
        {
            "weight": Array(np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)),
            "half": Array(np.linspace(0, 1, 5).astype(np.float16)),
            "count": Array(np.array(7, np.int64)),
        }
    )


def trained(arrays: ArrayRecord, server_round: int, partition: int) -> ArrayRecord:
    """Return what training makes of the arrays: a new float array, a step counter."""
    rng = np.random.default_rng([server_round, partition])
    moved = {}
    for name, array in arrays.items():
        value = array.numpy()
        if value.dtype.kind == "i":
            moved[name] = Array(np.asarray(value + 3))
        else:
            step = 0.1 * rng.standard_normal(value.shape)
            moved[name] = Array((0.9 * value + step).astype(value.dtype))
    return ArrayRecord(moved)


def examples_of(partition: int) -> int:
    return 10 + 3 * partition


def fedavg_by_hand(rounds: int, partitions: int) -> dict[str, NDArray[Any]]:
    """Return what FedAvg makes of the start arrays, computed without Flower."""
    arrays = start_arrays()
    weights = np.array([examples_of(p) for p in range(partitions)], dtype=float)
    for server_round in range(1, rounds + 1):
        all_trained = [trained(arrays, server_round, p) for p in range(partitions)]
        arrays = ArrayRecord(
            {
                name: Array(
                    np.asarray(
                        np.average(
                            [t[name].numpy().astype(float) for t in all_trained],
                            axis=0,
                            weights=weights,
                        )
                    ).astype(array.dtype)
                )
                for name, array in arrays.items()
            }
        )
    return {name: array.numpy() for name, array in arrays.items()}


def client(
    mods: list[Mod] | None = None,
    partitions: Any = "all",
    arrays_key: str = "arrays",
    config_key: str = "config",
    examples_key: str = "num-examples",
) -> CodedClientApp:
    """Return an app whose training is :func:`trained`."""
    app = CodedClientApp(mods=mods, partitions=partitions)

    @app.train()
    def train(msg: Message, context: Context) -> Message:
        partition = int(context.node_config["partition-id"])
        config = msg.content.config_records[config_key]
        server_round = cast(int, config["server-round"])
        metrics: dict[str, MetricRecordValues] = {
            examples_key: examples_of(partition),
            "loss": 1.0 + partition,
        }
        return Message(
            RecordDict(
                {
                    arrays_key: trained(
                        msg.content.array_records[arrays_key], server_round, partition
                    ),
                    "metrics": MetricRecord(metrics),
                }
            ),
            reply_to=msg,
        )

    @app.evaluate()
    def evaluate(msg: Message, context: Context) -> Message:
        metrics: dict[str, MetricRecordValues] = {examples_key: 10, "accuracy": 0.5}
        return Message(RecordDict({"metrics": MetricRecord(metrics)}), reply_to=msg)

    return app


class Federation:
    """Nodes that run one app; `behave` says what becomes of a reply and when.

    Parameters
    ----------
    count : int
        Number of nodes; node i has id ``first + i`` and partition i.
    app : ClientApp, optional
        What they run.
    first : int
        Id of the first node.
    behave : callable, optional
        ``(node index, message, reply) -> reply, None or (reply, seconds)``; called for
        train messages with an assignment and for evaluate messages.
    """

    def __init__(
        self,
        count: int = 6,
        app: ClientApp | None = None,
        first: int = 100,
        behave: Callable[[int, Message, Message], Answer] | None = None,
        node_config: Callable[[int], Mapping[str, UserConfigValue]] | None = None,
    ) -> None:
        self.app = app or client()
        self.first = first
        self.behave = behave
        self.node_config = node_config or (
            lambda i: {"partition-id": i, "num-partitions": count}
        )
        self.grid = FakeGrid(self.handle, range(first, first + count))

    def handle(self, message: Message) -> tuple[Message | None, float]:
        node = message.metadata.dst_node_id
        index = node - self.first
        context = Context(1, node, dict(self.node_config(index)), RecordDict(), {})
        try:
            reply = self.app(message, context)
        except Exception as error:
            reply = failure(message, 2, repr(error))
        is_task = assignment_in(message) or message.metadata.message_type == "evaluate"
        if self.behave is None or not is_task:
            return reply, 0.0
        done = self.behave(index, message, reply)
        return done if isinstance(done, tuple) else (done, 0.0)

    def run(self, strategy: Strategy, num_rounds: int = 1, **kwargs: Any) -> Result:
        kwargs = {"timeout": 20.0, **kwargs}
        return strategy.start(self.grid, start_arrays(), num_rounds, **kwargs)


def failure(message: Message, code: int, reason: str = "it broke") -> Message:
    return Message(Error(code, reason), reply_to=message)


@pytest.fixture(autouse=True, scope="session")
def warm_clients() -> None:
    """Import torch before the first round, whose time it would count in."""
    seed_partition(0, 1, 0)


@pytest.fixture(autouse=True)
def task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages be made, as in the process of a running task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture(autouse=True)
def no_thread_stays() -> Iterator[None]:
    """Fail where a poller's thread outlives its run by a second."""
    yield
    end = time.monotonic() + 1.0
    while any(t.name == "flower-ext-poller" for t in threading.enumerate()):
        assert time.monotonic() < end, "a polling thread was left behind"
        time.sleep(0.01)


@pytest.fixture
def logged(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> pytest.LogCaptureFixture:
    """Return pytest's record of Flower's log, which does not propagate by itself."""
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    caplog.set_level(logging.INFO, "flwr")
    return caplog


@pytest.fixture
def federation() -> type[Federation]:
    return Federation


@pytest.fixture
def fake_grid() -> type[FakeGrid]:
    return FakeGrid


@pytest.fixture
def coded_client() -> Callable[..., CodedClientApp]:
    return client


@pytest.fixture
def error_reply() -> Callable[..., Message]:
    return failure


@pytest.fixture
def assignment_of() -> Callable[[Message], Assignment | None]:
    return assignment_in


@pytest.fixture
def by_hand() -> Callable[[int, int], dict[str, NDArray[Any]]]:
    return fedavg_by_hand


@pytest.fixture
def assert_exact() -> Callable[..., None]:
    """Return a check that a result is FedAvg's own to 1e-6 of its largest value."""

    def check(result: Result, rounds: int = 1, partitions: int = 6) -> None:
        expected = fedavg_by_hand(rounds, partitions)
        assert result.arrays.keys() == expected.keys()
        for name, value in expected.items():
            got = result.arrays[name].numpy()
            assert got.dtype == value.dtype
            assert got.shape == value.shape
            if value.dtype == np.float16:  # half a unit in its last place is 5e-4
                bar = 1e-3
            else:
                bar = 1e-6 if value.dtype.kind == "f" else 0.0
            difference = np.abs(got.astype(float) - value.astype(float)).max()
            assert difference <= bar * np.abs(value.astype(float)).max(), name

    return check


@pytest.fixture
def start_record() -> Callable[[], ArrayRecord]:
    return start_arrays
