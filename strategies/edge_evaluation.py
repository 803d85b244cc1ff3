"""What evaluations whose nodes work with an edge have in common."""

from __future__ import annotations

import difflib
import inspect
import math
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import asdict
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from flwr.app import MetricRecord, RecordDict

from flower_ext.errors import InvalidInputError
from flower_ext.speculative.records import TotalsRecord
from flower_ext.strategies.inference_edges import RunningEdge, ServedEdge
from flower_ext.strategies.inference_evaluation import InferenceEvaluation

if TYPE_CHECKING:
    from flower_ext.models import LoadedModel

__all__ = ["EdgeEvaluation"]

Totals = TypeVar("Totals", bound=TotalsRecord)


class EdgeEvaluation(InferenceEvaluation[Totals]):
    """An evaluation in which nodes work with an edge, and reply with totals.

    Parameters
    ----------
    edge : str | ServedEdge | RunningEdge
        ``"in-process"``, or an edge that nodes reach over gRPC.
    large : tuple[str, str | path | None]
        The parameter that names the edge's model, and its value.
    evaluation : dict[str, Any]
        The parameters of
        :class:`~flower_ext.strategies.inference_evaluation.InferenceEvaluation`.

    Raises
    ------
    InvalidInputError
        If a parameter is unknown or out of range.
    """

    totals: ClassVar[type[TotalsRecord]]
    """What a reply's record holds."""
    counts: ClassVar[tuple[str, ...]]
    """Those of its keys that the run's own evaluation metrics should have too."""

    def __init__(
        self,
        edge: str | ServedEdge | RunningEdge,
        large: tuple[str, str | PathLike[str] | None],
        evaluation: dict[str, Any],
    ) -> None:
        _check_names(type(self), evaluation)
        super().__init__(**evaluation)
        self.edge = edge if isinstance(edge, ServedEdge | RunningEdge) else None
        if self.edge is None and edge != "in-process":
            raise InvalidInputError(
                "edge must be 'in-process', ServedEdge(...) or RunningEdge(...), got "
                f"{edge!r}."
            )
        name, value = large
        self._large = None if value is None else str(value)
        if self.edge is not None:
            self.edge.check_target(self._large, name)

    @property
    def slack(self) -> float:
        """Seconds for which a node waits for an edge that is away."""
        return 0.0 if self.edge is None else self.edge.patience

    def __enter__(self) -> Self:
        """Start the edge, if it is served."""
        if self.edge is not None:
            self.edge.start(self._large, self._prepared)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the edge, if it is served."""
        if self.edge is not None:
            self.edge.stop()

    def read(self, content: RecordDict) -> Totals:
        """Return a node's totals."""
        records = list(content.metric_records.values())
        if len(records) != 1:
            raise InvalidInputError(
                f"It must hold exactly one MetricRecord, but holds {len(records)}."
            )
        return self._totals().from_metrics(dict(records[0]))

    def aggregate(self, measured: Iterable[Totals]) -> tuple[MetricRecord, list[str]]:
        """Return the sums of all totals, and rates from them."""
        totals = sum(measured, start=self._totals()())
        rates = {n: v for n, v in totals.rates().items() if math.isfinite(v)}
        metrics = MetricRecord({**totals.to_metrics(), **rates})
        return metrics, [*self.counts, *rates]

    def _totals(self) -> type[Totals]:
        return self.totals  # type: ignore[return-value]

    def _asked(self, server_round: int, node_id: int) -> dict[str, Any]:
        """Return the fields of a node's request that differ from node to node."""
        if self.edge is None:
            return {"server_round": server_round}
        access = asdict(self.edge.access(node_id))
        return {"server_round": server_round, "edge": "grpc", **access}

    def _in_process(self) -> str:
        """Return which model nodes load for an edge of their own; empty: none."""
        return self._large or "" if self.edge is None else ""

    @abstractmethod
    def _prepared(self, loaded: LoadedModel) -> dict[str, Any]:
        """Return what a served edge serves beside the model itself."""


def _check_names(kind: type[Any], evaluation: dict[str, Any]) -> None:
    """Raise if an argument is unknown, and name the nearest."""
    known = [
        name
        for of in (kind, InferenceEvaluation)
        for name, parameter in inspect.signature(of).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    for name in evaluation:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there is {known}."
            raise InvalidInputError(
                f"{kind.__name__} has no parameter {name!r}: {meant}"
            )
