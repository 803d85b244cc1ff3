"""Attention that tells its log-sum-exp, by torch's own kernels where they do."""

from __future__ import annotations

import math

import torch

__all__ = ["attend"]

_FLASH_ON_CPU = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_EFFICIENT_ON_CUDA = torch.ops.aten._scaled_dot_product_efficient_attention
_WIDEST_HEAD = 256  # Of what the kernels take.


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    causal: bool = False,
    scale: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend, and tell the log-sum-exp of each query's scores.

    Parameters
    ----------
    query : torch.Tensor
        Of shape [batch, heads, queries, dim].
    key, value : torch.Tensor
        Of shape [batch, key heads, keys, dim] and [..., value dim]; ``heads`` is a
        multiple of ``key heads``, and each of these serves as many neighbours.
    mask : torch.Tensor | None (default: None)
        True where a query sees a key; broadcasts to [batch, heads, queries, keys].
    causal : bool (default: False)
        Whether query i sees the keys 0 to i only; as many queries as keys, no mask.
    scale : float | None (default: None)
        What scores are multiplied by; None: 1/√dim.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        The output [batch, heads, queries, value dim], and the log-sum-exp [batch,
        heads, queries] in float32 or wider, −∞ (with an output of zeros) where a query
        sees no key.
    """
    if _kernel_fits(query, key, value):
        if query.device.type == "cpu":
            return _on_cpu(query, key, value, mask, causal, scale)
        if query.device.type == "cuda" and query.dtype != torch.float64:
            return _on_cuda(query, key, value, mask, causal, scale)
    return _plain(query, key, value, mask, causal, scale)


def _kernel_fits(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Return whether torch's kernels take these shapes."""
    return (
        q.shape[-1] == v.shape[-1] <= _WIDEST_HEAD
        and q.shape[-2] > 0
        and k.shape[-2] > 0
        and q.dtype == k.dtype == v.dtype
        and q.dtype.is_floating_point
    )


def _on_cpu(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Use the flash kernel; it shares key heads among neighbours by itself."""
    bias = None
    if mask is not None:
        bias = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device)
        bias.masked_fill_(~mask, -math.inf)
    output, log = _FLASH_ON_CPU(
        query, key, value, 0.0, causal, attn_mask=bias, scale=scale
    )
    return _blank(output, log, mask)


def _on_cuda(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Use the memory-efficient kernel, which takes float32 and masks as well."""
    queries, keys = query.shape[-2], key.shape[-2]
    shared = query.shape[1] // key.shape[1]
    if shared > 1:
        key = key.repeat_interleave(shared, dim=1)
        value = value.repeat_interleave(shared, dim=1)
    bias = None
    if mask is not None:
        # Rows of the bias must begin at multiples of eight elements.
        room = -(-keys // 8) * 8
        shape = (query.shape[0], query.shape[1], queries, room)
        bias = query.new_zeros(shape)[..., :keys]
        bias.masked_fill_(~mask, -math.inf)
    output, log, *_ = _EFFICIENT_ON_CUDA(
        query, key, value, bias, True, 0.0, causal, scale=scale
    )
    return _blank(output, log[..., :queries], mask)


def _blank(
    output: torch.Tensor, log: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Say −∞ where a query sees no key; kernels say 0 there."""
    if mask is None:
        return output, log
    blind = ~mask.any(dim=-1)
    log = log.masked_fill(blind, -math.inf)
    return output.masked_fill(blind.unsqueeze(-1), 0.0), log


def _plain(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    causal: bool,
    scale: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Write the definition down, in float32 at least."""
    shared = query.shape[1] // key.shape[1]
    wide = torch.promote_types(query.dtype, torch.float32)
    key = key.repeat_interleave(shared, dim=1).to(wide)
    value = value.repeat_interleave(shared, dim=1)
    scale = 1.0 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = (query.to(wide) * scale) @ key.transpose(-1, -2)
    if causal:
        mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -math.inf)
    log = scores.logsumexp(dim=-1)
    weights = (scores - log.masked_fill(log == -math.inf, 0.0).unsqueeze(-1)).exp_()
    return (weights @ value.to(wide)).to(query.dtype), log
