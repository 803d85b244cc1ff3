"""Sessions that share a prefix get the texts, and the logits, that they get alone."""

from __future__ import annotations

import pytest
import torch

from flower_ext.edgeprompt.hierarchy import Level, PromptHierarchy, Segment
from flower_ext.edgeprompt.prefixed_model import PrefixedModel
from flower_ext.errors import InvalidInputError, PrivateSegmentError
from flower_ext.speculative import Drafter, Row, Sampling, Verifier, speculate
from flower_ext.speculative.language_model import TransformersModel
from tests.edgeprompt.tiny import FAMILIES, VOCABULARY, tiny

PREFIX = [1 + (5 * i) % (VOCABULARY - 1) for i in range(40)]


def relative(found: torch.Tensor, whole: torch.Tensor) -> float:
    return float((found - whole).abs().max() / whole.abs().max())


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PrefixedModel:
    held = PrefixedModel(tiny(request.param, seed=3))
    held.hold(PREFIX)
    return held


def test_ragged_rows_with_and_without_the_prefix(model: PrefixedModel) -> None:
    texts = [[*PREFIX, 3], [7, 8, 9], [*PREFIX, 3, 1, 4, 1], [*PREFIX[:-1], 9, 2], [5]]
    drafts = [[11, 12], [13], [14, 15, 16], [17, 18], [19, 20, 21, 22]]
    caches = [model.new_cache() for _ in texts]
    before = model.positions_processed
    model.extend([Row(c, t, 1) for c, t in zip(caches, texts, strict=True)])
    # Those of the prefix are not computed again; the fourth shares all but one.
    assert model.positions_processed - before == 1 + 3 + 4 + 2 + 1
    rows = [Row(c, d, len(d)) for c, d in zip(caches, drafts, strict=True)]
    for index, logits in enumerate(model.extend(rows)):
        alone = TransformersModel(model.model)
        row = Row(
            alone.new_cache(), [*texts[index], *drafts[index]], len(drafts[index])
        )
        assert relative(logits, alone.extend([row])[0]) <= 1e-5
        assert caches[index].length == len(texts[index]) + len(drafts[index])
    assert caches[0].nbytes < alone_bytes(model, texts[0])


def alone_bytes(model: PrefixedModel, text: list[int]) -> int:
    alone = TransformersModel(model.model)
    cache = alone.new_cache()
    alone.extend([Row(cache, text, 1)])
    return cache.nbytes


def test_roll_back_into_the_tail_and_into_the_prefix(model: PrefixedModel) -> None:
    cache = model.new_cache()
    model.extend([Row(cache, [*PREFIX, 3, 1, 4], 1)])
    for length in (len(PREFIX) + 1, len(PREFIX) - 5, 0):
        cache.roll_back(length)
        assert cache.length == length
        text = [*PREFIX, 3][:length]
        (logits,) = model.extend([Row(cache, [9, 9], 2)])
        alone = TransformersModel(model.model)
        (whole,) = alone.extend([Row(alone.new_cache(), [*text, 9, 9], 2)])
        assert relative(logits, whole) <= 1e-5


def test_texts_of_dssd_are_the_same(model: PrefixedModel) -> None:
    drafter = Drafter(tiny("llama", seed=4))
    plain = Verifier(TransformersModel(model.model))
    shared = Verifier(model)
    for seed in range(6):
        texts = [
            speculate(
                drafter,
                verifier,
                [*PREFIX, 3, 1 + seed],
                24,
                Sampling(temperature=seed % 2),
                generator=torch.Generator().manual_seed(seed),
            ).tokens
            for verifier in (plain, shared)
        ]
        assert texts[0] == texts[1]


def test_a_private_prompt_is_not_drafted(model: PrefixedModel) -> None:
    public = Segment(PREFIX, Level.PUBLIC)
    private = PromptHierarchy([public, Segment([3, 4], Level.PRIVATE)])
    with pytest.raises(PrivateSegmentError, match="2 private tokens"):
        speculate(Drafter(model.model), Verifier(model), private, 4)
    generation = speculate(
        Drafter(model.model), Verifier(model), PromptHierarchy([public]), 4
    )
    assert len(generation.tokens) == 4


def test_what_is_held() -> None:
    model = PrefixedModel(tiny("llama", seed=3))
    private = PromptHierarchy([Segment(PREFIX, Level.PRIVATE)])
    with pytest.raises(PrivateSegmentError):
        model.hold(private)
    with pytest.raises(InvalidInputError, match="16 tokens at least"):
        model.hold(PREFIX[:15])
    with pytest.raises(InvalidInputError, match="outside"):
        model.hold([*PREFIX, VOCABULARY])
    model.hold(PREFIX)
    before = model.positions_processed
    model.hold(PREFIX)
    assert model.positions_processed == before
    assert model.held_bytes == 3 * 2 * 2 * len(PREFIX) * 8 * 4
    model.drop(PREFIX)
    assert model.held_bytes == 0
