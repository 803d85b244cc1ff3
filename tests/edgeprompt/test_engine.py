"""Spliced generation is generation, for every prompt, batch and state of the caches."""

from __future__ import annotations

import copy
import gc
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from flower_ext.edgeprompt import (
    Completion,
    EdgePrompt,
    KVStore,
    Level,
    Precision,
    PromptHierarchy,
    Segment,
)
from flower_ext.edgeprompt.splice import Layout, SplicedLayer
from flower_ext.errors import InvalidInputError
from flower_ext.models import ModelPair, default_pair
from tests.edgeprompt.tiny import FAMILIES, VOCABULARY, tiny

KEY = bytes(range(32))


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return default_pair()


@cache
def texts(count: int, length: int) -> list[list[int]]:
    """Return texts that the shipped target writes itself."""
    pair = default_pair()
    start = torch.randint(
        5, 1000, (count, 1), generator=torch.Generator().manual_seed(1)
    )
    torch.manual_seed(7)
    written: Any = pair.target.generate(  # type: ignore[operator]
        start, max_new_tokens=length - 1, do_sample=True, eos_token_id=None
    )
    found: list[list[int]] = written.tolist()
    return found


def split(tokens: list[int], *cuts: int) -> PromptHierarchy:
    """Return a prompt of one to three levels."""
    levels = [Level.PUBLIC, Level.GROUP, Level.PRIVATE][-len(cuts) - 1 :]
    if len(cuts) == 1:
        levels = [Level.PUBLIC, Level.PRIVATE]
    borders = [0, *cuts, len(tokens)]
    return PromptHierarchy(
        [
            Segment(tokens[a:b], level)
            for level, a, b in zip(levels, borders[:-1], borders[1:], strict=True)
        ]
    )


def _config(**options: Any) -> GenerationConfig:
    made: Any = GenerationConfig
    config: GenerationConfig = made(**options)
    return config


def plainly(model: PreTrainedModel, tokens: list[int], new: int, **options: Any) -> Any:
    written: Any = model.generate(  # type: ignore[operator]
        torch.tensor([tokens]), max_new_tokens=new, **options
    )
    return tuple(written[0, len(tokens) :].tolist())


def test_greedy_and_beams_on_100_prompts(pair: ModelPair) -> None:
    engine = EdgePrompt(pair.draft, pair.tokenizer, tenant_key=KEY)
    for index, text in enumerate(texts(100, 48)):
        cuts = (20, 33) if index % 2 else (1 + index % 40,)
        prompt = split(text, *cuts)
        for options in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
            found = engine.generate(prompt, 16, **options)
            assert found.tokens == plainly(pair.draft, text, 16, **options), index


@pytest.mark.parametrize("family", FAMILIES)
def test_batches_of_every_family(family: str, pair: ModelPair) -> None:
    model = tiny(family)
    engine = EdgePrompt(model, pair.tokenizer, tenant_key=KEY)
    generator = torch.Generator().manual_seed(5)
    shared = torch.randint(1, VOCABULARY, (70,), generator=generator).tolist()
    tails = [
        torch.randint(1, VOCABULARY, (length,), generator=generator).tolist()
        for length in (9, 1, 14, 5)
    ]
    prompts = [split([*shared, *tail], 30, 70) for tail in tails]
    for options in ({"do_sample": False}, {"do_sample": False, "num_beams": 3}):
        found: list[Completion] = engine.generate(prompts, 12, **options)
        for completion, tail in zip(found, tails, strict=True):
            whole = plainly(model, [*shared, *tail], 12, **options)
            assert completion.tokens == whole


