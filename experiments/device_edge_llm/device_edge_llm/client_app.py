"""device_edge_llm: the ClientApp."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from device_edge_llm.data import load_partition, models, prompts_of
from device_edge_llm.edge import make_link
from device_edge_llm.settings import Settings
from device_edge_llm.task import delay_model
from device_edge_llm.task import train as train_drafter
from flower_ext.clients import (
    CodedClientApp,
    DSSDTask,
    EdgePromptTask,
    check_node_config,
    straggler_mod,
)
from flower_ext.errors import InvalidInputError
from flower_ext.models import DEFAULT
from flower_ext.network import Link

DEVICE = "device"  # The role of nodes that take part.
NODE_KEYS = (
    "partition-id",
    "num-partitions",
    "partitions",
    "role",
    "drafter",
    "target",
)

# Models of this size gain little from a second thread, and lose much on threads that
# wait for those of other nodes.
torch.set_num_threads(1)


def delays_mod(msg: Message, ctxt: Context, call_next: ClientAppCallable) -> Message:
    """Delay training as the run-config says."""
    delays = delay_model(Settings.from_run_config(ctxt.run_config))
    return straggler_mod(delays)(msg, ctxt, call_next)


def role(context: Context) -> str:
    """Return what the node is in the federation: a device, if its config is silent."""
    check_node_config(context.node_config, NODE_KEYS)
    return str(context.node_config.get("role", DEVICE))


def own_partitions(context: Context) -> str | tuple[int, ...]:
    """Return what the node trains on: nothing, unless it is a device."""
    if role(context) != DEVICE:
        return ()
    return str(context.node_config.get("partitions", "all"))


def own_number(context: Context) -> int:
    """Return the number by which the node has prompts of its own.

    Raises
    ------
    InvalidInputError
        If the node is no device, or has no number.
    """
    if role(context) != DEVICE:
        raise InvalidInputError(
            f"This node takes no part: its role is {role(context)!r}, and only a "
            f"{DEVICE!r} drafts and answers. Its node-config says so; leave role out, "
            "or count it not in num-nodes."
        )
    if "partition-id" not in context.node_config:
        raise InvalidInputError(
            "This node has no number: start its SuperNode with --node-config "
            "'partition-id=0', another number on each."
        )
    return int(context.node_config["partition-id"])


def own_prompts(context: Context) -> list[str]:
    """Return the node's prompts."""
    settings = Settings.from_run_config(context.run_config)
    return prompts_of(settings, own_number(context))


def own_drafter(context: Context) -> str:
    """Return the model whose architecture and tokenizer the node drafts with."""
    return str(context.node_config.get("drafter", DEFAULT))


def own_target(context: Context) -> str:
    """Return the model that the node answers prompts with."""
    return str(context.node_config.get("target", DEFAULT))


def own_link(context: Context) -> Link:
    """Return the node's link to the edge."""
    return make_link(Settings.from_run_config(context.run_config))


def own_store(context: Context) -> Path | None:
    """Return where the node keeps blocks; None: in the user's cache."""
    folder = Settings.from_run_config(context.run_config).store_dir
    if not folder:
        return None
    return Path(folder).expanduser() / str(own_number(context))


# Every device can make every partition, so any can stand in for a straggler.
app = CodedClientApp(partitions=own_partitions, mods=[delays_mod])

# The drafter's weights come in the message; the target is the one that ships.
app.evaluate("dssd")(DSSDTask(prompts=own_prompts, drafter=own_drafter, link=own_link))

# The same prompts, answered here by the target, of which the edge sees none.
app.evaluate("edgeprompt")(
    EdgePromptTask(
        prompts=own_prompts, model=own_target, link=own_link, store=own_store
    )
)


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the drafter on one partition."""
    settings = Settings.from_run_config(context.run_config)
    windows = load_partition(settings, int(context.node_config["partition-id"])).windows
    drafter = copy.deepcopy(models().draft)
    drafter.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loss = train_drafter(drafter, windows, settings)
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(windows)})
    arrays = ArrayRecord(drafter.state_dict())
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=msg)
