"""How long nodes take to answer, and for how long they are waited for from that."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from flower_ext.coding.plan import LEAST_DEADLINE
from flower_ext.scheduling.history import CompletionHistory

__all__ = ["AnswerTimes"]

_PATIENCE = 3.0  # times as long as usual
_FIRST_PATIENCE = 20.0  # times as long as the first, until half have answered


class AnswerTimes:
    """The times of one kind of question, over the rounds of a run.

    Parameters
    ----------
    given : float, optional
        Seconds that are waited whatever nodes took before; by default three times as
        long as they usually take, at least ten. Where nothing is known yet: three times
        as long as the first half took, and until half have answered, twenty times as
        long as those that have.
    slack : float (default: 0.0)
        Seconds that a node may take on top of that.

    Attributes
    ----------
    deadline : float
        Seconds from :meth:`begin` for which answers are waited for, now; infinite while
        nothing is known.
    """

    def __init__(self, given: float | None = None, slack: float = 0.0) -> None:
        self._given = given
        self._slack = slack
        self._history = CompletionHistory()
        self._round = 0
        self._asked = 0
        self._answered = 0
        self._known = False
        self.deadline = math.inf

    def begin(self, node_ids: Collection[int]) -> None:
        """Begin with a question to these nodes."""
        self._round += 1
        self._asked, self._answered = len(node_ids), 0
        self._known = True
        if self._given is not None:
            self.deadline = self._given
        elif len(self._history) and node_ids:
            seconds, _ = self._history.typical(list(node_ids), self._round)
            self.deadline = self._allowed(_PATIENCE * float(seconds.max()))
        else:
            self._known, self.deadline = False, math.inf

    def answered(self, node_id: int, seconds: float) -> None:
        """Take note that a node has answered, so long after the question."""
        self._answered += 1
        self._history.completed(node_id, self._round, 1, seconds, seconds)
        if not self._known:
            most = 2 * self._answered >= self._asked
            patience = _PATIENCE if most else _FIRST_PATIENCE
            self.deadline = self._allowed(patience * seconds)

    def state(self) -> dict[str, Any]:
        """Return what is known, for :meth:`restore` in another process."""
        return {"history": self._history.state(), "round": self._round}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the place of what :meth:`state` was asked of."""
        self._history.restore(state["history"])
        self._round = state["round"]

    def rename(self, names: Mapping[int, int]) -> None:
        """Know nodes by other ids, each of `names` by what it maps to."""
        self._history.rename(names)

    def _allowed(self, seconds: float) -> float:
        return max(LEAST_DEADLINE, seconds) + self._slack
