"""The metrics of any strategy's rounds in TensorBoard, as they come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from logging import INFO
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.strategies.strategy_wrapper import StrategyWrapper
from flower_ext.strategies.taken_over import taken_over
from flower_ext.strategies.with_checkpoints import WithCheckpoints
from flower_ext.strategies.with_inference import WithInference

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

__all__ = ["WithTensorBoard"]

_METHODS = (
    "configure_train",
    "aggregate_train",
    "configure_evaluate",
    "aggregate_evaluate",
)


class WithTensorBoard(StrategyWrapper):
    """A strategy whose metrics go to TensorBoard after every round.

    The strategy trains and evaluates as it does alone. What its rounds measure is
    written under ``train/``, ``evaluate/`` and ``server/`` (what `evaluate_fn`
    returns), with the round as the step; lists are left out. It needs
    ``pip install "flower-ext[tensorboard]"``; look at it by ``tensorboard --logdir``.

    Parameters
    ----------
    strategy : Strategy
        Any strategy of Flower or of this package. This is the outermost of wrappers:
        ``WithTensorBoard(WithCheckpoints(WithInference(...)), ...)``.
    folder : str | path
        Where event files go; one folder per run.

    Attributes
    ----------
    strategy : Strategy
        The strategy.

    Raises
    ------
    InvalidInputError
        If the strategy is none, or the folder has no name.

    Examples
    --------
    ::

        strategy = WithTensorBoard(FedAvg(), "runs/mnist")
        result = strategy.start(grid, arrays, num_rounds=10)
    """

    def __init__(self, strategy: Strategy, folder: str | PathLike[str]) -> None:
        if not isinstance(strategy, Strategy) or isinstance(strategy, WithTensorBoard):
            raise InvalidInputError(
                "strategy must be a Flower Strategy, and not WithTensorBoard, got "
                f"{strategy!r}."
            )
        if not str(folder).strip():
            raise InvalidInputError("folder must be the path of a folder, got ''.")
        super().__init__(strategy)
        self.folder = Path(folder).expanduser()

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
        """Execute the strategy; parameters as in Flower.

        Raises
        ------
        FlowerExtError
            If TensorBoard is not installed, or another wrapper is around this one.
        """
        if any(name in vars(self) for name in _METHODS):
            raise FlowerExtError(
                "WithTensorBoard is the outermost wrapper: write "
                "WithTensorBoard(Wrapper(...), folder)."
            )
        trains, evaluates = _asked(self.strategy)
        with ExitStack() as stack:
            writer = stack.enter_context(_writer(self.folder))

            def written(group: str, server_round: int, metrics: Any) -> None:
                _write(writer, group, server_round, metrics)

            def aggregate_train(server_round: int, replies: Iterable[Message]) -> Any:
                found = own_train["aggregate_train"](server_round, replies)
                written("train", server_round, found[1])
                return found

            def aggregate_evaluate(
                server_round: int, replies: Iterable[Message]
            ) -> Any:
                metrics = own_evaluate["aggregate_evaluate"](server_round, replies)
                written("evaluate", server_round, metrics)
                return metrics

            def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
                assert evaluate_fn is not None  # or this one is not passed on
                metrics = evaluate_fn(server_round, arrays)
                written("server", server_round, metrics)
                return metrics

            own_train = stack.enter_context(
                taken_over(trains, {"aggregate_train": aggregate_train})
            )
            own_evaluate = stack.enter_context(
                taken_over(evaluates, {"aggregate_evaluate": aggregate_evaluate})
            )
            return self.strategy.start(
                grid,
                initial_arrays,
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                evaluate if evaluate_fn is not None else None,
            )

    def summary(self) -> None:
        """Log where metrics go, and the strategy's summary configuration."""
        log(INFO, "\t├──> TensorBoard: %s", self.folder)
        super().summary()


def _asked(strategy: Strategy) -> tuple[Strategy, Strategy]:
    """Return whose ``aggregate_train`` and ``aggregate_evaluate`` a run calls."""
    if isinstance(strategy, WithCheckpoints):
        strategy = strategy.strategy
    trains = strategy
    while isinstance(trains, WithInference):
        trains = trains.strategy
    return trains, strategy


def _writer(folder: Path) -> SummaryWriter:
    """Return what writes event files."""
    try:
        # Imported here because it takes a second, and is an optional extra.
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415
    except ImportError as error:
        raise FlowerExtError(
            "WithTensorBoard needs TensorBoard, which is not installed: "
            'pip install "flower-ext[tensorboard]".'
        ) from error
    try:
        return SummaryWriter(folder)
    except OSError as error:
        raise InvalidInputError(
            f"TensorBoard's event files cannot go to '{folder}': {error}. Name another "
            "folder."
        ) from error


def _write(
    writer: SummaryWriter,
    group: str,
    server_round: int,
    metrics: Mapping[str, Any] | None,
) -> None:
    """Write a round's metrics, and see that they are on the disk."""
    for name, value in (metrics or {}).items():
        if isinstance(value, int | float):
            writer.add_scalar(f"{group}/{name}", value, server_round)
    writer.flush()
