"""A spliced prompt is the whole prompt: any cut, any batch, any layout, any family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, PreTrainedModel

from flower_ext.edgeprompt.prefix_kv import PrefixKV
from flower_ext.edgeprompt.splice import (
    ATTENTION,
    Layout,
    SplicedLayer,
    spliced,
    spliced_cache,
)
from flower_ext.errors import InvalidInputError
from flower_ext.models.cache_argument import forward_cache
from tests.edgeprompt.tiny import FAMILIES, VOCABULARY, prefix_of, tiny

TOLERANCE = 1e-5


def relative(found: torch.Tensor, whole: torch.Tensor) -> float:
    return float((found - whole).abs().max() / whole.abs().max())


def padded(
    shared: list[int], tails: list[list[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return tails padded at the left, and the mask over prefix and tails."""
    longest = max(map(len, tails))
    ids = torch.zeros((len(tails), longest), dtype=torch.long)
    mask = torch.ones((len(tails), len(shared) + longest), dtype=torch.long)
    for index, tail in enumerate(tails):
        ids[index, longest - len(tail) :] = torch.tensor(tail)
        mask[index, len(shared) : len(shared) + longest - len(tail)] = 0
    return ids, mask


@torch.inference_mode()
def forward(
    model: PreTrainedModel,
    cache: DynamicCache,
    ids: torch.Tensor,
    mask: torch.Tensor,
) -> torch.Tensor:
    positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    with spliced(model):
        output: Any = model(
            ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=True,
            **forward_cache(model, cache),
        )
    logits: torch.Tensor = output.logits
    return logits


tokens = st.integers(1, VOCABULARY - 1)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_logits_of_any_split(family: str, data: st.DataObject) -> None:
    model = tiny(family)
    levels = data.draw(
        st.lists(st.lists(tokens, min_size=1, max_size=40), min_size=1, max_size=3)
    )
    tails = data.draw(
        st.lists(st.lists(tokens, min_size=1, max_size=12), min_size=1, max_size=4)
    )
    steps = data.draw(st.integers(1, 3))
    layout = data.draw(st.sampled_from(Layout))
    if layout is Layout.BEHIND:
        levels, tails = [[t for level in levels for t in level]], tails[:1]
    prefixes: list[PrefixKV] = []
    for level in levels:
        room = 64 if layout is Layout.BEHIND else 0
        prefixes.append(prefix_of(model, level, prefixes, room))
    if layout is Layout.BEHIND:
        assert prefixes[0].lend()
    shared = [t for level in levels for t in level]
    cache = spliced_cache(prefixes, layout)
    ids, mask = padded(shared, tails)
    logits = forward(model, cache, ids, mask)
    more = torch.randint(
        1, VOCABULARY, (len(tails), steps), generator=torch.Generator().manual_seed(1)
    )
    found = [logits]
    for step in range(steps):
        mask = torch.cat([mask, mask.new_ones(len(tails), 1)], dim=-1)
        found.append(forward(model, cache, more[:, step : step + 1], mask))
    together = torch.cat(found, dim=1)
    for index, tail in enumerate(tails):
        text = [*shared, *tail, *more[index].tolist()]
        with torch.inference_mode():
            whole = model(torch.tensor([text])).logits[0, len(shared) :]
        own = together[index, -len(tail) - steps :]
        assert relative(own, whole) <= TOLERANCE


def test_the_prefix_is_held_once() -> None:
    model = tiny("llama")
    prefix = prefix_of(model, list(range(1, 65)))
    cache: Any = spliced_cache([prefix])
    ids, mask = padded(list(range(64)), [[5]] * 8)
    forward(model, cache, ids, mask)
    assert {len(layer.keys) for layer in cache.layers} == {8}
    assert {layer.keys.shape[-2] for layer in cache.layers} == {1}
    for layer in cache.layers:
        assert layer.shared()[0][0].shape == (1, 2, 64, 8)
        assert (
            layer.shared()[0][0].data_ptr() == prefix.layer(layer._index)[0].data_ptr()
        )


def test_a_row_behind_the_prefix_copies_nothing_and_leaves_nothing() -> None:
    model = tiny("llama")
    prefix = prefix_of(model, list(range(1, 33)), room=16)
    before = [keys.clone() for keys in prefix.keys]
    assert prefix.lend()
    assert not prefix.lend()  # One row at a time.
    cache: Any = spliced_cache([prefix], Layout.BEHIND)
    ids, mask = padded(list(range(32)), [[5, 6, 7]])
    forward(model, cache, ids, mask)
    layer = cache.layers[0]
    assert layer.whole()[0].data_ptr() == prefix.layer(0)[0].data_ptr()
    assert layer.nbytes == 0
    prefix.give_back()
    for index, keys in enumerate(before):
        room, _ = prefix.room(index)
        assert torch.equal(room[..., :32, :], keys)
        assert not room[..., 32:, :].any()
    assert prefix.lend()


