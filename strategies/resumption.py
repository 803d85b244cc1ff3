"""A staged grid's clock, energy and replies under way, from one process to the next.

The nodes of the next process may have other ids: Flower gives a simulated node a new
one in every run. A node is known again by its id, else by its own partition.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from flower_ext.network.edge_network import EnergyLedger
from flower_ext.network.link import Link
from flower_ext.strategies.arrivals import (
    Arrival,
    Arrivals,
    NetworkArrivals,
    VirtualArrivals,
)
from flower_ext.strategies.fleet import Fleet
from flower_ext.strategies.underway import arrival_of, told_of

__all__ = ["Resumption", "grid_state"]


def grid_state(
    fleet: Fleet, arrivals: Arrivals, ledger: EnergyLedger | None
) -> dict[str, Any]:
    """Return what a run's clock and nodes are at, for :class:`Resumption`.

    On the wall clock nothing is under way that another process could wait for.
    """
    state: dict[str, Any] = {
        "places": {node.node_id: node.worker for node in fleet.nodes},
        "now": 0.0,
        "ledger": None if ledger is None else ledger.state(),
        "ready": [],
        "carrier": None,
        "uploading": {},
    }
    if isinstance(arrivals, VirtualArrivals):
        state["now"] = arrivals.now
        told = [(at, told_of(arrival)) for at, arrival in arrivals.state()]
        state["ready"] = [(at, reply) for at, reply in told if reply is not None]
    if isinstance(arrivals, NetworkArrivals):
        state["carrier"], uploading = arrivals.uploads()
        state["uploading"] = {job: told_of(a) for job, a in uploading.items()}
    return state


class Resumption:
    """Goes on from a :func:`grid_state`, once the nodes have said what they hold.

    Parameters
    ----------
    state : Mapping[str, Any]
        What the checkpoint holds.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        self._state = state

    def set_clock(self, arrivals: Arrivals, ledger: EnergyLedger | None) -> None:
        """Set the virtual clock and the batteries, before any message is sent."""
        if isinstance(arrivals, VirtualArrivals):
            arrivals.restore(self._state["now"], [])
        if ledger is not None and self._state["ledger"] is not None:
            ledger.restore(self._state["ledger"])

    def names(self, fleet: Fleet) -> dict[int, int]:
        """Return the new ids of nodes that have one, by the old ones."""
        places: dict[int, int] = self._state["places"]
        now = {node.worker: node.node_id for node in fleet.nodes if node.worker >= 0}
        return {
            old: now[place]
            for old, place in places.items()
            if old not in fleet and place in now and now[place] not in places
        }

    def expect(
        self, arrivals: Arrivals, names: Mapping[int, int], ledger: EnergyLedger | None
    ) -> list[Arrival]:
        """Let what was under way arrive, and return it."""
        if not isinstance(arrivals, VirtualArrivals):
            return []
        state = self._state
        ready = [(at, arrival_of(told, names)) for at, told in state["ready"]]
        arrivals.restore(arrivals.now, ready)
        found = [arrival for _, arrival in ready]
        if isinstance(arrivals, NetworkArrivals) and state["carrier"] is not None:
            uploading = {j: arrival_of(t, names) for j, t in state["uploading"].items()}

            def link(job: int) -> Link:
                node_id = state["uploading"][job]["node_id"]
                place = state["places"].get(node_id, -1)
                assert ledger is not None  # as links are simulated with a network
                used = ledger.network.link(place if place >= 0 else node_id)
                assert used is not None
                return used

            arrivals.restore_uploads(state["carrier"], uploading, link)
            found += uploading.values()
        return found
