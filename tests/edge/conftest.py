"""The default pair, an edge that serves it, and devices that draft for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import torch

from flower_ext.edge import EdgeServer, RemoteVerifier
from flower_ext.models import ModelPair, default_pair, tokenizer_fingerprint
from flower_ext.speculative import Drafter, Edge, Generation, Verifier, speculate

Serve = Callable[..., EdgeServer]
Connect = Callable[..., RemoteVerifier]


def metric(server: EdgeServer, name: str, **labels: str) -> float:
    """Return one of an edge's counters; 0 if nothing was counted."""
    return server.registry.get_sample_value(f"flower_ext_edge_{name}", labels) or 0.0


@pytest.fixture(scope="session")
def pair() -> ModelPair:
    return default_pair()


@pytest.fixture(scope="session")
def fingerprint(pair: ModelPair) -> str:
    return tokenizer_fingerprint(pair.tokenizer)


@pytest.fixture(scope="session")
def prompts(pair: ModelPair) -> list[list[int]]:
    texts = ["KING RICHARD:", "What say you", "Good morrow, ", "The sun"]
    return [[0, *pair.tokenizer(text).input_ids] for text in texts]


@pytest.fixture
def serve(pair: ModelPair, fingerprint: str) -> Iterator[Serve]:
    """Start an edge, which is stopped at the end of the test."""
    with ExitStack() as stack:

        def start(**options: Any) -> EdgeServer:
            model = options.pop("model", pair.target)
            options.setdefault("plaintext", "tls_cert" not in options)
            server = EdgeServer(model, fingerprint, **options)
            return stack.enter_context(server)

        yield start


@pytest.fixture
def connect(pair: ModelPair, fingerprint: str) -> Iterator[Connect]:
    """Connect a device, which leaves at the end of the test."""
    with ExitStack() as stack:

        def connect(address: str, **options: Any) -> RemoteVerifier:
            options.setdefault("plaintext", "root_certificates" not in options)
            options.setdefault("tokenizer_fingerprint", fingerprint)
            options.setdefault("vocab_size", pair.vocab_size)
            return stack.enter_context(RemoteVerifier(address, **options))

        yield connect


@pytest.fixture(scope="session")
def generate(pair: ModelPair) -> Callable[..., Generation]:
    """Generate with a device of its own, at an edge or in this process."""

    def generate(
        edge: Edge | None, prompt: list[int], seed: int = 0, **options: Any
    ) -> Generation:
        options.setdefault("max_new_tokens", 24)
        return speculate(
            Drafter(pair.draft, pair.vocab_size),
            Verifier(pair.target, pair.vocab_size) if edge is None else edge,
            prompt,
            generator=torch.Generator().manual_seed(seed),
            **options,
        )

    return generate
