"""Generating a node's texts for a DSSD evaluation, and scoring them."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, RecordDict
from transformers import PreTrainedTokenizerBase

from flower_ext.clients.absent_edge import AbsentEdge
from flower_ext.clients.configs import worker_of
from flower_ext.clients.dssd_models import drafter_of, target_of, with_weights
from flower_ext.clients.dssd_task import DSSDTask
from flower_ext.edgeprompt import Level, PrefixedModel, PromptHierarchy
from flower_ext.edgeprompt.evaluation import DSSD_PUBLIC_KEY
from flower_ext.errors import InvalidInputError
from flower_ext.models import LoadedModel, shared_vocab_size, tokenizer_fingerprint
from flower_ext.models.wrapped import unwrapped
from flower_ext.speculative import (
    Drafter,
    Generation,
    Verifier,
    VerifierUnavailableError,
    speculate,
)
from flower_ext.speculative.evaluation import DSSD_KEY, DSSDRequest
from flower_ext.speculative.totals import DSSDTotals

__all__ = ["infer", "request_in", "seed_of"]

_LOG = logging.getLogger(__name__)

_WORTH_HOLDING = 16  # Tokens; a verifier computes fewer as fast.


def infer(task: DSSDTask, content: RecordDict, context: Context) -> DSSDTotals:
    """Generate one text per prompt.

    Parameters
    ----------
    task : DSSDTask
        What the node has.
    content : RecordDict
        What the message asks.
    context : Context
        The node's context.

    Returns
    -------
    DSSDTotals
        The sums over all texts.

    Raises
    ------
    InvalidInputError
        As :meth:`DSSDTask.__call__`.
    VerifierUnavailableError
        If the edge stays away.
    """
    request = request_in(content)
    prompts = task.prompts_for(context, request.prompts)
    device = drafter_of(task, context)
    if request.drafter_weights == "message":
        device = device._replace(model=with_weights(device.model, content))
    device = device._replace(model=unwrapped(device.model))
    link: Any = task.link
    if callable(link):
        link = link(context)
    public = _public_in(content)
    length = request.drafting
    totals = DSSDTotals()
    with _edge(request, task, device, public) as verifier:
        drafter = Drafter(device.model, verifier.vocab_size)
        for index, prompt in enumerate(prompts):
            ids = _ids(device.tokenizer, prompt, public)
            generation = speculate(
                drafter,
                _present(verifier, request),
                ids,
                request.max_new_tokens,
                request.sampling,
                request.verification,
                length,
                link if isinstance(verifier, Verifier) else None,
                torch.Generator().manual_seed(
                    seed_of(request.seed, request.server_round, context, index)
                ),
                drafting_ahead=request.drafting_ahead,
                stop_strings=request.stop_strings,
                tokenizer=device.tokenizer,
                if_edge_is_lost=request.if_edge_is_lost,  # type: ignore[arg-type]
                score=True,
            )
            scores = _scores(generation, request.sampling.greedy)
            totals += DSSDTotals.of(generation, **scores)
    return totals


def request_in(content: RecordDict) -> DSSDRequest:
    """Return the request that a message holds.

    Raises
    ------
    InvalidInputError
        If it holds none, or one that cannot be read.
    """
    config = content.get(DSSD_KEY)
    if not isinstance(config, ConfigRecord):
        raise InvalidInputError(
            f"The message has no ConfigRecord {DSSD_KEY!r}: send it by "
            "flower_ext.strategies.WithInference."
        )
    return DSSDRequest.from_config(config)


def seed_of(seed: int, server_round: int, context: Context, prompt: int) -> int:
    """Return the seed of one text: of (run seed, round, node, prompt)."""
    entropy = (seed, server_round, worker_of(context), prompt)
    word = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return int(word) >> 1


def _edge(
    request: DSSDRequest, task: DSSDTask, device: LoadedModel, public: str
) -> AbstractContextManager[Any]:
    """Return what verifies, to be closed in the end."""
    if request.edge == "in-process":
        target = target_of(task, request.target)
        return _in_process(target, _common_vocab_size(device, target), public)
    # Imported here because a node that verifies by itself needs no network.
    from flower_ext.edge import RemoteVerifier  # noqa: PLC0415

    try:
        return RemoteVerifier(
            request.address,
            tokenizer_fingerprint=tokenizer_fingerprint(device.tokenizer),
            vocab_size=device.vocab_size,
            token=request.token or None,
            root_certificates=request.root_certificate or None,
            plaintext=request.plaintext,
            timeout=request.timeout,
            patience=request.patience,
        )
    except VerifierUnavailableError as error:
        if request.if_edge_is_lost != "draft":
            raise
        _LOG.warning("%s The drafter writes all texts alone.", error)
        return nullcontext(AbsentEdge(device.vocab_size))


def _present(verifier: Any, request: DSSDRequest) -> Any:
    """Return what verifies the next text: no edge that is known to be lost."""
    if request.if_edge_is_lost == "draft" and getattr(verifier, "lost", False):
        return AbsentEdge(verifier.vocab_size)
    return verifier


@contextmanager
def _in_process(target: LoadedModel, common: int, public: str) -> Iterator[Verifier]:
    """Provide a verifier that holds a public text, if it is worth it."""
    tokens = _public_tokens(target.tokenizer, public)
    if len(tokens) < _WORTH_HOLDING:
        yield Verifier(target.model, common)
        return
    # The model is this process's for whomever needs it, and is left as it was.
    before = target.model.config._attn_implementation
    try:
        model = PrefixedModel(target.model, common)
        model.hold(tokens)
        yield Verifier(model, common)
    finally:
        target.model.set_attn_implementation(before)


def _common_vocab_size(device: LoadedModel, target: LoadedModel) -> int:
    """Return the ids that drafter and target have in common."""
    if tokenizer_fingerprint(device.tokenizer) != tokenizer_fingerprint(
        target.tokenizer
    ):
        raise InvalidInputError(
            "Drafter and target have different tokenizers, so the same id means "
            "different things to them: choose two models of one family."
        )
    return shared_vocab_size(target.tokenizer, draft=device.model, target=target.model)


def _public_in(content: RecordDict) -> str:
    """Return the public text that goes before every prompt, if a message has one."""
    config = content.config_records.get(DSSD_PUBLIC_KEY)
    text = "" if config is None else config.get("text")
    if not isinstance(text, str):
        raise InvalidInputError(
            f"The ConfigRecord {DSSD_PUBLIC_KEY!r} needs a str 'text', got "
            f"{text!r:.80}."
        )
    return text


def _public_tokens(tokenizer: PreTrainedTokenizerBase, public: str) -> tuple[int, ...]:
    """Return what a public text comes to, whatever prompt is behind it."""
    if not public:
        return ()
    pieces = [(Level.PUBLIC, public), (Level.PUBLIC, "")]
    return PromptHierarchy.from_text(pieces, tokenizer).tokens


def _ids(tokenizer: PreTrainedTokenizerBase, prompt: str, public: str) -> list[int]:
    """Return a prompt's ids; of an empty one, the token that starts a text."""
    if public:
        # All of it may be seen by the edge, which drafts are sent to.
        pieces = [(Level.PUBLIC, public), (Level.PUBLIC, prompt)]
        return list(PromptHierarchy.from_text(pieces, tokenizer).tokens)
    ids: list[int] = list(tokenizer(prompt)["input_ids"])
    if not ids:
        first = tokenizer.bos_token_id
        ids = [tokenizer.eos_token_id if first is None else first]
    return ids


def _scores(generation: Generation, greedy: bool) -> dict[str, int | float]:
    """Return what the target thinks of a text; nothing if it has not told."""
    score = generation.score
    if score is None:
        return {}
    scores: dict[str, int | float] = {
        "scored_tokens": score.tokens,
        "log_likelihood": score.log_likelihood,
    }
    if greedy:
        scores["compared_tokens"] = score.tokens
        scores["agreeing_tokens"] = score.agreeing
    return scores
