"""two_stage_coded: the ClientApp."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp.typing import ClientAppCallable

from flower_ext.clients import CodedClientApp, check_node_config, straggler_mod
from two_stage_coded.data import load_data, load_partitions
from two_stage_coded.settings import Settings
from two_stage_coded.task import delay_model, make_net
from two_stage_coded.task import train as train_net

NODE_KEYS = ("partition-id", "num-partitions", "partitions")

# Steps of this size take 1 ms on one thread, and far longer on threads that wait for
# those of other nodes.
torch.set_num_threads(1)


def delays_mod(msg: Message, ctxt: Context, call_next: ClientAppCallable) -> Message:
    """Delay training as the run-config says."""
    delays = delay_model(Settings.from_run_config(ctxt.run_config))
    return straggler_mod(delays)(msg, ctxt, call_next)


def own_partitions(context: Context) -> str:
    """Return what the node's config says it holds; without that, it can load all."""
    check_node_config(context.node_config, NODE_KEYS)
    return str(context.node_config.get("partitions", "all"))


# Where every node can load every partition, any node can stand in for a straggler.
app = CodedClientApp(partitions=own_partitions, mods=[delays_mod])


@app.train()
def train(msg: Message, context: Context) -> Message:
    """Train the model on one partition."""
    settings = Settings.from_run_config(context.run_config)
    data = load_data(settings.dataset, settings.data_dir, settings.download)
    examples = load_partitions(settings)[int(context.node_config["partition-id"])]
    net = make_net(data.train_images)
    net.load_state_dict(msg.content["arrays"].to_torch_state_dict())
    loss = train_net(
        net,
        torch.from_numpy(data.train_images[examples]),
        torch.from_numpy(data.train_labels[examples]),
        settings,
    )
    metrics = MetricRecord({"train-loss": loss, "num-examples": len(examples)})
    content = RecordDict({"arrays": ArrayRecord(net.state_dict()), "metrics": metrics})
    return Message(content, reply_to=msg)
