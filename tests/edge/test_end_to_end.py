"""Over the wire, the tokens are those of a verifier in the same process."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from flower_ext.speculative import PROTOCOLS, Generation, Sampling
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
