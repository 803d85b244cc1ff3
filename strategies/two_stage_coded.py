"""Two-stage coded FedAvg (TSDCFL, arXiv:2205.07939)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import Result

from flower_ext.coding.contention import Airtime
from flower_ext.coding.gradient_code import check_count
from flower_ext.coding.payload import payload_dtype
from flower_ext.coding.plan import RoundPlan
from flower_ext.coding.two_stage import TwoStageOptions, TwoStagePlan
from flower_ext.coding.verified_two_stage import VerifiedTwoStagePlan
from flower_ext.errors import InvalidInputError
from flower_ext.network.rates import Rate
from flower_ext.scheduling.admission import Admission, Candidate
from flower_ext.scheduling.round_scheduler import RoundScheduler
from flower_ext.scheduling.scheduler import Scheduler
from flower_ext.strategies.coded_round import CodedRound, Measured
from flower_ext.strategies.coded_strategy import CodedStrategy
from flower_ext.strategies.fleet import Node
from flower_ext.strategies.staged_grid import StagedGrid

__all__ = ["BATTERY_KEY", "TwoStageCoded"]

_RECENT = 10.0  # seconds over which a simulated link is observed

BATTERY_KEY = "battery-joules"
"""The train function's metric that tells what is in its node's battery, joules."""


class TwoStageCoded(CodedStrategy):
    """FedAvg in rounds that stragglers cannot hold up.

    Implementation based on https://arxiv.org/abs/2205.07939

    The fastest nodes share the partitions; what has not come back when history says
    that waiting no longer pays is spread, coded, over the nodes that are idle by then.
    The round ends with the first set of replies from which FedAvg's own update
    follows. Needs clients built with :class:`~flower_ext.clients.CodedClientApp`, and
    partitions that more than one node holds.

    Parameters
    ----------
    stragglers : int (default: 1)
        Number of silent nodes that the replication of partitions should tolerate; the
        strategy says so when it does not. At least 0.
    redundancy_price : float (default: 0.2)
        How much longer, relative to its length, a round may take to save computing
        every partition once more, at least 0.
    max_stage_two_redundancy : int (default: 2)
        The most times that stage two computes a partition beyond once, 0 to 8.
    scheduler : Scheduler or RoundScheduler, optional
        Decides, round by round, which nodes take part, how many partitions each may be
        given and what share of the carrier it has: a scheduler of
        :mod:`flower_ext.scheduling`, or a
        :class:`~flower_ext.scheduling.RoundScheduler` around one, which has further
        parameters. By default every idle node takes part.
    **coded : Any
        `num_partitions`, `clock`, `deadline`, `min_coverage`, `seed`, `network`,
        `verify_replies`, `reply_tolerance` and `keep_timelines` of
        :class:`~flower_ext.strategies.coded_strategy.CodedStrategy`, and all keyword
        arguments of Flower's :class:`~flwr.serverapp.strategy.FedAvg`.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> strategy = TwoStageCoded(fraction_evaluate=0.5, num_partitions=12)
    >>> strategy.tolerated
    1
    """

    def __init__(
        self,
        *,
        stragglers: int = 1,
        redundancy_price: float = 0.2,
        max_stage_two_redundancy: int = 2,
        scheduler: Scheduler | RoundScheduler | None = None,
        **coded: Any,
    ) -> None:
        super().__init__(**coded)
        if scheduler is not None and not isinstance(scheduler, RoundScheduler):
            scheduler = RoundScheduler(scheduler)
        self.scheduler = scheduler
        self._admission: Admission | None = None
        self.stragglers = check_count("stragglers", stragglers, low=0)
        self.options = TwoStageOptions(
            redundancy_price=redundancy_price,
            max_stage_two_redundancy=max_stage_two_redundancy,
        )

    @property
    def tolerated(self) -> int:
        """Number of stragglers that the replication of partitions should tolerate."""
        return max(self.stragglers, self.verify_replies)

    def _described(self) -> dict[str, str]:
        return {
            "Scheme": "two stages",
            "Stage-two redundancy": f"up to {self.options.max_stage_two_redundancy}, "
            f"at a price of {self.options.redundancy_price:g}",
            "Scheduler": "none"
            if self.scheduler is None
            else repr(self.scheduler.scheduler),
            **super()._described(),
        }

    def plan_round(
        self,
        server_round: int,
        partitions: list[int],
        idle: Mapping[int, Collection[int]],
        rng: np.random.Generator,
    ) -> RoundPlan:
        """Return a two-stage plan."""
        admission = self._admission
        deadline = self.deadline
        closed = ""
        if admission is not None and not admission.open:
            assert self.scheduler is not None
            deadline = self.scheduler.slot
            closed = (
                "the scheduler admits no idle node: their batteries are too empty, or "
                f"their links dead. It is looked again in {deadline:.1f} s, a slot"
            )
        kind = VerifiedTwoStagePlan if self.verify_replies else TwoStagePlan
        plan = kind(
            partitions,
            idle,
            self.history,
            server_round,
            rng,
            deadline=deadline,
            options=self.options,
            limits=None if admission is None else admission.limits,
            airtime=None
            if admission is None
            else Airtime(admission.airtime, admission.shares, admission.download),
            ceilings=None if admission is None else admission.ceilings,
        )
        plan.closed = closed
        return plan

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """Execute the strategy; parameters as in Flower."""
        if self.scheduler is not None:
            self.scheduler.begin_run()
        return super().start(*args, **kwargs)

    def checkpoint(self) -> dict[str, Any]:
        """Return what another process needs to go on after the present round."""
        scheduler = None if self.scheduler is None else self.scheduler.state()
        return {**super().checkpoint(), "scheduler": scheduler}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`checkpoint`, in a run that has begun."""
        super().resume(state)
        if (self.scheduler is None) is not (state["scheduler"] is None):
            raise InvalidInputError(
                "A checkpoint with a scheduler's queues goes on with a scheduler of "
                "the same kind, and one without goes on without: set scheduler as in "
                "the run that wrote it."
            )
        if self.scheduler is not None:
            self.scheduler.restore(state["scheduler"])

    def _renamed(self, names: Mapping[int, int]) -> None:
        super()._renamed(names)
        if self.scheduler is not None:
            self.scheduler.rename(names)

    def _admit(
        self,
        grid: StagedGrid,
        server_round: int,
        partitions: list[int],
        arrays: ArrayRecord,
    ) -> Mapping[int, float]:
        """Ask the scheduler who takes part."""
        if self.scheduler is None:
            return {}
        count = grid.fleet.num_partitions
        size = sum(len(array.data) for array in arrays.values())
        candidates = [
            self._candidate(grid, node, grid.fleet.holdings(node, count), size)
            for node in grid.fleet.nodes
        ]
        self._admission = self.scheduler.begin_round(
            candidates, partitions, _reply_bytes(arrays), self.stragglers + 1
        )
        return {} if self._admission is None else self._admission.shares

    def _candidate(
        self, grid: StagedGrid, node: Node, holdings: Collection[int], size: int
    ) -> Candidate:
        """Return what the scheduler may know of a node."""
        assert self.scheduler is not None
        if self.network is None:
            return Candidate(node.node_id, holdings, idle=node.idle)
        place = grid.place(node.node_id)
        link, device = self.network.link(place), self.network.device(place)
        slot = self.scheduler.slot
        if device is not None and device.seconds_per_partition > 0:
            self.history.declare(node.node_id, device.seconds_per_partition)
        return Candidate(
            node.node_id,
            holdings,
            idle=node.idle,
            rate=None if link is None else _recent_rate(link.up, link.loss, grid.now),
            download=None
            if link is None
            else link.rtt
            + size / max(_recent_rate(link.down, link.loss, grid.now), 1.0),
            harvest=device.harvest_joules(grid.now, grid.now + slot) if device else 0.0,
            device=device,
            battery=None if grid.ledger is None else grid.ledger.level(place),
        )

    def _settled(self, grid: StagedGrid, done: CodedRound) -> Measured:
        """Tell the scheduler what came of its decisions."""
        if self.scheduler is None:
            return {}
        size = _reply_bytes(done.arrays)
        for key, (_, summary) in done.replies.items():
            node_id = done.plan.dispatches[key].worker
            partitions = len(summary.partitions)
            self.scheduler.replied(node_id, partitions, done.overheads[key], size)
            for metrics in summary.metrics:
                joules = metrics.get(BATTERY_KEY)
                if isinstance(joules, int | float) and 0 <= joules < math.inf:
                    self.scheduler.measured_battery(node_id, float(joules))
        for late in done.late:
            self.scheduler.replied(late.node_id, late.partitions, late.overhead, size)
        nodes = {n.node_id: grid.place(n.node_id) for n in grid.fleet.nodes}
        if grid.ledger is not None:
            for node_id, place in nodes.items():
                self.scheduler.measured_battery(node_id, grid.ledger.level(place))
        told = self.scheduler.end_round()
        if told is None:
            return {}
        workers = sorted(told.admitted, key=lambda n: nodes.get(n, n))
        backlog = list(told.backlog.values())
        measured: Measured = {
            "admitted": math.fsum(told.admitted.values()),
            "admitted-per-worker": [told.admitted[n] for n in workers],
            "backlog-mean": math.fsum(backlog) / len(backlog),
            "backlog-max": max(backlog),
            "fairness": told.fairness,
            "taking-part": told.taking_part,
        }
        if told.battery and grid.ledger is None:
            measured["battery-lowest-joules"] = min(told.battery.values())
        return measured


def _recent_rate(rate: Rate, loss: float, now: float) -> float:
    """Return the useful bytes per second that a link has carried of late."""
    since = max(now - _RECENT, 0.0)
    mean = rate.at(now)
    if now > since:
        mean = rate.bytes_between(since, now) / (now - since)
    return (1 - loss) * mean


def _reply_bytes(arrays: ArrayRecord) -> int:
    """Return the size of a reply to these arrays."""
    return sum(
        math.prod(array.shape) * payload_dtype(np.dtype(array.dtype)).itemsize
        for array in arrays.values()
    )
