"""A federation of a case: its fleet, its faults and its strategy, all from one seed."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from flower_ext.errors import InvalidInputError
from flower_ext.scheduling import LyapunovScheduler
from flower_ext.strategies import CodedFedAvg, TwoStageCoded
from flower_ext.strategies.coded_round import RoundReplies
from flower_ext.strategies.coded_strategy import CodedStrategy
from flower_ext.strategies.staged_grid import StagedGrid
from tests.simulation.census import census
from tests.simulation.faults import FaultMix
from tests.simulation.grid import SimulatedClock, SimulatedGrid, SimulatedNode
from tests.simulation.invariants import (
    InvariantError,
    LieReferee,
    Referee,
    WatchedHistory,
    accepted_rows,
)
from tests.simulation.nodes import Training, start_arrays
from tests.simulation.poller import LookingPoller, SimulatedPoller

__all__ = [
    "LONG_KINDS",
    "CaseError",
    "CaseResult",
    "WatchedStrategy",
    "make_case",
    "run_case",
]

LONG_EVERY = 200  # one case in so many is long
LONG_KINDS = ("two-stage", "scheduled two-stage", "one-stage")  # in turn
LONG_ROUNDS = 2000
LOOKED_AT = (200, 2000)  # rounds after which what a long case holds is counted
SPARE = 64  # things that chance may add


class CaseError(AssertionError):
    """A case in which an invariant is broken, and how to see it again."""


@dataclass
class CaseResult:
    """What came of a case."""

    rounds: int
    faults: Counter[str]
    outcomes: Counter[str]


class WatchedStrategy(CodedStrategy):
    """A strategy in simulated time, with a referee; mixed into the real ones."""

    grid: SimulatedGrid
    referee: Referee
    polls: bool
    may_refuse: bool
    staged: StagedGrid
    round_timeout: float

    def _stage(self, grid: Grid, timeout: float, **timing: Any) -> StagedGrid:
        simulated = self.grid
        poller = LookingPoller(simulated) if self.polls else SimulatedPoller(simulated)
        self.round_timeout = timeout
        self.staged = super()._stage(
            grid, timeout, clock=simulated.clock, poller=poller, **timing
        )
        return self.staged

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure a round, and have it watched."""
        self.referee.begin_round(server_round, arrays)
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Aggregate a round, and check it."""
        assert isinstance(replies, RoundReplies)
        done, referee = replies.coded_round, self.referee
        accepted = accepted_rows(done)
        arrays, metrics = super().aggregate_train(server_round, replies)
        outcome = done.outcome
        assert outcome is not None
        limit = self.deadline or done.plan.deadline
        if done.plan.closed:
            limit = max(limit, done.plan.deadline)
        referee.in_time(done.elapsed, min(limit, self.round_timeout), "A round")
        record = self.round_metrics[server_round]
        referee.end_round(done, outcome, accepted, arrays, record, self.min_coverage)
        referee.named(self.liars)
        referee.reported(self.round_metrics, everything=False)
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure an evaluation, and take its time."""
        self._evaluates_from = self.grid.clock.now()
        return super().configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate an evaluation, and check it."""
        metrics = super().aggregate_evaluate(server_round, replies)
        took = self.grid.clock.now() - self._evaluates_from
        limit = min(self.deadline or self.round_timeout, self.round_timeout)
        self.referee.in_time(took, limit, "An evaluation")
        self.referee.evaluated(server_round, metrics)
        return metrics


class WatchedTwoStage(WatchedStrategy, TwoStageCoded):
    """The two-stage strategy, watched."""


class WatchedFedAvg(WatchedStrategy, CodedFedAvg):
    """The one-stage strategy, watched."""


@dataclass
class Case:
    """A federation that is ready to run."""

    kind: str
    strategy: WatchedStrategy
    grid: SimulatedGrid
    referee: Referee
    rounds: int
    timeout: float
    pauses: float
    rng: np.random.Generator
    looked: list[Counter[str]] = field(default_factory=list)

    def run(self) -> CaseResult:
        """Run it, and check every round."""

        def pause(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
            if self.rounds >= LONG_ROUNDS and server_round in LOOKED_AT:
                self._look()
            if self.rng.random() < self.pauses:
                seconds = 5000.0 * float(self.rng.random())
                self.grid.counts["pauses"] += 1
                self.grid.advance(self.grid.clock.now() + seconds)
            return None

        try:
            result = self.strategy.start(
                self.grid, start_arrays(), self.rounds, self.timeout, evaluate_fn=pause
            )
        except InvalidInputError as error:
            # A code that cannot be built is refused before the first round.
            if self.strategy.round_metrics or not self.strategy.may_refuse:
                raise
            self.referee.outcomes[f"refused: {str(error)[:12]}"] += 1
            return CaseResult(0, self.grid.counts, self.referee.outcomes)
        self.referee.reported(self.strategy.round_metrics, everything=True)
        self.referee.outcomes[f"federations: {self.kind}"] += 1
        if self.rounds >= LONG_ROUNDS:
            self._compare()
        done = len(self.strategy.round_metrics)
        if done != self.rounds or len(result.train_metrics_clientapp) != self.rounds:
            raise AssertionError(f"{done} of {self.rounds} rounds were run.")
        return CaseResult(self.rounds, self.grid.counts, self.referee.outcomes)

    def _look(self) -> None:
        """Count what the run holds on to."""
        self.looked.append(census(self.strategy) + census(self.strategy.staged))

    def _compare(self) -> None:
        """Check that nothing has grown with the number of rounds."""
        before, after = self.looked
        for path, size in after.items():
            if size > 2 * before[path] + SPARE:
                raise InvariantError(
                    f"{path} has grown from {before[path]} to {size} things from round "
                    f"{LOOKED_AT[0]} to round {LOOKED_AT[1]}."
                )
        self.referee.outcomes[f"flat: {self.kind}"] += 1


def make_case(
    seed: int, case: int, rounds: int | None = None, lies: bool = False
) -> Case:
    """Return a case's federation.

    Parameters
    ----------
    seed, case : int
        What everything about it is drawn from.
    rounds : int, optional
        How many rounds it has; by default as drawn.
    lies : bool (default: False)
        Whether nodes lie and replies are verified; none of these cases is long.
    """
    rng = np.random.default_rng([seed, case])
    drawn, kind = int(rng.integers(5, 41)), None
    if case % LONG_EVERY == LONG_EVERY - 1 and not lies:
        drawn, kind = LONG_ROUNDS, LONG_KINDS[case // LONG_EVERY % len(LONG_KINDS)]
    count = int(rng.integers(3, 11))
    num_partitions = int(rng.integers(2, 13))
    faults = FaultMix.draw(rng)
    clock, training = SimulatedClock(), Training()
    if lies:
        kind, strategy, all_held = _verified_strategy(rng, num_partitions, count)
        share = float(rng.choice([0.0, 0.2, 0.6, 1.0]))
        faults = replace(faults, lies=share, liars=strategy.verify_replies)
        referee: Referee = LieReferee(clock, training, num_partitions)
    else:
        kind, strategy, all_held = _strategy(rng, num_partitions, count, kind)
        referee = Referee(clock, training, num_partitions)
    grid = SimulatedGrid(
        clock,
        rng,
        faults,
        num_partitions,
        training,
        referee,
        least_alive=max(strategy.least_nodes, 3),
    )
    startup = float(rng.choice([0.1, 3.0]))
    copies = min(strategy.tolerated + 1 + int(rng.integers(0, 2)), count)

    def node(node_id: int, index: int) -> SimulatedNode:
        held = {(index - c) % max(count, 1) for c in range(copies)}
        partitions = {p for p in range(num_partitions) if p % count in held}
        declared = None if all_held else frozenset(partitions)
        seconds = float(rng.lognormal(0.0, 0.6))
        return SimulatedNode(
            node_id, index % num_partitions, declared, seconds, startup
        )

    for i in range(count):
        grid.add_node(node(100 + i, i))
    grid.start_faults(lambda node_id: node(node_id, int(rng.integers(count))))
    strategy.grid, strategy.referee = grid, referee
    strategy.may_refuse = getattr(strategy, "code", "") == "heterogeneity-aware"
    strategy.polls = bool(rng.random() < 0.03) and drawn < LONG_ROUNDS
    strategy.history = WatchedHistory(referee)
    timeout = float(rng.choice([120.0, 600.0]))
    return Case(
        kind, strategy, grid, referee, rounds or drawn, timeout, faults.pauses, rng
    )


def _strategy(
    rng: np.random.Generator, num_partitions: int, count: int, kind: str | None
) -> tuple[str, WatchedStrategy, bool]:
    """Return a strategy with parameters drawn, and whether all nodes hold all.

    Its kind comes first: the one that is asked for, or else one that is drawn.
    """
    common: dict[str, Any] = {
        "num_partitions": num_partitions if rng.random() < 0.5 else None,
        "deadline": float(rng.uniform(3.0, 60.0)) if rng.random() < 0.5 else None,
        "min_coverage": float(rng.choice([0.0, 0.5, 0.8, 1.0])),
        "seed": int(rng.integers(100)),
        "fraction_train": float(rng.choice([1.0, 1.0, 0.5])),
        "fraction_evaluate": float(rng.choice([0.0, 0.0, 0.5, 1.0])),
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 2,
    }
    all_held = bool(rng.random() < 0.6)
    if kind is None:
        kind = "one-stage"
        if rng.random() < 0.6:
            kind = "scheduled two-stage" if rng.random() < 0.3 else "two-stage"
    if kind != "one-stage":
        scheduled = kind == "scheduled two-stage"
        scheduler = LyapunovScheduler(v=20.0) if scheduled else None
        two_stage = WatchedTwoStage(
            stragglers=int(rng.integers(0, 3)),
            redundancy_price=float(rng.choice([0.0, 0.2, 1.0])),
            max_stage_two_redundancy=int(rng.integers(0, 4)),
            scheduler=scheduler,
            **common,
        )
        return kind, two_stage, all_held
    families = ["cyclic", "fractional", "heterogeneity-aware", "uncoded"]
    code = str(rng.choice(families))
    one_stage = WatchedFedAvg(
        code=code,
        stragglers=int(rng.integers(0, min(count - 1, 3))),
        ignore_stragglers=int(rng.integers(0, 2)),
        **common,
    )
    return kind, one_stage, all_held or code != "heterogeneity-aware"


def _verified_strategy(
    rng: np.random.Generator, num_partitions: int, count: int
) -> tuple[str, WatchedStrategy, bool]:
    """Return a strategy that verifies replies, as :func:`_strategy` does."""
    liars = int(rng.choice([1, 1, 2]))
    common: dict[str, Any] = {
        "num_partitions": num_partitions if rng.random() < 0.5 else None,
        "deadline": float(rng.uniform(20.0, 90.0)) if rng.random() < 0.5 else None,
        "min_coverage": float(rng.choice([0.0, 0.5, 0.8, 1.0])),
        "seed": int(rng.integers(100)),
        "fraction_train": float(rng.choice([1.0, 1.0, 0.5])),
        "fraction_evaluate": 0.0,
        "min_train_nodes": 1,
        "min_available_nodes": 2,
        "verify_replies": liars,
    }
    all_held = bool(rng.random() < 0.6)
    most = min(count - 1, 4)
    if most < 2 * liars or rng.random() < 0.7:
        two_stage = WatchedTwoStage(
            stragglers=int(rng.integers(0, 3)),
            max_stage_two_redundancy=int(rng.integers(0, 4)),
            **common,
        )
        return "verified two-stage", two_stage, all_held
    one_stage = WatchedFedAvg(
        code=str(rng.choice(["cyclic", "fractional"])),
        stragglers=int(rng.integers(liars, most + 1)),
        **common,
    )
    return "verified one-stage", one_stage, True


def run_case(
    seed: int, case: int, rounds: int | None = None, lies: bool = False
) -> CaseResult:
    """Run a case; parameters as of :func:`make_case`.

    Raises
    ------
    CaseError
        If anything is wrong; it says how to see it again, and what happened last.
    """
    with _quiet():
        made = make_case(seed, case, rounds, lies)
        try:
            return made.run()
        except Exception as error:
            command = (
                f"python experiments/fault_simulation.py --seed {seed} "
                f"--only-case {case}" + " --lies" * lies
            )
            raise CaseError(
                f"Round {made.referee.server_round} of case {case}: "
                f"{type(error).__name__}: {error}\n{_told(made)}\n"
                f"To see it again: {command}"
            ) from error


def _told(made: Case) -> str:
    """Return the last events, one a line."""
    events = list(made.grid.trace)[-40:]
    return "\n".join(
        f"{at:10.3f} s  node {node:6} {what} {task or ''}".rstrip()
        for at, what, node, task in events
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Let messages be made as in a task, and Flower's log be silent."""
    names = ("_task_id", "_run_id", "_node_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    logger = logging.getLogger("flwr")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    for name in names:
        setattr(TaskIdentity, name, 1)
    try:
        yield
    finally:
        logger.setLevel(level)
        for name, value in before.items():
            setattr(TaskIdentity, name, value)
