"""What the coded strategies share: FedAvg over partitions instead of nodes."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from logging import INFO, WARNING
from typing import Any

import numpy as np
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    MetricRecord,
    RecordDict,
)
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Result
from flwr.supercore import log

from flower_ext.coding.assignment import REPLY_PREFIX
from flower_ext.coding.gradient_code import check_count
from flower_ext.coding.parity import DEFAULT_TOLERANCE
from flower_ext.coding.plan import RoundPlan
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.network.edge_network import EdgeNetwork
from flower_ext.scheduling.history import CompletionHistory
from flower_ext.strategies.averaging import apply_replies
from flower_ext.strategies.coded_round import CodedRound, Measured, RoundReplies
from flower_ext.strategies.energy import EnergySpent
from flower_ext.strategies.replies import accept_evaluation
from flower_ext.strategies.staged_grid import StagedGrid, StagedTask
from flower_ext.strategies.timeline import RoundTimeline, mark_late
from flower_ext.strategies.verification import LateChecks

__all__ = ["CodedStrategy"]

CLOCKS = ("wall", "virtual")


class CodedStrategy(FedAvg):
    """FedAvg whose rounds are coded over partitions; base of the coded strategies.

    Parameters
    ----------
    num_partitions : int, optional
        Number of partitions of the data, K; by default what the nodes report.
    clock : str (default: "wall")
        ``"wall"`` for real federations. ``"virtual"``: replies count from the
        completion times that they report, for simulations of stragglers that take no
        longer than their computation and are deterministic for a seed.
    deadline : float, optional
        Seconds after which a round ends with what it has; by default far beyond what
        the history of completion times predicts.
    min_coverage : float (default: 0.8)
        A round that covers less than this share of the examples at its deadline is
        skipped and the model kept. In [0, 1].
    seed : int, optional
        The run seed that each partition's training is seeded from, at least 0; by
        default the run-config's ``seed``, else 0.
    network : EdgeNetwork, optional
        The workers' links and devices; worker i is the node of partition-id i. Links
        are simulated, and energy is counted, with ``clock="virtual"`` only; in a real
        federation the devices tell a scheduler what work costs.
    verify_replies : int (default: 0)
        Let a round last until its replies decode without those of any so many nodes,
        at most 4. The lies of so many are then detected, and with twice as many spare
        replies the liars are named, left out, and counted in :attr:`liars` by node id.
        Every partition is computed at least once more for each. What is not verified
        at the deadline does not count: it is for `min_coverage` to say whether the
        rest suffices.
    reply_tolerance : float (default: 1e-3)
        How much replies that computed the same may differ, relative to their magnitude,
        before they count as contradicting each other, in (0, 0.1]. What rounding on
        different machines may come to; 1e-5 suffices where all machines are alike.
    keep_timelines : int, optional
        Of how many rounds, the last ones, :attr:`timelines` are kept, at least 1; by
        default of all. Each takes about 200 bytes per node. With checkpoints, at least
        as many as there are rounds from one to the next.
    **fedavg : Any
        All keyword arguments of Flower's
        :class:`~flwr.serverapp.strategy.FedAvg`. `fraction_train` and
        `min_train_nodes` sample partitions, and `train_metrics_aggr_fn` is given one
        ``RecordDict`` per partition.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    """

    def __init__(
        self,
        *,
        num_partitions: int | None = None,
        clock: str = "wall",
        deadline: float | None = None,
        min_coverage: float = 0.8,
        seed: int | None = None,
        network: EdgeNetwork | None = None,
        verify_replies: int = 0,
        reply_tolerance: float = DEFAULT_TOLERANCE,
        keep_timelines: int | None = None,
        **fedavg: Any,
    ) -> None:
        super().__init__(**fedavg)
        if num_partitions is not None:
            num_partitions = check_count("num_partitions", num_partitions, low=1)
        if clock not in CLOCKS:
            raise InvalidInputError(
                f"clock must be 'wall' or 'virtual', got {clock!r}."
            )
        if deadline is not None and not 0 < deadline < math.inf:
            raise InvalidInputError(
                f"deadline must be a positive number of seconds, got {deadline}."
            )
        if not 0 <= min_coverage <= 1:
            raise InvalidInputError(
                f"min_coverage must lie in [0, 1], got {min_coverage}."
            )
        if seed is not None:
            seed = check_count("seed", seed, low=0)
        if network is not None and not isinstance(network, EdgeNetwork):
            raise InvalidInputError(
                f"network must be a flower_ext.network.EdgeNetwork, got {network!r}."
            )
        if network is not None and network.links and clock != "virtual":
            raise InvalidInputError(
                "An EdgeNetwork's links are simulated on the virtual clock only: set "
                "clock='virtual', or leave the links out of the network."
            )
        if not 0 < reply_tolerance <= 0.1:
            raise InvalidInputError(
                f"reply_tolerance must lie in (0, 0.1], got {reply_tolerance}."
            )
        self.network = network
        self.verify_replies = check_count(
            "verify_replies", verify_replies, low=0, high=4
        )
        self.reply_tolerance = reply_tolerance
        if keep_timelines is not None:
            keep_timelines = check_count("keep_timelines", keep_timelines, low=1)
        self.keep_timelines = keep_timelines
        self.liars: Counter[int] = Counter()
        self._amended: set[int] = set()
        self.num_partitions = num_partitions
        self.clock = clock
        self.deadline = deadline
        self.min_coverage = min_coverage
        self.seed = seed
        self.history = CompletionHistory()
        self.round_metrics: dict[int, MetricRecord] = {}
        self.timelines: dict[int, RoundTimeline] = {}
        self._examples: dict[int, float] = {}
        self._staged: StagedGrid | None = None
        self._told_replication = ""

    # -- what a coded strategy decides -----------------------------------------------

    @abstractmethod
    def plan_round(
        self,
        server_round: int,
        partitions: list[int],
        idle: Mapping[int, Collection[int]],
        rng: np.random.Generator,
    ) -> RoundPlan:
        """Return the plan of a round.

        Parameters
        ----------
        server_round : int
            The round, from 1.
        partitions : list[int]
            The partitions to train on.
        idle : Mapping[int, Collection[int]]
            The nodes that may be given work, and what each holds.
        rng : numpy.random.Generator
            Seeded by (run seed, round).
        """

    @property
    @abstractmethod
    def tolerated(self) -> int:
        """Number of stragglers that the replication of partitions should tolerate."""

    @property
    def least_nodes(self) -> int:
        """Number of nodes without which no round can be planned."""
        return 1

    def check_replication(self, copies: list[int]) -> None:
        """Say, once per state of affairs, what stragglers the replication tolerates.

        Parameters
        ----------
        copies : list[int]
            By how many nodes each partition is held.
        """
        told = self._replication_warning(copies)
        if told and told != self._told_replication:
            log(WARNING, told)
        self._told_replication = told

    # -- Flower's interface ------------------------------------------------------------

    def summary(self) -> None:
        """Log summary configuration of the strategy."""
        log(INFO, "\t├──> Coded rounds:")
        for name, value in self._described().items():
            log(INFO, "\t│\t├── %s: %s", name, value)
        log(
            INFO,
            "\t│\t└── At the deadline (%s): partial from %.0f %% coverage",
            "from history" if self.deadline is None else f"{self.deadline:g} s",
            100 * self.min_coverage,
        )
        super().summary()

    def _described(self) -> dict[str, str]:
        """Return what the summary says, by name."""
        return {
            "Partitions": str(self.num_partitions or "as nodes report"),
            "Clock": self.clock,
            "Seed": "run-config" if self.seed is None else str(self.seed),
        }

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """Execute the strategy over a staged grid; parameters as in Flower."""
        staged = self._staged = self._stage(grid, timeout)
        self.history.begin_run()
        self.round_metrics.clear()
        self.timelines.clear()
        self.liars.clear()
        self._amended.clear()
        try:
            result = super().start(
                staged,
                initial_arrays,
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                evaluate_fn,
            )
        finally:
            self._staged = None
            staged.close()
        if not result.arrays:  # no round counted: the model is the one it began with
            result.arrays = initial_arrays
        return result

    def checkpoint(self) -> dict[str, Any]:
        """Return what another process needs to go on after the present round."""
        return {
            "history": self.history.state(),
            "examples": dict(self._examples),
            "liars": dict(self.liars),
            "grid": None if self._staged is None else self._staged.checkpoint(),
        }

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`checkpoint`, in a run that has begun."""
        self.history.restore(state["history"])
        self._examples = dict(state["examples"])
        self.liars.update(state["liars"])
        if self._staged is not None and state["grid"] is not None:
            self._staged.resume(state["grid"])

    def left_behind(self, server_round: int) -> dict[str, Any]:
        """Return what a round has left behind, for :meth:`put_back`."""
        line = self.timelines.get(server_round)
        return {
            "metrics": self.round_metrics.get(server_round),
            "timeline": None if line is None else line.to_json(),
        }

    def amended(self) -> set[int]:
        """Return the rounds that were changed when the last one was aggregated.

        They are those whose time lines have learned of replies that came late.
        """
        return set(self._amended)

    def put_back(self, server_round: int, left: dict[str, Any]) -> None:
        """Take back what a round of the run that is resumed has left behind."""
        if left["metrics"] is not None:
            self.round_metrics[server_round] = left["metrics"]
        if left["timeline"] is not None:
            self._keep(RoundTimeline.from_json(left["timeline"]))

    def _keep(self, line: RoundTimeline) -> None:
        """Keep a round's time line, and no more than are wanted."""
        self.timelines[line.server_round] = line
        while self.keep_timelines and len(self.timelines) > self.keep_timelines:
            del self.timelines[min(self.timelines)]

    def _renamed(self, names: Mapping[int, int]) -> None:
        """Take note of nodes that have other ids than in the checkpoint."""
        self.history.rename(names)
        for old, new in names.items():
            if times := self.liars.pop(old, 0):
                self.liars[new] += times

    def _stage(self, grid: Grid, timeout: float, **timing: Any) -> StagedGrid:
        """Return the grid of a run; `timing` is its clock and its poller."""
        return StagedGrid(
            grid,
            virtual=self.clock == "virtual",
            history=self.history,
            num_partitions=self.num_partitions,
            deadline=self.deadline,
            timeout=timeout,
            network=self.network,
            late_checks=LateChecks(self.liars),
            **timing,
        )

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the next round of coded training."""
        if self.fraction_train == 0.0:
            return []
        _require_staged(grid)
        config["server-round"] = server_round

        def run(staged: StagedGrid, timeout: float) -> Iterable[Message]:
            return self._run_round(staged, server_round, arrays, config, timeout)

        return StagedTask(run)

    def _run_round(
        self,
        grid: StagedGrid,
        server_round: int,
        arrays: ArrayRecord,
        config: ConfigRecord,
        timeout: float,
    ) -> Iterable[Message]:
        """Gather nodes, plan, and drive the round."""
        least = max(self.min_available_nodes, self.min_train_nodes, self.least_nodes)
        self._gather(grid, least, timeout)
        fleet = grid.fleet
        count = fleet.num_partitions
        fleet.settle(count)
        self.check_replication(fleet.replication(count))
        rng = np.random.default_rng([self.seed or 0, server_round])
        size = max(int(count * self.fraction_train), self.min_train_nodes, 1)
        partitions = list(range(count))
        if size < count:
            partitions = sorted(rng.choice(count, size, replace=False).tolist())
        idle = {n.node_id: fleet.holdings(n, count) for n in fleet.nodes if n.idle}
        shares = self._admit(grid, server_round, partitions, arrays)
        log(
            INFO,
            "configure_train: %d of %d partitions over %d idle nodes (out of %d)",
            len(partitions),
            count,
            len(idle),
            len(fleet.nodes),
        )
        coded_round = CodedRound(
            plan=self.plan_round(server_round, partitions, idle, rng),
            arrays=arrays,
            records={self.arrayrecord_key: arrays, self.configrecord_key: config},
            num_partitions=count,
            seed=self.seed,
            weighted_by_key=self.weighted_by_key,
            shares=shares,
            tolerance=self.reply_tolerance,
            verify_replies=self.verify_replies,
        )
        spent = EnergySpent.of(grid.ledger)
        replies = coded_round.run(grid, timeout)
        grid.outdate()
        self.liars.update(coded_round.liars)
        coded_round.measured |= spent.since(grid)
        coded_round.measured |= self._settled(grid, coded_round)
        if coded_round.plan.problem and not self.round_metrics:
            raise InvalidInputError(coded_round.plan.problem)
        return replies

    def _gather(
        self, grid: StagedGrid, least: int, timeout: float | None = None
    ) -> None:
        """Wait for nodes; know those of a run that is resumed by their new ids."""
        grid.gather(least, timeout)
        if names := grid.rejoin():
            self._renamed(names)

    def _admit(
        self,
        grid: StagedGrid,
        server_round: int,
        partitions: list[int],
        arrays: ArrayRecord,
    ) -> Mapping[int, float]:
        """Decide who takes part, and return shares of the carrier by node."""
        return {}

    def _settled(self, grid: StagedGrid, done: CodedRound) -> Measured:
        """Take note of how the round went, and return metrics of that."""
        return {}

    def _replication_warning(self, copies: list[int]) -> str:
        """Return what is to be said about too little replication, or nothing."""
        least = min(copies, default=0)
        if least > self.tolerated:
            return ""
        scarce = _some([p for p, c in enumerate(copies) if c == least])
        if least == 0:
            return f"No node holds partitions {scarce}: they stay untrained."
        return (
            f"Partitions {scarce} are held by {least} node(s): that tolerates "
            f"{least - 1} straggler(s), but {self.tolerated} are wanted. Let more "
            "nodes hold them: CodedClientApp(partitions=...), or 'partitions' in the "
            "nodes' configs."
        )

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Decode the replies into the new global arrays."""
        if self.fraction_train == 0.0:
            return None, None
        if not isinstance(replies, RoundReplies):
            raise FlowerExtError(
                f"{type(self).__name__} decodes the replies of its own rounds only. "
                "Run it by strategy.start(grid, ...), and do not wrap it in a strategy "
                "that sends messages itself."
            )
        done = replies.coded_round
        outcome = done.outcome
        assert outcome is not None  # set when the round ended
        contents = self._partition_contents(done)
        coverage = self._coverage(outcome.combination)
        used = [(done.replies[k], w) for k, w in outcome.weights.items()]
        examples = math.fsum(w * s.weighted_examples for (_, s), w in used)
        new_arrays, reason = None, done.plan.problem or done.plan.closed
        if coverage < self.min_coverage or examples <= 0:
            reason = reason or (
                f"its replies cover {100 * coverage:.0f} % of the examples, "
                f"min_coverage is {100 * self.min_coverage:.0f} %"
            )
            if done.contradiction:
                reason = f"{reason}; {done.contradiction}"
        else:
            parts = [(arrays, w) for (arrays, _), w in used]
            try:
                new_arrays = apply_replies(done.arrays, parts, examples, release=True)
            except InvalidInputError as error:
                reason = str(error)
        done.log_summary(coverage)
        skipped = new_arrays is None
        if skipped:
            log(
                WARNING,
                "train: round %d is skipped and the model kept: %s",
                server_round,
                reason,
            )
        metrics = MetricRecord()
        if contents:
            metrics = self.train_metrics_aggr_fn(contents, self.weighted_by_key)
        record = self._measured(done, coverage, skipped)
        self.round_metrics[server_round] = record
        self._keep(done.timeline(skipped))
        self._amended = mark_late(self.timelines, done.late_answers)
        for name, value in record.items():
            metrics[REPLY_PREFIX + name] = value
        done.release()
        return new_arrays, metrics

    def _partition_contents(self, done: CodedRound) -> list[RecordDict]:
        """Return one record of metrics per partition that somebody trained."""
        by_partition: dict[int, MetricRecord] = {}
        for _, summary in done.replies.values():
            for partition, metrics, examples in zip(
                summary.partitions, summary.metrics, summary.examples, strict=True
            ):
                self._examples[partition] = examples
                by_partition[partition] = MetricRecord(dict(metrics))
        return _alike(
            [RecordDict({"metrics": by_partition[p]}) for p in sorted(by_partition)],
            "train",
        )

    def _coverage(self, combination: Mapping[int, float]) -> float:
        """Return the share of the examples that the update is made of."""
        known = list(self._examples.values())
        usual = sum(known) / len(known) if known else 1.0
        examples = {p: self._examples.get(p, usual) for p in combination}
        covered = math.fsum(c * examples[p] for p, c in combination.items())
        return covered / math.fsum(examples.values())

    def _measured(
        self, done: CodedRound, coverage: float, skipped: bool
    ) -> MetricRecord:
        """Return the round's own metrics."""
        plan, outcome = done.plan, done.outcome
        assert outcome is not None
        stage_two_at = plan.stage_two_at
        stage_one = done.elapsed if stage_two_at is None else stage_two_at
        return MetricRecord(
            {
                "elapsed-seconds": float(done.elapsed),
                "stage-one-seconds": float(stage_one),
                "stage-two-seconds": float(done.elapsed - stage_one),
                "replies-used": len(outcome.weights),
                "replies-late": len(done.late),
                "replies-contradicting": done.contradicting,
                "replies-rejected": done.rejected,
                "replies-failed": done.failed,
                "replies-unfinished": len(plan.outstanding),
                "redundancy": plan.work / len(plan.partitions),
                "coverage": coverage,
                "residual": outcome.residual,
                "skipped": int(skipped),
                "bytes-up": done.bytes_up,
                "bytes-down": done.bytes_down,
                **done.measured,
            }
        )

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure federated evaluation on nodes that are idle."""
        if self.fraction_evaluate == 0.0:
            return []
        staged = _require_staged(grid)
        if self.fraction_train == 0.0:
            least = max(self.min_available_nodes, self.min_evaluate_nodes, 1)
            self._gather(staged, least)
        nodes = [n for n in staged.fleet.nodes if n.idle]
        wanted = max(
            int(len(staged.fleet.nodes) * self.fraction_evaluate),
            self.min_evaluate_nodes,
        )
        rng = np.random.default_rng([self.seed or 0, server_round, 1])
        if wanted < len(nodes):
            chosen = sorted(rng.choice(len(nodes), wanted, replace=False).tolist())
            nodes = [nodes[i] for i in chosen]
        log(
            INFO,
            "configure_evaluate: Sampled %d idle nodes (out of %d)",
            len(nodes),
            len(staged.fleet.nodes),
        )
        config["server-round"] = server_round
        return [
            Message(
                RecordDict(
                    {
                        self.arrayrecord_key: arrays,
                        self.configrecord_key: ConfigRecord(dict(config)),
                    }
                ),
                node.node_id,
                MessageType.EVALUATE,
                ttl=staged.ttl(self.deadline),
                group_id=str(server_round),
            )
            for node in nodes
        ]

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the metrics of the replies that are usable."""
        contents: list[RecordDict] = []
        for message in replies:
            try:
                contents.append(accept_evaluation(message, self.weighted_by_key))
            except InvalidInputError as error:
                log(
                    WARNING,
                    "evaluate: the reply of node %d was rejected: %s",
                    message.metadata.src_node_id,
                    error,
                )
        contents = _alike(contents, "evaluate")
        if not contents:
            return None
        return self.evaluate_metrics_aggr_fn(contents, self.weighted_by_key)


