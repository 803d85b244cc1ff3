"""EdgePrompt as an evaluation: what nodes are sent, and what their replies come to."""

from __future__ import annotations

import difflib
import inspect
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from flower_ext.edgeprompt import KVStore, Level, Precision, PromptHierarchy
from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.evaluation import EDGEPROMPT_KEY, EdgePromptRequest
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Wanted
from flower_ext.edgeprompt.totals import EdgePromptTotals
from flower_ext.errors import InvalidInputError
from flower_ext.speculative import Sampling
from flower_ext.strategies.inference_edges import RunningEdge, ServedEdge
from flower_ext.strategies.inference_evaluation import InferenceEvaluation

if TYPE_CHECKING:
    from flower_ext.models import LoadedModel

__all__ = ["EdgePromptEvaluation"]

_COUNTS = ("num-prompts", "num-tokens", "bytes-fetched", "largest-error")

Pieces = str | Sequence[tuple[Level | str, str]]


class EdgePromptEvaluation(InferenceEvaluation[EdgePromptTotals]):
    """Nodes answer private prompts behind a shared text that is computed once.

    Implementation based on https://arxiv.org/abs/2504.11729

    It needs clients with ``app.evaluate("edgeprompt")(EdgePromptTask(prompts=...))``.
    The prompts are the nodes' own and stay there; no arrays are sent.

    Parameters
    ----------
    public : str | Sequence[tuple[Level, str]]
        What goes before every prompt: a public text, or pieces with their levels, or
        the levels' names, of public ones first and of the group's then. A group here is
        everyone who is sent this message; to the edge, each node is one of its own, for
        whom it computes the group's pieces apart.
    edge : str | ServedEdge | RunningEdge
        ``"in-process"``: every node has an edge too, behind a simulated link. Or an
        edge that nodes reach over gRPC: :class:`~flower_ext.strategies.ServedEdge` is
        started and stopped with the run, and computes the public pieces before the
        first round, in all ``precisions``; :class:`~flower_ext.strategies.RunningEdge`
        (``flower-ext edge --segments``) is there already, and computes what it is first
        asked for.
    model : str | path (default: None)
        What answers, as a folder or an id in the local Hugging Face cache;
        ``"default"`` is the one that ships with the package. In process it is the
        nodes' path; None: what each node has. A served edge needs one, a running edge
        takes none, and nodes use what they have: the same weights, or an edge's blocks
        are of no use to them.
    max_new_tokens : int (default: 64)
        The most tokens of a text, at least 1.
    precisions : Sequence[Precision | str] (default: all but INT4)
        What blocks may be fetched in; none: every node computes them all.
    max_error : float (default: 0.02)
        The largest relative error of a block that is used, at least 0.
    sampling : Sampling (default: None)
        How tokens are drawn; by default greedily, ``Sampling(temperature=0)``.
    compare : bool (default: True)
        Whether nodes compute the whole prompt too, after each text, to tell the greedy
        agreement with it and the perplexity under either.
    **evaluation : Any
        `fraction`, `min_nodes`, `every`, `timeout`, `seed`, `prefix` and `if_all_fail`
        of :class:`~flower_ext.strategies.inference_evaluation.InferenceEvaluation`.

    Raises
    ------
    PrivateSegmentError
        If a piece is private.
    InvalidInputError
        If a parameter is unknown or out of range.

    Notes
    -----
    In process, times are those of a virtual clock that a transfer takes as long on as
    the link says; computing takes as long as it does.

    Examples
    --------
    >>> evaluation = EdgePromptEvaluation(
    ...     [("public", "You are a clerk."), ("group", "The desk closes at five.")],
    ...     edge="in-process",
    ...     precisions=["int8"],
    ... )
    >>> evaluation.prefix
    'edgeprompt.'
    """

    action = "edgeprompt"

    def __init__(
        self,
        public: Pieces,
        *,
        edge: str | ServedEdge | RunningEdge,
        model: str | PathLike[str] | None = None,
        max_new_tokens: int = 64,
        precisions: Sequence[Precision | str] = (
            Precision.EXACT,
            Precision.FP16,
            Precision.BF16,
            Precision.INT8,
        ),
        max_error: float = 0.02,
        sampling: Sampling | None = None,
        compare: bool = True,
        **evaluation: Any,
    ) -> None:
        _check_names(evaluation)
        super().__init__(**evaluation)
        sampling = sampling or Sampling(temperature=0)
        self.edge = edge if isinstance(edge, ServedEdge | RunningEdge) else None
        if self.edge is None and edge != "in-process":
            raise InvalidInputError(
                "edge must be 'in-process', ServedEdge(...) or RunningEdge(...), got "
                f"{edge!r}."
            )
        self.model = None if model is None else str(model)
        if self.edge is not None:
            self.edge.check_target(self.model, "model")
        if isinstance(precisions, str):
            raise InvalidInputError(
                f"precisions must be a list, got {precisions!r}: put a single one into "
                "a list."
            )
        pieces = [("public", public)] if isinstance(public, str) else list(public)
        self.request = EdgePromptRequest(
            edge="in-process",
            texts=tuple(text for _, text in pieces),
            levels=tuple(
                level.name.lower() if isinstance(level, Level) else level
                for level, _ in pieces
            ),
            seed=self.seed,
            max_new_tokens=max_new_tokens,
            precisions=tuple(
                p.value if isinstance(p, Precision) else p for p in precisions
            ),
            max_error=max_error,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            compare=compare,
            model=self.model or "" if self.edge is None else "",
        )

    def __enter__(self) -> Self:
        """Start the edge, if it is served, with the public pieces computed."""
        if self.edge is not None:
            self.edge.start(self.model, self._published)
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

    def content(
        self, server_round: int, node_id: int, arrays: ArrayRecord
    ) -> RecordDict:
        """Return a request.

        Raises
        ------
        InvalidInputError
            If there is no token left for the node.
        """
        request = replace(self.request, server_round=server_round)
        if self.edge is not None:
            access = asdict(self.edge.access(node_id))
            request = replace(request, edge="grpc", **access)
        return RecordDict({EDGEPROMPT_KEY: ConfigRecord(request.to_config())})

    def read(self, content: RecordDict) -> EdgePromptTotals:
        """Return a node's totals."""
        records = list(content.metric_records.values())
        if len(records) != 1:
            raise InvalidInputError(
                f"It must hold exactly one MetricRecord, but holds {len(records)}."
            )
        return EdgePromptTotals.from_metrics(dict(records[0]))

    def aggregate(
        self, measured: Iterable[EdgePromptTotals]
    ) -> tuple[MetricRecord, list[str]]:
        """Return the sums of all totals, and rates from them."""
        totals = sum(measured, start=EdgePromptTotals())
        rates = {n: v for n, v in totals.rates().items() if math.isfinite(v)}
        metrics = MetricRecord({**totals.to_metrics(), **rates})
        return metrics, [*_COUNTS, *rates]

    def described(self) -> dict[str, str]:
        """Return what the summary says, by name."""
        request = self.request
        characters = sum(map(len, request.texts))
        return {
            "Edge": request.edge if self.edge is None else str(self.edge),
            "Shared": f"{characters} characters, {' and '.join(request.levels)}",
            "Blocks": (
                f"{', '.join(request.precisions) or 'computed'}, error up to "
                f"{request.max_error:g}"
            ),
            "Texts": f"up to {request.max_new_tokens} tokens, {request.sampling}",
            **super().described(),
        }

    def _published(self, loaded: LoadedModel) -> dict[str, Any]:
        """Compute the public pieces, and return what serves them."""
        service = SegmentService(
            loaded.model, KVStore(), tenant_store=lambda tenant: KVStore()
        )
        # As nodes cut it, whose private piece it is that ends a prompt.
        hierarchy = PromptHierarchy.from_text(
            [*self.request.pieces, (Level.PRIVATE, "")], loaded.tokenizer
        )
        public = [s for s in hierarchy.segments if s.level == Level.PUBLIC]
        prefix = SharedPrefix(public, service.identity)
        for index in range(len(prefix.blocks)):
            for precision in self.request.fetched_in:
                service.block(prefix, Wanted(index, precision))
        return {"segments": service}


def _check_names(evaluation: dict[str, Any]) -> None:
    """Raise if an argument is unknown, and name the nearest."""
    known = [
        name
        for of in (EdgePromptEvaluation, InferenceEvaluation)
        for name, parameter in inspect.signature(of).parameters.items()
        if parameter.kind is not parameter.VAR_KEYWORD
    ]
    for name in evaluation:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f"did you mean {near[0]}?" if near else f"there is {known}."
            raise InvalidInputError(
                f"EdgePromptEvaluation has no parameter {name!r}: {meant}"
            )
