"""Two-stage coded FedAvg (TSDCFL, arXiv:2205.07939)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from flower_ext.coding.gradient_code import check_count
from flower_ext.coding.plan import RoundPlan
from flower_ext.coding.two_stage import TwoStageOptions, TwoStagePlan
from flower_ext.strategies.coded_strategy import CodedStrategy

__all__ = ["TwoStageCoded"]


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
    **coded : Any
        `num_partitions`, `clock`, `deadline`, `min_coverage`, `seed` of
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
        **coded: Any,
    ) -> None:
        super().__init__(**coded)
        self.stragglers = check_count("stragglers", stragglers, low=0)
        self.options = TwoStageOptions(
            redundancy_price=redundancy_price,
            max_stage_two_redundancy=max_stage_two_redundancy,
        )

    @property
    def tolerated(self) -> int:
        """Number of stragglers that the replication of partitions should tolerate."""
        return self.stragglers

    def _described(self) -> dict[str, str]:
        return {
            "Scheme": "two stages",
            "Stage-two redundancy": f"up to {self.options.max_stage_two_redundancy}, "
            f"at a price of {self.options.redundancy_price:g}",
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
        return TwoStagePlan(
            partitions,
            idle,
            self.history,
            server_round,
            rng,
            deadline=self.deadline,
            options=self.options,
        )
