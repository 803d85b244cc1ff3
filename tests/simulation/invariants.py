"""What must hold in every round, whatever happens to the nodes."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.common.constant import ErrorCode

from flower_ext.coding.plan import Outcome
from flower_ext.scheduling.history import CompletionHistory
from flower_ext.strategies.coded_round import CodedRound
from tests.simulation.grid import SimulatedClock, SimulatedNode, Task
from tests.simulation.nodes import Training, examples_of

__all__ = [
    "InvariantError",
    "LieReferee",
    "Referee",
    "Row",
    "WatchedHistory",
    "accepted_rows",
]

_SLACK = 0.2  # seconds by which a round may outlast its deadline
_TOLERANCE = 2e-5  # of the largest value of an array


class InvariantError(AssertionError):
    """Something happened that must not."""


class Row(NamedTuple):
    """A reply to an assignment of the present round, as it was delivered."""

    node_id: int
    partitions: tuple[int, ...]
    coefficients: tuple[float, ...]


def require(holds: bool, broken: str) -> None:
    """Raise if something does not hold."""
    if not holds:
        raise InvariantError(broken)


class Referee:
    """Watches what passes, and what the strategy makes of it.

    Parameters
    ----------
    clock : SimulatedClock
        The time.
    training : Training
        What nodes train.
    num_partitions : int
        Number of partitions.
    """

    def __init__(
        self, clock: SimulatedClock, training: Training, num_partitions: int
    ) -> None:
        self.clock = clock
        self.training = training
        self.num_partitions = num_partitions
        self.outcomes: Counter[str] = Counter()
        self.server_round = 0
        self._open: dict[int, dict[str, float]] = {}  # unanswered work by node
        self._corrupt: set[str] = set()
        self._answered: dict[str, None] = {}
        self._rows: list[Row] = []
        self._rejected = 0
        self._failed = 0
        self._credit: Counter[tuple[int, int]] = Counter()
        self._examples: dict[int, float] = {}
        self._reported: dict[int, str] = {}
        self._model = b""
        self._liars: dict[int, set[int]] = {}  # those that have lied, by round
        self._false: set[int] = set()  # who has ever sent what is not true

    # -- what passes ------------------------------------------------------------------

    def listed(self, node_ids: Iterable[int]) -> None:
        """Forget who is not listed, with all that it was asked."""
        for node_id in self._open.keys() - set(node_ids):
            del self._open[node_id]

    def refused(self, task: Task) -> None:
        """Forget a node that is gone, with all that it was asked."""
        self._open.pop(task.node_id, None)
        self._failed += task.assignment is not None

    def pushed(self, node: SimulatedNode, task: Task) -> None:
        """Check that the node is not busy, and can do what it is asked."""
        assignment = task.assignment
        if assignment is None and not task.evaluates:
            return
        now, node_id = self.clock.now(), node.node_id
        waiting = self._open.setdefault(node_id, {})
        unanswered = [i for i, expires in waiting.items() if expires > now]
        require(
            not unanswered,
            f"Node {node_id} is given work and has not answered {unanswered}.",
        )
        require(
            not (node.alive and node.busy),
            f"Node {node_id} is given work and is still at work.",
        )
        waiting.clear()
        waiting[task.message_id] = task.expires
        if assignment is None:
            return
        config = task.message.content["config"]
        assert isinstance(config, ConfigRecord)
        require(
            assignment.server_round == self.server_round == config["server-round"],
            f"Work of round {assignment.server_round} is given out in round "
            f"{self.server_round}.",
        )
        held = node.holdings(self.num_partitions)
        require(
            held.issuperset(assignment.partitions),
            f"Node {node_id} holds {held}, and is given {assignment.partitions}.",
        )

    def corrupted(self, task: Task) -> None:
        """Take note that a reply will be of no use."""
        self._corrupt.add(task.message_id)
        self._false.add(task.node_id)

    def lied(self, task: Task) -> None:
        """Take note that a node lies."""
        assert task.assignment is not None
        liars = self._liars.setdefault(task.assignment.server_round, set())
        liars.add(task.node_id)
        self._false.add(task.node_id)

    def delivered(self, task: Task, reply: Message) -> None:
        """Take note of a reply."""
        message_id, node_id, assignment = task.message_id, task.node_id, task.assignment
        if reply.has_error() and reply.error.code == ErrorCode.NODE_UNAVAILABLE:
            self._open.pop(node_id, None)
        else:
            self._open.get(node_id, {}).pop(message_id, None)
        if assignment is None or message_id in self._answered:
            return
        if len(self._answered) > 500:
            self._answered.pop(next(iter(self._answered)))
        self._answered[message_id] = None
        present = assignment.server_round == self.server_round
        corrupt = message_id in self._corrupt
        self._corrupt.discard(message_id)
        if reply.has_error():
            self._failed += present
            return
        self._credit[node_id, assignment.server_round] += 1
        if not present:
            self.outcomes["late replies"] += 1
        elif corrupt:
            self._rejected += 1
        else:
            row = Row(node_id, assignment.partitions, assignment.coefficients)
            self._rows.append(row)

    def recorded(self, node_id: int, server_round: int) -> None:
        """Check that the history is told once of every reply."""
        self._credit[node_id, server_round] -= 1
        require(
            self._credit[node_id, server_round] >= 0,
            f"The history is told of a reply of node {node_id} in round "
            f"{server_round} that it was told of, or that never came.",
        )
        if not self._credit[node_id, server_round]:
            del self._credit[node_id, server_round]

    # -- what the strategy makes of it -------------------------------------------------

    def begin_round(self, server_round: int, arrays: ArrayRecord) -> None:
        """Check that a round begins from the model that the last ended with."""
        self.server_round = server_round
        self._rows, self._rejected, self._failed = [], 0, 0
        if server_round > 1:
            require(
                self._model == _digest(arrays),
                f"Round {server_round} begins from another model than the one before "
                "ended with.",
            )

    def end_round(
        self,
        done: CodedRound,
        outcome: Outcome,
        accepted: list[Row],
        arrays: ArrayRecord | None,
        metrics: MetricRecord,
        min_coverage: float,
    ) -> None:
        """Check a round that is over."""
        require(
            sorted(accepted) == sorted(self._rows),
            f"Accepted were {sorted(accepted)}; good replies were "
            f"{sorted(self._rows)}.",
        )
        require(
            metrics["replies-rejected"] == self._rejected
            and metrics["replies-failed"] == self._failed,
            f"{metrics['replies-rejected']} rejected and {metrics['replies-failed']} "
            f"failed replies are reported; {self._rejected} and {self._failed} came.",
        )
        require(
            outcome.exact or not self._decodes(done.plan.partitions),
            f"The replies {self._rows} decode, and were not used so.",
        )
        self._check_update(done, outcome, accepted, arrays, metrics, min_coverage)

    def named(self, node_ids: Iterable[int]) -> None:
        """Check that whoever was named, in a round or later, has sent what is false."""
        honest = set(node_ids) - self._false
        require(not honest, f"Nodes {sorted(honest)} were named, and are honest.")

    def _check_update(
        self,
        done: CodedRound,
        outcome: Outcome,
        accepted: list[Row],
        arrays: ArrayRecord | None,
        metrics: MetricRecord,
        min_coverage: float,
    ) -> None:
        """Check what a round has made of the model."""
        for row in accepted:
            self._examples |= {p: float(examples_of(p)) for p in row.partitions}
        self._check_coverage(outcome, metrics)
        skipped = bool(metrics["skipped"])
        require(skipped == (arrays is None), "A skipped round changed the model.")
        if outcome.exact:
            require(
                not skipped and metrics["coverage"] == 1.0, "An exact round is lost."
            )
            self._check_model(done, dict.fromkeys(done.plan.partitions, 1.0), arrays)
            self.outcomes["exact"] += 1
        elif skipped:
            self.outcomes["skipped"] += 1
            coverage = metrics["coverage"]
            assert isinstance(coverage, float)
            require(
                coverage < min_coverage
                or coverage == 0
                or bool(done.plan.problem or done.plan.closed),
                f"A round with a coverage of {coverage} was skipped.",
            )
        else:
            self.outcomes["partial"] += 1
            self._check_model(done, self._combination(done, outcome), arrays)
        model = done.arrays if arrays is None else arrays
        self._model = _digest(model)

    def in_time(self, elapsed: float, limit: float, what: str) -> None:
        """Check that something ended by its deadline."""
        require(
            elapsed <= limit + _SLACK,
            f"{what} took {elapsed:.2f} s, with a deadline of {limit:.2f} s.",
        )

    def evaluated(self, server_round: int, metrics: MetricRecord | None) -> None:
        """Check that an evaluation is made of its own round's replies."""
        if metrics is not None:
            self.outcomes["evaluations"] += 1
            found = metrics["round"]
            assert isinstance(found, float)
            require(
                math.isclose(found, server_round, rel_tol=1e-9),
                f"The evaluation of round {server_round} is one of {found}.",
            )

    def reported(self, records: dict[int, MetricRecord], everything: bool) -> None:
        """Check that what was reported of rounds that are over is unchanged."""
        latest = max(records, default=0)
        for server_round in records if everything else (latest, latest - 1):
            if server_round in records:
                told = repr(records[server_round])
                require(
                    self._reported.setdefault(server_round, told) == told,
                    f"The metrics of round {server_round} were changed afterwards.",
                )

    def _combination(self, done: CodedRound, outcome: Outcome) -> dict[int, float]:
        """Return c_k, from the rows and their weights."""
        shares = dict.fromkeys(done.plan.partitions, 0.0)
        for key, weight in outcome.weights.items():
            dispatch = done.plan.dispatches[key]
            for p, b in zip(dispatch.partitions, dispatch.coefficients, strict=True):
                shares[p] += weight * b
        for partition, share in shares.items():
            require(
                abs(share - outcome.combination[partition]) < 1e-6
                and -1e-6 < share < 1 + 1e-6,
                f"Partition {partition} has a share of {share}, and "
                f"{outcome.combination[partition]} is reported.",
            )
        return shares

    def _check_coverage(self, outcome: Outcome, metrics: MetricRecord) -> None:
        """Check that the coverage is the share of the examples in the update."""
        known = self._examples
        usual = sum(known.values()) / len(known) if known else 1.0
        weights = {p: known.get(p, usual) for p in outcome.combination}
        covered = sum(c * weights[p] for p, c in outcome.combination.items())
        coverage = metrics["coverage"]
        assert isinstance(coverage, float)
        require(
            math.isclose(coverage, covered / sum(weights.values()), abs_tol=1e-9),
            f"A coverage of {coverage} is reported; it is "
            f"{covered / sum(weights.values())}.",
        )

    def _check_model(
        self, done: CodedRound, shares: dict[int, float], arrays: ArrayRecord | None
    ) -> None:
        """Check a model against the true update."""
        assert arrays is not None
        truth = self.training.fedavg(done.arrays, self.server_round, shares)
        for name, expected in truth.items():
            found = arrays[name].numpy().astype(float)
            if name == "count":
                expected = np.rint(expected)  # noqa: PLW2901 - cast as the model is
            scale = max(float(np.abs(expected).max()), 1e-3)
            off = float(np.abs(found - expected).max()) / scale
            require(
                off <= _TOLERANCE,
                f"The array '{name}' is off by {off:.1e}: {found} is not {expected}.",
            )

    def _decodes(self, partitions: tuple[int, ...]) -> bool:
        """Return whether the good replies give the exact update."""
        column = {p: k for k, p in enumerate(partitions)}
        covered = {p for row in self._rows for p in row.partitions}
        if covered != set(partitions):
            return False
        matrix = np.zeros((len(self._rows), len(partitions)))
        for i, row in enumerate(self._rows):
            matrix[i, [column[p] for p in row.partitions]] = row.coefficients
        weights = np.linalg.lstsq(matrix.T, np.ones(len(partitions)), rcond=None)[0]
        return bool(np.abs(weights @ matrix - 1).max() < 1e-9)


