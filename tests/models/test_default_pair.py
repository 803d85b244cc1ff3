"""The pair that ships with the package: small, offline, and worth drafting with."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedModel

from flower_ext.models import (
    DEFAULT_DRAFT,
    DEFAULT_TARGET,
    DEFAULT_TOKENIZER,
    ModelPair,
    default_pair,
    load_model,
    load_pair,
)
from flower_ext.models.cache_argument import forward_cache, returned_cache


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return default_pair()


def test_it_loads_without_a_network(attempts: list[object]) -> None:
    pair = load_pair("default", "default")

    assert not attempts
    assert pair.vocab_size == 1024
    for model in (pair.draft, pair.target):
        assert not model.training
        assert not any(p.requires_grad for p in model.parameters())
        assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 4 * pair.draft.num_parameters() < pair.target.num_parameters()


def test_it_stays_below_eight_megabytes() -> None:
    files = [
        file
        for folder in (DEFAULT_DRAFT, DEFAULT_TARGET, DEFAULT_TOKENIZER)
        for file in folder.iterdir()
    ]

    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert [file.name for file in files].count("tokenizer.json") == 1


def test_each_side_loads_alone_by_the_word_and_by_its_path(pair: ModelPair) -> None:
    ids = torch.tensor([[0, 5, 7]])
    draft, tokenizer = load_model("default", role="draft")
    target = load_model(DEFAULT_TARGET)

    assert torch.equal(draft(ids).logits, pair.draft(ids).logits)
    assert torch.equal(target.model(ids).logits, pair.target(ids).logits)
    assert tokenizer.get_vocab() == target.tokenizer.get_vocab()
    assert target.vocab_size == pair.vocab_size


def test_another_precision_is_asked_for() -> None:
    pair = default_pair(dtype=torch.bfloat16)

    assert {p.dtype for p in pair.target.parameters()} == {torch.bfloat16}


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=60))
def test_any_text_comes_back_from_its_ids(pair: ModelPair, text: str) -> None:
    ids = pair.tokenizer(text)["input_ids"]

    assert pair.tokenizer.decode(ids) == text
    assert all(0 <= id_ < pair.vocab_size for id_ in ids)


def test_a_text_begins_and_ends_with_the_same_token(pair: ModelPair) -> None:
    assert pair.tokenizer.bos_token == pair.tokenizer.eos_token == "<|endoftext|>"
    assert pair.target.config.eos_token_id == pair.tokenizer.eos_token_id
    assert pair.draft.config.max_position_embeddings >= 1024
    assert pair.target.config.max_position_embeddings >= 1024


@torch.no_grad()
def sampled(model: PreTrainedModel, ids: torch.Tensor, count: int) -> torch.Tensor:
    generator, cache, fresh = torch.Generator().manual_seed(0), None, ids
    for _ in range(count):
        out = model(fresh, use_cache=True, **forward_cache(model, cache))
        cache = returned_cache(out)
        chances = torch.softmax(out.logits[:, -1], dim=-1)
        fresh = torch.multinomial(chances, 1, generator=generator)
        ids = torch.cat([ids, fresh], dim=1)
    return ids


@torch.no_grad()
def test_what_the_target_samples_is_accepted_mostly(pair: ModelPair) -> None:
    boundary = torch.full((32, 1), pair.tokenizer.bos_token_id)
    ids = sampled(pair.target, boundary, 64)

    target = torch.softmax(pair.target(ids).logits, dim=-1)
    draft = torch.softmax(pair.draft(ids).logits, dim=-1)
    # An exact verifier accepts with probability sum min(P, Q) = 1 - TV(P, Q).
    assert torch.minimum(target, draft).sum(dim=-1).mean() >= 0.6


@torch.no_grad()
def test_the_target_has_learned_and_the_last_positions_are_in_use(
    pair: ModelPair,
) -> None:
    line = "KING RICHARD:\nWhat is the matter, my good lord?\n\n"
    ids = pair.tokenizer(line * 80, return_tensors="pt")["input_ids"][:, :1024]
    assert ids.shape == (1, 1024)
    logits = pair.target(ids).logits[0, :-1]
    loss = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none")

    assert loss[-200:].mean() < 4.0  # far from log 1024 = 6.9