@pytest.mark.parametrize("where", ["options", "config", "model"])
@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 5.0},
        {"no_repeat_ngram_size": 1},
        {"no_repeat_ngram_size": 2, "num_beams": 3},
        {"min_length": 35, "eos_token_id": [*range(1, 60)]},
        {"bad_words_ids": [[k] for k in range(1, 60)]},
    ],
    ids=lambda options: next(iter(options)),
)
def test_what_looks_at_the_text_sees_no_padding(
    options: dict[str, Any], where: str, pair: ModelPair
) -> None:
    model = copy.deepcopy(tiny("llama"))
    generator = torch.Generator().manual_seed(5)
    engine = EdgePrompt(model, pair.tokenizer)
    if where == "model":
        model.generation_config.update(**options)  # type: ignore[no-untyped-call]
    asked: dict[str, Any] = {"options": options, "model": {}}.get(
        where, {"generation_config": _config(**options)}
    )
    for _ in range(4):
        shared = torch.randint(1, VOCABULARY, (20,), generator=generator).tolist()
        rows = [
            [*shared, *torch.randint(1, VOCABULARY, (n,), generator=generator).tolist()]
            for n in (9, 2, 5, 2)
        ]
        found = engine.generate(
            [split(t, 20) for t in rows], 16, do_sample=False, **asked
        )
        for completion, text in zip(found, rows, strict=True):
            whole = plainly(model, text, 16, do_sample=False, **options)
            assert completion.tokens == whole


