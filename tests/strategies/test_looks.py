"""Replies on a SuperLink's grid: one question for all, each fetched on its own."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.common.constant import NOOP_ACCOUNT_NAME, NOOP_FLWR_AID, ErrorCode
from flwr.proto.task_pb2 import Task
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.in_memory_linkstate import (
    InMemoryLinkState,
    RunRecord,
)
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NOOP_FEDERATION_ID
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
)
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.http_grid import HttpGrid
from flwr.superlink.servicer.runtime import runtime_handlers

from flower_ext.strategies.look_once import LookOnce
from flower_ext.strategies.looks import LookEach, looks_at
from flower_ext.strategies.poller import ReplyPoller

_HANDLERS = {
    "PushMessages": runtime_handlers.push_messages,
    "PullMessages": runtime_handlers.pull_messages,
    "PushObject": runtime_handlers.push_object,
    "PullObject": runtime_handlers.pull_object,
    "ConfirmMessageReceived": runtime_handlers.confirm_message_received,
    "GetNodes": runtime_handlers.get_nodes,
}


class SuperLink:
    """A SuperLink's own handlers, without the HTTP between them and a grid."""

    def __init__(self, nodes: int) -> None:
        factory = LinkStateFactory(
            FLWR_IN_MEMORY_DB_NAME, NoOpFederationManager(), ObjectStoreFactory()
        )
        self.state = cast(InMemoryLinkState, factory.state())
        self.run = Run.create_empty(run_id=1)
        self.run.primary_task_id, self.run.federation_id = 1, NOOP_FEDERATION_ID
        self.state.run_ids[1] = RunRecord(run=self.run)
        self.state.task_store[1] = Task(task_id=1, run_id=1)
        for i in range(nodes):
            node = self.state.create_node(
                NOOP_FLWR_AID, NOOP_ACCOUNT_NAME, i.to_bytes(32, "big"), 3600.0
            )
            self.state.acknowledge_node_heartbeat(node, 3600.0)
        self.asked: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def call(request: Any) -> Any:
            self.asked.append(name)
            return _HANDLERS[name](request, self.state, self.state.task_store[1])

        return call

    def announce(self, node: int, arrays: ArrayRecord) -> Message:
        """Push a node's reply, as yet without the objects it is made of."""
        (instruction,) = self.state.get_message_ins(node, limit=1)
        reply = Message(RecordDict({"arrays": arrays}), reply_to=instruction)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        reply.metadata.__dict__["_src_node_id"] = node
        session = self.state.start_session(1)
        stored, _ = self.state.store_message_and_object_tree(
            reply, get_object_tree(reply), session
        )
        assert stored
        return reply

    def upload(self, reply: Message) -> None:
        """Push the objects of an announced reply."""
        for name, part in get_all_nested_objects(reply).items():
            self.state.object_store.put(name, part.deflate())


@pytest.fixture
def superlink() -> SuperLink:
    return SuperLink(3)


@pytest.fixture
def grid(superlink: SuperLink) -> HttpGrid:
    grid = HttpGrid("127.0.0.1:1", insecure=True, token="unused")
    grid.set_run(superlink.run)
    grid._client = cast(Any, superlink)
    return grid


@pytest.fixture
def poller(grid: HttpGrid) -> Iterator[ReplyPoller]:
    poller = ReplyPoller(grid)
    yield poller
    poller.close()


def arrays_of(value: float) -> ArrayRecord:
    return ArrayRecord([np.full(3, value)])


def ask_all(grid: HttpGrid, poller: ReplyPoller) -> dict[int, str]:
    """Send every node a message, and return the messages' ids by node."""
    nodes = sorted(grid.get_node_ids())
    messages = [Message(RecordDict(), node, "query") for node in nodes]
    ids = dict(zip(nodes, grid.push_messages(messages), strict=True))
    poller.add(ids.values())
    return ids


def value_of(found: tuple[str, Message] | None) -> tuple[str, float]:
    assert found is not None
    message_id, reply = found
    assert not reply.has_error(), reply.error
    arrays = cast(ArrayRecord, reply.content["arrays"])
    return message_id, float(arrays.to_numpy_ndarrays()[0][0])


def test_a_reply_that_is_being_uploaded_holds_up_no_other(
    superlink: SuperLink, grid: HttpGrid, poller: ReplyPoller
) -> None:
    ids = ask_all(grid, poller)
    large, *others = ids
    announced = superlink.announce(large, arrays_of(0.0))
    time.sleep(0.1)  # By then it is found, and being waited for.
    for i, node in enumerate(others, start=1):
        superlink.upload(superlink.announce(node, arrays_of(i)))

    found = dict(value_of(poller.get(5)) for _ in others)

    assert found == {ids[node]: float(i) for i, node in enumerate(others, start=1)}
    superlink.upload(announced)
    assert value_of(poller.get(10)) == (ids[large], 0.0)
    assert poller.get(0.1) is None


