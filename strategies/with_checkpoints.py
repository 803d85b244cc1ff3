"""Runs that outlive their ServerApp: a checkpoint after every round of any strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from logging import INFO, WARNING
from pathlib import Path

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy
from flwr.supercore import log

from flower_ext.coding.gradient_code import check_count
from flower_ext.errors import InvalidInputError
from flower_ext.strategies.checkpoint_codec import State
from flower_ext.strategies.checkpoint_files import Checkpoint, CheckpointFolder
from flower_ext.strategies.checkpointed_run import CheckpointedRun
from flower_ext.strategies.strategy_wrapper import StrategyWrapper
from flower_ext.strategies.taken_over import taken_over
from flower_ext.strategies.with_inference import WithInference

__all__ = ["WithCheckpoints"]

Setting = bool | int | float | str


class WithCheckpoints(StrategyWrapper):
    """A strategy whose state is on the disk after every round.

    What is saved: the model, the round, all metrics so far, the strategy's own state
    (of a coded strategy: the history of completion times, the scheduler's queues and
    batteries, the virtual clock and what is under way on it; of Flower's, and of one
    that it wraps as an attribute: every attribute that has changed since the start and
    is made of numbers and arrays, with a warning about others), and the state of
    Python's, NumPy's and torch's global random generators. It is saved before
    `evaluate_fn` is called for the round, so that what has been reported is on the
    disk.

    A run that goes on from a checkpoint first walks through the rounds that are done:
    no message is sent for them, their metrics are those saved, and `evaluate_fn` is
    called from the last of them on. Node ids may have changed in between: a node is
    known again by its id, else by its partition-id.

    Parameters
    ----------
    strategy : Strategy
        Any strategy of Flower or of this package, ``WithInference(...)`` included. Its
        ``start`` is the one that runs.
    folder : str or Path
        Where the checkpoints go: one folder per run.
    resume_from : str or Path, optional
        A folder with checkpoints, whose newest one the run goes on from; mostly
        `folder` itself. By default a new run begins, in a folder without checkpoints.
    every : int (default: 1)
        Number of rounds from one checkpoint to the next; the last round has one in any
        case. At least 1.
    keep : int (default: 2)
        Number of checkpoints to keep, at least 1.
    settings : Mapping[str, bool or int or float or str], optional
        What the run was set to, its run-config say. A run that goes on with other
        settings says so.

    Attributes
    ----------
    strategy : Strategy
        The strategy.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range, there is nothing to resume from, or `folder`
        holds the checkpoints of a run that is not resumed.

    Examples
    --------
    ::

        strategy = WithCheckpoints(TwoStageCoded(), "checkpoints/mnist")
        result = strategy.start(grid, arrays, num_rounds=100)
    """

    def __init__(
        self,
        strategy: Strategy,
        folder: str | Path,
        *,
        resume_from: str | Path | None = None,
        every: int = 1,
        keep: int = 2,
        settings: Mapping[str, Setting] | None = None,
    ) -> None:
        if not isinstance(strategy, Strategy) or isinstance(strategy, WithCheckpoints):
            raise InvalidInputError(
                "strategy must be a Flower Strategy, and not WithCheckpoints, got "
                f" {strategy!r}."
            )
        super().__init__(strategy)
        self.every = check_count("every", every, low=1)
        self.settings = dict(settings or {})
        # The outermost first; the last one's start drives the rounds.
        self._strategies: tuple[Strategy, ...] = (strategy,)
        while isinstance(inner := self._strategies[-1], WithInference):
            self._strategies += (inner.strategy,)
        self._with_state = _wrapped(self._strategies[0])
        self._folder = CheckpointFolder(folder, keep)
        self._saved: Checkpoint | None = None
        source = self._folder
        if resume_from is not None:
            source = CheckpointFolder(resume_from)
            self._saved = source.load()
            self._check(self._saved.state)
        foreign = resume_from is None or source.path != self._folder.path
        if foreign and (rounds := self._folder.rounds()):
            raise InvalidInputError(
                f"{self._folder.path} holds the checkpoint of round {rounds[0]} of "
                "another run: go on from it with resume_from, or name another folder."
            )

    def _check(self, state: State) -> None:
        """Compare a checkpoint with what is to go on from it."""
        names = [type(strategy).__name__ for strategy in self._with_state]
        found = [saved["name"] for saved in state["strategies"]]
        if found != names:
            raise InvalidInputError(
                f"The checkpoint is one of {'('.join(found)}, and cannot go on as "
                f"{'('.join(names)}: use the strategy that wrote it."
            )
        before = state["settings"]
        for name in sorted(before.keys() | self.settings.keys()):
            if before.get(name) != self.settings.get(name):
                log(
                    WARNING,
                    "The run goes on with %s = %r; it began with %r",
                    name,
                    self.settings.get(name),
                    before.get(name),
                )

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
        """Execute the strategy, from the checkpoint if there is one; as in Flower.

        Raises
        ------
        InvalidInputError
            If the checkpoint's model has other arrays than `initial_arrays`.
        """
        saved, self._saved = self._saved, None
        if saved is not None:
            _check_arrays(saved.state["arrays"], initial_arrays)
            if saved.server_round == 0:  # no round is walked through that returns it
                initial_arrays = saved.state["arrays"]
        run = CheckpointedRun(
            self._folder,
            self._with_state,
            saved,
            lambda server_round: (
                server_round % self.every == 0 or server_round == num_rounds
            ),
            self.settings,
            evaluate_fn,
        )
        with ExitStack() as stack:
            # The innermost strategy trains, and the outermost one evaluates.
            for strategy, task in (
                (self._strategies[-1], "train"),
                (self._strategies[0], "evaluate"),
            ):
                names = (f"configure_{task}", f"aggregate_{task}")
                methods = {name: getattr(run, name) for name in names}
                run.own |= stack.enter_context(taken_over(strategy, methods))
            return self.strategy.start(
                grid,
                initial_arrays,
                num_rounds,
                timeout,
                train_config,
                evaluate_config,
                run.evaluate,
            )

    def summary(self) -> None:
        """Log where checkpoints go, and the strategy's summary configuration."""
        log(INFO, "\t├──> Checkpoints: %s", self._folder.path)
        super().summary()


def _wrapped(strategy: Strategy) -> tuple[Strategy, ...]:
    """Return a strategy and all that it wraps, the outermost first."""
    found = [strategy]
    for outer in found:
        found += [
            value
            for value in vars(outer).values()
            if isinstance(value, Strategy) and all(value is not s for s in found)
        ]
    return tuple(found)


def _check_arrays(saved: ArrayRecord, initial: ArrayRecord) -> None:
    """Raise if a checkpoint holds another model than the run begins with."""
    shapes = [
        {name: tuple(array.shape) for name, array in record.items()}
        for record in (saved, initial)
    ]
    if shapes[0] == shapes[1]:
        return
    names = shapes[0].keys() | shapes[1].keys()
    odd = min(n for n in names if shapes[0].get(n) != shapes[1].get(n))
    raise InvalidInputError(
        f"The checkpoint holds another model: its array {odd!r} is "
        f"{shapes[0].get(odd, 'not there')}, that of initial_arrays "
        f"{shapes[1].get(odd, 'is not there')}. Start with the model that it was "
        "written with."
    )
