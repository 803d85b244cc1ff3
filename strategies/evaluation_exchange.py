"""Evaluate messages out, replies in: an exchange that no straggler holds up.

It ends at a deadline taken from how long nodes took before, where Flower's own would
wait an hour.
"""

from __future__ import annotations

from collections.abc import Mapping
from logging import WARNING
from typing import TYPE_CHECKING, Any, NamedTuple

from flwr.app import Message
from flwr.supercore import log

from flower_ext.strategies.answer_times import AnswerTimes
from flower_ext.strategies.arrivals import Arrival

if TYPE_CHECKING:
    from flower_ext.strategies.staged_grid import StagedGrid

__all__ = ["Asked", "EvaluationExchange", "ask"]


class Asked(NamedTuple):
    """What came of asking nodes.

    Parameters
    ----------
    arrivals : list[Arrival]
        The answers in the order in which they came, errors among them.
    silent : list[int]
        The nodes that have not answered in time.
    gone : list[int]
        Those that the SuperLink did not know, or does not know any more.
    """

    arrivals: list[Arrival]
    silent: list[int]
    gone: list[int]


def ask(
    grid: StagedGrid,
    messages: list[Message],
    server_round: int,
    times: AnswerTimes,
    timeout: float,
) -> Asked:
    """Push messages and wait for the answers, but not for nodes that are gone.

    Parameters
    ----------
    grid : StagedGrid
        Where to push and receive.
    messages : list[Message]
        At most one per node.
    server_round : int
        The round that they belong to, from 1.
    times : AnswerTimes
        How long nodes took to answer this before; told how long they take now.
    timeout : float
        Seconds to wait at most, by the grid's clock.
    """
    start = grid.now
    sent = grid.push(messages, server_round)
    gone = [
        message.metadata.dst_node_id
        for message, entry in zip(messages, sent, strict=True)
        if entry is None
    ]
    waiting = {entry.message_id: entry.node_id for entry in sent if entry}
    times.begin(waiting.values())
    arrivals: list[Arrival] = []
    listed: set[int] = set()  # a node that has just come is not yet
    while waiting:
        # Under a virtual clock the answers take no time, and who has not answered when
        # it stands still never will.
        limit = 0.0 if grid.virtual else min(times.deadline, timeout)
        arrival = grid.receive(start + limit)
        listed.update(node for node in waiting.values() if node in grid.fleet)
        if arrival is None:
            if grid.now >= start + limit:
                break
            for message_id, node in list(waiting.items()):
                if node in listed and node not in grid.fleet:
                    gone.append(waiting.pop(message_id))
        elif arrival.sent.message_id in waiting:
            node = waiting.pop(arrival.sent.message_id)
            arrivals.append(arrival)
            if not arrival.message.has_error():
                times.answered(node, grid.now - start)
        else:
            grid.note_late(arrival)
    if not grid.virtual:
        times.end(waiting.values(), grid.now - start)
    return Asked(arrivals, list(waiting.values()), gone)


class EvaluationExchange:
    """The evaluations of a run.

    Parameters
    ----------
    deadline : float, optional
        Seconds after which one ends without those that have not answered; by default
        from the history of evaluations.
    """

    def __init__(self, deadline: float | None) -> None:
        self._times = AnswerTimes(deadline)
        self._round = 0

    def run(
        self, grid: StagedGrid, messages: list[Message], timeout: float
    ) -> list[Message]:
        """Push messages and return the replies that come in time, without errors.

        Parameters
        ----------
        grid : StagedGrid
            Where to push and receive.
        messages : list[Message]
            One per node.
        timeout : float
            Seconds, by the grid's clock, that it may take at most.

        Returns
        -------
        list[Message]
            In the order in which they came.
        """
        if not messages:  # as of a round that is done already when a run goes on
            return []
        self._round += 1
        start = grid.now
        done = ask(grid, messages, self._round, self._times, timeout)
        replies = []
        for arrival in done.arrivals:
            if arrival.message.has_error():
                # Named here: of errors made by the SuperLink, the message has no node.
                log(
                    WARNING,
                    "evaluate: node %d failed (code %d): %s",
                    arrival.sent.node_id,
                    arrival.message.error.code,
                    arrival.message.error.reason,
                )
            else:
                replies.append(arrival.message)
        if missing := len(done.silent) + len(done.gone):
            log(
                WARNING,
                "evaluate: %d of %d nodes did not answer within %.1f s%s",
                missing,
                len(messages),
                grid.now - start,
                f", {len(done.gone)} of them are gone" if done.gone else "",
            )
        return replies

    def state(self) -> dict[str, Any]:
        """Return how long evaluations took, for :meth:`restore` in another process."""
        return self._times.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the place of what :meth:`state` was asked of."""
        self._times.restore(state)

    def rename(self, names: Mapping[int, int]) -> None:
        """Know nodes by other ids, each of `names` by what it maps to."""
        self._times.rename(names)
