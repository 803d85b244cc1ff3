"""What an evaluation by inference is, whichever system generates the texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from logging import INFO
from types import TracebackType
from typing import Generic, Self, TypeVar

from flwr.app import ArrayRecord, MetricRecord, RecordDict
from flwr.supercore import log

from flower_ext.coding.gradient_code import check_count
from flower_ext.errors import InvalidInputError

__all__ = ["InferenceEvaluation", "Measured"]

Measured = TypeVar("Measured")


class InferenceEvaluation(ABC, Generic[Measured]):
    """An evaluation that :class:`WithInference` adds to a strategy's rounds.

    A subclass says what nodes are asked, how a reply is read and what all of them come
    to. It is a context manager: what it needs while a run lasts is there within.

    Parameters
    ----------
    fraction : float (default: 1.0)
        Share of the nodes that are asked, in [0, 1].
    min_nodes : int (default: 1)
        The least number of nodes that are asked, if there are as many; at least 1.
    every : int (default: 1)
        Ask in every round whose number this divides; at least 1.
    timeout : float | None (default: None)
        Seconds after which a round goes on without those that have not answered; None:
        three times as long as the slowest took in its last three answers, at least ten,
        and as long as an edge may be waited for; where nothing is known, three times as
        long as the first half took, and until half have answered twenty times as long
        as those that have. What
        the run gives its rounds is the most, and holds alone on a coded strategy's
        virtual clock. Nodes that are gone are not waited for.
    seed : int (default: 0)
        The run seed that all random choices follow from, at least 0.
    prefix : str | None (default: None)
        What the names of metrics begin with; None: the action and a dot.
    if_all_fail : str (default: "warn")
        ``"warn"``: training goes on. ``"raise"``: the run ends with an error.

    Raises
    ------
    InvalidInputError
        If a parameter is out of range.
    """

    action: str
    """The messages' type is ``evaluate.`` and this."""

    def __init__(
        self,
        *,
        fraction: float = 1.0,
        min_nodes: int = 1,
        every: int = 1,
        timeout: float | None = None,
        seed: int = 0,
        prefix: str | None = None,
        if_all_fail: str = "warn",
    ) -> None:
        if not 0 <= fraction <= 1:
            raise InvalidInputError(f"fraction must lie in [0, 1], got {fraction}.")
        if timeout is not None and not 0 < timeout < float("inf"):
            raise InvalidInputError(
                f"timeout must be a positive number of seconds, got {timeout}."
            )
        if if_all_fail not in ("warn", "raise"):
            raise InvalidInputError(
                f"if_all_fail must be 'warn' or 'raise', got {if_all_fail!r}."
            )
        self.fraction = fraction
        self.min_nodes = check_count("min_nodes", min_nodes, low=1)
        self.every = check_count("every", every, low=1)
        self.timeout = timeout
        self.seed = check_count("seed", seed, low=0)
        self.prefix = f"{self.action}." if prefix is None else prefix
        self.if_all_fail = if_all_fail

    @property
    def slack(self) -> float:
        """Seconds that a node may take longer than usual, for reasons not its own."""
        return 0.0

    def __enter__(self) -> Self:
        """Provide what the evaluation needs while a run lasts."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take it away again."""

    @abstractmethod
    def content(
        self, server_round: int, node_id: int, arrays: ArrayRecord
    ) -> RecordDict:
        """Return what a node is sent.

        Parameters
        ----------
        server_round : int
            The round, from 1.
        node_id : int
            The node.
        arrays : ArrayRecord
            The round's global arrays.

        Raises
        ------
        InvalidInputError
            If the node cannot be asked; it then counts as failed.
        """

    @abstractmethod
    def read(self, content: RecordDict) -> Measured:
        """Return what a reply says.

        Raises
        ------
        InvalidInputError
            If it cannot be true.
        """

    @abstractmethod
    def aggregate(self, measured: Iterable[Measured]) -> tuple[MetricRecord, list[str]]:
        """Return what all replies come to.

        Parameters
        ----------
        measured : Iterable[Measured]
            What :meth:`read` returned, at least one.

        Returns
        -------
        tuple[MetricRecord, list[str]]
            All metrics without prefix, and the names of those that the run's own
            evaluation metrics should have too.
        """

    def described(self) -> dict[str, str]:
        """Return what the summary says, by name."""
        return {
            "Nodes": f"{self.fraction:.0%}, at least {self.min_nodes}",
            "Rounds": "all" if self.every == 1 else f"one in {self.every}",
            "Seed": str(self.seed),
        }

    def summary(self) -> None:
        """Log summary configuration of the evaluation."""
        log(INFO, "\t├──> Inference (evaluate.%s):", self.action)
        lines = list(self.described().items())
        for index, (name, value) in enumerate(lines):
            branch = "└" if index == len(lines) - 1 else "├"
            log(INFO, "\t│\t%s── %s: %s", branch, name, value)
