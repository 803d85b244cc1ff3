"""Two-stage rounds that go on until the replies bear each other out.

When the replies decode, what no other worker has confirmed yet is computed once more,
by workers that had no part in it. Where replies contradict each other, what they leave
in doubt is spread again among the others.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
            return self._unless_stuck(super().wake(at), at)
        self._wake_at = math.inf
        if self.complete:
            return []
        self._on_time = len(self.dispatches)
        return self._unless_stuck(self._confirm(at), at)

    def _freed(self, at: float) -> list[Dispatch]:
        return self._confirm(at) if self.decodable else super()._freed(at)

    def _failed(self, at: float) -> list[Dispatch]:
        if self.doubted and self.stage_two_at is None:
            self.stage_two_at = at
        sent = self._confirm(at) if self.decodable else super()._failed(at)
        return self._unless_stuck(sent, at)

    def _unless_stuck(self, sent: list[Dispatch], at: float) -> list[Dispatch]:
        """Return what is sent, or if there is nothing to wait for, what suspects say.

        They judge each other where the round cannot go on without them. Where one has
        lied and two agree, neither has lied there; if they do not, one of them has and
        the others are cleared. More liars may agree with each other, and leave it open.
        """
        if not self._suspects or any(k >= self._on_time for k in self.outstanding):
            return sent
        busy = {self.dispatches[key].worker for key in self.outstanding}
        free = {
            worker: held
            for worker, held in self._holdings.items()
            if worker in self._suspects - busy
        }
        asked = self._question(free, at)
        self._expect_by(asked, at)
        return sent + asked

    def _expect_by(self, sent: Sequence[Dispatch], at: float) -> None:
        """Look after dispatches when they are late, and let the round last for them."""
        workers = [dispatch.worker for dispatch in sent]
        seconds, overhead = self.history.typical(workers, self.server_round)
        for i, dispatch in enumerate(sent):
            due = float(overhead[i] + max(seconds[i], 1e-9) * len(dispatch.partitions))
            self._allow(at + 10.0 * due)
            look = at + max(_PATIENCE * due, _TICK)
            known = self._wake_at if self._wake_at < math.inf else look
            self._wake_at = max(known, look)

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
            new = [
                self._dispatch(worker, 2, job, [1.0] * len(job), at)
                for worker, job in jobs.items()
            ]
            self._expect_by(new, at)
            sent += new
        if not self.outstanding:
            self._wake_at = math.inf
        return sent
