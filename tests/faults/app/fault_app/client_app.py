"""The ClientApp: it trains in closed form, and runs into the traps that are set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from flwr.app import (
    Array,
    ArrayRecord,
    Context,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from numpy.typing import NDArray

from flower_ext.clients import CodedMod, DSSDTask
from flower_ext.coding.assignment import ASSIGNMENT_KEY, Assignment

from .control import Control
from .training import change, examples

_PROMPTS = ["ROMEO:\n", "JULIET:\n"]
_DRAFTED = 12  # forward passes of the drafter, after which it runs into a trap

_doing: dict[str, Any] = {}  # what this process is at: one message, then it ends


def traps(msg: Message, context: Context, call_next: ClientAppCallable) -> Message:
    """Tell when an assignment begins and ends; hold or spoil it if a test wants so."""
    records = msg.content.config_records
    if msg.metadata.message_type != MessageType.TRAIN or ASSIGNMENT_KEY not in records:
        return call_next(msg, context)
    assignment = Assignment.from_config(records[ASSIGNMENT_KEY])
    control = Control(str(context.node_config["control"]))
    place = f"round-{assignment.server_round}-stage-{assignment.stage}"
    about: dict[str, Any] = {
        "round": assignment.server_round,
        "stage": assignment.stage,
        "partitions": list(assignment.partitions),
        "node": context.node_config["partition-id"],
        "node_id": context.node_id,
        "run_id": context.run_id,
    }
    control.tell("begin", **about)
    how = control.hold(place, **about)
    how = how or control.take(f"spoil-round-{assignment.server_round}") or ""
    if how:
        control.tell("spoilt", how=how, **about)
    _doing.update(server_round=assignment.server_round, raises=how == "raise")
    reply = call_next(msg, context)
    if how in _SPOILT:
        name, arrays = next(iter(reply.content.array_records.items()))
        spoilt = {n: Array(_SPOILT[how](a.numpy())) for n, a in arrays.items()}
        reply.content[name] = ArrayRecord(spoilt)
    control.tell("end", **about)
    return reply


_SPOILT: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "nan": lambda array: np.full_like(array, np.nan),
    "shape": lambda array: np.append(array, 1.0),
    "lie": lambda array: array + 7.0 * (1.0 + np.abs(array)),
}

# What is before the coded mod sees whole assignments and whole replies, as a node does
# that is broken, or lies, outside of training.
app = ClientApp(mods=[traps, CodedMod()])


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train on one partition."""
    if _doing["raises"]:
        raise RuntimeError("This node's disk is full of cats.")
    partition = int(context.node_config["partition-id"])
    received = msg.content.array_records["arrays"]
    trained = {
        name: Array(
            array.numpy()
            + change(_doing["server_round"], partition, name, array.numpy())
        )
        for name, array in received.items()
    }
    metrics = MetricRecord({"num-examples": examples(partition)})
    content = RecordDict({"arrays": ArrayRecord(trained), "metrics": metrics})
    return Message(content, reply_to=msg)


def held_drafter(context: Context) -> Any:
    """Return the small default model, which runs into a trap in the midst of a text."""
    # Imported here because it takes seconds, which no other message should spend.
    from flower_ext.models import default_pair  # noqa: PLC0415

    control = Control(str(context.node_config["control"]))
    node = context.node_config["partition-id"]
    model = default_pair().draft
    passes = 0

    def count(*_: Any) -> None:
        nonlocal passes
        passes += 1
        if passes == _DRAFTED:
            control.tell("drafting", node=node, run_id=context.run_id)
            control.hold(f"drafting-{node}", node=node, run_id=context.run_id)

    model.register_forward_hook(count)
    return model


def tokenizer() -> Any:
    """Return the default pair's tokenizer."""
    from flower_ext.models import default_pair  # noqa: PLC0415

    return default_pair().tokenizer


@app.evaluate("dssd")
def generate(msg: Message, context: Context) -> Message:
    """Draft texts against the edge."""
    task = DSSDTask(prompts=_PROMPTS, drafter=held_drafter, tokenizer=tokenizer())
    return task(msg, context)
