"""Answering a node's private prompts for an EdgePrompt evaluation, and scoring them."""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flwr.app import ConfigRecord, Context, RecordDict
from transformers import PreTrainedModel

from flower_ext.clients.configs import own_partition
from flower_ext.clients.dssd_inference import seed_of
from flower_ext.clients.dssd_models import given, load_once
from flower_ext.clients.edgeprompt_task import EdgePromptTask
from flower_ext.edgeprompt import EdgePrompt, KVStore, Level, PromptHierarchy
from flower_ext.edgeprompt.blocks import ModelIdentity, SharedPrefix, identity_of
from flower_ext.edgeprompt.evaluation import EDGEPROMPT_KEY, EdgePromptRequest
from flower_ext.edgeprompt.linked_source import LinkedSource
from flower_ext.edgeprompt.service import SegmentService
from flower_ext.edgeprompt.source import SegmentSource, Wanted
from flower_ext.edgeprompt.spliceable import longest_text
from flower_ext.edgeprompt.totals import EdgePromptTotals
from flower_ext.errors import FlowerExtError, InvalidInputError
from flower_ext.models import LoadedModel
from flower_ext.network.clocks import Clock, VirtualClock, WallClock
from flower_ext.network.link import Link
from flower_ext.speculative import Sampling

__all__ = ["infer", "request_in"]

_LOG = logging.getLogger(__name__)

# An edge in process and its only tenant are one, so there is nobody to keep it from; it
# stays the same, so that the next message's process finds what this one has kept.
_OWN_TENANT_KEY = hashlib.sha256(b"flower-ext edge in process").digest()

_NO_LINK = Link(up=1e12)

# A model that is spliced is not to be run by another thread meanwhile.
_turn = threading.Lock()


class _Edge(NamedTuple):
    """Where blocks come from, and by which clock."""

    source: SegmentSource
    clock: Clock
    tenant_key: bytes


def infer(
    task: EdgePromptTask, content: RecordDict, context: Context
) -> EdgePromptTotals:
    """Generate one text per prompt.

    Parameters
    ----------
    task : EdgePromptTask
        What the node has.
    content : RecordDict
        What the message asks.
    context : Context
        The node's context.

    Returns
    -------
    EdgePromptTotals
        The sums over all texts.

    Raises
    ------
    InvalidInputError
        As :meth:`EdgePromptTask.__call__`.
    FlowerExtError
        If no prompt is left when those that the model does not take are refused, or the
        model fails on one; why is in the node's log alone, as an error goes to the
        server and might tell of the prompt.
    """
    request = request_in(content)
    prompts = task.prompts_for(context)
    loaded = _model_of(task, request.model, context)
    store = KVStore(_folder_of(task, context), disk_bytes=task.store_bytes)
    shared = _hierarchy(task, request, loaded, "")
    _check_length(shared, request, loaded.model)
    totals = EdgePromptTotals()
    with _turn, _edge(request, task, context, loaded.model, shared, store) as edge:
        engine = EdgePrompt(
            loaded.model,
            loaded.tokenizer,
            store=store,
            source=edge.source,
            tenant_key=edge.tenant_key,
            precisions=request.fetched_in,
            max_error=request.max_error,
            clock=edge.clock,
        )
        engine.shared_prefix(shared)  # Says what is wrong before the prompts come in.
        for index, prompt in enumerate(prompts):
            seed = seed_of(request.seed, request.server_round, context, index)
            with _not_told():
                number = f"{index + 1} of {len(prompts)}"
                hierarchy = _taken(task, request, loaded, prompt, number)
                if hierarchy is None:
                    totals += _refuse(engine, shared, request)
                else:
                    totals += _answer(engine, hierarchy, request, seed)
    if not totals.num_prompts:
        raise FlowerExtError(
            "No prompt of the node could be answered: all are refused. The node's log "
            "says why of each; those that are too long need a shorter shared text, or "
            "a lower max_new_tokens."
        )
    return totals


