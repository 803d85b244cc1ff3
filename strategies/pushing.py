"""Handing messages to Flower's grid, and finding out which of them it has taken."""

from __future__ import annotations

from flwr.app import Message
from flwr.serverapp import Grid

from flower_ext.errors import FlowerExtError
from flower_ext.strategies.replies import content_bytes

__all__ = ["push"]


def push(grid: Grid, messages: list[Message]) -> set[str]:
    """Push messages, and return the ids of those that the SuperLink has taken.

    Flower's grid returns an empty id for a node that is not known, and no ids at all
    where a request was refused, as one that is too large is (HTTP 413).

    Parameters
    ----------
    grid : Grid
        Flower's.
    messages : list[Message]
        One per node.

    Raises
    ------
    FlowerExtError
        If a message to a node that the SuperLink knows is refused.
    """
    if not messages:
        return set()
    ids = list(grid.push_messages(messages))
    if ids:
        return {i for i in ids if i}
    if len(messages) > 1:  # one by one they may be small enough
        return {i for message in messages for i in push(grid, [message])}
    (message,) = messages
    node_id = message.metadata.dst_node_id
    if node_id not in grid.get_node_ids():  # in a simulation's grid
        return set()
    size = content_bytes(message.content) / 1e6
    raise FlowerExtError(
        f"A message with {size:.1f} MB of arrays to node {node_id}, which the "
        "SuperLink knows, was refused; the log above says why. As a rule it is too "
        "large: Flower sends arrays in pieces of 5 MB, and what lies between the "
        "ServerApp and the SuperLink, a proxy say, lets none of that size pass. Raise "
        "its limit to 8 MB or more (of nginx: client_max_body_size), there and between "
        "the SuperLink and its nodes, or go without it."
    )
