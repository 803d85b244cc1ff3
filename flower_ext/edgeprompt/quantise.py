"""Numbers as few bits with a scale.

Implementation based on https://arxiv.org/abs/2402.02750 (KIVI: outliers of keys sit in
few channels, those of values do not).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

__all__ = [
    "GROUP",
    "SCALE",
    "dequantise",
    "dequantise_groups",
    "quantise",
    "quantise_groups",
]

GROUP = 32
"""The most tokens, or channels, that share a scale in 4 bits."""

SCALE = torch.bfloat16
"""What scales are kept in: two bytes, and as far a reach as float32 has."""


def _within_range(x: torch.Tensor) -> torch.Tensor:
    """Return numbers in float32, none so large that its quantised kin overflow."""
    # A rounded scale adds up to 2⁻⁷ of a width; and the width must fit in float32.
    largest = 0.98 * torch.finfo(x.dtype).max
    largest = min(largest, 0.45 * torch.finfo(torch.float32).max)
    return x.clamp(-largest, largest).float()


def quantise(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Write numbers as int8, each run of them with a scale.

    Parameters
    ----------
    x : torch.Tensor
        Floating-point, finite.
    dim : int
        Along which a run has one scale.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        int8 from -127 to 127 in the shape of ``x``, and the scales, which have that
        shape but for a 1 in place of ``dim``. None of the numbers is off by more than
        half its scale, but those that are larger than 0.98 of the dtype's largest or
        1.5e38, which are brought down to that.
    """
    x = _within_range(x)
    scale = -_rounded_down(-x.abs().amax(dim, keepdim=True) / 127)
    divisor = scale.float().masked_fill(scale == 0, 1)  # Where all is zero.
    return (x / divisor).round_().clamp_(-127, 127).to(torch.int8), scale


def dequantise(x: torch.Tensor, scale: torch.Tensor, out: torch.Tensor) -> None:
    """Undo :func:`quantise`.

    Parameters
    ----------
    x, scale : torch.Tensor
        As that returned them.
    out : torch.Tensor
        Of the shape of ``x`` and any floating-point dtype; a view, too. Overwritten.
    """
    work = _work(out)
    work.copy_(x).mul_(scale.float())
    _hand_over(work, out)


def quantise_groups(
    x: torch.Tensor, dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Write numbers in 4 bits, each group of :data:`GROUP` with a scale and a zero.

    Parameters
    ----------
    x : torch.Tensor
        Shape [heads, tokens, dim], floating-point, finite.
    dim : int
        Along which groups lie: 1 or 2. A last group may be shorter.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor, torch.Tensor]
        Scales and zeros, of the shape of ``x`` but for [groups, 1] in place of ``dim``;
        and uint8 of shape [heads, ⌈tokens / 2⌉, dim], the first half of the tokens in
        its lower bits. The numbers are as far off as :func:`quantise` has it.
    """
    x = _within_range(x)
    scales, zeros = [], []
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    for (part, _), (into, _) in zip(_groups(x, dim), _groups(codes, dim), strict=True):
        zero = _rounded_down(part.amin(dim + 1, keepdim=True))
        width = part.amax(dim + 1, keepdim=True) - zero.float()
        scale = -_rounded_down(-width / 15)
        divisor = scale.float().masked_fill(scale == 0, 1)  # Where all is the zero.
        into.copy_(((part - zero.float()) / divisor).round_().clamp_(0, 15))
        scales.append(scale)
        zeros.append(zero)
    half = -(-x.shape[1] // 2)
    packed = codes[:, :half].clone()
    packed[:, : x.shape[1] - half] |= codes[:, half:] << 4
    return torch.cat(scales, dim), torch.cat(zeros, dim), packed


def dequantise_groups(
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    out: torch.Tensor,
    dim: int,
) -> None:
    """Undo :func:`quantise_groups`.

    Parameters
    ----------
    packed, scale, zero : torch.Tensor
        As that returned them.
    out : torch.Tensor
        Shape [heads, tokens, dim] and any floating-point dtype; a view, too.
        Overwritten.
    dim : int
        As it was given then.
    """
    work = _work(out)
    # The second half of the tokens is in the upper bits: long runs for both copies.
    half = packed.shape[1]
    work[:, :half].copy_(packed & 15)
    work[:, half:].copy_(packed[:, : out.shape[1] - half] >> 4)
    for part, group in _groups(work, dim):
        factor = scale.narrow(dim, *group).float()
        offset = zero.narrow(dim, *group).float()
        part.mul_(factor).add_(offset)
    _hand_over(work, out)


def _groups(
    x: torch.Tensor, dim: int
) -> Iterator[tuple[torch.Tensor, tuple[int, int]]]:
    """Yield views whose dimension is cut into groups, and which: the first, how many.

    The whole groups come together; a shorter last one comes by itself.
    """
    whole, rest = divmod(x.shape[dim], GROUP)
    before, after = x.shape[:dim], x.shape[dim + 1 :]
    if whole:
        part = x.narrow(dim, 0, whole * GROUP)
        yield part.view(*before, whole, GROUP, *after), (0, whole)
    if rest:
        part = x.narrow(dim, whole * GROUP, rest)
        yield part.unsqueeze(dim), (whole, 1)


def _work(out: torch.Tensor) -> torch.Tensor:
    """Return where to compute in float32: in place, if that is the dtype."""
    if out.dtype == torch.float32:
        return out
    return torch.empty(out.shape, dtype=torch.float32, device=out.device)


def _hand_over(work: torch.Tensor, out: torch.Tensor) -> None:
    """Write what was computed to where it is needed."""
    if work is not out:
        out.copy_(work)


def _rounded_down(x: torch.Tensor) -> torch.Tensor:
    """Return the largest scales that are not above some float32 numbers.

    To the nearest, a number could come to lie outside of what the scale spans.
    """
    near = x.to(SCALE)
    bits = near.view(torch.int16)
    # The next one below has the next bits, of negative ones upwards.
    below = torch.where(torch.signbit(near), bits + 1, bits - 1)
    return torch.where(near.float() > x, below, bits).view(SCALE)