def request_in(content: RecordDict) -> EdgePromptRequest:
    """Return the request that a message holds.

    Raises
    ------
    InvalidInputError
        If it holds none, or one that cannot be read.
    """
    config = content.get(EDGEPROMPT_KEY)
    if not isinstance(config, ConfigRecord):
        raise InvalidInputError(
            f"The message has no ConfigRecord {EDGEPROMPT_KEY!r}: send it by "
            "flower_ext.strategies.WithInference."
        )
    return EdgePromptRequest.from_config(config)


# -- what the node has -----------------------------------------------------------------


def _model_of(task: EdgePromptTask, named: str, context: Context) -> LoadedModel:
    """Return the model that a message names, or else the node's own."""
    found: Any = named or task.model
    if callable(found) and not isinstance(found, PreTrainedModel):
        found = found(context)
    if isinstance(found, PreTrainedModel):
        return given(found, task.tokenizer, "model=", "EdgePromptTask")
    tokenizer = None if named else task.tokenizer
    return load_once(found, "target", tokenizer, task.dtype, task.device)


def _folder_of(task: EdgePromptTask, context: Context) -> Path:
    """Return where the node's blocks are kept."""
    place = task.store
    if callable(place):
        place = place(context)
    if place is not None:
        return Path(place).expanduser()
    # Imported here because a node with a folder of its own needs no other.
    from platformdirs import user_cache_path  # noqa: PLC0415

    partition = own_partition(context)
    name = f"node-{context.node_id}" if partition is None else f"partition-{partition}"
    return user_cache_path("flower-ext") / "edgeprompt" / name


def _hierarchy(
    task: EdgePromptTask, request: EdgePromptRequest, loaded: LoadedModel, prompt: str
) -> PromptHierarchy:
    """Return the shared text with a private prompt behind it."""
    # A private piece always ends it, or the last shared tokens would tell of an empty
    # one.
    return PromptHierarchy.from_text(
        [*request.pieces, (Level.PRIVATE, prompt)],
        loaded.tokenizer,
        detector=task.detector,
    )


def _check_length(
    shared: PromptHierarchy, request: EdgePromptRequest, model: PreTrainedModel
) -> None:
    """Raise if the shared text leaves no room for any prompt."""
    longest = longest_text(model)
    if longest is not None and len(shared) + request.max_new_tokens >= longest:
        raise InvalidInputError(
            f"The shared text has {len(shared)} tokens, which with "
            f"{request.max_new_tokens} new ones leaves no room for a prompt in the "
            f"{longest} that the model takes: shorten it, or lower max_new_tokens."
        )


# -- the edge --------------------------------------------------------------------------


@contextmanager
def _edge(
    request: EdgePromptRequest,
    task: EdgePromptTask,
    context: Context,
    model: PreTrainedModel,
    shared: PromptHierarchy,
    store: KVStore,
) -> Iterator[_Edge]:
    """Provide what blocks are fetched from."""
    identity = identity_of(model)
    if request.edge == "in-process":
        link: Any = task.link
        if callable(link):
            link = link(context)
        service = SegmentService(model, KVStore(), identity=identity)
        _publish(service, request, shared, store)
        clock = VirtualClock()
        source = LinkedSource(service, link or _NO_LINK, clock)
        yield _Edge(source, clock, _OWN_TENANT_KEY)
        return
    with _remote(request, identity) as remote:
        grouped = any(s.level == Level.GROUP for s in shared.shared)
        key = remote.tenant_key() if grouped else b""
        yield _Edge(remote, WallClock(), key)


def _remote(request: EdgePromptRequest, identity: ModelIdentity) -> Any:
    """Return the way to an edge over gRPC."""
    # Imported here because a node with an edge of its own needs no network.
    from flower_ext.edge import RemoteSegments  # noqa: PLC0415

    return RemoteSegments(
        request.address,
        identity=identity,
        token=request.token or None,
        root_certificates=request.root_certificate or None,
        plaintext=request.plaintext,
        timeout=request.timeout,
        patience=request.patience,
    )


def _publish(
    service: SegmentService,
    request: EdgePromptRequest,
    shared: PromptHierarchy,
    store: KVStore,
) -> None:
    """Have an edge in process compute what a served one has before the first round."""
    prefix = SharedPrefix(shared.shared, service.identity, _OWN_TENANT_KEY)
    for index, block in enumerate(prefix.blocks):
        if any(address in store for address in block.addresses.values()):
            continue  # The node does not ask for it.
        for precision in request.fetched_in:
            service.block(prefix, Wanted(index, precision))