def _require_staged(grid: Grid) -> StagedGrid:
    """Return the grid if it is staged."""
    if not isinstance(grid, StagedGrid):
        raise FlowerExtError(
            "A coded strategy drives its rounds itself: run it by "
            "strategy.start(grid, ...), and do not wrap it in another strategy."
        )
    return grid


def _alike(contents: list[RecordDict], task: str) -> list[RecordDict]:
    """Return the records whose metrics most others have too; only those aggregate."""
    shapes = [
        tuple(
            sorted(
                (name, len(value) if isinstance(value, list) else -1)
                for record in content.metric_records.values()
                for name, value in record.items()
            )
        )
        for content in contents
    ]
    if len(set(shapes)) < 2:
        return contents
    usual = Counter(shapes).most_common(1)[0][0]
    odd = next(shape for shape in shapes if shape != usual)
    log(
        WARNING,
        "%s: the metrics of %d of %d replies are left out: %s, where most have %s",
        task,
        sum(shape != usual for shape in shapes),
        len(shapes),
        [name for name, _ in odd],
        [name for name, _ in usual],
    )
    return [c for c, shape in zip(contents, shapes, strict=True) if shape == usual]


def _some(partitions: list[int]) -> str:
    """Return up to six partitions as text."""
    shown = ", ".join(str(p) for p in partitions[:6])
    return shown + (f" and {len(partitions) - 6} more" if len(partitions) > 6 else "")
