"""Every position is computed once: those given, and those that are rejected."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaForCausalLM

from flower_ext.network import Link, VirtualClock
from flower_ext.speculative import (
    Draft,
    Drafter,
    Sampling,
    Verdict,
    Verifier,
    speculate,
)
from flower_ext.speculative.language_model import Row, TransformersModel


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("protocol", ["dsd", "dssd", "dssd-candidates"])
def test_positions_are_at_most_the_tokens_given_and_those_rejected(
    protocol: str, ahead: bool, llamas: tuple[LlamaForCausalLM, LlamaForCausalLM]
) -> None:
    for seed in range(5):
        drafter, target = Drafter(llamas[0]), Verifier(llamas[1])
        prompt = np.random.default_rng(seed).integers(64, size=9 + seed).tolist()

        found = speculate(
            drafter,
            target,
            prompt,
            30,
            Sampling(temperature=0.3 * seed),
            protocol,
            1 + seed,
            Link(up=1e6, rtt=0.05),
            torch.Generator().manual_seed(seed),
            drafting_ahead=ahead,
        )

        given = len(prompt) + len(found.tokens)
        rejected = found.drafted - found.accepted
        assert len(found.tokens) == 30
        assert target.positions_processed <= given + rejected
        assert drafter.positions_processed <= given + rejected + found.discarded


def test_a_round_sent_again_is_answered_alike(
    llamas: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    """As if every verdict were lost once on its way."""

    class Twice(Verifier):
        def verify(self, session: str, draft: Draft) -> Verdict:
            first = super().verify(session, draft)
            again = super().verify(session, draft)
            assert first.accepted == again.accepted
            assert first.token == again.token
            return again

    prompt = [1, 2, 3]
    for protocol in ("dsd", "dssd", "dssd-candidates"):
        for ahead in (False, True):
            texts = [
                speculate(
                    Drafter(llamas[0]),
                    kind(llamas[1]),
                    prompt,
                    15,
                    Sampling(temperature=0.7),
                    protocol,
                    3,
                    Link(up=1e6, rtt=1.0),
                    torch.Generator().manual_seed(4),
                    drafting_ahead=ahead,
                    clock=VirtualClock(timer=lambda: 0.0),
                ).tokens
                for kind in (Verifier, Twice)
            ]
            assert texts[0] == texts[1]


def test_rows_of_a_batch_get_the_logits_that_they_get_alone(
    llamas: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    """Ragged caches, ragged new tokens, several passes in a row."""
    rng = np.random.default_rng(0)
    alone, together = TransformersModel(llamas[1]), TransformersModel(llamas[1])
    sizes = [0, 1, 7, 19, 40]
    caches = [(alone.new_cache(), together.new_cache()) for _ in sizes]
    for size, (one, other) in zip(sizes, caches, strict=True):
        if size:
            tokens = rng.integers(64, size=size).tolist()
            alone.extend([Row(one, tokens, 1)])
            together.extend([Row(other, tokens, 1)])
    for _ in range(4):
        news = [rng.integers(64, size=int(rng.integers(1, 6))).tolist() for _ in sizes]
        keeps = [int(rng.integers(1, len(new) + 1)) for new in news]
        wanted = [
            alone.extend([Row(one, new, keep)])[0]
            for (one, _), new, keep in zip(caches, news, keeps, strict=True)
        ]
        found = together.extend(
            [
                Row(other, new, keep)
                for (_, other), new, keep in zip(caches, news, keeps, strict=True)
            ]
        )
        for one_row, row, keep in zip(wanted, found, keeps, strict=True):
            assert row.shape == (keep, 64)
            torch.testing.assert_close(row, one_row, atol=1e-5, rtol=0)
        for one, other in caches:
            length = max(0, one.length - int(rng.integers(0, 3)))
            one.roll_back(length)
            other.roll_back(length)
            assert one.length == other.length == other.layers.get_seq_length()
    assert alone.positions_processed == together.positions_processed
