"""Attention over a whole from attention over its parts, exactly.

Implementation based on the EdgePrompt paper (https://arxiv.org/abs/2504.11729); the
identity is that of FlashAttention's blocks (https://arxiv.org/abs/2205.14135, section
3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flower_ext.errors import InvalidInputError

__all__ = ["merge_attention"]


def merge_attention(
    outputs: Sequence[torch.Tensor], log_sum_exps: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge what the same queries have attended to in disjoint sets of keys.

    With o_i the output over set i and ℓ_i the logarithm of the sum of its exponentiated
    scores, ℓ = logsumexp(ℓ_i) and o = Σ e^(ℓ_i − ℓ) o_i. It takes any number of sets,
    and what it returns can be merged again.

    Parameters
    ----------
    outputs : Sequence[torch.Tensor]
        Per set, of shape [..., dim], at least one.
    log_sum_exps : Sequence[torch.Tensor]
        Per set, of shape [...]; −∞ where a query sees no key of the set.

    Returns
    -------
    tuple[torch.Tensor, torch.Tensor]
        The output [..., dim], in the outputs' dtype, and the log-sum-exp [...], in
        float32 or wider. A query that sees no key at all gets zeros and −∞.

    Raises
    ------
    InvalidInputError
        If there is no set, or the shapes do not fit together.

    Examples
    --------
    >>> a, b = torch.tensor([[1.0]]), torch.tensor([[4.0]])
    >>> ones = torch.tensor([2.0]).log()  # two keys with score 0
    >>> merge_attention([a, b], [torch.zeros(1), ones])[0]
    tensor([[3.]])
    """
    if not outputs or len(outputs) != len(log_sum_exps):
        raise InvalidInputError(
            "Attention is merged from as many outputs as log-sum-exps, at least one, "
            f"got {len(outputs)} and {len(log_sum_exps)}."
        )
    for output, log in zip(outputs, log_sum_exps, strict=True):
        if output.shape != outputs[0].shape or output.shape[:-1] != log.shape:
            raise InvalidInputError(
                "Outputs need one shape [..., dim] and log-sum-exps the shape [...], "
                f"got {tuple(output.shape)} and {tuple(log.shape)} beside "
                f"{tuple(outputs[0].shape)}."
            )
    if len(outputs) == 1:
        return outputs[0], _wide(log_sum_exps[0])
    logs = torch.stack([_wide(log) for log in log_sum_exps])
    # From their own largest, since ℓ_i − ℓ loses digits where scores are large; and no
    # number where all are −∞.
    largest = logs.amax(dim=0)
    largest.masked_fill_(largest == -torch.inf, 0.0)
    weights = (logs - largest).exp_()
    sums = weights.sum(dim=0)
    total = sums.log() + largest
    weights /= sums.masked_fill_(sums == 0.0, 1.0)
    merged = weights[0].unsqueeze(-1) * outputs[0]
    for weight, output in zip(weights[1:], outputs[1:], strict=True):
        merged.addcmul_(weight.unsqueeze(-1), output.to(merged.dtype))
    return merged.to(outputs[0].dtype), total


def _wide(log: torch.Tensor) -> torch.Tensor:
    """Return it in float32 at least."""
    return log if log.dtype == torch.float64 else log.float()
