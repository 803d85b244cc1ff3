"""The node's side of an EdgePrompt evaluation: it answers ``evaluate.edgeprompt``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import TYPE_CHECKING

from flwr.app import Context, Message, MetricRecord, RecordDict

from flower_ext.clients.dssd_task import Prompts, Source, check_prompts
from flower_ext.errors import InvalidInputError
from flower_ext.network.link import Link

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from flower_ext.edgeprompt.detectors import Detector, Span

__all__ = ["EdgePromptTask"]

Place = str | PathLike[str]


class EdgePromptTask:
    """An evaluate function that answers private prompts behind a shared text.

    Implementation based on https://arxiv.org/abs/2504.11729

    The message names the public and group text. Its KV cache comes from the node's
    store, from an edge, or is computed here; the node's own prompts are spliced to it.
    The reply is one ``MetricRecord``: the sums of
    :class:`~flower_ext.edgeprompt.totals.EdgePromptTotals`, and what they come to on
    this node.

    Prompts never leave the node: neither they, nor what is generated from them, nor how
    long one of them is goes to the edge or into the reply, and a message cannot bring
    prompts along, as what a server has sent would not be private. **The metrics are the
    one exception** to the claim that nothing depends on private text: the time that all
    texts took, and how likely the model found them, are sums over private texts. With
    few prompts on a node, such a sum says something of each; ask for
    ``EdgePromptEvaluation(compare=False)`` to leave likelihoods out. Which metrics
    there are does not depend on the prompts.

    A prompt that is too long for the model behind the shared text, or that cannot be
    put into tokens, is refused: the node's log says which and why, the others are
    answered, and ``prompts-refused`` counts it, the other exception. Whoever chooses
    the shared text and ``max_new_tokens`` can find out by it how long prompts are.

    Parameters
    ----------
    prompts : Sequence[str] | Callable[[Context], Sequence[str]]
        What the node asks: texts, or a function of the context that returns them.
    model : str | path | PreTrainedModel | Callable[[Context], ...] (default: \
"default")
        What answers, the same as the edge's: a folder, an id in the local Hugging Face
        cache, ``"default"`` for the target that ships with the package, a model, or a
        function of the context that returns one of these. One that a message names goes
        before it.
    tokenizer : str | path | PreTrainedTokenizerBase (default: None)
        Its tokenizer; by default beside it. A model that is given as an object needs
        one.
    link : Link | Callable[[Context], Link] (default: None)
        What an edge in process is simulated behind; by default messages to it take next
        to no time. An edge over gRPC is behind the real one.
    store : str | path | Callable[[Context], str | path | None] (default: None)
        The folder that blocks are kept in from one message to the next, each of which
        has a process of its own; of shared text only. None: one per node in the
        user's cache folder, by its ``partition-id``, or its node id if it has none; in
        a simulation, so, a second run finds what the first has left.
    store_bytes : int (default: 1 GiB)
        The most that files in it may have, at least 0; the least recently used go
        first.
    detector : Detector or callable (default: None)
        What looks for sensitive spans in the shared text, which is private from the
        first of them on; see
        :meth:`~flower_ext.edgeprompt.PromptHierarchy.from_text`.
    dtype : str (default: "float32")
        Precision that the model is loaded in: the name of a torch dtype.
    device : str (default: "cpu")
        Where it runs.

    Raises
    ------
    InvalidInputError
        If ``prompts`` is one string, or holds something else than strings, or
        ``store_bytes`` is negative.

    Notes
    -----
    Models are loaded once per process and path, and nothing is downloaded. Random
    choices are seeded by (run seed, round, node, prompt), as those of
    :class:`~flower_ext.clients.DSSDTask`.

    Examples
    --------
    ::

        def notes(context: Context) -> list[str]:
            return Path("/home/me/notes.txt").read_text().splitlines()

        app.evaluate("edgeprompt")(EdgePromptTask(prompts=notes))
    """

    def __init__(
        self,
        prompts: Prompts,
        model: Source
        | PreTrainedModel
        | Callable[[Context], Source | PreTrainedModel] = "default",
        *,
        tokenizer: Source | PreTrainedTokenizerBase | None = None,
        link: Link | Callable[[Context], Link] | None = None,
        store: Place | Callable[[Context], Place | None] | None = None,
        store_bytes: int = 2**30,
        detector: Detector | Callable[[str], Sequence[Span]] | None = None,
        dtype: str = "float32",
        device: str = "cpu",
    ) -> None:
        if store_bytes < 0:
            raise InvalidInputError(
                f"store_bytes must be at least 0, got {store_bytes}."
            )
        self.prompts = prompts if callable(prompts) else _checked(prompts)
        self.model = model
        self.tokenizer = tokenizer
        self.link = link
        self.store = store
        self.store_bytes = store_bytes
        self.detector = detector
        self.dtype = dtype
        self.device = device

    def __call__(self, msg: Message, context: Context) -> Message:
        """Answer a message.

        Parameters
        ----------
        msg : Message
            Holds an EdgePrompt request.
        context : Context
            The context of the ClientApp.

        Returns
        -------
        Message
            The reply, with exactly one ``MetricRecord``.

        Raises
        ------
        InvalidInputError
            If the request cannot be read, there is no prompt, the model cannot be
            loaded or spliced, or the shared text leaves no room for a prompt.
        FlowerExtError
            If all prompts are refused, or the model fails on one.
        SourceError
            If there is group text, and the edge does not tell the node's key.
        StoreError
            If the store's folder cannot be used.
        """
        # Imported here because it takes seconds, which the same app's train messages
        # should not spend: every message has a process of its own.
        from flower_ext.clients.edgeprompt_inference import infer  # noqa: PLC0415

        totals = infer(self, msg.content, context)
        metrics = MetricRecord({**totals.to_metrics(), **totals.rates()})
        return Message(RecordDict({"metrics": metrics}), reply_to=msg)

    def prompts_for(self, context: Context) -> list[str]:
        """Return the node's prompts.

        Raises
        ------
        InvalidInputError
            If there are none, or one is no string.
        """
        own = self.prompts
        found = _checked(own(context) if callable(own) else own)
        if not found:
            raise InvalidInputError(
                "There is nothing to generate from: EdgePromptTask(prompts=...) has "
                "given no prompt on this node."
            )
        return found


def _checked(prompts: Sequence[str]) -> list[str]:
    """Return prompts as a list; an error does not show them, as it leaves the node."""
    try:
        return check_prompts(prompts)
    except (InvalidInputError, TypeError):
        raise InvalidInputError(
            f"prompts must be a list of str, got {type(prompts).__name__}: put a "
            "single prompt into a list."
        ) from None