def test_functions_of_the_text_see_no_padding_and_know_their_row(
    pair: ModelPair,
) -> None:
    engine = EdgePrompt(pair.draft, pair.tokenizer)
    written = texts(100, 48)
    prompts = [split([*written[0][:30], *written[1][:n]], 30) for n in (9, 2, 9)]
    seen: list[list[int]] = []

    def notes(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        seen.extend(ids.tolist())
        return scores

    found = engine.generate(
        prompts,
        1,
        do_sample=False,
        logits_processor=[notes],
        prefix_allowed_tokens_fn=lambda row, ids: [[11], [22], [33]][row],
    )
    assert [completion.tokens for completion in found] == [(11,), (22,), (33,)]
    assert seen == [list(prompts[row].tokens) for row in (0, 2, 1)]


def test_cold_and_warm_runs_give_the_same_tokens(
    pair: ModelPair, tmp_path: Path
) -> None:
    text = texts(100, 48)[3] * 12  # More than two blocks.
    prompt = split(text, 300, 560)
    runs = []
    for _ in range(2):
        store = KVStore(tmp_path, key=KEY)
        engine = EdgePrompt(pair.target, pair.tokenizer, store=store, tenant_key=KEY)
        runs += [engine.generate(prompt, 16, do_sample=False) for _ in range(2)]
    assert {run.tokens for run in runs} == {plainly(pair.target, text, 16)}
    reports = [run.report for run in runs]
    assert [r.computed for r in reports] == [4, 0, 0, 0]
    assert [r.in_memory for r in reports] == [0, 4, 0, 4]
    assert [r.in_store for r in reports] == [0, 0, 4, 0]


def test_sampling_draws_what_the_whole_prompt_draws(pair: ModelPair) -> None:
    text = texts(100, 48)[5]
    engine = EdgePrompt(pair.target, pair.tokenizer)
    torch.manual_seed(11)
    found = engine.generate(split(text, 30), 20, do_sample=True)
    torch.manual_seed(11)
    assert found.tokens == plainly(pair.target, text, 20, do_sample=True)


def test_logits_over_the_private_text(pair: ModelPair) -> None:
    text = texts(100, 48)[7]
    engine = EdgePrompt(pair.target, pair.tokenizer)
    with torch.inference_mode():
        whole = pair.target(torch.tensor([[*text, 9, 8]])).logits[0]
    found = engine.logits(split(text, 30), [9, 8])
    assert found.shape == (1 + 18 + 2, whole.shape[-1])
    assert (found - whole[29:]).abs().max() <= 1e-5 * whole.abs().max()
    public = PromptHierarchy([Segment(text, Level.PUBLIC)])
    assert engine.logits(public).shape[0] == 1
    private = PromptHierarchy([Segment(text, Level.PRIVATE)])
    torch.testing.assert_close(engine.logits(private), whole[:48], atol=1e-4, rtol=0)


def test_a_prompt_without_private_or_without_shared_text(pair: ModelPair) -> None:
    text = texts(100, 48)[9]
    engine = EdgePrompt(pair.target, pair.tokenizer)
    whole = plainly(pair.target, text, 8)
    for level in (Level.PUBLIC, Level.PRIVATE):
        prompt = PromptHierarchy([Segment(text, level)])
        assert engine.generate(prompt, 8, do_sample=False).tokens == whole
    one = PromptHierarchy([Segment(text[:1], Level.PUBLIC)])
    assert engine.generate(one, 8, do_sample=False).tokens == plainly(
        pair.target, text[:1], 8
    )
    mixed = [
        PromptHierarchy([Segment(text, Level.PUBLIC)]),
        PromptHierarchy([Segment(text, Level.PUBLIC), Segment([7], Level.PRIVATE)]),
    ]
    found = engine.generate(mixed, 8, do_sample=False)
    assert found[0].tokens == whole
    assert found[1].tokens == plainly(pair.target, [*text, 7], 8)


def test_group_and_public_parts_are_remembered_apart(pair: ModelPair) -> None:
    text = texts(100, 48)[11]
    engine = EdgePrompt(pair.target, pair.tokenizer, tenant_key=KEY)
    engine.generate(split(text, 20, 40), 2)
    other = [*text[:20], *texts(100, 48)[12][:28]]
    report = engine.generate(split(other, 20, 40), 2).report
    assert (report.in_memory, report.computed) == (1, 1)


def test_the_text_ends_where_it_ends(pair: ModelPair) -> None:
    text = texts(100, 48)[13]
    engine = EdgePrompt(pair.target, pair.tokenizer)
    free = engine.generate(split(text, 30), 12, do_sample=False)
    end = free.tokens[4]
    first = free.tokens.index(end)
    ended = engine.generate(
        [split(text, 30)] * 2, 12, do_sample=False, eos_token_id=[end, 1023]
    )
    assert ended[0].tokens == free.tokens[: first + 1]
    assert free.text == pair.tokenizer.decode(free.tokens, skip_special_tokens=True)
    assert 0 < free.time_to_first_token < free.seconds
    assert free.tokens_per_second > 0


def test_options_may_come_in_a_generation_config(pair: ModelPair) -> None:
    text = texts(100, 48)[14]
    engine = EdgePrompt(pair.draft, pair.tokenizer)
    config = _config(num_beams=3, do_sample=False, eos_token_id=20)
    found = engine.generate(split(text, 30), 12, generation_config=config)
    whole = plainly(pair.draft, text, 12, num_beams=3, eos_token_id=20)
    assert found.tokens == whole[: len(found.tokens)]
    assert found.layout is not Layout.BEHIND


def test_what_is_published_is_found(pair: ModelPair, tmp_path: Path) -> None:
    text = texts(100, 48)[15]
    prompt = split(text, 30)
    store = KVStore(tmp_path, key=KEY)
    cloud = EdgePrompt(pair.target, pair.tokenizer, store=store)
    prefix = cloud.publish(prompt, [Precision.INT8])
    (block,) = prefix.blocks
    assert block.addresses[Precision.INT8] in store
    store.discard(block.addresses[Precision.EXACT])
    device = EdgePrompt(pair.target, pair.tokenizer, store=KVStore(tmp_path, key=KEY))
    report = device.generate(prompt, 4).report
    assert (report.in_store, report.computed) == (1, 0)
    assert 0 < report.largest_error < 0.02
    strict = EdgePrompt(
        pair.target,
        pair.tokenizer,
        store=KVStore(tmp_path, key=KEY),
        max_error=0.0,
    )
    assert strict.generate(prompt, 4).report.computed == 1


def test_weights_that_change_make_other_blocks(pair: ModelPair) -> None:
    model = copy.deepcopy(tiny("llama"))
    engine = EdgePrompt(model, pair.tokenizer)
    prompt = split([1 + i % 90 for i in range(40)], 30)
    engine.generate(prompt, 8, do_sample=False)
    model.load_state_dict(tiny("llama", seed=1).state_dict())
    found = engine.generate(prompt, 8, do_sample=False)
    assert found.report.computed == 1
    assert found.tokens == plainly(model, list(prompt.tokens), 8, do_sample=False)


def test_logits_and_generation_take_turns(pair: ModelPair) -> None:
    text = texts(100, 48)[16]
    engine = EdgePrompt(pair.draft, pair.tokenizer)
    engine.logits(split(text, 30))
    with torch.inference_mode():
        engine.load(split(text, 20))
    for cut in (30, 20, 30):
        found = engine.generate(split(text, cut), 8, do_sample=False)
        assert found.layout is Layout.BEHIND
        assert found.tokens == plainly(pair.draft, text, 8)


def test_an_error_midway_leaves_nothing_behind(pair: ModelPair) -> None:
    text = texts(100, 48)[18]
    engine = EdgePrompt(pair.draft, pair.tokenizer)
    before = pair.draft.config._attn_implementation

    def fails(ids: Any, scores: Any) -> Any:
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        engine.generate(split(text, 30), 8, logits_processor=[fails])
    assert pair.draft.config._attn_implementation == before
    found = engine.generate(split(text, 30), 8, do_sample=False)
    assert found.layout is Layout.BEHIND
    assert found.tokens == plainly(pair.draft, text, 8)


def test_caches_are_freed_without_the_collector(pair: ModelPair) -> None:
    engine = EdgePrompt(pair.draft, pair.tokenizer)
    gc.collect()
    gc.disable()
    try:
        engine.generate([split(texts(100, 48)[2], 30)] * 4, 4)
        alive = [thing for thing in gc.get_objects() if type(thing) is SplicedLayer]
    finally:
        gc.enable()
    assert not alive


def test_other_weights_under_the_same_name_share_nothing(
    pair: ModelPair, tmp_path: Path
) -> None:
    store = KVStore(tmp_path, key=KEY)
    prompt = split([1 + i % 90 for i in range(40)], 30)
    models = [tiny("llama", seed=seed) for seed in (0, 1)]
    for model in models:
        model.config._name_or_path = "same/name"
        engine = EdgePrompt(model, pair.tokenizer, store=store)
        found = engine.generate(prompt, 8, do_sample=False)
        assert found.report.computed == 1
        assert found.tokens == plainly(model, list(prompt.tokens), 8, do_sample=False)


def test_rows_of_one_prompt_lie_behind_it(pair: ModelPair) -> None:
    text = texts(100, 48)[17]
    engine = EdgePrompt(pair.target, pair.tokenizer)
    assert engine.generate(split(text, 30), 2).layout is Layout.BEHIND
    many = engine.generate([split(text * 20, 900)] * 32, 2)
    assert many[0].layout is Layout.APART
    rows = 32 * (60 + 2)
    token = 4 * 2 * 2 * 32 * 4
    assert many[0].shared_kv_bytes >= 900 * token
    assert many[0].private_kv_bytes >= rows * token


def test_a_text_longer_than_the_room(pair: ModelPair) -> None:
    model = tiny("llama")
    engine = EdgePrompt(model, pair.tokenizer)
    text = [1 + i % 90 for i in range(35)]
    found = engine.generate(split(text, 20), 600, do_sample=False)
    assert found.tokens == plainly(model, text, 600, do_sample=False)
    again = engine.generate(split(text, 20), 10, do_sample=False)
    assert again.tokens == found.tokens[:10]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (
            lambda: MistralForCausalLM(
                MistralConfig(
                    vocab_size=50,
                    hidden_size=16,
                    intermediate_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    num_key_value_heads=2,
                    sliding_window=8,
                )
            ),
            "Sliding",
        ),
        (
            lambda: MambaForCausalLM(
                MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1)
            ),
            "recurrent",
        ),
        (
            lambda: T5ForConditionalGeneration(
                T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=16, num_layers=1)
            ),
            "encoder-decoder",
        ),
        (
            lambda: LlamaForCausalLM(
                LlamaConfig(
                    vocab_size=50,
                    hidden_size=16,
                    intermediate_size=16,
                    num_hidden_layers=1,
                    num_attention_heads=2,
                    rope_parameters={
                        "rope_type": "dynamic",
                        "factor": 2.0,
                        "rope_theta": 10000.0,
                    },
                )
            ),
            "rotary embeddings of type dynamic",
        ),
        (lambda: tiny("llama").__class__(tiny("llama").config), "training mode"),
    ],
)
def test_models_that_cannot_be_spliced(model: Any, said: str, pair: ModelPair) -> None:
    made = model()
    if said != "training mode":
        made.train(False)
    else:
        made.train()
    with pytest.raises(InvalidInputError, match=said):
        EdgePrompt(made, pair.tokenizer)


