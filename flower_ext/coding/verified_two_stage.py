"""Two-stage rounds that go on until the replies bear each other out.

When the replies decode, what no other worker has confirmed yet is computed once more,
by workers that had no part in it. Where replies contradict each other, what they leave
in doubt is spread again among the others.
"""

from __future__ import annotations

import math

import numpy as np

from flower_ext.coding.plan import Dispatch
from flower_ext.coding.spares import parts_of, second_opinions
from flower_ext.coding.two_stage import TwoStagePlan

__all__ = ["VerifiedTwoStagePlan"]

_PATIENCE = 1.5  # a second opinion is asked of others this much later than it was due
_TICK = 1e-3  # seconds; the plan is never woken twice within less


class VerifiedTwoStagePlan(TwoStagePlan):
    """A two-stage round whose replies decode without those of any few workers.

    Call :meth:`~flower_ext.coding.plan.RoundPlan.verify` before it starts; all else is
    as in :class:`~flower_ext.coding.two_stage.TwoStagePlan`.

    Examples
    --------
    >>> from flower_ext.scheduling.history import CompletionHistory
    >>> held = {0: range(2), 1: range(2)}
    >>> rng = np.random.default_rng(0)
    >>> plan = VerifiedTwoStagePlan([0, 1], held, CompletionHistory(), 1, rng)
    >>> plan.verify(1)
    >>> [(d.worker, d.partitions) for d in plan.start()]
    [(0, (0,)), (1, (1,))]
    >>> plan.reply(0, at=1.0, compute_seconds=1.0)
    []
    >>> sent = plan.reply(1, at=1.0, compute_seconds=1.0)
    >>> sorted((d.worker, d.partitions) for d in sent)
    [(0, (1,)), (1, (0,))]
    """

    def wake(self, at: float) -> list[Dispatch]:
        """Look at what is late."""
        if not self.decodable:
            return super().wake(at)
        self._wake_at = math.inf
        if self.complete:
            return []
        self._on_time = len(self.dispatches)
        return self._confirm(at)

    def _freed(self, at: float) -> list[Dispatch]:
        return self._confirm(at) if self.decodable else super()._freed(at)

    def _failed(self, at: float) -> list[Dispatch]:
        if self.doubted and self.stage_two_at is None:
            self.stage_two_at = at
        sent = self._confirm(at) if self.decodable else super()._failed(at)
        return sent if self.outstanding else self._cross_examine(at)

    def _cross_examine(self, at: float) -> list[Dispatch]:
        """Let suspects judge each other, where the round cannot go on without them.

        If two agree, neither has lied there, as far as few lie; if not, one of them has
        and the others are cleared.
        """
        free = {w: held for w, held in self._holdings.items() if w in self._suspects}
        return self._question(free, at)

    def _confirm(self, at: float) -> list[Dispatch]:
        """Ask for second opinions on what would rest on too few workers."""
        if self.stage_two_at is None:
            self.stage_two_at = at
        sent: list[Dispatch] = []
        self.hungry = False
        while True:
            on_time = [k for k in self.outstanding if k >= self._on_time]
            rows = [self.dispatches[k] for k in [*self.received, *on_time]]
            rows = [row for row in rows if row.worker not in self.doubted]
            weak = [p for p in parts_of(rows, self.spare) if p.spares < self.spare]
            if not weak:
                break
            workers = list(self._idle)
            wanted = sorted({p for part in weak for p in part.partitions})
            limits = self._room(workers, wanted)
            seconds, overhead = self.history.typical(workers, self.server_round)
            jobs, unmet = second_opinions(
                weak,
                workers,
                [self._idle[w] for w in workers],
                np.maximum(seconds, 1e-9).tolist(),
                overhead.tolist(),
                None if limits is None else limits.tolist(),
            )
            self.hungry = bool(unmet)
            if not jobs:
                break
            for worker, job in jobs.items():
                i = workers.index(worker)
                due = float(overhead[i] + seconds[i] * len(job))
                self._allow(at + 10.0 * due)
                look = at + max(_PATIENCE * due, _TICK)
                known = self._wake_at if self._wake_at < math.inf else look
                self._wake_at = max(known, look)
                sent.append(self._dispatch(worker, 2, job, [1.0] * len(job), at))
        if not self.outstanding:
            self._wake_at = math.inf
        return sent
