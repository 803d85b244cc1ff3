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
from flower_ext.clients import CodedClientApp, DSSDTask, EdgePromptTask, straggler_mod
from flower_ext.network import Link

# Models of this size gain little from a second thread, and lose much on threads that
# wait for those of other nodes.
torch.set_num_threads(1)


def delays_mod(msg: Message, ctxt: Context, call_next: ClientAppCallable) -> Message:
    """Delay training as the run-config says."""
    delays = delay_model(Settings.from_run_config(ctxt.run_config))
    return straggler_mod(delays)(msg, ctxt, call_next)


def own_prompts(context: Context) -> list[str]:
    """Return the node's prompts."""
    settings = Settings.from_run_config(context.run_config)
    return prompts_of(settings, int(context.node_config["partition-id"]))


def own_link(context: Context) -> Link:
    """Return the node's link to the edge."""
    return make_link(Settings.from_run_config(context.run_config))


def own_store(context: Context) -> Path | None:
    """Return where the node keeps blocks; None: in the user's cache."""
    folder = Settings.from_run_config(context.run_config).store_dir
    if not folder:
        return None
    return Path(folder).expanduser() / str(context.node_config["partition-id"])


# Every node can make every partition, so any node can stand in for a straggler.
app = CodedClientApp(partitions="all", mods=[delays_mod])

# The drafter's weights come in the message; the target is the one that ships.
app.evaluate("dssd")(DSSDTask(prompts=own_prompts, link=own_link))

# The same prompts, answered here by the target, of which the edge sees none.
app.evaluate("edgeprompt")(
    EdgePromptTask(prompts=own_prompts, link=own_link, store=own_store)
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
