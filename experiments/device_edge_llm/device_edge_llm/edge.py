"""The edge: what verifies drafts and has the public text's KV, and the link to it."""

from __future__ import annotations

from device_edge_llm.data import public_text
from device_edge_llm.settings import GRPC, IN_PROCESS, Settings
from flower_ext.models import DEFAULT
from flower_ext.network import Link
from flower_ext.speculative import Sampling
from flower_ext.strategies import (
    DSSDEvaluation,
    EdgePromptEvaluation,
    RunningEdge,
    ServedEdge,
)


def make_evaluation(settings: Settings) -> DSSDEvaluation:
    """Return the evaluation of the drafter whose weights are the global arrays."""
    return DSSDEvaluation(
        edge=make_edge(settings),
        drafter_weights="message",
        target=DEFAULT if settings.edge == GRPC else None,
        protocol=settings.protocol,
        draft_length=settings.draft_length or "adaptive",
        drafting_ahead=settings.drafting_ahead,
        sampling=Sampling(settings.temperature, settings.top_k, settings.top_p),
        max_new_tokens=settings.max_new_tokens,
        seed=settings.seed,
        if_all_fail="raise",
    )


def make_answering(settings: Settings) -> EdgePromptEvaluation:
    """Return the evaluation of the target behind a public text, by EdgePrompt."""
    return EdgePromptEvaluation(
        public_text(settings),
        edge=make_edge(settings),
        model=DEFAULT if settings.edge == GRPC else None,
        max_new_tokens=settings.max_new_tokens,
        precisions=settings.fetched_in,
        max_error=settings.max_error,
        # Greedy, so that it can be told whether the whole prompt says the same.
        sampling=Sampling(temperature=0),
        seed=settings.seed,
        if_all_fail="raise",
    )


def make_edge(settings: Settings) -> str | ServedEdge | RunningEdge:
    """Return the edge that verifies.

    ``"grpc"`` is one that the ServerApp serves to nodes on its own machine, whom
    nobody else can overhear.

    Raises
    ------
    InvalidInputError
        If a file with tokens or a certificate cannot be read.
    """
    if settings.edge == IN_PROCESS:
        return IN_PROCESS
    if settings.edge == GRPC:
        return ServedEdge(plaintext=True, max_nodes=settings.num_nodes)
    tokens = None
    if settings.edge_tokens:
        # Imported here because gRPC is needed for an edge elsewhere alone.
        from flower_ext.edge import load_tokens  # noqa: PLC0415

        tokens = [*load_tokens(settings.edge_tokens).values()]
    return RunningEdge(
        settings.edge,
        tokens=tokens,
        root_certificates=settings.edge_certificate or None,
        plaintext=settings.edge_plaintext,
    )


def make_link(settings: Settings) -> Link:
    """Return the simulated link to an edge in process, the same both ways."""
    return Link(up=settings.mbps * 1e6 / 8, rtt=settings.rtt_ms / 1e3)
