"""Over the wire, the tokens are those of a verifier in the same process."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest

from flower_ext.models import default_pair
from flower_ext.speculative import PROTOCOLS, Generation, Sampling, Verifier
from tests.edge.conftest import Connect, Serve

Generate = Callable[..., Generation]


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("sampling", [Sampling(temperature=0), Sampling()])
def test_the_tokens_are_those_of_the_same_process(
    serve: Serve,
    connect: Connect,
    generate: Generate,
    prompts: list[list[int]],
    protocol: str,
    sampling: Sampling,
) -> None:
    edge = connect(serve().address)
    options = {"sampling": sampling, "protocol": protocol}

    for seed, prompt in enumerate(prompts[:2]):
        here = generate(None, prompt, seed, **options)
        there = generate(edge, prompt, seed, **options)

        assert there.tokens == here.tokens
        assert (there.rounds, there.questions) == (here.rounds, here.questions)
        assert there.reconnections == 0


def test_a_text_ends_where_the_target_ends_it(
    serve: Serve, connect: Connect, generate: Generate, prompts: list[list[int]]
) -> None:
    target = copy.deepcopy(default_pair().target)
    target.generation_config.eos_token_id = None
    target.config.eos_token_id = None
    free = generate(connect(serve(model=target).address), prompts[0])
    ending = free.tokens[9]
    target.generation_config.eos_token_id = [ending]
    wanted = free.tokens[: free.tokens.index(ending) + 1]

    there = generate(connect(serve(model=target).address), prompts[0])
    here = generate(Verifier(target), prompts[0])

    assert there.tokens == here.tokens == wanted
    assert there.finish_reason == here.finish_reason == "eos"
