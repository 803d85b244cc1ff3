"""Evaluate messages out, replies in: an exchange that no straggler holds up.

It ends at a deadline taken from how long nodes took before, where Flower's own would
wait an hour.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from logging import WARNING
from typing import TYPE_CHECKING, Any

from flwr.app import Message
from flwr.supercore import log

from flower_ext.coding.plan import LEAST_DEADLINE
from flower_ext.scheduling.history import CompletionHistory

if TYPE_CHECKING:
    from flower_ext.strategies.staged_grid import StagedGrid

__all__ = ["EvaluationExchange"]


class EvaluationExchange:
    """The evaluations of a run.

    Parameters
    ----------
    deadline : float, optional
        Seconds after which one ends without those that have not answered; by default
        from the history of evaluations.
    """

    def __init__(self, deadline: float | None) -> None:
        self._given = deadline
        self._history = CompletionHistory()
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
        asked = grid.push(messages, self._round)
        waiting = {s.message_id for s in asked if s}
        start, count = grid.now, len(waiting)
        replies: list[Message] = []
        deadline = self._deadline([s.node_id for s in asked if s])
        known = deadline < math.inf
        while waiting:
            # Under a virtual clock an evaluation takes no time.
            end = start if grid.virtual else start + min(deadline, timeout)
            arrival = grid.receive(end)
            if arrival is None:
                if grid.virtual or grid.now >= end:
                    break
                continue
            if arrival.sent.message_id not in waiting:
                grid.note_late(arrival)
                continue
            at = grid.now - start
            waiting.discard(arrival.sent.message_id)
            if arrival.message.has_error():
                # Named here: of errors made by the SuperLink, the message has no node.
                log(
                    WARNING,
                    "evaluate: node %d failed (code %d): %s",
                    arrival.sent.node_id,
                    arrival.message.error.code,
                    arrival.message.error.reason,
                )
                continue
            replies.append(arrival.message)
            self._history.completed(arrival.sent.node_id, self._round, 1, at, at)
            if not known:
                patience = 3.0 if 2 * len(replies) >= count else 20.0
                deadline = max(LEAST_DEADLINE, patience * at)
        if waiting:
            log(
                WARNING,
                "evaluate: %d of %d nodes did not answer within %.1f s",
                len(waiting),
                count,
                grid.now - start,
            )
        return replies

    def state(self) -> dict[str, Any]:
        """Return how long evaluations took, for :meth:`restore` in another process."""
        return {"history": self._history.state(), "round": self._round}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the place of what :meth:`state` was asked of."""
        self._history.restore(state["history"])
        self._round = state["round"]

    def rename(self, names: Mapping[int, int]) -> None:
        """Know nodes by other ids, each of `names` by what it maps to."""
        self._history.rename(names)

    def _deadline(self, node_ids: list[int]) -> float:
        """Return the seconds that these nodes are given, inf if nothing is known."""
        if self._given is not None:
            return self._given
        if not len(self._history) or not node_ids:
            return math.inf
        seconds, _ = self._history.typical(node_ids, self._round)
        return max(LEAST_DEADLINE, 3 * float(seconds.max()))
