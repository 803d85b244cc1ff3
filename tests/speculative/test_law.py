"""The joint law of the text is the target's own: exactly, branch by branch.

Every random choice of a whole generation (device and edge together) is enumerated, with
models that are tables. Then keyed choices are sampled, and real transformers.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaForCausalLM

from flower_ext.network import Link, VirtualClock
from flower_ext.speculative import (
    Choices,
    Drafter,
    DSSDCandidates,
    KeyedChoices,
    Purpose,
    Sampling,
    VerificationProtocol,
    Verifier,
    protocol_named,
    speculate,
    verified_text,
)
from tests.speculative.conftest import (
    StopAfter,
    TableModel,
    largest_difference,
    law_of,
    target_law,
)

PROMPT = [0, 1]
SAMPLINGS = [
    Sampling(),
    Sampling(temperature=0.7),
    Sampling(top_k=4),
    Sampling(top_p=0.9),
    Sampling(temperature=0.8, top_k=4, top_p=0.95, min_p=0.05),
]
# Few candidates: often none is kept, and the distribution is asked for.
PROTOCOLS: list[VerificationProtocol] = [
    protocol_named("dsd"),
    protocol_named("dssd"),
    DSSDCandidates(2),
]


def generate(
    drafter: TableModel,
    target: TableModel,
    sampling: Sampling,
    protocol: VerificationProtocol,
    choices: Choices,
    streamer: StopAfter | None = None,
    *,
    ahead: bool = False,
    draft_length: int = 2,
    max_new_tokens: int = 3,
) -> tuple[int, ...]:
    """Return three tokens, over a link with time enough to draft ahead."""
    return speculate(
        Drafter(drafter),
        Verifier(target),
        PROMPT,
        max_new_tokens,
        sampling,
        protocol,
        draft_length,
        Link(up=1e6, rtt=1.0),
        drafting_ahead=ahead,
        choices=choices,
        streamer=streamer,
        clock=VirtualClock(timer=lambda: 0.0),
    ).tokens


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)
def test_the_law_of_three_tokens_is_the_targets(
    protocol: VerificationProtocol, sampling: Sampling
) -> None:
    drafter, target = TableModel(5, seed=1), TableModel(5, seed=2)

    law = law_of(lambda c, s: generate(drafter, target, sampling, protocol, c, s))

    assert sum(law.values()) == pytest.approx(1, abs=1e-9)
    assert largest_difference(law, target_law(target, PROMPT, 3, sampling)) < 1e-6


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)
def test_drafting_ahead_keeps_the_law(protocol: VerificationProtocol) -> None:
    drafter, target = TableModel(3, seed=1), TableModel(3, seed=2)
    sampling = Sampling()

    law = law_of(
        lambda c, s: generate(
            drafter, target, sampling, protocol, c, s, ahead=True, draft_length=1
        )
    )

    assert largest_difference(law, target_law(target, PROMPT, 3, sampling)) < 1e-6


@pytest.mark.parametrize("sampling", SAMPLINGS[:4], ids=str)
@pytest.mark.parametrize("protocol", PROTOCOLS, ids=lambda p: p.name)
def test_a_verifier_with_the_ratio_upside_down_fails_the_same_test(
    protocol: VerificationProtocol,
    sampling: Sampling,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def upside_down(
        target: Sequence[float],
        drafted: Sequence[float],
        position: int,
        choices: Choices,
    ) -> int:
        for index, (p, q) in enumerate(zip(target, drafted, strict=True)):
            if q < p and not choices.happens(q / p, position + index, Purpose.ACCEPT):
                return index
        return len(drafted)

    monkeypatch.setattr(verified_text, "accept", upside_down)
    drafter, target = TableModel(5, seed=1), TableModel(5, seed=2)

    law = law_of(lambda c, s: generate(drafter, target, sampling, protocol, c, s))

    assert largest_difference(law, target_law(target, PROMPT, 3, sampling)) > 0.01


def test_questions_keep_the_law() -> None:
    """One candidate of five ids: twice as many are asked for, then all of P."""
    drafter, target = TableModel(5, seed=1), TableModel(5, seed=2)
    sampling, protocol = Sampling(), DSSDCandidates(1)

    law = law_of(
        lambda c, s: generate(
            drafter, target, sampling, protocol, c, s, max_new_tokens=2
        )
    )

    assert largest_difference(law, target_law(target, PROMPT, 2, sampling)) < 1e-6


@pytest.mark.parametrize("name", ["dsd", "dssd", "dssd-candidates"])
def test_keyed_choices_have_the_law(name: str) -> None:
    """A draft that is thrown away and the next one use the same keys."""
    drafter, target = TableModel(3, seed=1), TableModel(3, seed=2)
    sampling, count = Sampling(), 3_000
    expected = target_law(target, PROMPT, 3, sampling)

    found = Counter(
        generate(drafter, target, sampling, protocol_named(name), KeyedChoices(seed))
        for seed in range(count)
    )

    assert set(found) <= set(expected)
    statistic = chisquare(
        [found[key] for key in expected],
        [count * p / sum(expected.values()) for p in expected.values()],
    )
    assert statistic.pvalue > 0.001


def test_real_transformers_have_the_law(
    llamas: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> None:
    """Two tokens of top-k 3, counted against the target's own probabilities."""
    drafter, target = Drafter(llamas[0]), Verifier(llamas[1])
    sampling, prompt, count = Sampling(top_k=3), [3, 1, 4, 1, 5], 1_200
    expected = {}
    with torch.inference_mode():
        first = sampling.probabilities(llamas[1](torch.tensor([prompt])).logits[:, -1])
        for x in np.flatnonzero(first[0]).tolist():
            logits = llamas[1](torch.tensor([[*prompt, x]])).logits[:, -1]
            second = sampling.probabilities(logits)[0]
            for y in np.flatnonzero(second).tolist():
                expected[x, y] = float(first[0, x]) * float(second[y])

    generator = torch.Generator().manual_seed(5)
    found = Counter(
        speculate(
            drafter, target, prompt, 2, sampling, "dssd", 1, generator=generator
        ).tokens
        for _ in range(count)
    )

    assert set(found) <= set(expected)
    total = sum(expected.values())
    statistic = chisquare(
        [found[key] for key in expected],
        [count * p / total for p in expected.values()],
    )
    assert statistic.pvalue > 0.001


