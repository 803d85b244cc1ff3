"""Which nodes there are, what they hold, and which of them are free.

Flower lists nodes, but neither what they hold nor whether they are busy: a dead node
stays listed for 45 seconds, a straggler of round one is listed like any other. This is
the server's own record, made of what nodes answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flower_ext.errors import InvalidInputError

__all__ = ["Fleet", "Node"]


_SPARSE = 1000  # partition ids this many times beyond their number are a mistake


@dataclass
class Node:
    """A node that was listed.

    Parameters
    ----------
    node_id : int
        Flower's id.
    partitions : frozenset[int], optional
        What it holds; None until it has answered.
    holds_all : bool (default: False)
        Whether it declared to hold every partition there is.
    num_partitions : int (default: 0)
        The number of partitions as the node knows it; 0 if it does not.
    worker : int (default: -1)
        The node's own partition; -1 if it has none.
    jobs : set[str]
        Ids of the messages that it has not answered.
    asked : float (default: 0.0)
        When it was first asked what it holds, seconds by the grid's clock.
    """

    node_id: int
    partitions: frozenset[int] | None = None
    holds_all: bool = False
    num_partitions: int = 0
    worker: int = -1
    jobs: set[str] = field(default_factory=set)
    asked: float = 0.0

    @property
    def idle(self) -> bool:
        """Whether the node has said what it holds and has answered everything."""
        return self.partitions is not None and not self.jobs


class Fleet:
    """The nodes of a run.

    Parameters
    ----------
    num_partitions : int, optional
        Number of partitions; by default what the nodes report.
    """

    def __init__(self, num_partitions: int | None = None) -> None:
        self._given = num_partitions
        self._nodes: dict[int, Node] = {}
        self._settled = 0
        self._holdings: dict[frozenset[int], frozenset[int]] = {}
        self._below: dict[tuple[int, frozenset[int] | None], frozenset[int]] = {}

    def __contains__(self, node_id: int) -> bool:
        """Return whether a node is known."""
        return node_id in self._nodes

    def __getitem__(self, node_id: int) -> Node:
        """Return a known node."""
        return self._nodes[node_id]

    def listed(self, node_ids: Iterable[int]) -> tuple[list[int], list[int]]:
        """Tell who is listed now.

        Returns
        -------
        tuple[list[int], list[int]]
            Nodes not seen before, and nodes that are gone and now forgotten.
        """
        now = set(node_ids)
        joined = sorted(now - self._nodes.keys())
        gone = sorted(self._nodes.keys() - now)
        for node_id in joined:
            self._nodes[node_id] = Node(node_id)
        for node_id in gone:
            del self._nodes[node_id]
        return joined, gone

    def remove(self, node_id: int) -> None:
        """Forget a node that went offline."""
        self._nodes.pop(node_id, None)

    def holds(self, node_id: int, answer: Mapping[str, object]) -> None:
        """Record a node's answer to the holdings request.

        Parameters
        ----------
        node_id : int
            The node.
        answer : Mapping[str, object]
            ``partitions`` (list of int), ``all`` (bool), ``num-partitions`` (int, 0 if
            unknown) and ``worker`` (int, -1 if none).

        Raises
        ------
        InvalidInputError
            If the answer is not of that form.
        """
        partitions, worker = answer.get("partitions"), answer.get("worker", -1)
        count = answer.get("num-partitions", 0)
        if (
            not isinstance(partitions, list)
            or any(not isinstance(p, int) or p < 0 for p in partitions)
            or not isinstance(count, int)
            or count < 0
            or not isinstance(worker, int)
        ):
            raise InvalidInputError(
                f"Node {node_id} answered the holdings request with {dict(answer)}: "
                "use the same flower-ext version on server and clients."
            )
        if self._settled and count and count != self._settled:
            raise InvalidInputError(
                f"It reports {count} partitions, the federation has {self._settled}: "
                "give every node the same num-partitions in its node-config."
            )
        node = self._nodes[node_id]
        held = frozenset(partitions)
        # Nodes that hold the same share one set, which planning then reads once.
        node.partitions = self._holdings.setdefault(held, held)
        node.holds_all = bool(answer.get("all", False))
        node.num_partitions = count
        node.worker = worker

    @property
    def nodes(self) -> list[Node]:
        """Nodes that have answered, ordered by their own partition, then by id."""
        known = [n for n in self._nodes.values() if n.partitions is not None]
        return sorted(known, key=lambda n: (n.worker < 0, n.worker, n.node_id))

    @property
    def unanswered(self) -> list[Node]:
        """Nodes that are listed but have not said what they hold."""
        return [n for n in self._nodes.values() if n.partitions is None]

    @property
    def busy(self) -> bool:
        """Whether any node, whether it has answered before or not, owes an answer."""
        return any(n.jobs for n in self._nodes.values())

    @property
    def num_partitions(self) -> int:
        """Number of partitions, K: as given, as the nodes report, or as far as held.

        Raises
        ------
        InvalidInputError
            If nodes contradict each other, or hold all of an unknown number.
        """
        if self._given is not None or self._settled:
            return self._given or self._settled
        nodes = self.nodes
        reported = {n.num_partitions for n in nodes if n.num_partitions}
        if len(reported) > 1:
            raise InvalidInputError(
                f"Nodes report different numbers of partitions: {sorted(reported)}. "
                "Give every node the same num-partitions in its node-config, or set "
                "the strategy's num_partitions."
            )
        if reported:
            return reported.pop()
        held = [p for n in nodes for p in n.partitions or ()]
        if not held and nodes:
            raise InvalidInputError(
                "No node says how many partitions there are or names one that it "
                "holds. Set the strategy's num_partitions, or num-partitions and "
                "partitions in the nodes' configs."
            )
        count = 1 + max(held, default=-1)
        if count > _SPARSE * len(set(held)):
            raise InvalidInputError(
                f"Nodes hold {len(set(held))} partitions, with ids up to {count - 1}: "
                "set the strategy's num_partitions if there really are so many."
            )
        return count

    def settle(self, num_partitions: int) -> None:
        """Fix the number of partitions for the run, if nodes reported it.

        From then on, a node that reports another number is refused.
        """
        if self._given is None and any(n.num_partitions for n in self.nodes):
            self._settled = num_partitions

    def holdings(self, node: Node, num_partitions: int) -> frozenset[int]:
        """Return the partitions below `num_partitions` that a node holds."""
        partitions = node.partitions or frozenset()
        key = num_partitions, None if node.holds_all else partitions
        if key not in self._below:
            everything = frozenset(range(num_partitions))
            self._below[key] = everything if node.holds_all else partitions & everything
        return self._below[key]

    def replication(self, num_partitions: int) -> list[int]:
        """Return by how many nodes each partition is held."""
        count = [0] * num_partitions
        sets = Counter(self.holdings(node, num_partitions) for node in self.nodes)
        for held, nodes in sets.items():
            for partition in held:
                count[partition] += nodes
        return count
