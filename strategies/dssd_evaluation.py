"""DSSD as an evaluation: what is sent to nodes, and what their replies come to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from os import PathLike
from typing import TYPE_CHECKING, Any

from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from flower_ext.edgeprompt import Level, PrefixedModel, PromptHierarchy
from flower_ext.edgeprompt.evaluation import DSSD_PUBLIC_KEY
from flower_ext.errors import InvalidInputError
from flower_ext.speculative import Sampling
from flower_ext.speculative.evaluation import DSSD_KEY, DSSDRequest
from flower_ext.speculative.totals import DSSDTotals
from flower_ext.strategies.edge_evaluation import EdgeEvaluation
from flower_ext.strategies.inference_edges import (
    RunningEdge,
    ServedEdge,
    verified_ids,
)

if TYPE_CHECKING:
    from flower_ext.models import LoadedModel

__all__ = ["DSSDEvaluation"]

_WORTH_HOLDING = 16  # Tokens; a verifier computes fewer as fast.


class DSSDEvaluation(EdgeEvaluation[DSSDTotals]):
    """Nodes draft texts with a small model, and an edge's large one verifies them.

    Implementation based on https://arxiv.org/abs/2507.12000

    It needs clients with ``app.evaluate("dssd")(DSSDTask(...))``.

    Parameters
    ----------
    edge : str | ServedEdge | RunningEdge
        ``"in-process"``: every node has the target too, and verifies by itself, behind
        a simulated link. Or an edge that nodes reach over gRPC:
        :class:`~flower_ext.strategies.ServedEdge` is started and stopped with the run,
        :class:`~flower_ext.strategies.RunningEdge` is there already.
    drafter_weights : str
        ``"message"``: the global arrays are the drafter's state_dict. ``"node"``: nodes
        draft with a model of their own, and are sent no arrays.
    target : str | path (default: None)
        The target, as a folder or an id in the local Hugging Face cache; ``"default"``
        is the one that ships with the package. In process it is the nodes' path; None:
        what each node has. A served edge needs one, a running edge takes none.
    protocol : str (default: "dssd-candidates")
        ``"dsd"``, ``"dssd"`` or ``"dssd-candidates"``.
    candidates : int (default: 0)
        For the last: how many are drawn first; 0 takes the protocol's default.
    draft_length : int | str (default: 4)
        Tokens per draft, 1 to 256, or ``"adaptive"``, which depends on measured times,
        so that runs no longer repeat.
    drafting_ahead : bool (default: False)
        Whether nodes draft on while a verdict is in flight.
    sampling : Sampling (default: None)
        How tokens are drawn; by default from the models' own distributions.
    max_new_tokens : int (default: 64)
        The most tokens of a text, at least 1.
    stop_strings : str | Sequence[str] (default: ())
        What ends a text.
    prompts : Sequence[str] (default: ())
        For nodes that have no prompts of their own.
    public : str (default: "")
        A public text that goes before every prompt. A verifier in process, or of a
        served edge, computes it once and holds it for all sessions; its model needs
        full attention in every layer. A running edge computes it for each session. Its
        tokens are part of the opening that a device sends.
    if_edge_is_lost : str (default: "raise")
        ``"raise"``: the node's evaluation fails. ``"draft"``: the drafter finishes the
        text alone, and ``fallback-tokens`` counts what it chose. A node that never
        reaches the edge fails.
    **evaluation : Any
        `fraction`, `min_nodes`, `every`, `timeout`, `seed`, `prefix` and `if_all_fail`
        of :class:`~flower_ext.strategies.inference_evaluation.InferenceEvaluation`.

    Raises
    ------
    InvalidInputError
        If a parameter is unknown or out of range.

    Notes
    -----
    Texts are scored by the target that has verified them, in process or over gRPC, when
    they are over; what that takes is in none of the metrics. A text that the edge was
    lost in is not scored: perplexity and greedy agreement are told of ``scored-tokens``
    and ``compared-tokens``.

    Examples
    --------
    >>> DSSDEvaluation(edge="in-process", drafter_weights="node", every=5).prefix
    'dssd.'
    """

    action = "dssd"
    totals = DSSDTotals
    counts = ("num-prompts", "num-tokens", "fallback-tokens")

    def __init__(  # noqa: PLR0913 - a parameter per field of the request
        self,
        *,
        edge: str | ServedEdge | RunningEdge,
        drafter_weights: str,
        target: str | PathLike[str] | None = None,
        protocol: str = "dssd-candidates",
        candidates: int = 0,
        draft_length: int | str = 4,
        drafting_ahead: bool = False,
        sampling: Sampling | None = None,
        max_new_tokens: int = 64,
        stop_strings: str | Sequence[str] = (),
        prompts: Sequence[str] = (),
        public: str = "",
        if_edge_is_lost: str = "raise",
        **evaluation: Any,
    ) -> None:
        super().__init__(edge, ("target", target), evaluation)
        if not isinstance(public, str):
            raise InvalidInputError(
                f"public must be one str, got {type(public).__name__}: an edge that "
                "verifies sees every prompt, so there are no levels."
            )
        if isinstance(prompts, str):
            raise InvalidInputError(
                f"prompts must be a sequence of str, got the str {prompts!r:.80}: put "
                "it into a list."
            )
        if isinstance(stop_strings, str):
            stop_strings = (stop_strings,)
        self.public = public
        self.request = DSSDRequest(
            edge="in-process",
            drafter_weights=drafter_weights,
            seed=self.seed,
            max_new_tokens=max_new_tokens,
            protocol=protocol,
            candidates=candidates,
            draft_length=draft_length,
            drafting_ahead=drafting_ahead,
            **asdict(sampling or Sampling()),
            stop_strings=tuple(stop_strings),
            if_edge_is_lost=if_edge_is_lost,
            prompts=tuple(prompts),
            target=self._in_process(),
        )

    def content(
        self, server_round: int, node_id: int, arrays: ArrayRecord
    ) -> RecordDict:
        """Return a request and, if nodes draft with them, the arrays.

        Raises
        ------
        InvalidInputError
            If there is no token left for the node.
        """
        request = replace(self.request, **self._asked(server_round, node_id))
        content = RecordDict({DSSD_KEY: ConfigRecord(request.to_config())})
        if self.public:
            content[DSSD_PUBLIC_KEY] = ConfigRecord({"text": self.public})
        if request.drafter_weights == "message":
            content["arrays"] = arrays
        return content

    def described(self) -> dict[str, str]:
        """Return what the summary says, by name."""
        request = self.request
        return {
            "Edge": request.edge if self.edge is None else str(self.edge),
            "Drafter": f"weights of the {request.drafter_weights}",
            "Protocol": f"{request.protocol}, draft length {request.draft_length}",
            "Texts": f"up to {request.max_new_tokens} tokens, {request.sampling}",
            **super().described(),
        }

    def _prepared(self, loaded: LoadedModel) -> dict[str, Any]:
        """Have a served edge hold the public text, if it is worth it."""
        if not self.public:
            return {}
        # As nodes cut it, whose prompt is another piece.
        pieces = [(Level.PUBLIC, self.public), (Level.PUBLIC, "")]
        tokens = PromptHierarchy.from_text(pieces, loaded.tokenizer).tokens
        if len(tokens) < _WORTH_HOLDING:
            return {}
        model = PrefixedModel(loaded.model, verified_ids(loaded))
        model.hold(tokens)
        return {"model": model}
