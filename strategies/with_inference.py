"""Evaluation by inference, added to the rounds of any strategy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from logging import INFO, WARNING
from typing import Any, NamedTuple

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.strategies.answer_times import AnswerTimes
from flower_ext.strategies.inference_evaluation import InferenceEvaluation
from flower_ext.strategies.inference_round import Answer, choose_nodes, exchange
from flower_ext.strategies.strategy_wrapper import StrategyWrapper
from flower_ext.strategies.taken_over import taken_over

__all__ = ["WithInference"]

_LEAST_TTL = 60.0  # seconds that a message lives, however short the timeout

# What the inner strategy's start calls, and this one answers in its place.
_TAKEN_OVER = ("summary", "configure_evaluate", "aggregate_evaluate")


class _Round(NamedTuple):
    """What the inner strategy was evaluated with."""

    server_round: int
    arrays: ArrayRecord
    grid: Grid


class WithInference(StrategyWrapper):
    """A strategy with evaluation by inference in its rounds.

    The strategy trains and evaluates as it does alone: its own ``start`` drives the
    rounds, and what it is sent and replied is untouched. After each of its evaluations,
    also where it asks no node, this one asks nodes to generate texts. What they measure
    is added to the round's evaluation metrics.

    Parameters
    ----------
    strategy : Strategy
        Any strategy of Flower or of this package. A wrapper of Flower's (differential
        privacy, say) goes inside.
    *evaluations : InferenceEvaluation
        At least one, as :class:`~flower_ext.strategies.DSSDEvaluation`; their metrics'
        prefixes differ.

    Attributes
    ----------
    strategy : Strategy
        The strategy.
    inference_metrics : dict[int, MetricRecord]
        All that inference has measured, by round, histograms included.

    Raises
    ------
    InvalidInputError
        If the strategy is none, there is no evaluation, or two have one prefix.

    Examples
    --------
    ::

        strategy = WithInference(FedAdam(), DSSDEvaluation(edge="in-process",
                                                           drafter_weights="node"))
        result = strategy.start(grid, arrays, num_rounds=3)
    """

    def __init__(
        self, strategy: Strategy, *evaluations: InferenceEvaluation[Any]
    ) -> None:
        if not isinstance(strategy, Strategy):
            raise InvalidInputError(
                f"strategy must be a Flower Strategy, got {strategy!r}."
            )
        if not evaluations or not all(
            isinstance(e, InferenceEvaluation) for e in evaluations
        ):
            raise InvalidInputError(
                "WithInference needs at least one evaluation, as DSSDEvaluation(...), "
                f"got {evaluations!r}."
            )
        prefixes = [evaluation.prefix for evaluation in evaluations]
        if len(set(prefixes)) < len(prefixes):
            raise InvalidInputError(
                f"The evaluations' prefixes must differ, got {prefixes}: give them "
                "prefix=..."
            )
        super().__init__(strategy)
        self.evaluations = evaluations
        self.inference_metrics: dict[int, MetricRecord] = {}
        self._timeout = 0.0
        self._times: dict[str, AnswerTimes] = {}  # by prefix
        self._round: _Round | None = None
        self._own: dict[str, Callable[..., Any]] = {}

    # -- Flower's interface ------------------------------------------------------------

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
        """Execute the strategy; parameters as in Flower."""
        self.inference_metrics.clear()
        self._timeout = timeout
        self._times = {
            e.prefix: AnswerTimes(e.timeout, e.slack) for e in self.evaluations
        }
        with ExitStack() as stack:
            for evaluation in self.evaluations:
                stack.enter_context(evaluation)
            stack.enter_context(self._taken_over())
            return self.strategy.start(
                grid,
                initial_arrays,
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                evaluate_fn,
            )

    def checkpoint(self) -> dict[str, Any]:
        """Return what another process needs to go on: how long nodes take to answer."""
        return {"times": {name: times.state() for name, times in self._times.items()}}

    def resume(self, state: dict[str, Any]) -> None:
        """Go on from a :meth:`checkpoint`, in a run that has begun."""
        for name, times in self._times.items():
            if name in state["times"]:
                times.restore(state["times"][name])

    def left_behind(self, server_round: int) -> dict[str, Any]:
        """Return what was measured in a round, for :meth:`put_back`."""
        return {"metrics": self.inference_metrics.get(server_round)}

    def put_back(self, server_round: int, left: dict[str, Any]) -> None:
        """Take back what was measured in a round of the run that is resumed."""
        if left["metrics"] is not None:
            self.inference_metrics[server_round] = left["metrics"]

    def summary(self) -> None:
        """Log summary configuration of the evaluations and the strategy."""
        for evaluation in self.evaluations:
            evaluation.summary()
        self._inner("summary")()

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Configure the strategy's own evaluation, and take note of the round."""
        if not self._own:
            raise FlowerExtError(
                "WithInference takes part in rounds that its own start drives: run it "
                "by strategy.start(grid, ...), and put other wrappers inside it: "
                "WithInference(Wrapper(...), ...)."
            )
        self._round = _Round(server_round, arrays, grid)
        messages: Iterable[Message] = self._inner("configure_evaluate")(
            server_round, arrays, config, grid
        )
        return messages

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Aggregate the strategy's own evaluation, then evaluate by inference."""
        own: MetricRecord | None = self._inner("aggregate_evaluate")(
            server_round, replies
        )
        now, self._round = self._round, None
        if now is None:
            return own
        found: dict[str, Any] = {}
        told: list[str] = []
        for evaluation in self.evaluations:
            if server_round % evaluation.every == 0:
                metrics, names = self._evaluate(evaluation, now)
                found |= {evaluation.prefix + n: v for n, v in metrics.items()}
                told += [evaluation.prefix + name for name in names]
        if not found:
            return own
        self.inference_metrics[server_round] = MetricRecord(found)
        return MetricRecord({**(own or {}), **{name: found[name] for name in told}})

    # -- an evaluation -----------------------------------------------------------------

    def _evaluate(
        self, evaluation: InferenceEvaluation[Any], now: _Round
    ) -> tuple[dict[str, Any], list[str]]:
        """Ask nodes, and return metrics and the names of those for the run."""
        name = f"evaluate.{evaluation.action}"
        rng = np.random.default_rng([evaluation.seed, now.server_round, 2])
        nodes = choose_nodes(now.grid, evaluation.fraction, evaluation.min_nodes, rng)
        log(INFO, "%s: Sampled %d nodes", name, len(nodes))
        timeout = evaluation.timeout or self._timeout
        messages, measured, problems = [], [], []

        def failed(node_id: int, error: InvalidInputError) -> None:
            problems.append(str(error))
            log(WARNING, "%s: node %d failed: %s", name, node_id, error)

        for node_id in nodes:
            try:
                content = evaluation.content(now.server_round, node_id, now.arrays)
            except InvalidInputError as error:
                failed(node_id, error)
                continue
            messages.append(
                Message(
                    content,
                    node_id,
                    f"{MessageType.EVALUATE}.{evaluation.action}",
                    ttl=max(timeout, _LEAST_TTL),
                    group_id=str(now.server_round),
                )
            )
        times = self._times[evaluation.prefix]
        for answer in exchange(now.grid, messages, now.server_round, times, timeout):
            try:
                measured.append(_read(evaluation, answer))
            except InvalidInputError as error:
                failed(answer.node_id, error)
        counts: dict[str, Any] = {
            "num-nodes": len(measured),
            "num-failures": len(problems),
        }
        if not measured:
            self._none_measured(evaluation, name, problems)
            return counts, list(counts)
        metrics, names = evaluation.aggregate(measured)
        log(INFO, "%s: Received %d results and %d failures", name, *counts.values())
        return {**counts, **metrics}, [*counts, *names]

    def _none_measured(
        self, evaluation: InferenceEvaluation[Any], name: str, problems: list[str]
    ) -> None:
        """Say that there is nothing to aggregate, or end the run."""
        told = f"{name}: there was no node to ask."
        if problems:
            told = f"{name}: all {len(problems)} nodes failed, the first: {problems[0]}"
        if evaluation.if_all_fail == "raise":
            raise FlowerExtError(told)
        log(WARNING, "%s Training goes on without.", told)

    # -- in the strategy's place -------------------------------------------------------

    def _inner(self, name: str) -> Callable[..., Any]:
        """Return the strategy's own method."""
        found: Callable[..., Any] = self._own.get(name) or getattr(self.strategy, name)
        return found

    @contextmanager
    def _taken_over(self) -> Iterator[None]:
        """Have the strategy's ``start`` call this one's methods in place of its own."""
        with taken_over(
            self.strategy, {n: getattr(self, n) for n in _TAKEN_OVER}
        ) as own:
            self._own = own
            try:
                yield
            finally:
                self._own, self._round = {}, None


def _read(evaluation: InferenceEvaluation[Any], answer: Answer) -> Any:
    """Return what an answer says; raise if it says nothing usable."""
    if answer.message is None:
        raise InvalidInputError(answer.problem)
    return evaluation.read(answer.message.content)
