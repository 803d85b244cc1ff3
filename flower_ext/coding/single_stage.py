"""The classical coded round: one code over all idle workers, and then waiting.

Gradient coding as Tandon et al. 2017 (arXiv:1612.03301) have it: every worker is given
its row at once, and the round ends with the first set of replies that decodes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from flower_ext.coding.cyclic import CyclicRepetition
from flower_ext.coding.fractional import FractionalRepetition
from flower_ext.coding.heterogeneity_aware import HeterogeneityAware
from flower_ext.coding.plan import LEAST_DEADLINE, Dispatch, RoundPlan
from flower_ext.coding.uncoded import Uncoded
from flower_ext.errors import InvalidInputError
from flower_ext.scheduling.history import CompletionHistory

__all__ = ["CODE_FAMILIES", "SingleStagePlan"]

Floats = NDArray[np.float64]

CODE_FAMILIES = ("cyclic", "fractional", "heterogeneity-aware", "uncoded")


class SingleStagePlan(RoundPlan):
    """One round under a one-stage gradient code.

    The cyclic, fractional and uncoded codes have as many columns as workers; each
    column is then a block of neighbouring partitions. With too few idle workers for
    the stragglers that it shall tolerate, the plan waits for more before it begins.

    Parameters
    ----------
    partitions, idle, history, server_round, deadline
        As in :class:`~flower_ext.coding.plan.RoundPlan`.
    family : str
        One of ``"cyclic"``, ``"fractional"``, ``"heterogeneity-aware"`` and
        ``"uncoded"``.
    stragglers : int (default: 1)
        How many workers may stay silent; without meaning for ``"uncoded"``.
    ignore_stragglers : int (default: 0)
        End the round when all but this many workers have replied, with whatever
        their replies give: fast, but the update then lacks partitions.

    Raises
    ------
    InvalidInputError
        If the family is unknown or a number is out of range.

    Examples
    --------
    >>> held = {w: range(3) for w in (10, 11, 12)}
    >>> plan = SingleStagePlan(range(3), held, CompletionHistory(), 1, family="cyclic")
    >>> [(d.worker, d.partitions) for d in plan.start()]
    [(10, (0, 1)), (11, (1, 2)), (12, (0, 2))]
    """

    def __init__(
        self,
        partitions: Sequence[int],
        idle: Mapping[int, Collection[int]],
        history: CompletionHistory,
        server_round: int,
        deadline: float | None = None,
        family: str = "cyclic",
        stragglers: int = 1,
        ignore_stragglers: int = 0,
    ) -> None:
        super().__init__(partitions, idle, history, server_round, deadline)
        if family not in CODE_FAMILIES:
            raise InvalidInputError(
                f"Unknown code {family!r}: choose one of {', '.join(CODE_FAMILIES)}."
            )
        if stragglers < 0 or ignore_stragglers < 0:
            raise InvalidInputError(
                "stragglers and ignore_stragglers must be at least 0, "
                f"got {stragglers} and {ignore_stragglers}."
            )
        self.family = family
        self.stragglers = 0 if family == "uncoded" else stragglers
        self.ignore_stragglers = ignore_stragglers

    @property
    def wake_at(self) -> float:
        """Never: there is no second stage."""
        return math.inf

    def start(self) -> list[Dispatch]:
        """Give every idle worker its row."""
        return self._launch(0.0)

    def wake(self, at: float) -> list[Dispatch]:
        """Do nothing: there is no second stage."""
        return []

    def finished(self, at: float) -> bool:
        """Return whether there is nothing left to wait for at this time."""
        enough = len(self.dispatches) - self.ignore_stragglers
        return super().finished(at) or 0 < enough <= len(self.received)

    def _spares(self) -> bool:
        """Return whether the replies decode without those of any `spare` workers."""
        silent = len(self.dispatches) - len(self.received)
        return silent + self.spare <= self.stragglers or super()._spares()

    def _freed(self, at: float) -> list[Dispatch]:
        if not self.dispatches:
            return self._launch(at)
        if math.isinf(self._deadline) and self.received:
            self._deadline = max(LEAST_DEADLINE, 20.0 * at)
        return []

    def _failed(self, at: float) -> list[Dispatch]:
        return []

    def _launch(self, at: float) -> list[Dispatch]:
        workers = list(self._idle)
        self.hungry = not self._enough()
        if self.hungry:
            return []
        seconds, overhead = self.history.typical(workers, self.server_round)
        matrix = self._matrix(workers, np.maximum(seconds, 1e-9))
        rows = []
        self.problem = ""
        for i in np.flatnonzero(matrix.any(axis=1)):
            columns = np.flatnonzero(matrix[i])
            row = [self.partitions[int(k)] for k in columns]
            worker = workers[int(i)]
            lacking = sorted(set(row) - set(self._idle[worker]))
            if lacking:
                self.hungry = True
                self.problem = (
                    f"The {self.family} code over {len(workers)} idle workers asks "
                    f"worker {worker} for partitions {lacking}, which it does not "
                    "hold. Replicate them, or use the heterogeneity-aware code, which "
                    "keeps to the holdings."
                )
                return []
            rows.append((worker, row, matrix[i, columns].tolist()))
        sent = [self._dispatch(w, 1, row, weights, at) for w, row, weights in rows]
        if len(self.history):
            load = np.count_nonzero(matrix, axis=1)
            expected = at + float(np.max(overhead + seconds * load))
            self._deadline = max(LEAST_DEADLINE, 10.0 * expected)
        return sent

    def _enough(self) -> bool:
        """Return whether the idle workers suffice for the code, or more must come."""
        if self.family != "heterogeneity-aware":
            return len(self._idle) > self.stragglers
        copies = dict.fromkeys(self.partitions, 0)
        for held in self._idle.values():
            for partition in copies.keys() & set(held):
                copies[partition] += 1
        return min(copies.values()) > self.stragglers

    def _matrix(self, workers: list[int], seconds: Floats) -> Floats:
        """Build the encoding matrix, workers × partitions, rows of zeros allowed."""
        if self.family == "heterogeneity-aware":
            held = [
                [self._column[p] for p in self._idle[w] if p in self._column]
                for w in workers
            ]
            code = HeterogeneityAware(held, 1.0 / seconds, self.stragglers)
            return code.matrix
        count = len(workers)
        if self.family == "fractional":
            count -= count % (self.stragglers + 1)
        if self.family == "uncoded":
            blocks = Uncoded(count).matrix
        elif self.family == "cyclic":
            blocks = CyclicRepetition(count, self.stragglers).matrix
        else:
            blocks = FractionalRepetition(count, self.stragglers).matrix
        fastest = sorted(range(len(workers)), key=lambda i: (seconds[i], i))[:count]
        edges = np.linspace(0, len(self.partitions), count + 1).round().astype(int)
        matrix = np.zeros((len(workers), len(self.partitions)))
        matrix[sorted(fastest)] = np.repeat(blocks, np.diff(edges), axis=1)
        return matrix
