"""deployment_latency_app: the ClientApp."""

from __future__ import annotations

import time

import numpy as np
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.query()
def query(msg: Message, context: Context) -> Message:
    """Reply at a certain time, with as many megabytes as are asked of this node."""
    asked = msg.content["asked"]
    number = int(context.node_config["partition-id"])
    at = float(asked["at"]) + number * float(asked["spacing"])
    megabytes = int(asked["megabytes"]) if number == 0 else 0
    content = RecordDict({"metrics": MetricRecord({"number": number})})
    if megabytes:
        rng = np.random.default_rng(0)  # What is all zeros may travel compressed.
        values = rng.random(megabytes * 250_000, dtype=np.float32)
        content["arrays"] = ArrayRecord({"values": Array(values)})
    time.sleep(max(at - time.time(), 0.0))
    content["metrics"]["replied-at"] = time.time()
    return Message(content, reply_to=msg)
