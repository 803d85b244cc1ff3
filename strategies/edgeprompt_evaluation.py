"""EdgePrompt as an evaluation: what nodes are sent, and what their replies come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from flower_ext.edgeprompt import KVStore, Level, Precision, PromptHierarchy
from flower_ext.edgeprompt.blocks import SharedPrefix
from flower_ext.edgeprompt.evaluation import EDGEPROMPT_KEY, EdgePromptRequest
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import Wanted
from flower_ext.edgeprompt.totals import EdgePromptTotals
from flower_ext.errors import InvalidInputError
from flower_ext.speculative import Sampling
from flower_ext.strategies.edge_evaluation import EdgeEvaluation
from flower_ext.strategies.inference_edges import RunningEdge, ServedEdge

if TYPE_CHECKING:
    from flower_ext.models import LoadedModel

__all__ = ["EdgePromptEvaluation"]

Pieces = str | Sequence[tuple[Level | str, str]]


class EdgePromptEvaluation(EdgeEvaluation[EdgePromptTotals]):
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
    totals = EdgePromptTotals
    counts = (
        "num-prompts",
        "prompts-refused",
        "num-tokens",
        "bytes-fetched",
        "largest-error",
    )

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
        super().__init__(edge, ("model", model), evaluation)
        sampling = sampling or Sampling(temperature=0)
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
            **asdict(sampling),
            compare=compare,
            model=self._in_process(),
        )

    def content(
        self, server_round: int, node_id: int, arrays: ArrayRecord
    ) -> RecordDict:
        """Return a request.

        Raises
        ------
        InvalidInputError
            If there is no token left for the node.
        """
        request = replace(self.request, **self._asked(server_round, node_id))
        return RecordDict({EDGEPROMPT_KEY: ConfigRecord(request.to_config())})

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

    def _prepared(self, loaded: LoadedModel) -> dict[str, Any]:
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