@pytest.fixture(scope="module")
def greedy_texts(
    llamas: tuple[LlamaForCausalLM, LlamaForCausalLM],
) -> list[tuple[list[int], list[int]]]:
    """Return 100 prompts, and the text that the target alone generates for each."""
    model: Any = llamas[1]
    rng = np.random.default_rng(3)
    texts = []
    for _ in range(100):
        prompt = rng.integers(64, size=int(rng.integers(1, 20))).tolist()
        alone = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones((1, len(prompt)), dtype=torch.long),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )[0, len(prompt) :]
        texts.append((prompt, alone.tolist()))
    return texts


@pytest.mark.parametrize("name", ["dsd", "dssd", "dssd-candidates"])
def test_greedy_text_is_the_targets_token_for_token(
    name: str,
    llamas: tuple[LlamaForCausalLM, LlamaForCausalLM],
    greedy_texts: list[tuple[list[int], list[int]]],
) -> None:
    drafter, target = Drafter(llamas[0]), Verifier(llamas[1])
    for index, (prompt, alone) in enumerate(greedy_texts):
        found = speculate(
            drafter,
            target,
            prompt,
            12,
            Sampling(temperature=0),
            name,
            1 + index % 5,
            Link(up=1e6, rtt=0.02),
            drafting_ahead=bool(index % 2),
        )

        assert list(found.tokens) == alone


def test_dsd_and_dssd_draw_the_same_tokens() -> None:
    drafter, target = TableModel(8, seed=1), TableModel(8, seed=2)
    for seed, length in itertools.product(range(20), (1, 3)):
        one, other = (
            generate(
                drafter,
                target,
                Sampling(),
                protocol_named(name),
                KeyedChoices(seed),
                draft_length=length,
                max_new_tokens=12,
            )
            for name in ("dsd", "dssd")
        )
        assert one == other