# -- one prompt ------------------------------------------------------------------------


@contextmanager
def _not_told() -> Iterator[None]:
    """Keep what is said of a private prompt on the node."""
    try:
        yield
    except Exception:
        _LOG.exception("A prompt could not be answered.")
        raise FlowerExtError(
            "A prompt of the node could not be answered; the node's log says why."
        ) from None


def _taken(
    task: EdgePromptTask,
    request: EdgePromptRequest,
    loaded: LoadedModel,
    prompt: str,
    number: str,
) -> PromptHierarchy | None:
    """Return the shared text with a prompt behind it; None if the model takes it not.

    The node's log says which it is, and why.
    """
    try:
        hierarchy = _hierarchy(task, request, loaded, prompt)
    except Exception:
        # Whatever the tokenizer raises: with the shared text alone, it has raised
        # nothing.
        _LOG.warning(
            "Prompt %s is refused: it cannot be put into tokens.", number, exc_info=True
        )
        return None
    longest = longest_text(loaded.model)
    if longest is None or len(hierarchy) + request.max_new_tokens <= longest:
        return hierarchy
    _LOG.warning(
        "Prompt %s is refused: it has %d tokens with the shared text, which with %d "
        "new ones are more than the model's %d. Shorten it.",
        number,
        len(hierarchy),
        request.max_new_tokens,
        longest,
    )
    return None


def _refuse(
    engine: EdgePrompt, shared: PromptHierarchy, request: EdgePromptRequest
) -> EdgePromptTotals:
    """Load what any other prompt would have loaded, so that the edge cannot tell."""
    completion = engine.generate(shared, 1, **_options(Sampling(temperature=0)))
    if request.compare:
        engine.logits(shared)
    return EdgePromptTotals.of_refused(completion.report)


def _answer(
    engine: EdgePrompt,
    hierarchy: PromptHierarchy,
    request: EdgePromptRequest,
    seed: int,
) -> EdgePromptTotals:
    """Generate from a prompt, and compare."""
    device = engine.model.device
    seeded = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=seeded):
        torch.manual_seed(seed)
        completion = engine.generate(
            hierarchy, request.max_new_tokens, **_options(request.sampling)
        )
    scores = {}
    if request.compare:
        scores = _scores(engine, hierarchy, completion.tokens, request.sampling.greedy)
    return EdgePromptTotals.of(completion, **scores)


def _options(sampling: Sampling) -> dict[str, Any]:
    """Return how tokens are drawn, as ``generate()`` takes it."""
    # Whatever the model's own generation config has: the request says it all.
    options: dict[str, Any] = {"num_beams": 1, "repetition_penalty": 1.0}
    if sampling.greedy:
        return {**options, "do_sample": False}
    return {
        **options,
        "do_sample": True,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p or None,
    }


@torch.inference_mode()
def _scores(
    engine: EdgePrompt,
    hierarchy: PromptHierarchy,
    tokens: tuple[int, ...],
    greedy: bool,
) -> dict[str, int | float]:
    """Return what the spliced and the whole prompt think of a text, by a pass each."""
    count, model = len(tokens), engine.model
    spliced = engine.logits(hierarchy, tokens[:-1])[-count:]
    ids = torch.tensor([[*hierarchy.tokens, *tokens[:-1]]], device=model.device)
    whole = model(ids, use_cache=False, logits_to_keep=count).logits[0]
    chosen = torch.tensor(tokens, device=model.device)
    scores: dict[str, int | float] = {
        "scored_tokens": count,
        "log_likelihood": _log_likelihood(spliced, chosen),
        "whole_log_likelihood": _log_likelihood(whole, chosen),
    }
    if greedy:
        scores["compared_tokens"] = count
        scores["agreeing_tokens"] = int((whole.argmax(dim=-1) == chosen).sum())
    return scores


def _log_likelihood(logits: torch.Tensor, chosen: torch.Tensor) -> float:
    """Return the log-probability of tokens, in nats."""
    logs = torch.log_softmax(logits.float(), dim=-1)
    return float(logs.gather(1, chosen[:, None]).double().sum())
