"""Merged parts are the whole, whatever the parts are."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flower_ext.edgeprompt import merge_attention
from flower_ext.edgeprompt.attention import _plain, attend
from flower_ext.errors import InvalidInputError


def test_two_keys_by_hand() -> None:
    # Scores 0 and log 3: weights 1/4 and 3/4.
    a, b = torch.tensor([[8.0]]), torch.tensor([[4.0]])
    logs = [torch.zeros(1), torch.tensor([math.log(3.0)])]
    output, log = merge_attention([a, b], logs)
    assert output.tolist() == [[5.0]]
    assert log.item() == pytest.approx(math.log(4.0))


def test_a_set_that_a_query_does_not_see_counts_for_nothing() -> None:
    seen, unseen = torch.tensor([[2.0]]), torch.tensor([[7.0]])
    logs = [torch.tensor([-math.inf]), torch.tensor([1.5])]
    output, log = merge_attention([unseen, seen], logs)
    assert output.item() == 2.0
    assert log.item() == 1.5


def test_a_query_that_sees_nothing_gets_zeros() -> None:
    blind = [torch.tensor([-math.inf])] * 2
    output, log = merge_attention([torch.zeros(1, 1)] * 2, blind)
    assert output.item() == 0.0
    assert log.item() == -math.inf


def test_large_scores_do_not_overflow() -> None:
    logs = [torch.tensor([1e4]), torch.tensor([1e4])]
    output, log = merge_attention([torch.ones(1, 1), 3 * torch.ones(1, 1)], logs)
    assert output.item() == pytest.approx(2.0)
    assert log.item() == pytest.approx(1e4 + math.log(2))


def test_half_precision_stays_half() -> None:
    parts = [torch.ones(1, 2, dtype=torch.bfloat16)] * 2
    output, log = merge_attention(parts, [torch.zeros(1, dtype=torch.bfloat16)] * 2)
    assert output.dtype == torch.bfloat16
    assert log.dtype == torch.float32


@pytest.mark.parametrize(
    ("outputs", "logs"),
    [
        ([], []),
        ([torch.ones(2, 3)], []),
        ([torch.ones(2, 3)], [torch.ones(3)]),
        ([torch.ones(2, 3), torch.ones(2, 4)], [torch.ones(2), torch.ones(2)]),
    ],
)
def test_shapes_that_do_not_fit(
    outputs: list[torch.Tensor], logs: list[torch.Tensor]
) -> None:
    with pytest.raises(InvalidInputError):
        merge_attention(outputs, logs)


@given(
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(1, 39), max_size=4, unique=True),
    queries=st.integers(1, 5),
    shared=st.sampled_from([1, 2, 3]),
    kernel=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_cut_of_the_keys(
    seed: int, cuts: list[int], queries: int, shared: int, kernel: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return 3 * torch.randn(shape, generator=generator)

    query = drawn(2, 2 * shared, queries, 8)
    key, value = drawn(2, 2, 40, 8), drawn(2, 2, 40, 8)
    mask = torch.rand((2, 1, queries, 40), generator=generator) < 0.6
    function = attend if kernel else _plain_attend
    whole, log = _plain(query, key, value, mask, False, None)
    borders = [0, *sorted(cuts), 40]
    parts = [
        function(query, key[..., a:b, :], value[..., a:b, :], mask[..., a:b])
        for a, b in itertools.pairwise(borders)
    ]
    merged, merged_log = merge_attention([o for o, _ in parts], [x for _, x in parts])
    torch.testing.assert_close(merged, whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(merged_log, log, atol=1e-5, rtol=1e-5)


def _plain_attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    return _plain(query, key, value, mask, False, None)