def test_a_model_with_another_attention_is_found_out(pair: ModelPair) -> None:
    model = FAMILIES["llama"]().train(False)
    attention: Any = model.model.layers[0].self_attn
    original = attention.forward

    def looks_back(*args: Any, **kwargs: Any) -> Any:
        output, weights = original(*args, **kwargs)
        return output + output.mean(dim=1, keepdim=True), weights

    attention.forward = looks_back
    with pytest.raises(InvalidInputError, match="other logits"):
        EdgePrompt(model, pair.tokenizer)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"past_key_values": None}, "past_key_values"),
        ({"cache": None}, "cache"),
        ({"attention_mask": 1}, "attention_mask"),
        ({"num_return_sequences": 2}, "num_return_sequences"),
        ({"use_cache": False}, "use_cache"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens"),
        ({"generation_config": _config(use_cache=False)}, "use_cache"),
    ],
)
def test_options_of_the_engine(
    options: dict[str, Any], said: str, pair: ModelPair
) -> None:
    engine = EdgePrompt(pair.draft, pair.tokenizer)
    with pytest.raises(InvalidInputError, match=said):
        engine.generate(split([5, 6, 7], 2), 4, **options)


def test_bad_prompts(pair: ModelPair) -> None:
    engine = EdgePrompt(pair.draft, pair.tokenizer)
    with pytest.raises(InvalidInputError, match="no prompt"):
        engine.generate([], 4)
    with pytest.raises(InvalidInputError, match="at least 1, got 0"):
        engine.generate(split([5, 6, 7], 2), 0)
    with pytest.raises(InvalidInputError, match="share their shared"):
        engine.generate([split([5, 6, 7], 2), split([5, 8, 7], 2)], 4)
    with pytest.raises(InvalidInputError, match="own tokenizer"):
        engine.generate(split([5, 60_000, 7], 2), 4)
    with pytest.raises(InvalidInputError, match="more than the model's"):
        engine.generate(split([5] * 100, 2), 100_000)
    with pytest.raises(InvalidInputError, match="tenant's key"):
        engine.generate(split([5, 6, 7], 1, 2), 4)
    with pytest.raises(InvalidInputError, match="nothing to publish"):
        engine.publish(PromptHierarchy([Segment([5], Level.PRIVATE)]))
    with pytest.raises(InvalidInputError, match="max_error"):
        EdgePrompt(pair.draft, pair.tokenizer, max_error=-1.0)
    with pytest.raises(InvalidInputError, match="memory_bytes"):
        EdgePrompt(pair.draft, pair.tokenizer, memory_bytes=-1)
    with pytest.raises(InvalidInputError, match="must be among exact, fp16"):
        EdgePrompt(pair.draft, pair.tokenizer, precisions=["fp8"])
    unknown: Any = "gpt2"
    with pytest.raises(InvalidInputError, match="got str"):
        EdgePrompt(unknown, pair.tokenizer)
    with pytest.raises(InvalidInputError, match="tokenizer, got str"):
        EdgePrompt(pair.draft, unknown)
    with pytest.raises(InvalidInputError, match="bytes, got str"):
        EdgePrompt(pair.draft, pair.tokenizer, tenant_key=unknown)
    with pytest.raises(InvalidInputError, match="PromptHierarchy, got str"):
        engine.generate(unknown, 4)
    with pytest.raises(InvalidInputError, match="more than the model's"):
        engine.publish(PromptHierarchy([Segment([5] * 10_000, Level.PUBLIC)]))


def test_memory_for_loaded_prefixes_is_bounded(pair: ModelPair) -> None:
    engine = EdgePrompt(pair.draft, pair.tokenizer, memory_bytes=0)
    text = texts(100, 48)[19]
    prompts = [split(text, 20), split(text[5:], 20)]
    for prompt in (*prompts, *prompts):
        report = engine.generate(prompt, 2).report
        assert report.in_memory == 0
