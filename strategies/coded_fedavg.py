"""FedAvg under a one-stage gradient code (Tandon et al. 2017, arXiv:1612.03301)."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from flower_ext.coding.plan import RoundPlan
from flower_ext.coding.single_stage import CODE_FAMILIES, SingleStagePlan
from flower_ext.errors import InvalidInputError
from flower_ext.strategies.coded_strategy import CodedStrategy

__all__ = ["CodedFedAvg"]


class CodedFedAvg(CodedStrategy):
    """FedAvg under a gradient code: every node gets its row at once.

    Implementation based on https://arxiv.org/abs/1612.03301

    Parameters
    ----------
    code : str (default: "cyclic")
        ``"cyclic"``, ``"fractional"``, ``"heterogeneity-aware"`` or ``"uncoded"``.
    stragglers : int (default: 1)
        Number of nodes that may stay silent, at least 0; every partition is computed
        once more for each.
    ignore_stragglers : int (default: 0)
        End a round when all but this many nodes have replied, with whatever their
        replies give: fast, but then partitions are missing from the update, and
        `min_coverage` decides whether it counts. At least 0.
    **coded : Any
        `num_partitions`, `clock`, `deadline`, `min_coverage`, `seed`,
        `verify_replies` (at most `stragglers`; half of it for liars to be named, less
        the nodes that are silent), `reply_tolerance` and `keep_timelines` of
        :class:`~flower_ext.strategies.coded_strategy.CodedStrategy`, and all keyword
        arguments of Flower's :class:`~flwr.serverapp.strategy.FedAvg`.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.

    Examples
    --------
    >>> CodedFedAvg(code="fractional", stragglers=2).tolerated
    2
    """

    def __init__(
        self,
        *,
        code: str = "cyclic",
        stragglers: int = 1,
        ignore_stragglers: int = 0,
        **coded: Any,
    ) -> None:
        super().__init__(**coded)
        if code not in CODE_FAMILIES:
            raise InvalidInputError(
                f"Unknown code {code!r}: choose one of {', '.join(CODE_FAMILIES)}."
            )
        if stragglers < 0 or ignore_stragglers < 0:
            raise InvalidInputError(
                "stragglers and ignore_stragglers must be at least 0, "
                f"got {stragglers} and {ignore_stragglers}."
            )
        spare = 0 if code == "uncoded" else stragglers
        if self.verify_replies > spare:
            raise InvalidInputError(
                f"verify_replies={self.verify_replies} needs a code that tolerates as "
                f"many stragglers, but {code!r} with stragglers={stragglers} tolerates "
                f"{spare}: set stragglers to at least {self.verify_replies}, or to "
                f"{2 * self.verify_replies} for liars to be named."
            )
        if self.verify_replies and ignore_stragglers:
            raise InvalidInputError(
                "Replies cannot be verified where stragglers are ignored: set "
                "verify_replies or ignore_stragglers to 0."
            )
        self.code = code
        self.stragglers = stragglers
        self.ignore_stragglers = ignore_stragglers

    @property
    def tolerated(self) -> int:
        """Number of stragglers that the replication of partitions should tolerate."""
        return 0 if self.code == "uncoded" else self.stragglers

    @property
    def least_nodes(self) -> int:
        """Number of nodes without which no round can be planned."""
        return self.tolerated + 1

    def check_replication(self, copies: list[int]) -> None:
        """Refuse what the code cannot be built on; parameters as in the base class.

        Raises
        ------
        InvalidInputError
            If, before the first round, the heterogeneity-aware code lacks
            replication. The other codes refuse it when they are built.
        """
        if self.code == "heterogeneity-aware" and not self.round_metrics:
            told = self._replication_warning(copies)
            if told:
                raise InvalidInputError(told)
        super().check_replication(copies)

    def _described(self) -> dict[str, str]:
        ignored = self.ignore_stragglers
        return {
            "Scheme": f"one stage, {self.code}, {self.tolerated} stragglers tolerated"
            + (f", {ignored} ignored" if ignored else ""),
            **super()._described(),
        }

    def plan_round(
        self,
        server_round: int,
        partitions: list[int],
        idle: Mapping[int, Collection[int]],
        rng: np.random.Generator,
    ) -> RoundPlan:
        """Return a one-stage plan."""
        return SingleStagePlan(
            partitions,
            idle,
            self.history,
            server_round,
            deadline=self.deadline,
            family=self.code,
            stragglers=self.stragglers,
            ignore_stragglers=self.ignore_stragglers,
        )
