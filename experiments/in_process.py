"""A federation within one process, for experiments of thousands of rounds.

The strategies, the client app and the simulated network are the real ones; only
Flower's runtime is left out: a message is handed to the client app as it is pushed.
That is fit for the virtual clock alone, where replies count from simulated times.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

sys.path.insert(0, str(Path(__file__).parent / "two_stage_coded"))

from two_stage_coded.client_app import delays_mod
from two_stage_coded.client_app import train as train_partition
from two_stage_coded.settings import Settings

from flower_ext.clients import CodedClientApp, current_partition_task

FIRST_NODE = 1000


class InProcessGrid(Grid):
    """Nodes that live in this process and answer at once.

    Parameters
    ----------
    app : ClientApp
        What every node runs.
    num_nodes : int
        How many there are; node i holds partition i.
    run_config : dict[str, Any]
        The run-config that they see.
    num_partitions : int
        Number of partitions.
    """

    def __init__(
        self,
        app: ClientApp,
        num_nodes: int,
        run_config: dict[str, Any],
        num_partitions: int,
    ) -> None:
        self._app = app
        self._run_config = run_config
        self._num_partitions = num_partitions
        self._nodes = range(FIRST_NODE, FIRST_NODE + num_nodes)
        self._replies: dict[str, Message] = {}
        self._pushed = 0
        # Messages can only be made within a task; this process is it.
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

    def set_run(self, run: Any) -> None:
        """Do nothing: there is one run."""

    @property
    def run(self) -> Any:
        """There is no record of the run."""
        raise NotImplementedError

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """Messages are made directly."""
        raise NotImplementedError

    def get_nodes(self) -> Any:
        """Nodes have nothing but an id."""
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        """Return the ids of all nodes."""
        return list(self._nodes)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Let the nodes answer."""
        ids = []
        for message in messages:
            self._pushed += 1
            message_id = f"message-{self._pushed}"
            message.metadata.__dict__["_message_id"] = message_id
            self._replies[message_id] = self._answer(message)
            ids.append(message_id)
        return ids

    def _answer(self, message: Message) -> Message:
        node_id = message.metadata.dst_node_id
        node_config = {
            "partition-id": node_id - FIRST_NODE,
            "num-partitions": self._num_partitions,
        }
        context = Context(1, node_id, node_config, RecordDict(), self._run_config)
        try:
            return self._app(message, context)
        except Exception as error:  # as Flower's runtime does
            code = ErrorCode.CLIENT_APP_RAISED_EXCEPTION
            return Message(Error(code, repr(error)), reply_to=message)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Return the answers to messages, once each."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> list[Message]:
        """Push messages and return the answers."""
        return self.pull_messages(self.push_messages(messages))


def untrained(msg: Message, context: Context) -> Message:
    """Answer with the received arrays: for experiments on time alone."""
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": msg.content["arrays"], "metrics": metrics})
    return Message(content, reply_to=msg)


def make_app(train: ClientAppCallable) -> CodedClientApp:
    """Return the app's own client, with any train function.

    What redundant workers compute is computed once: a partition's update is the same
    whoever computes it.
    """
    known: dict[tuple[int, int], RecordDict] = {}
    latest: list[ArrayRecord] = []

    def once(msg: Message, ctxt: Context, call_next: ClientAppCallable) -> Message:
        task, arrays = current_partition_task(), msg.content["arrays"]
        if not latest or latest[0] is not arrays:
            known.clear()
            latest[:] = [arrays]
        key = (task.server_round, task.partition)
        if key not in known:
            reply = call_next(msg, ctxt)
            if reply.has_error():
                return reply
            known[key] = reply.content
        return Message(known[key], reply_to=msg)

    app = CodedClientApp(partitions="all", mods=[delays_mod, once])
    app.train()(train)
    return app


def make_grid(
    settings: Settings,
    run_config: dict[str, Any],
    train: ClientAppCallable | None = None,
) -> InProcessGrid:
    """Return the federation of the app's settings.

    Parameters
    ----------
    settings : Settings
        The app's.
    run_config : dict[str, Any]
        What the settings were read from.
    train : ClientAppCallable, optional
        The train function; by default the app's own.
    """
    app = make_app(train or train_partition)
    return InProcessGrid(app, settings.num_nodes, run_config, settings.num_partitions)


def run_config(**changes: Any) -> dict[str, Any]:
    """Return the app's run-config with changes, `_` in place of `-`."""
    path = Path(__file__).parent / "two_stage_coded" / "pyproject.toml"
    config: dict[str, Any] = tomllib.loads(path.read_text())["tool"]["flwr"]["app"][
        "config"
    ]
    return config | {name.replace("_", "-"): value for name, value in changes.items()}