class LieReferee(Referee):
    """Watches verified rounds, in which nodes lie; parameters as in the base class."""

    def end_round(
        self,
        done: CodedRound,
        outcome: Outcome,
        accepted: list[Row],
        arrays: ArrayRecord | None,
        metrics: MetricRecord,
        min_coverage: float,
    ) -> None:
        """Check a round that is over."""
        liars = self._liars.get(self.server_round, set())
        require(
            done.liars <= liars,
            f"Nodes {sorted(done.liars)} were named; {sorted(liars)} have lied.",
        )
        self.outcomes["liars named"] += len(done.liars)
        unknown = Counter(accepted) - Counter(self._rows)
        require(not unknown, f"{sorted(unknown)} were accepted, and never came.")
        require(
            not done.liars.intersection(row.node_id for row in accepted),
            f"Accepted were {sorted(accepted)}; liars were {sorted(done.liars)}.",
        )
        self._check_update(done, outcome, accepted, arrays, metrics, min_coverage)


def accepted_rows(done: CodedRound) -> list[Row]:
    """Return the rows that a round has accepted replies to."""
    dispatches = [done.plan.dispatches[key] for key in done.replies]
    return [Row(d.worker, d.partitions, d.coefficients) for d in dispatches]


def _digest(arrays: ArrayRecord) -> bytes:
    """Return what tells one model from another."""
    digest = hashlib.blake2b()
    for name, array in arrays.items():
        digest.update(name.encode())
        digest.update(array.data)
    return digest.digest()


class WatchedHistory(CompletionHistory):
    """A history that tells a referee of what it is told.

    Parameters
    ----------
    referee : Referee
        Told of every completion.
    """

    def __init__(self, referee: Referee) -> None:
        super().__init__()
        self._referee = referee

    def completed(
        self,
        worker: int,
        server_round: int,
        load: int,
        compute_seconds: float,
        elapsed: float,
    ) -> None:
        """Record a reply."""
        self._referee.recorded(worker, server_round)
        super().completed(worker, server_round, load, compute_seconds, elapsed)
