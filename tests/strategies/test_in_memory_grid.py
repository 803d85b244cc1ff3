"""Coded rounds over Flower's own in-memory grid, one thread per node.

Messages pass by reference there; the nodes here rebuild theirs from the bytes that
would travel, so that what cannot be serialised is found.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast
from uuid import uuid4

import pytest
from flwr.app import ArrayRecord, Context, Message, RecordDict, UserConfig
from flwr.clientapp import ClientApp
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import (
    InMemoryLinkState,
    RunRecord,
)
from flwr.serverapp.strategy import Result
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid import InMemoryGrid

from flower_ext.clients import CodedClientApp
from flower_ext.strategies import CodedFedAvg, TwoStageCoded
from flower_ext.strategies.coded_strategy import CodedStrategy

Seconds = Callable[[int, Message], float]


def through_bytes(message: Message) -> Message:
    data = message_to_proto(message).SerializeToString()
    return message_from_proto(ProtoMessage.FromString(data))


class InMemoryFederation:
    """Nodes in threads behind Flower's link state."""

    def __init__(
        self, count: int, app: ClientApp, seconds: Seconds = lambda index, message: 0.0
    ) -> None:
        factory = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
        self.state = cast(InMemoryLinkState, factory.state())
        run = Run.create_empty(run_id=1)
        run.primary_task_id, run.federation_id = 1, NOOP_FEDERATION_ID
        self.state.run_ids[1] = RunRecord(run=run)
        self.state.task_store[1] = Task(task_id=1, run_id=1)
        self.grid = InMemoryGrid(factory)
        self.grid.set_run(run)
        self.app, self.seconds, self.stopped = app, seconds, threading.Event()
        self.count = count
        self.worked: list[int] = []
        self.node_ids = [self._create(i) for i in range(count)]
        self.threads = [
            threading.Thread(target=self._serve, args=(i, node_id), daemon=True)
            for i, node_id in enumerate(self.node_ids)
        ]
        for thread in self.threads:
            thread.start()

    def _create(self, index: int) -> int:
        key = index.to_bytes(32, "big")
        node_id = self.state.create_node(NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, key, 3600.0)
        self.state.acknowledge_node_heartbeat(node_id, 3600.0)
        return node_id

    def _serve(self, index: int, node_id: int) -> None:
        config: UserConfig = {"partition-id": index, "num-partitions": self.count}
        context = Context(1, node_id, config, RecordDict(), {})
        while not self.stopped.is_set():
            for message in self.state.get_message_ins(node_id, limit=1):
                if "flower-ext.assignment" in message.content:
                    self.worked.append(index)
                reply = through_bytes(self.app(through_bytes(message), context))
                reply.metadata.__dict__["_message_id"] = str(uuid4())
                reply.metadata.__dict__["_src_node_id"] = node_id
                self.stopped.wait(self.seconds(index, message))
                self.state.store_message_res(reply)
            self.stopped.wait(0.005)

    def close(self) -> None:
        self.stopped.set()
        for thread in self.threads:
            thread.join(5)


@pytest.fixture
def in_memory() -> Iterator[Callable[..., InMemoryFederation]]:
    """Return a function that makes a federation, ended with the test."""
    made: list[InMemoryFederation] = []

    def make(*args: Any, **kwargs: Any) -> InMemoryFederation:
        made.append(InMemoryFederation(*args, **kwargs))
        return made[-1]

    yield make
    for federation in made:
        federation.close()


def start(
    strategy: CodedStrategy,
    federation: InMemoryFederation,
    arrays: ArrayRecord,
    num_rounds: int,
) -> Result:
    return strategy.start(federation.grid, arrays, num_rounds, timeout=20.0)


@pytest.mark.parametrize(
    "make", [TwoStageCoded, lambda: CodedFedAvg(code="heterogeneity-aware")]
)
def test_update_is_exact_over_serialised_messages(
    make: Callable[[], CodedStrategy],
    in_memory: Callable[..., InMemoryFederation],
    coded_client: Callable[..., CodedClientApp],
    start_record: Callable[[], ArrayRecord],
    assert_exact: Callable[..., None],
) -> None:
    federation = in_memory(5, coded_client())

    result = start(make(), federation, start_record(), num_rounds=3)

    assert_exact(result, rounds=3, partitions=5)
    assert result.evaluate_metrics_clientapp[3]["accuracy"] == 0.5


def test_sleeping_node_holds_up_nobody_and_is_asked_once(
    in_memory: Callable[..., InMemoryFederation],
    coded_client: Callable[..., CodedClientApp],
    start_record: Callable[[], ArrayRecord],
    assert_exact: Callable[..., None],
) -> None:
    federation = in_memory(
        6,
        coded_client(),
        lambda i, m: 20.0 if i == 4 and "flower-ext.assignment" in m.content else 0.02,
    )
    began = time.monotonic()
    result = start(TwoStageCoded(), federation, start_record(), num_rounds=4)

    assert time.monotonic() - began < 6
    assert_exact(result, rounds=4)
    assert federation.worked.count(4) == 1


def test_node_that_goes_offline_in_a_round_is_replaced(
    in_memory: Callable[..., InMemoryFederation],
    coded_client: Callable[..., CodedClientApp],
    start_record: Callable[[], ArrayRecord],
    assert_exact: Callable[..., None],
) -> None:
    def seconds(index: int, message: Message) -> float:
        if index == 4 and "flower-ext.assignment" in message.content:
            federation.state.deactivate_node(federation.node_ids[4])
            return 20.0
        return 0.02

    federation = in_memory(6, coded_client(), seconds)
    strategy = TwoStageCoded(fraction_evaluate=0.0)
    result = start(strategy, federation, start_record(), num_rounds=2)

    assert_exact(result, rounds=2)
    assert federation.worked.count(4) == 1


def test_node_that_never_existed_is_no_trouble(
    in_memory: Callable[..., InMemoryFederation],
    coded_client: Callable[..., CodedClientApp],
    start_record: Callable[[], ArrayRecord],
    assert_exact: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    federation = in_memory(3, coded_client())
    listed = federation.grid.get_node_ids
    monkeypatch.setattr(federation.grid, "get_node_ids", lambda: {*listed(), 12345})
    result = start(TwoStageCoded(), federation, start_record(), num_rounds=2)

    assert_exact(result, rounds=2, partitions=3)
