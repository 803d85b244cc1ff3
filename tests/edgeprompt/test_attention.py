"""Kernels and the plain fallback say the same, also where they would not by nature."""

from __future__ import annotations

import math

import pytest
import torch

from flower_ext.edgeprompt.attention import _plain, attend


def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(dtype)


def test_by_hand() -> None:
    query = torch.ones(1, 1, 1, 1)
    key = torch.tensor([0.0, math.log(3.0)]).reshape(1, 1, 2, 1)
    value = torch.tensor([8.0, 4.0]).reshape(1, 1, 2, 1)
    for output, log in (
        attend(query, key, value, scale=1.0),
        _plain(query, key, value, None, False, 1.0),
    ):
        assert output.item() == pytest.approx(5.0)
        assert log.item() == pytest.approx(math.log(4.0))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("shared", [1, 4])
@pytest.mark.parametrize("dim", [16, 40])
def test_the_kernel_is_the_definition(causal: bool, shared: int, dim: int) -> None:
    keys = 7
    query = drawn(2, 2 * shared, keys if causal else 3, dim)
    key, value = drawn(2, 2, keys, dim), drawn(2, 2, keys, dim)
    torch.testing.assert_close(
        attend(query, key, value, causal=causal, scale=0.3),
        _plain(query, key, value, None, causal, 0.3),
    )


def test_a_query_that_sees_no_key_says_so() -> None:
    query, key = drawn(1, 2, 2, 8), drawn(1, 2, 5, 8)
    mask = torch.ones(1, 1, 2, 5, dtype=torch.bool)
    mask[..., 0, :] = False
    for output, log in (
        attend(query, key, key, mask),
        _plain(query, key, key, mask, False, None),
    ):
        assert torch.equal(output[:, :, 0], torch.zeros(1, 2, 8))
        assert log[:, :, 0].tolist() == [[-math.inf, -math.inf]]
        assert log[:, :, 1].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    query, key = drawn(1, 4, 3, 16, dtype=dtype), drawn(1, 2, 9, 16, dtype=dtype)
    output, log = attend(query, key, key)
    exact, exact_log = _plain(
        query.double(), key.double(), key.double(), None, False, None
    )
    assert output.dtype == dtype
    assert log.dtype == torch.float32
    assert (output - exact).abs().max() < 0.02
    assert (log - exact_log).abs().max() < 0.02


def test_values_of_another_width() -> None:
    output, log = attend(drawn(1, 2, 3, 8), drawn(1, 2, 5, 8), drawn(1, 2, 5, 6))
    assert output.shape == (1, 2, 3, 6)
    assert log.shape == (1, 2, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("masked", [False, True])
def test_on_cuda(masked: bool) -> None:
    query, key = drawn(2, 4, 3, 32).cuda(), drawn(2, 2, 9, 32).cuda()
    mask = None
    if masked:
        mask = torch.rand(2, 1, 3, 9, device="cuda") < 0.5
        mask[0, :, 0] = False
    torch.testing.assert_close(
        attend(query, key, key, mask),
        _plain(query, key, key, mask, False, None),
        atol=1e-4,
        rtol=1e-4,
    )
