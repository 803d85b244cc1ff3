"""Sending an evaluation's messages and collecting what comes back, per node."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from flower_ext.strategies.answer_times import AnswerTimes
from flower_ext.strategies.evaluation_exchange import ask
from flower_ext.strategies.poller import ReplyPoller
from flower_ext.strategies.pushing import push
from flower_ext.strategies.staged_grid import StagedGrid

__all__ = ["Answer", "choose_nodes", "exchange"]

_LIST_EVERY = 2.0  # seconds between two looks at who is there
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
    grid: Grid,
    messages: list[Message],
    server_round: int,
    times: AnswerTimes,
    timeout: float,
) -> list[Answer]:
    """Send messages and wait for their replies, but not for nodes that are gone.

    Parameters
    ----------
    grid : Grid
        The run's.
    messages : list[Message]
        At most one per node.
    server_round : int
        The round that they belong to, from 1.
    times : AnswerTimes
        How long nodes took to answer this in the run's earlier rounds.
    timeout : float
        Seconds to wait at most.

    Returns
    -------
    list[Answer]
        One per message.
    """
    nodes = [message.metadata.dst_node_id for message in messages]
    if isinstance(grid, StagedGrid):
        asked = ask(grid, messages, server_round, times, timeout)
        replies = {a.sent.node_id: a.message for a in asked.arrivals}
        lost = set(asked.gone)
    else:
        replies, lost = _by_polling(grid, messages, times, timeout)
    late = f"no answer within {_limit(grid, times, timeout):g} s"
    return [
        _answer(node, replies.get(node), _LOST if node in lost else late)
        for node in nodes
    ]


def _limit(grid: Grid, times: AnswerTimes, timeout: float) -> float:
    """Return how many seconds answers were waited for."""
    if isinstance(grid, StagedGrid) and grid.virtual:
        return timeout
    return round(min(times.deadline, timeout), 1)


def _answer(node_id: int, reply: Message | None, otherwise: str) -> Answer:
    """Return what came of a message."""
    if reply is None:
        return Answer(node_id, None, otherwise)
    if reply.has_error():
        error = reply.error
        return Answer(node_id, None, f"code {error.code}: {error.reason}")
    return Answer(node_id, reply, "")


_Replies = tuple[dict[int, Message], set[int]]


def _by_polling(
    grid: Grid, messages: list[Message], times: AnswerTimes, timeout: float
) -> _Replies:
    """Exchange messages on a grid of Flower's."""
    taken = push(grid, messages)
    nodes = {m.metadata.message_id: m.metadata.dst_node_id for m in messages}
    lost = {node for message_id, node in nodes.items() if message_id not in taken}
    waiting = {i: node for i, node in nodes.items() if i in taken}
    replies: dict[int, Message] = {}
    poller = ReplyPoller(grid)
    poller.add(waiting)
    times.begin(waiting.values())
    begin = looked = time.monotonic()

    def take(seconds: float) -> bool:
        found = poller.get(seconds)
        if found is None:
            return False
        # Of a node that was taken for gone, a reply may have been on its way.
        node = nodes[found[0]]
        waiting.pop(found[0], None)
        lost.discard(node)
        replies[node] = found[1]
        if not found[1].has_error():
            times.answered(node, time.monotonic() - begin)
        return True

    try:
        while waiting:
            left = begin + min(times.deadline, timeout) - time.monotonic()
            if left <= 0:
                break
            if take(min(left, _LIST_EVERY)):
                continue
            if time.monotonic() - looked >= _LIST_EVERY:
                listed = set(grid.get_node_ids())
                while take(0.0):  # what has come before they left
                    pass
                for message_id, node in list(waiting.items()):
                    if node not in listed:
                        poller.drop(message_id)
                        lost.add(waiting.pop(message_id))
                looked = time.monotonic()
    finally:
        poller.close()
    times.end(waiting.values(), time.monotonic() - begin)
    return replies, lost