def test_one_question_asks_for_all(
    superlink: SuperLink, grid: HttpGrid, poller: ReplyPoller
) -> None:
    ids = ask_all(grid, poller)
    superlink.asked.clear()
    time.sleep(0.5)

    questions = superlink.asked.count("PullMessages")
    assert set(superlink.asked) == {"PullMessages"}
    assert 3 <= questions <= 22  # one every 30 ms, whatever the number of messages
    for node in ids:
        superlink.upload(superlink.announce(node, arrays_of(1.0)))
    begin = time.monotonic()
    got = {value_of(poller.get(5))[0] for _ in ids}
    assert got == set(ids.values())
    assert time.monotonic() - begin < 2
    # Flower's own code has fetched them, and told the SuperLink so.
    assert superlink.asked.count("ConfirmMessageReceived") == len(ids)


def test_other_grids_are_asked_message_by_message(grid: HttpGrid) -> None:
    class Other:
        def pull_messages(self, message_ids: list[str]) -> list[str]:
            return [f"reply to {i}" for i in message_ids]

    assert isinstance(looks_at(grid), LookOnce)
    looks = looks_at(cast(Any, Other()))
    fetches = looks.look(["a", "b"])
    found: list[tuple[str, list[Any]]] = [(i, list(fetch())) for i, fetch in fetches]
    assert found == [
        ("a", ["reply to a"]),
        ("b", ["reply to b"]),
    ]


def test_a_grid_without_what_is_not_public_is_asked_message_by_message(
    grid: HttpGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(HttpGrid, "_runtime_client")
    assert isinstance(looks_at(grid), LookEach)


@pytest.mark.parametrize(
    "moved",
    ["flwr.proto.runtime_pb2", "flwr.superlink.grid", "flwr.superlink.grid.http_grid"],
)
def test_a_flower_that_has_moved_its_grid_is_asked_message_by_message(
    moved: str,
) -> None:
    program = f"""
import sys
sys.modules[{moved!r}] = None  # Importing it raises ImportError.
import flower_ext.strategies
from flower_ext.strategies.looks import LookEach, looks_at
assert isinstance(looks_at(object()), LookEach)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


class OtherGrid(HttpGrid):
    """The grid of another Flower: what is public works, and the rest is different."""

    ask: Callable[[Any], Any]

    @property
    def _runtime_client(self) -> Any:
        asked = sys._getframe(1).f_globals["__name__"]
        if asked == HttpGrid.__module__:
            return self._client
        return SimpleNamespace(PullMessages=self.ask)


def without_trees(request: Any) -> Any:
    return SimpleNamespace(messages_list=[1, 2], message_object_trees=[])


def renamed(request: Any) -> Any:
    return SimpleNamespace(messages=[])


def with_another_argument(request: Any, session: int) -> None:
    del request, session


@pytest.mark.parametrize("ask", [without_trees, renamed, with_another_argument])
def test_an_answer_in_another_form_is_told_once_and_ends_no_run(
    superlink: SuperLink,
    grid: HttpGrid,
    ask: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    other = OtherGrid("127.0.0.1:1", insecure=True, token="unused")
    vars(other).update(vars(grid), ask=ask)
    poller = ReplyPoller(other)
    ids = ask_all(other, poller)
    for i, node in enumerate(ids):
        superlink.upload(superlink.announce(node, arrays_of(i)))

    found = dict(value_of(poller.get(5)) for _ in ids)
    poller.close()

    assert found == {message_id: float(i) for i, message_id in enumerate(ids.values())}
    told = [r.getMessage() for r in caplog.records if "another form" in r.msg]
    assert len(told) == 1, told


def test_a_fetch_that_works_otherwise_loses_no_more_than_its_reply(
    superlink: SuperLink,
    grid: HttpGrid,
    poller: ReplyPoller,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    pull = HttpGrid.pull_messages

    def other(self: HttpGrid, message_ids: Any) -> Any:
        if not isinstance(self._runtime_client, SuperLink):
            raise TypeError("no client of this Flower")
        return pull(self, message_ids)

    monkeypatch.setattr(HttpGrid, "pull_messages", other)
    ids = ask_all(grid, poller)
    first, *others = ids
    superlink.upload(superlink.announce(first, arrays_of(0.0)))
    lost = poller.get(5)
    for i, node in enumerate(others, start=1):
        superlink.upload(superlink.announce(node, arrays_of(i)))
    found = dict(value_of(poller.get(5)) for _ in others)

    # A SuperLink hands out a reply once.
    assert lost is not None
    assert (lost[0], lost[1].error.code) == (ids[first], ErrorCode.MESSAGE_UNAVAILABLE)
    assert found == {ids[node]: float(i) for i, node in enumerate(others, start=1)}
    assert sum("another form" in r.msg for r in caplog.records) == 1
