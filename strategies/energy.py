"""What a round's work cost the simulated devices."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flower_ext.network.edge_network import EnergyLedger
from flower_ext.strategies.coded_round import Measured
from flower_ext.strategies.staged_grid import StagedGrid

__all__ = ["EnergySpent"]


@dataclass(frozen=True)
class EnergySpent:
    """The ledger's totals as a round began.

    Parameters
    ----------
    joules, compute_seconds, airtime : float
        As in :class:`~flower_ext.network.edge_network.EnergyLedger`.
    """

    joules: float = 0.0
    compute_seconds: float = 0.0
    airtime: float = 0.0

    @classmethod
    def of(cls, ledger: EnergyLedger | None) -> EnergySpent:
        """Return the totals so far; zeros without a ledger."""
        if ledger is None:
            return cls()
        return cls(ledger.spent, ledger.compute_seconds, ledger.airtime)

    def since(self, grid: StagedGrid) -> Measured:
        """Let the devices harvest, and return what has been spent since.

        Work that goes on after the round has decoded is part of it.
        """
        if grid.ledger is None:
            return {}
        now = self.of(grid.ledger)
        places = [grid.place(node.node_id) for node in grid.fleet.nodes]
        grid.ledger.harvest(places, grid.now)
        measured: Measured = {
            "energy-joules": now.joules - self.joules,
            "compute-seconds": now.compute_seconds - self.compute_seconds,
            "airtime-seconds": now.airtime - self.airtime,
        }
        if grid.ledger.lowest < math.inf:
            measured["battery-lowest-joules"] = grid.ledger.lowest
        return measured
