"""A prefill that is stopped when what it computes is not wanted any more."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from flower_ext.edgeprompt.prefill import StoppedError, prefill, stops_within
from tests.edgeprompt.tiny import FAMILIES, tiny

TOKENS = list(range(1, 9))


def matrices(family: str) -> int:
    """Return how many there are in a layer."""
    return 4 if family == "gpt2" else 7


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_asked_before_every_matrix_and_stops_at_once(family: str) -> None:
    model, asked = tiny(family), 0
    whole = prefill(model, TOKENS)

    def until(last: int) -> bool:
        nonlocal asked
        asked += 1
        return asked <= last

    same = prefill(model, TOKENS, useful=lambda: until(10**6))
    assert asked == 3 * (matrices(family) + 1)  # and where a layer's KV is kept
    for (keys, values), (k, v) in zip(whole, same, strict=True):
        assert torch.equal(keys, k)
        assert torch.equal(values, v)

    asked, computed = 0, []
    kinds = [m for m in model.base_model.modules() if not list(m.children())]
    hooks = [
        m.register_forward_hook(lambda m, *_: computed.append(m))
        for m in kinds
        if not isinstance(m, nn.Embedding)
        and any(p.ndim > 1 for p in m.parameters(recurse=False))
    ]
    with pytest.raises(StoppedError):
        prefill(model, TOKENS, useful=lambda: until(4))
    for hook in hooks:
        hook.remove()
    assert len(computed) == 3
    assert asked == 5

    prefill(model, TOKENS)
    assert asked == 5  # nobody is asked who does not want to be


def test_what_other_threads_compute_with_the_model_goes_on() -> None:
    """An edge in the same process may use the same model at the same time."""
    model, told = tiny("llama"), []

    def other() -> None:
        model(torch.tensor([TOKENS]))
        told.append(True)

    def useful() -> bool:
        if not told:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        return False

    with pytest.raises(StoppedError):
        prefill(model, TOKENS, useful=useful)
    assert told == [True]


def test_layers_whose_weights_are_packed_are_stopped_once_each() -> None:
    model, asked = copy.deepcopy(tiny("llama")), 0
    for module in model.modules():
        if isinstance(module, nn.Linear):
            weight = module.weight.detach()
            del module.weight
            module.register_buffer("weight", weight)

    def second() -> bool:
        nonlocal asked
        asked += 1
        return asked < 2

    assert stops_within(model, 8) == pytest.approx(1 / 3)
    with pytest.raises(StoppedError):
        prefill(model, TOKENS, useful=second)
    assert asked == 2


def test_the_largest_piece_is_a_matrix_or_where_texts_are_long_the_attention() -> None:
    # Of a layer: 48 x 48 queries and outputs, 48 x 16 keys and values, three 48 x 64.
    largest, layer = 48 * 64, 2 * 48 * 48 + 2 * 48 * 16 + 3 * 48 * 64
    for tokens in (8, 400):
        attention = 2 * tokens * 48
        expected = max(largest, attention) / (3 * (layer + attention))
        assert stops_within(tiny("llama"), tokens) == pytest.approx(expected)
