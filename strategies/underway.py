"""Replies that are under way on a virtual clock, as a checkpoint holds them.

A straggler's reply that has been computed already but has not arrived by the virtual
clock only frees its node and tells how long it took: its arrays are not kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flwr.app import Message, MessageType, MetricRecord, RecordDict

from flower_ext.coding.assignment import Assignment
from flower_ext.coding.plan import Dispatch
from flower_ext.strategies.arrivals import Arrival, Sent

__all__ = ["arrival_of", "told_of"]


def told_of(arrival: Arrival) -> dict[str, Any] | None:
    """Return what a checkpoint says of a reply; None if it need not be remembered."""
    sent, message = arrival.sent, arrival.message
    if sent.assignment is None or sent.dispatch is None or message.has_error():
        return None
    metrics = {n: dict(r) for n, r in message.content.metric_records.items()}
    return {
        "message_id": sent.message_id,
        "node_id": sent.node_id,
        "server_round": sent.server_round,
        "key": sent.dispatch.key,
        "sent_at": sent.at,
        "size": sent.size,
        "share": sent.share,
        "assignment": sent.assignment.to_config(),
        "metrics": metrics,
        "at": arrival.at,
    }


def arrival_of(told: Mapping[str, Any], names: Mapping[int, int]) -> Arrival:
    """Return the reply that :func:`told_of` was given; its node may have a new id."""
    node_id = names.get(told["node_id"], told["node_id"])
    assignment = Assignment.from_config(told["assignment"])
    sent = Sent(
        message_id=f"resumed-{told['message_id']}",  # ids may start anew
        node_id=node_id,
        server_round=told["server_round"],
        at=told["sent_at"],
        expires=math.inf,
        dispatch=Dispatch(
            key=told["key"],
            worker=node_id,
            stage=assignment.stage,
            partitions=assignment.partitions,
            coefficients=assignment.coefficients,
        ),
        assignment=assignment,
        size=told["size"],
        share=told["share"],
    )
    content = RecordDict({n: MetricRecord(r) for n, r in told["metrics"].items()})
    message = Message(content, dst_node_id=node_id, message_type=MessageType.TRAIN)
    return Arrival(sent, message, told["at"])
