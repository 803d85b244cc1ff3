"""The node's side of a DSSD evaluation: what answers ``evaluate.dssd`` messages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from flwr.app import Context, Message, MetricRecord, RecordDict

from flower_ext.errors import InvalidInputError
from flower_ext.network.link import Link

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["DSSDTask", "Prompts"]

Prompts = Sequence[str] | Callable[[Context], Sequence[str]]
Source = str | PathLike[str]


class DSSDTask:
    """An evaluate function that drafts with the node's model against an edge.

    Implementation based on https://arxiv.org/abs/2507.12000

    It generates one text per prompt, as the message's
    :class:`~flower_ext.speculative.evaluation.DSSDRequest` asks, and replies with one
    ``MetricRecord``: the sums of
    :class:`~flower_ext.speculative.totals.DSSDTotals`, and what they come to on this
    node. No prompt and no text leaves the node by the reply; over gRPC the edge sees
    both.

    Parameters
    ----------
    prompts : Sequence[str] | Callable[[Context], Sequence[str]] (default: None)
        What to generate from: texts, or a function of the context that returns them. By
        default the prompts that come in the message.
    drafter : str | path | PreTrainedModel | Callable[[Context], ...] (default: \
"default")
        The node's drafter: a folder, an id in the local Hugging Face cache,
        ``"default"`` for the one that ships with the package, a model, or a function of
        the context that returns one of these. With ``drafter-weights="message"`` it
        gives the architecture alone, and stays as it is.
    tokenizer : str | path | PreTrainedTokenizerBase (default: None)
        The drafter's; by default beside it. A model that is given as an object needs
        one.
    target : str | path (default: "default")
        The node's own target, for an edge in process whose message names none.
    link : Link | Callable[[Context], Link] (default: None)
        What an edge in process is simulated behind; by default messages to it take no
        time. An edge over gRPC is behind the real one.
    dtype : str (default: "float32")
        Precision that models are loaded in: the name of a torch dtype.
    device : str (default: "cpu")
        Where they run.

    Raises
    ------
    InvalidInputError
        If ``prompts`` is one string, or holds something else than strings.

    Notes
    -----
    Models are loaded once per process and path, and nothing is downloaded. Random
    choices are seeded by (run seed, round, node, prompt), where the node is known by
    its ``partition-id``, or its node id if it has none.

    Examples
    --------
    ::

        app.evaluate("dssd")(DSSDTask(prompts=["ROMEO:", "JULIET:"]))
    """

    def __init__(
        self,
        prompts: Prompts | None = None,
        drafter: Source
        | PreTrainedModel
        | Callable[[Context], Source | PreTrainedModel] = "default",
        *,
        tokenizer: Source | PreTrainedTokenizerBase | None = None,
        target: Source = "default",
        link: Link | Callable[[Context], Link] | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        if prompts is not None and not callable(prompts):
            prompts = check_prompts(prompts)
        self.prompts = prompts
        self.drafter = drafter
        self.tokenizer = tokenizer
        self.target = target
        self.link = link
        self.dtype = dtype
        self.device = device

    def __call__(self, msg: Message, context: Context) -> Message:
        """Answer a message.

        Parameters
        ----------
        msg : Message
            Holds a DSSD request and, if that says so, the drafter's weights.
        context : Context
            The context of the ClientApp.

        Returns
        -------
        Message
            The reply, with exactly one ``MetricRecord``.

        Raises
        ------
        InvalidInputError
            If the request cannot be read, or models and weights do not fit.
        VerifierUnavailableError
            If the edge stays away, unless the request says ``if-edge-is-lost="draft"``.
        """
        # Imported here because it takes seconds, which the same app's train messages
        # should not spend: every message has a process of its own.
        from flower_ext.clients.dssd_inference import infer  # noqa: PLC0415

        totals = infer(self, msg.content, context)
        metrics = MetricRecord({**totals.to_metrics(), **totals.rates()})
        return Message(RecordDict({"metrics": metrics}), reply_to=msg)

    def prompts_for(self, context: Context, sent: Sequence[str]) -> list[str]:
        """Return the node's prompts, or those of the message if it has none.

        Raises
        ------
        InvalidInputError
            If there are none at all, or one is no string.
        """
        own = self.prompts
        found = check_prompts(own(context) if callable(own) else own or sent)
        if not found:
            raise InvalidInputError(
                "There is nothing to generate from: give DSSDTask(prompts=...) or "
                "DSSDEvaluation(prompts=...)."
            )
        return found


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Return prompts as a list.

    Raises
    ------
    InvalidInputError
        If it is one string, or something else than strings is among them.
    """
    if isinstance(prompts, str) or not all(isinstance(p, str) for p in prompts):
        raise InvalidInputError(
            f"prompts must be a list of str, got {prompts!r:.200}: put a single prompt "
            "into a list."
        )
    return list(prompts)
