"""Where the tokens of a text come from."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaForCausalLM

from flower_ext.speculative import (
    Drafter,
    DraftVerdict,
    Generation,
    Sampling,
    Verifier,
    speculate,
)
from flower_ext.speculative import TracedToken as Traced

Pair = tuple[LlamaForCausalLM, LlamaForCausalLM]


def text(tokens: tuple[int, ...], *verdicts: DraftVerdict) -> Generation:
    """Return a generation of which only tokens and verdicts matter."""
    return Generation(tokens, "length", *[0] * 16, verdicts=verdicts)


def test_every_origin_is_told() -> None:
    found = text(
        (1, 2, 9, 5, 6, 7, 8, 8),
        DraftVerdict((1, 2, 3, 4), 2, 9),
        DraftVerdict((5,), 1, 6),
        DraftVerdict((7,), 1, None),
    ).trace()

    assert found == [
        Traced(1, "accepted"),
        Traced(2, "accepted"),
        Traced(3, "rejected"),
        Traced(9, "corrected"),
        Traced(5, "accepted"),
        Traced(6, "bonus"),
        Traced(7, "accepted"),
        Traced(8, "alone"),
        Traced(8, "alone"),
    ]


def test_nothing_follows_the_end_of_the_text() -> None:
    found = text((1, 2), DraftVerdict((1, 2, 3), 2, 9)).trace()

    assert found == [Traced(1, "accepted"), Traced(2, "accepted")]


@pytest.mark.parametrize("ahead", [False, True])
def test_what_is_not_rejected_is_the_text(llamas: Pair, ahead: bool) -> None:
    for seed in range(4):
        found = speculate(
            Drafter(llamas[0]),
            Verifier(llamas[1]),
            [1, 2, 3],
            20,
            Sampling(temperature=0.7),
            drafting_ahead=ahead,
            generator=torch.Generator().manual_seed(seed),
        )
        trace = found.trace()
        origins = [each.origin for each in trace]

        assert found.tokens == tuple(t for t, o in trace if o != "rejected")
        assert len(found.verdicts) == found.rounds
        assert sum(len(v.drafted) for v in found.verdicts) == found.drafted
        assert sum(v.accepted for v in found.verdicts) == found.accepted
        assert origins.count("rejected") == found.examined - found.accepted
        assert ("bonus" in origins) <= (not ahead)
        assert origins.count("alone") == found.fallback_tokens == 0
