"""Messages and contexts as a node receives them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    MetricRecordValues,
    RecordDict,
    UserConfig,
)
from flwr.supercore.task_identity import TaskIdentity

from flower_ext.coding.assignment import ASSIGNMENT_KEY, Assignment


@pytest.fixture(autouse=True)
def task_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let messages be made, as in the process of a running task."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)


@pytest.fixture
def make_context() -> Callable[..., Context]:
    """Return a function that makes a node's context."""

    def make(
        node_config: UserConfig | None = None, run_config: UserConfig | None = None
    ) -> Context:
        return Context(
            run_id=1,
            node_id=77,
            node_config=node_config or {},
            state=RecordDict(),
            run_config=run_config or {},
        )

    return make


@pytest.fixture
def make_train() -> Callable[..., Message]:
    """Return a function that makes a train message, coded if it gets partitions."""

    def make(
        arrays: ArrayRecord,
        partitions: tuple[int, ...] = (),
        coefficients: tuple[float, ...] = (),
        **fields: Any,
    ) -> Message:
        config = ConfigRecord({"server-round": 2})
        content = RecordDict({"arrays": arrays, "config": config})
        if partitions:
            assignment = Assignment(
                partitions,
                coefficients or (1.0,) * len(partitions),
                **{"num_partitions": 4, "server_round": 2, "seed": 7, **fields},
            )
            content[ASSIGNMENT_KEY] = ConfigRecord(assignment.to_config())
        message = Message(content, dst_node_id=77, message_type="train")
        message.metadata.__dict__["_message_id"] = "the-message"
        return message

    return make


@pytest.fixture
def reply_with() -> Callable[..., Message]:
    """Return a function that makes a train function's reply."""

    def make(
        msg: Message, arrays: ArrayRecord, **metrics: MetricRecordValues
    ) -> Message:
        content = RecordDict(
            {
                "arrays": arrays,
                "metrics": MetricRecord({"num-examples": 1, **metrics}),
            }
        )
        return Message(content, reply_to=msg)

    return make
