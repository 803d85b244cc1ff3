"""Whatever happens to the connection and the edge, the tokens stay the same."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from flower_ext.edge import patience
from flower_ext.models import ModelPair
from flower_ext.speculative import (
    Generation,
    MemoryBudgetError,
    Opening,
    Verifier,
    VerifierUnavailableError,
)
from tests.edge.conftest import Connect, Serve, metric
from tests.edge.proxy import CuttingProxy

pytestmark = pytest.mark.faults

Generate = Callable[..., Generation]

CUTS = 200


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_WAIT", 0.005)
    monkeypatch.setattr(patience, "_LONGEST_WAIT", 0.1)


def test_two_hundred_cuts(
    serve: Serve, connect: Connect, generate: Generate, prompts: list[list[int]]
) -> None:
    server = serve()
    reconnections = generations = 0
    with CuttingProxy(server.address, seed=0) as proxy:
        proxy.cuts_left = 10 * CUTS
        edge = connect(proxy.address, timeout=10)
        # Some cuts hit a device that is still saying hello: no reconnection.
        while proxy.cuts < CUTS or reconnections < CUTS // 2:
            assert generations < CUTS
            protocol = ("dssd", "dssd-candidates", "dsd")[generations % 3]
            options = {"protocol": protocol, "drafting_ahead": generations % 2 == 1}
            prompt = prompts[generations % len(prompts)]
            there = generate(edge, prompt, generations, **options)
            here = generate(None, prompt, generations, **options)

            assert there.tokens == here.tokens
            reconnections += there.reconnections
            generations += 1
        edge.close()

    assert generations >= 3


def test_the_edge_is_restarted_while_a_text_is_generated(
    serve: Serve, connect: Connect, generate: Generate, prompts: list[list[int]]
) -> None:
    for at, protocol in (
        (6, "dssd"),
        (9, "dssd"),
        (14, "dssd"),
        (12, "dssd-candidates"),
    ):
        first = serve()
        edge = connect(first.address)
        port = int(first.address.rpartition(":")[2])

        class Restarter:
            """Restarts the edge when some tokens are there."""

            tokens = 0

            def put(self, value: torch.Tensor) -> None:
                before, self.tokens = self.tokens, self.tokens + value.numel()
                if before < at <= self.tokens:  # noqa: B023
                    first.stop()  # noqa: B023
                    serve(port=port)  # noqa: B023

            def end(self) -> None:
                pass

        options = {"protocol": protocol, "max_new_tokens": 30}
        there = generate(edge, prompts[0], 3, streamer=Restarter(), **options)

        assert there.tokens == generate(None, prompts[0], 3, **options).tokens
        assert there.reconnections == 1


def test_an_edge_that_stays_away(
    serve: Serve, connect: Connect, generate: Generate, prompts: list[list[int]]
) -> None:
    server = serve()
    edge = connect(server.address, patience=0.2)
    begun = generate(edge, prompts[0], max_new_tokens=4)
    server.stop()

    alone = generate(edge, prompts[0], max_new_tokens=8, if_edge_is_lost="draft")
    assert begun.fallback_tokens == 0
    assert alone.fallback_tokens == len(alone.tokens) == 8
    with pytest.raises(VerifierUnavailableError, match=r"not answered for 0\.2 s"):
        generate(edge, prompts[0], max_new_tokens=4)


def test_sessions_dropped_while_their_device_is_away_change_no_token(
    serve: Serve, connect: Connect, generate: Generate, prompts: list[list[int]]
) -> None:
    server = serve(max_sessions=1)
    with CuttingProxy(server.address, seed=1) as proxy:
        edge = connect(proxy.address, timeout=10)
        other = connect(server.address, timeout=10)
        proxy.cuts_left = 1000

        with ThreadPoolExecutor(2) as pool:
            texts = [
                pool.submit(generate, edge, prompts[0], 5, max_new_tokens=40),
                pool.submit(generate, other, prompts[1], 6, max_new_tokens=40),
            ]
            found = [text.result().tokens for text in texts]
        proxy.cuts_left = 0
        edge.close()

    assert found == [
        generate(None, prompts[0], 5, max_new_tokens=40).tokens,
        generate(None, prompts[1], 6, max_new_tokens=40).tokens,
    ]


def test_a_memory_budget_changes_no_token(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    pair: ModelPair,
) -> None:
    one = Verifier(pair.target)
    one.open(Opening("x", 0, tuple(range(60))))
    server = serve(memory_budget=one.cached_bytes)
    edges = [connect(server.address) for _ in range(3)]

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(generate, edges, prompts, range(3)))

    assert metric(server, "caches_evicted_total") > 0
    for seed, text in enumerate(found):
        assert text.tokens == generate(None, prompts[seed], seed).tokens
    with pytest.raises(MemoryBudgetError, match="needs a cache"):
        generate(edges[0], list(range(80)), max_new_tokens=4)
