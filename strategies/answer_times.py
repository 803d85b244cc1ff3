"""How long nodes take to answer, and for how long they are waited for from that."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from flower_ext.coding.plan import LEAST_DEADLINE

__all__ = ["AnswerTimes"]

_PATIENCE = 3.0  # times as long as usual
_FIRST_PATIENCE = 20.0  # times as long as the first, until half have answered
_REMEMBERED = 3  # answers of a node, the slowest of which is what it usually takes
_GIVEN_UP = 2  # times in a row that a node was silent


class AnswerTimes:
    """The times of one kind of question, over the rounds of a run.

    Parameters
    ----------
    given : float, optional
        Seconds that are waited whatever nodes took before; by default three times the
        slowest of the last three answers of any node that is asked, at least ten. Where
        nothing is known: three times as long as the first half took, and until half
        have answered, twenty times as long as those that have.
    slack : float (default: 0.0)
        Seconds that a node may take on top of that.

    Attributes
    ----------
    deadline : float
        Seconds from :meth:`begin` for which answers are waited for, now; infinite while
        nothing is known.

    Notes
    -----
    A node that was silent counts as one that took as long as it was waited for, so that
    it has three times as long the next time; silent again, it is waited for no longer
    than others until it answers.
    """

    def __init__(self, given: float | None = None, slack: float = 0.0) -> None:
        self._given = given
        self._slack = slack
        self._seconds: dict[int, deque[float]] = {}
        self._silent: dict[int, int] = {}
        self._asked = 0
        self._answers = 0
        self._known = False
        self.deadline = math.inf

    def begin(self, node_ids: Collection[int]) -> None:
        """Begin with a question to these nodes."""
        self._asked, self._answers = len(node_ids), 0
        usual = self._usual(node_ids)
        self._known = self._given is not None or usual is not None
        if self._given is not None:
            self.deadline = self._given
        elif usual is not None:
            self.deadline = self._allowed(_PATIENCE * usual)
        else:
            self.deadline = math.inf

    def answered(self, node_id: int, seconds: float) -> None:
        """Take note that a node has answered, so long after the question."""
        self._answers += 1
        self._silent.pop(node_id, None)
        self._note(node_id, seconds)
        if not self._known:
            most = 2 * self._answers >= self._asked
            patience = _PATIENCE if most else _FIRST_PATIENCE
            self.deadline = self._allowed(patience * seconds)

    def end(self, silent: Iterable[int], seconds: float) -> None:
        """End with who has not answered, so long after the question."""
        for node_id in silent:
            self._silent[node_id] = self._silent.get(node_id, 0) + 1
            self._note(node_id, max(0.0, seconds - self._slack))

    def state(self) -> dict[str, Any]:
        """Return what is known, for :meth:`restore` in another process."""
        return {
            "seconds": {node: list(times) for node, times in self._seconds.items()},
            "silent": dict(self._silent),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take the place of what :meth:`state` was asked of."""
        self._seconds = {
            node: deque(times, _REMEMBERED) for node, times in state["seconds"].items()
        }
        self._silent = dict(state["silent"])

    def rename(self, names: Mapping[int, int]) -> None:
        """Know nodes by other ids, each of `names` by what it maps to."""
        self._seconds = {names.get(n, n): times for n, times in self._seconds.items()}
        self._silent = {names.get(n, n): times for n, times in self._silent.items()}

    def _note(self, node_id: int, seconds: float) -> None:
        times = self._seconds.setdefault(node_id, deque(maxlen=_REMEMBERED))
        times.append(seconds)

    def _usual(self, node_ids: Collection[int]) -> float | None:
        """Return what the slowest of these nodes takes; None if nothing is known."""
        known = {
            node: max(times)
            for node, times in self._seconds.items()
            if self._silent.get(node, 0) < _GIVEN_UP
        }
        if not known:
            return None
        # Of a node that has not been asked before, the slowest of all is expected.
        slowest = max(known.values())
        return max(
            (
                known.get(node, slowest if node not in self._seconds else 0.0)
                for node in node_ids
            ),
            default=slowest,
        )

    def _allowed(self, seconds: float) -> float:
        return max(LEAST_DEADLINE, seconds) + self._slack
