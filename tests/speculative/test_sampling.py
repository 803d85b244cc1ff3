"""Distributions are those that transformers' own generate() draws from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GenerationConfig, LlamaForCausalLM

from flower_ext.errors import InvalidInputError
from flower_ext.speculative import Distribution, Sampling


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.7),
        Sampling(top_k=5),
        Sampling(top_p=0.8),
        Sampling(min_p=0.1),
        Sampling(temperature=1.3, top_k=20, top_p=0.9, min_p=0.02),
    ],
    ids=str,
)
def test_probabilities_are_those_of_generate(
    sampling: Sampling, llamas: tuple[LlamaForCausalLM, LlamaForCausalLM]
) -> None:
    model: Any = llamas[1]
    prompt = torch.tensor([[5, 6, 7]])
    config = GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=True,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        min_p=sampling.min_p or None,
        max_new_tokens=1,
        output_scores=True,
        return_dict_in_generate=True,
        pad_token_id=0,
    )
    scores = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), generation_config=config
    ).scores[0]
    with torch.inference_mode():
        logits = model(prompt).logits[:, -1]

    found = sampling.probabilities(logits)

    torch.testing.assert_close(torch.from_numpy(found), scores.softmax(-1))


@pytest.mark.parametrize(
    ("parameters", "match"),
    [
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"top_k": -1}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"min_p": float("nan")}, "min_p"),
    ],
    ids=str,
)
def test_bad_parameters_are_named(parameters: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidInputError, match=match):
        Sampling(**parameters)


@given(st.integers(1, 200), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_distributions_travel_exactly_and_in_the_shorter_form(
    vocab_size: int, top_k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((1, vocab_size), generator=generator)
    dense = Sampling(top_k=top_k).probabilities(logits)[0]

    found = Distribution.of(dense)

    assert (found.dense(vocab_size) == dense).all()
    assert found.body_size <= Distribution(dense).body_size
