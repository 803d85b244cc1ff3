"""Sending an evaluation's messages and collecting what comes back, per node."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from flower_ext.strategies.poller import ReplyPoller
from flower_ext.strategies.staged_grid import StagedGrid

__all__ = ["Answer", "choose_nodes", "exchange"]

_LOST = "the SuperLink does not know the node any more"


class Answer(NamedTuple):
    """What came of a message.

    Parameters
    ----------
    node_id : int
        The node that it was sent to.
    message : Message or None
        Its reply, if there is a usable one.
    problem : str
        Why there is none, or empty.
    """

    node_id: int
    message: Message | None
    problem: str


def choose_nodes(
    grid: Grid, fraction: float, least: int, rng: np.random.Generator
) -> list[int]:
    """Return the nodes to ask; of a coded strategy's, idle ones only.

    Parameters
    ----------
    grid : Grid
        The run's.
    fraction : float
        Share of all nodes.
    least : int
        The least number, if there are as many.
    rng : numpy.random.Generator
        Chooses.
    """
    if isinstance(grid, StagedGrid):
        if not grid.fleet.nodes:
            grid.gather(1)
        known = len(grid.fleet.nodes)
        nodes = sorted(node.node_id for node in grid.fleet.nodes if node.idle)
    else:
        nodes = sorted(grid.get_node_ids())
        known = len(nodes)
    if not nodes:
        return []
    wanted = min(max(int(known * fraction), least), len(nodes))
    chosen = rng.choice(len(nodes), wanted, replace=False)
    return [nodes[i] for i in sorted(chosen.tolist())]


def exchange(
    grid: Grid, messages: list[Message], server_round: int, timeout: float
) -> list[Answer]:
    """Send messages and wait for their replies.

    Parameters
    ----------
    grid : Grid
        The run's.
    messages : list[Message]
        At most one per node.
    server_round : int
        The round that they belong to, from 1.
    timeout : float
        Seconds to wait at most.

    Returns
    -------
    list[Answer]
        One per message.
    """
    nodes = [message.metadata.dst_node_id for message in messages]
    if isinstance(grid, StagedGrid):
        replies, lost = _by_stages(grid, messages, server_round, timeout)
    else:
        replies, lost = _by_polling(grid, messages, timeout)
    late = f"no answer within {timeout:g} s"
    return [
        _answer(node, replies.get(node), _LOST if node in lost else late)
        for node in nodes
    ]


def _answer(node_id: int, reply: Message | None, otherwise: str) -> Answer:
    """Return what came of a message."""
    if reply is None:
        return Answer(node_id, None, otherwise)
    if reply.has_error():
        error = reply.error
        return Answer(node_id, None, f"code {error.code}: {error.reason}")
    return Answer(node_id, reply, "")


_Replies = tuple[dict[int, Message], set[int]]


def _by_polling(grid: Grid, messages: list[Message], timeout: float) -> _Replies:
    """Exchange messages on a grid of Flower's."""
    taken = set(grid.push_messages(messages))
    nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
    lost = {node for message_id, node in nodes.items() if message_id not in taken}
    waiting = {i: node for i, node in nodes.items() if i in taken}
    replies: dict[int, Message] = {}
    poller = ReplyPoller(grid)
    poller.add(waiting)
    end = time.monotonic() + timeout
    try:
        while waiting and (left := end - time.monotonic()) > 0:
            found = poller.get(left)
            if found is not None:
                replies[waiting.pop(found[0])] = found[1]
    finally:
        poller.close()
    return replies, lost


def _by_stages(
    grid: StagedGrid, messages: list[Message], server_round: int, timeout: float
) -> _Replies:
    """Exchange messages on a grid that keeps account of who is busy."""
    begin = grid.now
    sent = grid.push(messages, server_round)
    lost = {
        message.metadata.dst_node_id
        for message, entry in zip(messages, sent, strict=True)
        if entry is None
    }
    waiting = {entry.message_id for entry in sent if entry}
    # A virtual clock stands still, and tells by itself that nothing more will come.
    end = begin if grid.virtual else begin + timeout
    replies: dict[int, Message] = {}
    while waiting:
        arrival = grid.receive(end)
        if arrival is None:
            if grid.virtual or grid.now >= end:
                break
        elif arrival.sent.message_id in waiting:
            waiting.discard(arrival.sent.message_id)
            replies[arrival.sent.node_id] = arrival.message
        else:
            grid.note_late(arrival)
    return replies, lost