def test_a_row_that_outgrows_the_room_goes_on_in_a_copy() -> None:
    model = tiny("llama")
    shared = list(range(1, 20))
    prefix = prefix_of(model, shared, room=4)
    assert prefix.lend()
    cache: Any = spliced_cache([prefix], Layout.BEHIND)
    tail = [3, 1, 4, 1, 5, 9, 2, 6]
    for index in range(len(tail)):
        ids = torch.tensor([tail[index : index + 1]])
        mask = torch.ones((1, len(shared) + index + 1), dtype=torch.long)
        logits = forward(model, cache, ids, mask)
    with torch.inference_mode():
        whole = model(torch.tensor([[*shared, *tail]])).logits[0, -1]
    assert relative(logits[0, -1], whole) <= TOLERANCE
    assert cache.layers[0].nbytes > 0


@pytest.mark.parametrize("layout", [Layout.APART, Layout.COPIED])
def test_rows_are_reordered_repeated_and_selected(layout: Layout) -> None:
    model = tiny("qwen2")
    shared = list(range(1, 20))
    prefix = prefix_of(model, shared)
    cache: Any = spliced_cache([prefix], layout)
    tails = [[3, 1], [4, 15], [9, 2]]
    forward(model, cache, *padded(shared, tails))
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    cache.batch_repeat_interleave(2)
    cache.batch_select_indices(torch.tensor([0, 3]))
    mask = torch.ones((2, len(shared) + 3), dtype=torch.long)
    logits = forward(model, cache, torch.tensor([[7], [7]]), mask)
    for index, tail in enumerate([tails[2], tails[0]]):
        with torch.inference_mode():
            whole = model(torch.tensor([[*shared, *tail, 7]])).logits[0, -1]
        assert relative(logits[index, -1], whole) <= TOLERANCE


def test_a_tail_is_cropped_and_a_prefix_is_not() -> None:
    model = tiny("gpt2")
    shared = list(range(1, 20))
    cache: Any = spliced_cache([prefix_of(model, shared)])
    forward(model, cache, *padded(shared, [[3, 1, 4, 1]]))
    cache.crop(-2)
    assert cache.get_seq_length() == len(shared) + 2
    mask = torch.ones((1, len(shared) + 3), dtype=torch.long)
    logits = forward(model, cache, torch.tensor([[7]]), mask)
    with torch.inference_mode():
        whole = model(torch.tensor([[*shared, 3, 1, 7]])).logits[0, -1]
    assert relative(logits[0, -1], whole) <= TOLERANCE
    with pytest.raises(InvalidInputError, match="cannot be cropped"):
        cache.crop(-4)


def test_other_caches_work_in_a_spliced_model() -> None:
    model = tiny("llama")
    ids = torch.randint(1, VOCABULARY, (2, 9))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    with torch.inference_mode():
        plain = model(ids, attention_mask=mask).logits
        with spliced(model):
            other = model(ids, attention_mask=mask).logits
    torch.testing.assert_close(other[:, 3:], plain[:, 3:])


def test_the_model_gets_its_attention_back() -> None:
    model = tiny("llama")
    before = model.config._attn_implementation
    with pytest.raises(RuntimeError), spliced(model):
        raise RuntimeError
    assert model.config._attn_implementation == before


def test_the_last_to_leave_puts_the_attention_back() -> None:
    model = tiny("llama")
    before = model.config._attn_implementation
    first, second = spliced(model), spliced(model)
    with first:
        second.__enter__()
    assert model.config._attn_implementation == ATTENTION
    second.__exit__(None, None, None)
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("layout", [Layout.APART, Layout.COPIED])
def test_logits_behind_a_thousand_tokens(layout: Layout) -> None:
    model = tiny("llama")
    generator = torch.Generator().manual_seed(3)
    drawn = torch.randint(1, VOCABULARY, (1010,), generator=generator).tolist()
    shared, tail = drawn[:1000], drawn[1000:]
    cache = spliced_cache([prefix_of(model, shared)], layout)
    found = forward(model, cache, *padded(shared, [tail]))[0]
    with torch.inference_mode():
        whole = model(torch.tensor([drawn])).logits[0, 1000:]
    assert relative(found, whole) <= TOLERANCE


def test_a_mask_that_hides_the_prefix_is_refused() -> None:
    model = tiny("llama")
    cache = spliced_cache([prefix_of(model, [1, 2, 3])])
    mask = torch.tensor([[1, 0, 1, 1]])
    with pytest.raises(InvalidInputError, match="hides tokens"):
        forward(model, cache, torch.tensor([[5]]), mask)


def test_prefixes_of_one_model() -> None:
    with pytest.raises(InvalidInputError, match="at least one"):
        spliced_cache([])


def test_a_layer_is_waited_for_before_it_is_read() -> None:
    model = tiny("llama")
    prefix = prefix_of(model, [1, 2, 3, 4])
    read: list[int] = []
    prefix.wait_with(read.append)
    forward(model, spliced_cache([prefix]), *padded([1, 2, 3, 4], [[5, 6]]))
    assert read == [0, 1, 2]


def test_a_layer_says_what_it_is() -> None:
    prefix = prefix_of(tiny("llama"), [1, 2, 3, 4])
    layer = SplicedLayer([prefix], 0, Layout.APART)
    assert layer.get_seq_length() == 4
    assert layer.get_mask_sizes(3) == (3, 4)
    assert layer.nbytes == 0
